"""What loading a checkpoint gives, and what all loaders share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class LoadedCheckpoint:
    """A model in eval mode with ``encode_image`` and ``encode_text``, and what to feed it.

    ``config`` is OpenCLIP's model config where it is OpenCLIP's model, else None.
    """

    model: Any
    preprocess: Callable
    tokenizer: Callable
    autocast: Callable | None
    input_dtype: Any
    config: dict | None = None


@contextlib.contextmanager
def no_code_from_checkpoints() -> Iterator[None]:
    """transformers neither runs Python that lies beside weights nor asks whether it may; no bars of its own."""
    try:
        from transformers import dynamic_module_utils as remote
        from transformers.utils import logging as bars
    except ImportError:
        yield
        return
    before, remote.TIME_OUT_REMOTE_CODE = remote.TIME_OUT_REMOTE_CODE, 0
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        remote.TIME_OUT_REMOTE_CODE = before
        if shown:
            bars.enable_progress_bar()


def autocast_and_dtype(precision: str, device: str) -> tuple[Callable | None, Any]:
    """(autocast for ``amp`` precisions, dtype of images for pure low ones); None where not needed."""
    import torch
    from open_clip.model import get_input_dtype

    if not precision.startswith("amp"):
        return None, get_input_dtype(precision)
    kind = torch.float16 if precision == "amp" else torch.bfloat16
    return (lambda: torch.autocast(torch.device(device).type, dtype=kind)), None
