"""Checkpoints out: any layout that ``load`` reads, written as any other, and compared before it appears.

======================  ============================================================================
``open_clip``           folder that OpenCLIP loads as ``local-dir:FOLDER``, or from the hub as ``hf-hub:``
``transformers``        ``CLIPModel`` or ``SiglipModel`` folder with image processor and tokenizer
``tripletclip``         ``text-encoder/`` and ``vision-encoder/``, as TripletCLIP's authors released
``pt``                  folder with OpenCLIP's ``epoch_0.pt`` and its model config
======================  ============================================================================
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.checks import PROBES
from open_clip_triplet.evaluation.checkpoints.convert import (
    State,
    open_clip_config,
    to_open_clip,
    to_transformers,
    transformers_config,
)
from open_clip_triplet.evaluation.checkpoints.load import load
from open_clip_triplet.evaluation.checkpoints.loaded import LoadedCheckpoint, no_code_from_checkpoints
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec

#: largest difference of a unit-norm feature's entry between source and copy
TOLERANCE = 1e-5
#: timm's SigLIP image tower has the exact GELU where transformers' has its tanh approximation
SIGLIP_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Portable:
    """A checkpoint between layouts: OpenCLIP's config and names, fp32 weights, what images and texts need."""

    config: dict
    state: State
    tokenizer: Any
    preprocessing: dict


def export(
    spec: CheckpointSpec, folder: str | Path, to: str = "open_clip", card: Callable[[dict], str] | None = None
) -> tuple[Path, float]:
    """Write a checkpoint in another layout; the folder appears whole, and only if it gives the same features.

    Args:
        to: one of ``TARGETS``.
        card: OpenCLIP's model config -> text of the README.md (model card), or None.

    Returns:
        The folder, and the largest difference between the features of source and copy.

    Raises:
        CheckpointError: the folder already holds a model; ``to`` cannot represent it; the copy differs.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: already holds a model; choose another folder")
    source = load(replace(spec, precision="fp32"))
    portable = to_portable(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with no_code_from_checkpoints():
            _WRITERS[to](portable, temporary)
        if card:
            (temporary / "README.md").write_text(card(portable.config), encoding="utf-8")
        difference = compare(source, load(_spec_of(temporary, to)))
        tolerance = SIGLIP_TOLERANCE if _changes_activation(source, to) else TOLERANCE
        if not difference <= tolerance:
            raise CheckpointError(
                f"{folder}: not written: its features would differ from {spec.pretrained}'s by {difference:.1e}"
            )
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder, difference


def _spec_of(folder: Path, to: str) -> CheckpointSpec:
    """How the copy is loaded again."""
    if to == "pt":
        config = folder / "model_config.json"
        return CheckpointSpec(config.stem, str(folder / "epoch_0.pt"), model_config=str(config))
    return CheckpointSpec("", str(folder))


def _changes_activation(source: LoadedCheckpoint, to: str) -> bool:
    config: Any = getattr(getattr(source.model, "clip", None), "config", None)
    return (
        to in ("open_clip", "pt")
        and getattr(config, "model_type", "") == "siglip"
        and config.vision_config.hidden_act != "gelu"
    )


def to_portable(loaded: LoadedCheckpoint) -> Portable:
    """A loaded checkpoint under OpenCLIP's names.

    Raises:
        CheckpointError: OpenCLIP has no such model, or prepares images otherwise.
    """
    if loaded.config is not None:
        state = {name: x.detach().float().cpu() for name, x in loaded.model.state_dict().items()}
        return Portable(loaded.config, state, loaded.tokenizer, dict(loaded.model.visual.preprocess_cfg))
    clip = loaded.model.clip
    config = open_clip_config(clip.config)
    state = to_open_clip({n: x.detach().float().cpu() for n, x in clip.state_dict().items()}, clip.config.model_type)
    return Portable(config, state, loaded.tokenizer, _preprocessing(loaded.preprocess.processor))  # type: ignore[attr-defined]


def _preprocessing(processor) -> dict:
    """OpenCLIP's preprocess config of an image processor."""
    said = processor.to_dict()
    size, crop = dict(said["size"]), said.get("do_center_crop", False)
    refusal = f"OpenCLIP does not prepare images as the image processor does: {json.dumps(said, default=str)}"
    if "shortest_edge" in size and crop and set(dict(said["crop_size"]).values()) == {size["shortest_edge"]}:
        mode, pixels = "shortest", size["shortest_edge"]
    elif "height" in size and size["height"] == size["width"] and not crop:
        mode, pixels = "squash", size["height"]
    else:
        raise CheckpointError(refusal)
    interpolation = {2: "bilinear", 3: "bicubic"}.get(int(said.get("resample", 3)))
    if not interpolation or not said.get("do_resize", True) or not said.get("do_normalize", True):
        raise CheckpointError(refusal)
    return {"size": pixels, "mean": tuple(said["image_mean"]), "std": tuple(said["image_std"]),
            "interpolation": interpolation, "resize_mode": mode}


