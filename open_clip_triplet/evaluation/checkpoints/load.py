"""Checkpoints in and out: OpenCLIP training checkpoints, pretrained tags, Hugging Face folders.

A checkpoint is identified without importing torch, so that results whose embeddings are all stored
need no model at all. Loading checks what OpenCLIP passes over in silence: QuickGELU weights on a GELU
model, an image size other than the trained one, a tokenizer that does not belong to the model. Images
are prepared as the checkpoint's run did (``--image-mean`` and its like, from its ``params.txt``).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip_triplet.errors import CheckpointError

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class CheckpointSpec:
    """What the user named: a model (of OpenCLIP's, or a config file), weights, and how to run them.

    ``pretrained`` is a file, a Hugging Face folder or one of OpenCLIP's tags. ``model_config`` is a
    JSON file as OpenCLIP's ``model_configs``; its stem is the model's name.
    """

    model: str
    pretrained: str
    name: str = ""
    precision: str = "fp32"
    model_config: str | None = None
    force_quick_gelu: bool = False
    force_image_size: int | None = None

    @classmethod
    def parse(cls, text: str, **options) -> CheckpointSpec:
        """``PATH_OR_TAG`` or ``NAME=PATH_OR_TAG``.

        >>> CheckpointSpec.parse("ours=logs/triplet/checkpoints/epoch_9.pt", model="ViT-B-32").label
        'ours'
        >>> CheckpointSpec.parse("logs/triplet/checkpoints/epoch_9.pt", model="ViT-B-32").label
        'triplet-epoch_9'
        """
        name, equals, pretrained = text.partition("=")
        if not equals or "/" in name:
            name, pretrained = "", text
        return cls(pretrained=pretrained, name=name, **options)

    @property
    def label(self) -> str:
        """What results are called: the given name, else run and epoch of a path, else model and tag."""
        path = Path(self.pretrained)
        if self.name:
            return self.name
        if not path.exists() and path.suffix == "":
            return f"{self.model}-{self.pretrained}"
        parent = path.parent.parent.name if path.parent.name == "checkpoints" else ""
        return f"{parent}-{path.stem}" if parent else path.stem

    @property
    def is_path(self) -> bool:
        return Path(self.pretrained).exists()


@dataclass
class LoadedCheckpoint:
    """A model in eval mode with ``encode_image`` and ``encode_text``, and what to feed it."""

    model: Any
    preprocess: Callable
    tokenizer: Callable
    autocast: Callable | None
    input_dtype: Any


def identify(spec: CheckpointSpec, digest: Callable[[Path], str]) -> dict:
    """The facts that decide an embedding, without loading anything.

    Args:
        digest: path -> SHA-256 of the file (a caller may remember it between runs).

    Raises:
        CheckpointError: neither a path nor something that could be a tag.
    """
    from open_clip_triplet.evaluation.checkpoints.checks import training_preprocessing

    facts: dict[str, Any] = {
        "model": spec.model,
        "model_config": model_config(spec),
        "precision": spec.precision,
        "force_quick_gelu": spec.force_quick_gelu,
        "force_image_size": spec.force_image_size,
        # beyond these it follows from the model, the weights and OpenCLIP's version
        "preprocessing": training_preprocessing(Path(spec.pretrained)),
        "open_clip": _open_clip_version(),
    }
    path = Path(spec.pretrained)
    if path.is_dir():
        files = sorted(f for pattern in (*WEIGHT_FILES, "*.json") for f in path.glob(pattern))
        if not files:
            raise CheckpointError(f"{path}: a folder without weights; expected a Hugging Face model folder")
        joined = "".join(f"{f.name}:{digest(f)}\n" for f in files)
        return {**facts, "weights": hashlib.sha256(joined.encode()).hexdigest()}
    if path.is_file():
        return {**facts, "weights": digest(path)}
    if "/" in spec.pretrained or path.suffix:
        raise CheckpointError(f"{spec.pretrained}: no such file or folder (and not a pretrained tag)")
    return {**facts, "weights": f"tag:{spec.pretrained}"}


def _open_clip_version() -> str:
    from importlib.metadata import version

    return version("open_clip_torch")


def model_config(spec: CheckpointSpec) -> dict | None:
    """The config the model is built from, read without importing open_clip; None for a folder's own."""
    import importlib.util

    if Path(spec.pretrained).is_dir():
        return None
    if spec.model_config:
        file = Path(spec.model_config)
    else:
        package = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
        file = package / "model_configs" / f"{spec.model}.json"
        if not file.is_file():
            known = [f.stem for f in (package / "model_configs").glob("*.json")]
            near = ", ".join(difflib.get_close_matches(spec.model, known, 3)) or "see open_clip.list_models()"
            raise CheckpointError(
                f"unknown model {spec.model!r}; near it: {near}. "
                "A config of your own goes in with --model-config FILE.json"
            )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as a model config ({error})") from error


def load(spec: CheckpointSpec, device: str = "cpu") -> LoadedCheckpoint:
    """Load a checkpoint for evaluation.

    Raises:
        CheckpointError: unknown model or tag; QuickGELU, image size, shapes or tokenizer do not fit.
    """
    folder = Path(spec.pretrained)
    if folder.is_dir() and not (folder / "open_clip_config.json").is_file():
        from open_clip_triplet.evaluation.checkpoints.transformers_clip import load_transformers

        return load_transformers(spec, device)
    import open_clip

    from open_clip_triplet.evaluation.checkpoints.checks import check_file, check_tag

    if spec.model_config:
        open_clip.add_model_config(spec.model_config)
    name = spec.model
    if folder.is_dir():
        name = f"local-dir:{folder}"
    elif spec.is_path:
        check_file(spec)
    else:
        check_tag(spec)
    model, preprocess = _create(spec, name, device)
    tokenizer = _tokenizer(name, model)
    autocast, input_dtype = autocast_and_dtype(spec.precision, device)
    return LoadedCheckpoint(model.eval(), preprocess, tokenizer, autocast, input_dtype)


def _create(spec: CheckpointSpec, name: str, device: str):
    import open_clip

    from open_clip_triplet.evaluation.checkpoints.checks import training_preprocessing

    is_folder = name.startswith("local-dir:")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name,
            pretrained=None if is_folder else spec.pretrained,
            precision=spec.precision,
            device=device,
            force_quick_gelu=spec.force_quick_gelu,
            force_image_size=spec.force_image_size,
            **training_preprocessing(Path(spec.pretrained)),
        )
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        if "weights_only" in str(error) or "Unpickling" in type(error).__name__:
            raise CheckpointError(
                f"{spec.pretrained}: holds more than tensors, so it is not loaded. "
                "Save its state dict alone, or as safetensors"
            ) from error
        raise CheckpointError(f"{spec.pretrained} does not load as {name}: {shorten(error)}") from error
    return model, preprocess


