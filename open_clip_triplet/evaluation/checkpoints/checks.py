"""What OpenCLIP passes over in silence when it loads weights: checked first, or taken from the run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from open_clip_triplet import pretrained
from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.params import training_options
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec, model_config, shorten

#: the option that turns QuickGELU on
QUICK_GELU = "--force-quick-gelu"


def check_tag(spec: CheckpointSpec) -> None:
    """Check that the tag exists and that its activation is the model's.

    Raises:
        CheckpointError: it does not.
    """
    config = model_config(spec) or {}
    quick = spec.force_quick_gelu or bool(config.get("quick_gelu", False))
    pretrained.check_tag(spec.model, spec.pretrained, quick, QUICK_GELU)
    check_forced_size(spec, trained_size(config))


def trained_size(config: dict, given: int | None = None) -> int | None:
    """Pixels of a model that was ``given`` a size in training, or none; None where it is not square."""
    size = given or config.get("vision_cfg", {}).get("image_size", 224)
    return size if isinstance(size, int) else None


def check_forced_size(spec: CheckpointSpec, trained: int | None) -> None:
    """Check ``--force-image-size`` against the size a checkpoint was trained with.

    Raises:
        CheckpointError: it is another.
    """
    if spec.force_image_size and trained and spec.force_image_size != trained:
        raise CheckpointError(
            f"{spec.pretrained}: trained on images of {trained} pixels, not {spec.force_image_size}: "
            "leave out --force-image-size"
        )


@dataclass(frozen=True)
class FileFacts:
    """What a weights file says about the model it fills."""

    context_length: int | None
    has_logit_bias: bool
    image_size: int | None


def check_file(spec: CheckpointSpec, path: Path) -> FileFacts:
    """Check a weights file against the model it is to fill, before OpenCLIP adapts it silently.

    Returns:
        How it was trained where its model's config does not say: ``--force-context-length`` and
        ``--siglip`` from its tensors, ``--force-image-size`` from its run's ``params.txt``.

    Raises:
        CheckpointError: another model, activation or image size; not weights.
    """
    config = model_config(spec) or {}
    trained = training_options(path)
    if trained.get("model") not in (None, spec.model):
        raise CheckpointError(
            f"{path}: trained as --model {trained['model']} (its run's params.txt), not {spec.model}"
        )
    shapes, from_openai = weight_shapes(path)
    _check_activation(spec, path, config, trained, from_openai)
    given = _given_size(path, trained)
    size = spec.force_image_size or given
    # a tower without positions tells no size; then the run's params.txt does, where there is one
    if not _check_positions(spec, path, config, shapes, size) and trained:
        check_forced_size(spec, trained_size(config, given))
    text = config.get("text_cfg", {})
    positions = shapes.get("positional_embedding") or shapes.get("text.positional_embedding")
    length = positions[0] - bool(text.get("embed_cls")) if positions else None
    return FileFacts(length, "logit_bias" in shapes, size)


def _check_activation(spec: CheckpointSpec, path: Path, config: dict, trained: dict, from_openai: bool) -> None:
    quick = spec.force_quick_gelu or bool(config.get("quick_gelu", False))
    if (from_openai or trained.get("force_quick_gelu") == "True") and not quick:
        raise CheckpointError(pretrained.gelu_message(spec.model, str(path), QUICK_GELU))
    if trained.get("force_quick_gelu") == "False" and spec.force_quick_gelu and not config.get("quick_gelu"):
        raise CheckpointError(f"{path}: trained with GELU (its run's params.txt): no --force-quick-gelu")


def _given_size(path: Path, trained: dict[str, str]) -> int | None:
    given = trained.get("force_image_size", "None").strip("[]()").split(",")[0]
    if given in ("None", ""):
        return None
    if not given.strip().isdigit():
        raise CheckpointError(f"{path}: its run's params.txt says force_image_size: {given}, which is no size")
    return int(given)


def _check_positions(spec: CheckpointSpec, path: Path, config: dict, shapes: dict, size: int | None) -> bool:
    """Check the image size against a ViT's positions; False where there are none to tell it."""
    vision = config.get("vision_cfg", {})
    positions = shapes.get("visual.positional_embedding") or shapes.get("visual.trunk.pos_embed")
    patch = vision.get("patch_size")
    if not (positions and isinstance(patch, int) and isinstance(vision.get("layers"), int)):
        return False
    side = round((positions[-2] - 1) ** 0.5)
    size = size or vision.get("image_size", 224)
    if side * side + 1 == positions[-2] and side != size // patch:
        raise CheckpointError(
            f"{path}: trained on images of {side * patch} pixels, {spec.model} takes {size}: "
            f"use --force-image-size {side * patch}, or the model it was trained as"
        )
    return True


#: captions that any working tokenizer tells apart
PROBES = (
    "a photo of a dog!",
    "a photo of a cat!",
    "a red cube to the left of a blue sphere",
    "a blue sphere to the left of a red cube",
    "two men and three women",
)


def check_tokenizer(name: str, tokenizer: Callable, vocabulary: int | None) -> None:
    """Try a tokenizer on a few captions before anything is scored.

    Args:
        vocabulary: tokens that the text tower has embeddings for, or None where it does not say.

    Raises:
        CheckpointError: captions become the same tokens, or tokens that the model does not have.
    """
    tokens = tokenizer(list(PROBES))
    highest = int(tokens.max())
    if vocabulary is not None and highest >= vocabulary:
        raise CheckpointError(
            f"{name}: its tokenizer gives token {highest}, the model knows {vocabulary}: "
            "the config names another tokenizer than it was trained with"
        )
    rows = [tuple(row) for row in tokens.tolist()]
    if len(set(rows)) < len(rows):
        same = next(i for i in range(len(rows)) if rows[i] in rows[:i])
        raise CheckpointError(
            f"{name}: its tokenizer does not tell captions apart: {PROBES[rows.index(rows[same])]!r} and "
            f"{PROBES[same]!r} become the same tokens. Are its vocabulary files (tokenizer.json, or vocab.json "
            "and merges.txt) beside the weights?"
        )


def weight_shapes(path: Path) -> tuple[dict[str, tuple], bool]:
    """(parameter -> shape, whether OpenAI published it), reading no more of the file than needed."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, False  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as safetensors ({shorten(error, 1)})") from error
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise CheckpointError(
                    f"{path}: a TorchScript archive (as OpenAI published its weights) is a program and is "
                    "not run: use OpenCLIP's copy, --model ViT-B-32-quickgelu --pretrained openai"
                )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises its own, pickle's and the archive reader's errors
        raise CheckpointError(
            f"{path}: cannot be read as weights ({shorten(error, 2)}). "
            "Files that hold more than tensors are not loaded"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    shapes = {
        name.removeprefix("module."): tuple(x.shape) for name, x in state.items() if hasattr(x, "shape")
    }
    if not shapes:
        raise CheckpointError(f"{path}: holds no weights")
    return shapes, "input_resolution" in state
