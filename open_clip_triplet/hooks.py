"""The plugin's hooks in OpenCLIP, put in and out.

    from open_clip_triplet import hooks
    with hooks.installed():
        open_clip_train.main.main(["--loss", "triplet", ...])

What is replaced, and by what, stands in :mod:`open_clip_triplet.replacements`: every replacement names its seam
in a decorator above it. To add one, write a method of ``Replacements`` there::

    @Seam("train", "backward", ("total_loss", "scaler"))    # open_clip_train.train.backward, leading parameters
    def backward(self, original, total_loss, scaler):       # gets what it replaces, then the call's arguments
        return original(total_loss, scaler)

A seam without parameters is no function: its method gets the original alone, and returns what takes its place. Each
is checked before anything is replaced, put in by ``install()`` and taken out by ``uninstall()``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator

import open_clip
import torch

from open_clip_triplet.errors import HostError
from open_clip_triplet.replacements import SEAMS, Replacements, Seam

#: what takes the installed hooks out, the last first
_undo: list[Callable[[], object]] = []


def seams(major: int) -> list[Seam]:
    """What is replaced in this major version of OpenCLIP."""
    return [seam for seam in SEAMS if major in seam.majors]


def install() -> None:
    """Put the hooks into OpenCLIP; nothing happens where they are in already.

    Raises:
        HostError: OpenCLIP's training code is missing, or a name is not what the hooks expect.
            Nothing is replaced then.
    """
    if _undo:
        return
    try:
        names = "main", "data", "train", "file_utils"
        modules = {name: importlib.import_module(f"open_clip_train.{name}") for name in names}
    except ImportError as error:
        raise HostError(
            f"OpenCLIP's training code cannot be imported ({error}). "
            "Install it with: pip install 'open_clip_torch[training]>=3.0,<5'"
        ) from error
    modules["parallel"] = torch.nn.parallel
    major = 4 if hasattr(modules["main"], "create_task") else 3
    for seam in seams(major):
        _check(modules[seam.module], seam)
    _warn_untested()
    replacements = Replacements(major, modules)
    _undo.append(replacements.stop.close)
    for seam in seams(major):
        module = modules[seam.module]
        original = getattr(module, seam.name)
        if seam.parameters is None:
            replacement = seam.method(replacements, original)
        else:
            replacement = functools.wraps(original)(functools.partial(seam.method, replacements, original))
        _undo.append(functools.partial(setattr, module, seam.name, original))
        setattr(module, seam.name, replacement)


def uninstall() -> None:
    """Leave OpenCLIP as it was; nothing happens where the hooks are not in."""
    while _undo:
        _undo.pop()()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """``install()`` for the length of a ``with`` block."""
    install()
    try:
        yield
    finally:
        uninstall()


#: OpenCLIP's versions that `tests/test_patches.py` trains with
TESTED = ("2.32", "3.0", "3.1", "3.2", "3.3", "4.2")


def _warn_untested() -> None:
    """Every name fits, so a version that nobody has tried runs, with a warning."""
    if ".".join(open_clip.__version__.split(".")[:2]) not in TESTED:
        logging.warning(
            f"open_clip_triplet was not tested with OpenCLIP {open_clip.__version__} (but with {', '.join(TESTED)}); "
            "every name that it replaces is as expected, so training goes on."
        )


def _check(module, seam: Seam) -> None:
    """A name must be there, with the parameters expected."""
    original = getattr(module, seam.name, None)
    if original is None:
        found = "it is missing"
    elif seam.parameters is None:
        return
    else:
        parameters = tuple(inspect.signature(original).parameters)
        if parameters[: len(seam.parameters)] == seam.parameters:
            return
        found = f"its parameters are ({', '.join(parameters)})"
    raise HostError(
        f"open_clip_triplet does not fit OpenCLIP {open_clip.__version__}: it replaces "
        f"{module.__name__}.{seam.name}({', '.join(seam.parameters or ())}), but {found}. "
        f"Tested: open_clip_torch {', '.join(TESTED)} (4.2: OpenCLIP's main branch)."
    )