def shorten(error: Exception, lines: int = 6) -> str:
    """The first lines of an error's text; OpenCLIP's list every key of a model."""
    found = str(error).strip().splitlines()
    return "\n".join(found[:lines] + ([f"... and {len(found) - lines} more"] if len(found) > lines else []))


def _tokenizer(name: str, model) -> Callable:
    import open_clip

    try:
        tokenizer = open_clip.get_tokenizer(name)
        highest = int(tokenizer(["a photo of a dog!"]).max())
    except Exception as error:  # transformers and huggingface_hub raise many kinds
        raise CheckpointError(
            f"{name}: its tokenizer cannot be loaded ({shorten(error, 2)}). Put the tokenizer's "
            "files in a folder and name it as text_cfg.hf_tokenizer_name in the config"
        ) from error
    embedding = getattr(model, "token_embedding", None) or getattr(
        getattr(model, "text", None), "token_embedding", None
    )
    if embedding is not None and highest >= embedding.num_embeddings:
        raise CheckpointError(
            f"{name}: its tokenizer gives token {highest}, the model knows "
            f"{embedding.num_embeddings}: the config names another tokenizer than it was trained with"
        )
    return tokenizer


def autocast_and_dtype(precision: str, device: str) -> tuple[Callable | None, Any]:
    """(autocast for ``amp`` precisions, dtype of images for pure low ones); None where not needed."""
    import torch
    from open_clip.model import get_input_dtype

    if not precision.startswith("amp"):
        return None, get_input_dtype(precision)
    kind = torch.float16 if precision == "amp" else torch.bfloat16
    return (lambda: torch.autocast(torch.device(device).type, dtype=kind)), None


def export(spec: CheckpointSpec, folder: str | Path) -> Path:
    """Write a checkpoint as a Hugging Face folder that OpenCLIP loads as ``local-dir:FOLDER``.

    Holds ``open_clip_config.json`` and ``open_clip_model.safetensors``, the config last.

    Raises:
        CheckpointError: the folder already holds a model, or the checkpoint does not load.
    """
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    folder = Path(folder)
    if (folder / "open_clip_config.json").exists():
        raise CheckpointError(f"{folder}: already holds a model; choose another folder")
    loaded = load(spec)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".open_clip_model.tmp"
    save_file({name: x.contiguous() for name, x in loaded.model.state_dict().items()}, temporary)
    temporary.replace(folder / "open_clip_model.safetensors")
    if hasattr(getattr(loaded.tokenizer, "tokenizer", None), "save_pretrained"):
        loaded.tokenizer.tokenizer.save_pretrained(folder)
    config = dict(model_config(spec) or {})
    if spec.force_quick_gelu:
        config["quick_gelu"] = True
    if spec.force_image_size:
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": spec.force_image_size}
    temporary = folder / ".open_clip_config.tmp"
    save_config_for_hf(loaded.model, temporary, model_config=config)
    temporary.replace(folder / "open_clip_config.json")
    return folder
