"""Stop training at the first loss that is not finite, and say what led to it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from open_clip_triplet.errors import NonFiniteLossError


class FiniteGuard:
    """Watches losses without making the device wait.

    On a CPU a bad loss raises at once, before its gradients reach an optimiser. On an accelerator
    the four numbers travel to the host while the step goes on, and are judged at a later call.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, Any]] = deque()

    @torch.no_grad()
    def watch(
        self, step: int, loss: Tensor, logit_scale: Tensor, image_features: Tensor, text_features: Tensor
    ) -> None:
        """Judge what has arrived, and take note of this step's loss (scalars; features [rows, D])."""
        norms = [features.float().norm(dim=1).amax() for features in (image_features, text_features)]
        facts = torch.stack([number.to(loss.device).float() for number in (loss, logit_scale, *norms)])
        arrived = None
        if facts.is_cuda:
            facts = torch.empty_like(facts, device="cpu", pin_memory=True).copy_(facts, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append((step, facts, arrived))
        self.check(wait=False)

    def check(self, wait: bool = True) -> None:
        """Raise if a watched loss was not finite; without ``wait``, judge those that have arrived."""
        while self._pending:
            step, facts, arrived = self._pending[0]
            if arrived is not None and wait:
                arrived.synchronize()
            elif arrived is not None and not arrived.query():
                return
            self._pending.popleft()
            loss, scale, images, texts = facts.tolist()
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"loss is {loss} at step {step} (logit_scale {scale:g}; largest feature "
                    f"norm: images {images:g}, texts {texts:g}, expected 1). Training stopped. Resume from "
                    "the last checkpoint with a lower --lr, --grad-clip-norm 1 or --precision amp_bf16."
                )
