"""A teacher that is the model itself: its start, or a moving average of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class Teacher:
    """A copy of the model at its start, frozen or following as a moving average (``--teacher``).

    OpenCLIP's own distillation carries its features to the loss; this keeps its weights. All of them
    travel in the checkpoint, for the model's start cannot be had from a later model.

    Args:
        model: the student, unwrapped, as training begins.
        decay: of the average per optimizer step, see ``update``; None keeps the teacher frozen.
    """

    def __init__(self, model: nn.Module, decay: float | None = None):
        self.student, self.decay, self.begun = model, decay, False
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @contextlib.contextmanager
    def following(self, optimizer: torch.optim.Optimizer, weights: dict[str, Any] | None = None) -> Iterator[None]:
        """Update after every step that the optimizer makes; begin at ``weights``, a checkpoint's, or at the student,
        which may have been loaded since."""
        if weights is not None or not self.begun:
            self.model.load_state_dict(self.student.state_dict() if weights is None else weights)
        self.begun = True
        handle = optimizer.register_step_post_hook(lambda *_: self.update())
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def update(self) -> None:
        """teacher = decay * teacher + (1 - decay) * student; counters and other whole numbers are copied.

        Reference: DeGLA, arXiv:2504.16801, decay 0.9996.
        """
        if self.decay is None:
            return
        student = self.student.state_dict()
        for name, mean in self.model.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(student[name].to(mean.dtype), 1 - self.decay)
            else:
                mean.copy_(student[name])
