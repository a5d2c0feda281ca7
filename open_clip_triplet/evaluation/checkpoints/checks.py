"""What OpenCLIP passes over in silence when it loads weights: checked first, or taken from the run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.load import CheckpointSpec, model_config, shorten


def check_tag(spec: CheckpointSpec) -> None:
    """Check that the tag exists and that its activation is the model's.

    Raises:
        CheckpointError: it does not.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.pretrained not in tags:
        raise CheckpointError(
            f"{spec.pretrained!r} is neither a file nor a tag of {spec.model}; "
            f"its tags: {', '.join(tags) or 'none'}"
        )
    wanted = bool(
        open_clip.pretrained.get_pretrained_cfg(spec.model, spec.pretrained).get("quick_gelu", False)
    )
    has = spec.force_quick_gelu or bool((model_config(spec) or {}).get("quick_gelu", False))
    if wanted and not has:
        raise CheckpointError(_quick_gelu_message(spec, f"the tag {spec.pretrained!r}"))
    if has and not wanted:
        raise CheckpointError(
            f"the tag {spec.pretrained!r} of {spec.model} was trained with GELU, and QuickGELU "
            "is asked for: use a model without -quickgelu, or leave out --force-quick-gelu"
        )


def _quick_gelu_message(spec: CheckpointSpec, what: str) -> str:
    base = spec.model.removesuffix("-quickgelu")
    return (
        f"{what} was trained with QuickGELU but {spec.model} uses GELU, which costs several points: "
        f"use --model {base}-quickgelu, or --force-quick-gelu"
    )


def check_file(spec: CheckpointSpec) -> None:
    """Check a weights file against the model it is to fill, before OpenCLIP adapts it silently.

    Raises:
        CheckpointError: another model, activation or image size; not weights.
    """
    path = Path(spec.pretrained)
    config = model_config(spec) or {}
    quick = spec.force_quick_gelu or bool(config.get("quick_gelu", False))
    trained = training_options(path)
    if trained.get("model") not in (None, spec.model):
        raise CheckpointError(
            f"{path}: trained as --model {trained['model']} (its run's params.txt), not {spec.model}"
        )
    shapes, from_openai = _shapes(path)
    if (from_openai or trained.get("force_quick_gelu") == "True") and not quick:
        raise CheckpointError(_quick_gelu_message(spec, str(path)))
    if trained.get("force_quick_gelu") == "False" and spec.force_quick_gelu and not config.get("quick_gelu"):
        raise CheckpointError(f"{path}: trained with GELU (its run's params.txt): no --force-quick-gelu")
    vision = config.get("vision_cfg", {})
    positions = shapes.get("visual.positional_embedding") or shapes.get("visual.trunk.pos_embed")
    patch = vision.get("patch_size")
    if positions and isinstance(patch, int) and isinstance(vision.get("layers"), int):
        side = round((positions[-2] - 1) ** 0.5)
        size = spec.force_image_size or vision.get("image_size", 224)
        if side * side + 1 == positions[-2] and side != size // patch:
            raise CheckpointError(
                f"{path}: trained on images of {side * patch} pixels, {spec.model} takes {size}: "
                f"use --force-image-size {side * patch}, or the model it was trained as"
            )


#: how images were prepared in training, under OpenCLIP's names of both options and arguments
PREPROCESSING = ("image_mean", "image_std", "image_interpolation", "image_resize_mode")


def training_preprocessing(path: Path) -> dict:
    """``PREPROCESSING`` options that the checkpoint's run was given, from its ``params.txt``.

    Raises:
        CheckpointError: a mean or standard deviation is not a list of numbers.
    """
    given = {name: value for name, value in training_options(path).items() if name in PREPROCESSING}
    found: dict = {name: value for name, value in given.items() if value not in ("None", "")}
    for name in found.keys() & {"image_mean", "image_std"}:
        try:
            found[name] = [float(x) for x in json.loads(found[name])]
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: its run's params.txt says {name}: {found[name]}, which is no list of numbers"
            ) from error
    return found


def training_options(path: Path) -> dict[str, str]:
    """``name: value`` lines of the ``params.txt`` that OpenCLIP writes beside ``checkpoints/``."""
    params = path.parent.parent / "params.txt"
    if path.parent.name != "checkpoints" or path.is_dir() or not params.is_file():
        return {}
    lines = params.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def _shapes(path: Path) -> tuple[dict[str, tuple], bool]:
    """(parameter -> shape, whether OpenAI published it), reading no more of the file than needed."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, False  # noqa: SIM118
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