def compare(first: LoadedCheckpoint, second: LoadedCheckpoint) -> float:
    """The largest difference of unit-norm features on random images and a few captions, from -1..1."""
    size = _pixels(first)
    if size != _pixels(second):
        return float("inf")
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    largest = 0.0
    with torch.inference_mode():
        for rows in (
            [model.model.encode_image(images) for model in (first, second)],
            [model.model.encode_text(model.tokenizer(list(PROBES))) for model in (first, second)],
        ):
            a, b = (torch.nn.functional.normalize(x.float(), dim=-1) for x in rows)
            if a.shape != b.shape:
                return float("inf")
            largest = max(largest, float((a - b).abs().max()))
    return largest


def _pixels(loaded: LoadedCheckpoint) -> tuple[int, int]:
    if loaded.config is not None:
        size = loaded.model.visual.image_size
        return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    return (loaded.model.clip.config.vision_config.image_size,) * 2


# -- writers --------------------------------------------------------------------------------------------


def _write_open_clip(portable: Portable, folder: Path) -> None:
    config = json.loads(json.dumps(portable.config))
    text = config["text_cfg"]
    hf_tokenizer = getattr(portable.tokenizer, "tokenizer", None)
    if hf_tokenizer is not None and not _is_clip_tokenizer(portable):
        hf_tokenizer.save_pretrained(folder)
        text.setdefault("hf_tokenizer_name", folder.name.strip(".").split(".")[0])
    else:
        text.pop("hf_tokenizer_name", None)
    text.get("tokenizer_kwargs", {}).pop("trust_remote_code", None)
    _save(portable.state, folder / "open_clip_model.safetensors")
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocessing = {key: portable.preprocessing[key] for key in keys}
    _write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocessing})


def _write_pt(portable: Portable, folder: Path) -> None:
    config = json.loads(json.dumps(portable.config))
    if not _is_clip_tokenizer(portable):
        raise CheckpointError("a .pt file holds no tokenizer, and this is not CLIP's own: write it as open_clip")
    config["text_cfg"].pop("hf_tokenizer_name", None)
    torch.save({"epoch": 0, "name": folder.name, "state_dict": portable.state}, folder / "epoch_0.pt")
    _write_json(folder / "model_config.json", config)


def _write_transformers(portable: Portable, folder: Path) -> None:
    from transformers import CLIPModel, SiglipModel

    state = _flat(portable)
    kind, config = transformers_config(portable.config, state)
    model = (CLIPModel if kind == "clip" else SiglipModel)(config)
    model.load_state_dict(to_transformers(state, kind), strict=False)  # position_ids are no parameters
    _write_tokenizer(portable, folder)
    model.save_pretrained(folder)
    _processor(portable.preprocessing, config.vision_config.image_size).save_pretrained(folder)


