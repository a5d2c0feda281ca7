"""The plugin's hooks in OpenCLIP: which of its names are replaced, and putting them in and out.

``install()`` replaces the names listed in ``SEAMS`` and ``uninstall()`` puts them back::

    from open_clip_triplet import hooks
    with hooks.installed():
        open_clip_train.main.main(["--loss", "triplet", ...])

What each replaced name does (``plugin`` has how; these two are the only modules that touch OpenCLIP's
internals), with ``main``, ``data`` and ``train`` for ``open_clip_train``'s modules:

=========================  ==========================================================================
``main.parse_args``        takes the plugin's flags out, hands the rest to OpenCLIP, checks them
``main.create_loss``       3.x: the method's loss
``main.create_task``       4.x: a ``CLIPTask`` around the method's loss
``data.get_dataset_fn``    paired shards for training; remembers the shards for validation
``main.cosine_lr`` etc.    ``--total-steps``: the schedule's length
``main.pt_load``           reads where a mid-epoch checkpoint stands (``file_utils.pt_load`` in 4.x)
``main.torch``             ``torch.save`` whole or not at all, with the counts of what was seen
``main.train_one_epoch``   cuts the epoch to its steps, saves in between, reports the data
``train.enumerate``        the loop's batch index starts where the epoch continues
``train.zero_shot_eval``   adds compositional scores and benchmarks (``zero_shot_eval_all`` in 4.x)
``torch.nn.parallel``      ``DistributedDataParallel`` of a CPU model without the device ids that OpenCLIP gives
=========================  ==========================================================================
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import inspect
from dataclasses import dataclass

import torch

from open_clip_triplet.errors import HostError
from open_clip_triplet.plugin import Plugin


@dataclass(frozen=True)
class Seam:
    """One name of OpenCLIP to replace: module, name, its leading parameters, and the ``Plugin`` method."""

    module: str
    name: str
    parameters: tuple[str, ...] | None
    method: str


_SHARED_SEAMS = (
    Seam("main", "parse_args", ("args",), "parse_args"),
    Seam("data", "get_dataset_fn", ("data_path", "dataset_type"), "get_dataset_fn"),
    Seam("main", "cosine_lr", ("optimizer", "base_lr", "warmup_length", "steps"), "schedule"),
    Seam("main", "const_lr", ("optimizer", "base_lr", "warmup_length", "steps"), "schedule"),
    Seam("main", "const_lr_cooldown", ("optimizer", "base_lr", "warmup_length", "steps"), "schedule"),
    Seam("main", "torch", None, "torch_module"),
    Seam("train", "enumerate", None, "enumerate"),
    Seam("parallel", "DistributedDataParallel", None, "data_parallel"),
)

#: OpenCLIP's major version -> the names replaced in it
SEAMS = {
    3: _SHARED_SEAMS + (
        Seam("main", "create_loss", ("args",), "create_loss"),
        Seam("main", "pt_load", ("file_path", "map_location"), "pt_load"),
        Seam("train", "zero_shot_eval", ("model", "data", "epoch", "args", "tokenizer"), "zero_shot_eval"),
        Seam(
            "main", "train_one_epoch",
            ("model", "data", "loss", "epoch", "optimizer", "scaler", "scheduler", "dist_model", "args"),
            "train_one_epoch_3",
        ),
    ),
    4: _SHARED_SEAMS + (
        Seam("main", "create_task", ("args", "model"), "create_task"),
        Seam("file_utils", "pt_load", ("file_path", "map_location"), "pt_load"),
        Seam("train", "zero_shot_eval_all", ("task", "data", "epoch", "args", "tokenizer"), "zero_shot_eval"),
        Seam("main", "train_one_epoch", ("state", "data", "args"), "train_one_epoch_4"),
    ),
}

_ABSENT = object()
_installed: list[tuple[object, str, object]] = []


def install() -> None:
    """Put the hooks into OpenCLIP; nothing happens where they are in already.

    Raises:
        HostError: OpenCLIP's training code is missing, or a name is not what the hooks expect.
            Nothing is replaced then.
    """
    if _installed:
        return
    modules = {name: _import(name) for name in ("main", "data", "train", "file_utils")}
    modules["parallel"] = torch.nn.parallel
    major = 4 if hasattr(modules["main"], "create_task") else 3
    for seam in SEAMS[major]:
        _check(modules[seam.module], seam)
    plugin = Plugin(major, modules)
    for seam in SEAMS[major]:
        module = modules[seam.module]
        original = vars(module).get(seam.name, _ABSENT)
        _installed.append((module, seam.name, original))
        setattr(module, seam.name, getattr(plugin, seam.method)(original))


def uninstall() -> None:
    """Leave OpenCLIP as it was; nothing happens where the hooks are not in."""
    while _installed:
        module, name, original = _installed.pop()
        if original is _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, original)


@contextlib.contextmanager
def installed():
    """``install()`` for the length of a ``with`` block."""
    install()
    try:
        yield
    finally:
        uninstall()


def _import(name: str):
    try:
        return importlib.import_module(f"open_clip_train.{name}")
    except ImportError as error:
        raise HostError(
            f"OpenCLIP's training code cannot be imported ({error}). "
            "Install it with: pip install 'open_clip_torch[training]>=3.0,<5'"
        ) from error


def _check(module, seam: Seam) -> None:
    """A name must be there with the parameters expected; ``enumerate`` is the builtin until replaced."""
    original = getattr(module, seam.name, getattr(builtins, seam.name, None))
    if original is None:
        found = "it is missing"
    elif seam.parameters is None:
        return
    else:
        parameters = tuple(inspect.signature(original).parameters)
        if parameters[: len(seam.parameters)] == seam.parameters:
            return
        found = f"its parameters are ({', '.join(parameters)})"
    import open_clip

    raise HostError(
        f"open_clip_triplet does not fit OpenCLIP {open_clip.__version__}: it replaces "
        f"{module.__name__}.{seam.name}({', '.join(seam.parameters or ())}), but {found}. "
        "Supported: open_clip_torch 3.0 to 3.3 and the 4.x main branch."
    )
