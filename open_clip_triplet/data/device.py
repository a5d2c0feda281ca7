"""Batches from the workers to the training device."""

from __future__ import annotations

from typing import Any

import torch


class ToDevice:
    """A batch as OpenCLIP's loop wants it, of the parts that the workers made; they are joined on the device.

    uint8 images [N, H, W, 3] are moved as they are and become normalised floats [N, 3, H, W] on the
    device, channels last in memory, as convolutions like them best; float images pass unchanged. From pinned
    memory the copy does not wait for the step that runs.

    normalize: torchvision's Normalize, or None where the workers have normalised.
    as_dict: give ``{"image", "text"}`` (OpenCLIP 4.x) instead of a pair.
    """

    def __init__(self, device, normalize=None, *, as_dict: bool = False):
        self.device = torch.device(device)
        self.as_dict = as_dict
        self._scale: Any = None
        self._shift: Any = None
        if normalize is not None:
            mean, std = (
                torch.as_tensor(values, dtype=torch.float32, device=self.device)
                for values in (normalize.mean, normalize.std)
            )
            self._scale, self._shift = 1 / (255 * std), -mean / std

    def __call__(self, images: list[torch.Tensor], texts: list[torch.Tensor]) -> Any:
        image, text = self._join(images), self._join(texts)
        if self._scale is not None:
            image = self._normalize(image).permute(0, 3, 1, 2)
        return {"image": image, "text": text} if self.as_dict else (image, text)

    def _join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        moved = [part.to(self.device, non_blocking=self.device.type == "cuda") for part in parts]
        return torch.cat(moved) if len(moved) > 1 else moved[0]

    def _normalize(self, images: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            return torch.addcmul(self._shift, images, self._scale)
        # CPUs take longer over mixed types in one pass, and over three values at a time than over a row.
        width = images.shape[2]
        rows = images.flatten(2).float()
        return rows.mul_(self._scale.repeat(width)).add_(self._shift.repeat(width)).view(images.shape)
