"""What a checkpoint's run was given: ``params.txt``, which OpenCLIP writes beside ``checkpoints/``."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

from open_clip_triplet.errors import CheckpointError

#: how images were prepared in training, under OpenCLIP's names of both options and arguments
PREPROCESSING = ("image_mean", "image_std", "image_interpolation", "image_resize_mode")
_CHOICES = {
    "image_interpolation": ("bicubic", "bilinear", "random"),
    "image_resize_mode": ("shortest", "longest", "squash"),
}


def training_options(path: Path) -> dict[str, str]:
    """``name: value`` lines of the ``params.txt`` of a checkpoint's run; empty where there is none."""
    params = path.parent.parent / "params.txt"
    if path.parent.name != "checkpoints" or path.is_dir() or not params.is_file():
        return {}
    lines = params.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def training_model_config(path: Path, model: str) -> str | None:
    """The ``--model-config`` file that defined ``model`` in the checkpoint's run, where it is still there."""
    try:
        given = ast.literal_eval(training_options(path).get("model_config", "[]"))  # OpenCLIP writes a Python list
    except (ValueError, SyntaxError):
        return None
    files = [Path(file) for file in given if isinstance(file, str)] if isinstance(given, list) else []
    return next((str(file) for file in files if file.stem == model and file.is_file()), None)


def training_preprocessing(path: Path) -> dict:
    """``PREPROCESSING`` options that the checkpoint's run was given, checked.

    Raises:
        CheckpointError: a mean or standard deviation is not a list of numbers; an unknown mode.
    """
    options = training_options(path)
    given = {name: options[name] for name in PREPROCESSING if options.get(name) not in (None, "None", "")}
    for name, known in _CHOICES.items():
        if given.get(name, known[0]) not in known:
            raise CheckpointError(
                f"{path}: its run's params.txt says {name}: {given[name]}; known: {', '.join(known)}"
            )
    return {name: x if name in _CHOICES else _numbers(path, name, x) for name, x in given.items()}


def _numbers(path: Path, name: str, value: str) -> list[float]:
    try:
        # OpenCLIP writes a Python tuple or list
        numbers = [float(x) for x in json.loads(value.replace("(", "[").replace(")", "]"))]
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its run's params.txt says {name}: {value}, which is no list of numbers"
        ) from error
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise CheckpointError(f"{path}: its run's params.txt says {name}: {value}; expected 3 finite numbers")
    if name == "image_std" and min(numbers) <= 0:
        raise CheckpointError(f"{path}: its run's params.txt says {name}: {value}; must be positive")
    return numbers