def _write_released(portable: Portable, folder: Path) -> None:
    state = _flat(portable)
    kind, config = transformers_config(portable.config, state)
    if kind != "clip":
        raise CheckpointError("the released layout holds CLIP towers with projections, not SigLIP's")
    towers = to_transformers(state, kind)
    for part, names, tower in (
        ("text-encoder", ("text_model.", "text_projection."), config.text_config),
        ("vision-encoder", ("vision_model.", "visual_projection."), config.vision_config),
    ):
        (folder / part).mkdir()
        kept = {f"model.{n}": x for n, x in towers.items() if n.startswith(names)}
        _save(kept, folder / part / "model.safetensors")
        _write_json(folder / part / "config.json", {**tower.to_dict(), "projection_dim": config.projection_dim})
    _write_tokenizer(portable, folder)
    _processor(portable.preprocessing, config.vision_config.image_size).save_pretrained(folder)


_WRITERS: dict[str, Callable[[Portable, Path], None]] = {
    "open_clip": _write_open_clip, "transformers": _write_transformers, "tripletclip": _write_released, "pt": _write_pt,
}


def _flat(portable: Portable) -> State:
    """The state of OpenCLIP's ``CLIP``, also where it was a ``CustomTextCLIP`` with the same text tower."""
    if "timm_model_name" in portable.config["vision_cfg"]:
        return portable.state
    return {name.removeprefix("text."): x for name, x in portable.state.items()}


def _processor(preprocessing: dict, size: int):
    from transformers import CLIPImageProcessor

    mode = preprocessing["resize_mode"]
    if mode not in ("shortest", "squash") or preprocessing["interpolation"] not in ("bicubic", "bilinear"):
        raise CheckpointError(
            f"transformers' image processor has no {mode} resizing with {preprocessing['interpolation']}"
        )
    sides = {"height": size, "width": size}
    return CLIPImageProcessor(
        size={"shortest_edge": size} if mode == "shortest" else sides, crop_size=sides,
        do_center_crop=mode == "shortest", resample=3 if preprocessing["interpolation"] == "bicubic" else 2,
        image_mean=list(preprocessing["mean"]), image_std=list(preprocessing["std"]),
    )


# -- tokenizers -----------------------------------------------------------------------------------------


def _is_clip_tokenizer(portable: Portable) -> bool:
    """Whether OpenCLIP's bundled tokenizer gives the same embeddings: equal tokens up to the padding, which a
    causal text tower does not see."""
    from open_clip import SimpleTokenizer

    tokenizer = portable.tokenizer
    if isinstance(tokenizer, SimpleTokenizer):
        return True
    if portable.config["text_cfg"].get("no_causal_mask"):
        return False
    bundled = SimpleTokenizer(context_length=tokenizer.context_length)
    ours, theirs = bundled(list(PROBES)), tokenizer(list(PROBES))
    used = ours != 0
    return ours.shape == theirs.shape and bool((ours == theirs)[used].all())


def _write_tokenizer(portable: Portable, folder: Path) -> None:
    tokenizer = portable.tokenizer
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None:
        inner.save_pretrained(folder)
        return
    from open_clip import SimpleTokenizer
    from transformers import CLIPTokenizer

    if not isinstance(tokenizer, SimpleTokenizer):
        raise CheckpointError(f"transformers has no tokenizer for OpenCLIP's {type(tokenizer).__name__}")
    words = list(tokenizer.encoder)
    if len(words) != 49408:
        raise CheckpointError(f"transformers' CLIP tokenizer has 49408 tokens, this one {len(words)}")
    words[-2:] = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in tokenizer.bpe_ranks],
        model_max_length=tokenizer.context_length,
    ).save_pretrained(folder)
    # the two files that older libraries read
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def _save(state: State, file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: x.contiguous() for name, x in state.items()}, file, metadata={"format": "pt"})


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
