"""A model as two functions to unit-norm rows. Light imports: training uses this too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from open_clip_triplet.errors import NonFiniteEmbeddings


class Encoder:
    """A model with its preprocessing and tokenizer, as functions to unit-norm numpy rows.

    Args:
        model: anything with ``encode_image([n, 3, H, W])`` and ``encode_text([n, L])``, both to [n, D].
        preprocess: PIL image -> float tensor [3, H, W].
        tokenizer: list of n captions -> integer tensor [n, L].
        device: where batches go.
        autocast: a function to a context manager (as OpenCLIP's ``get_autocast`` gives), or None.
        input_dtype: what images are cast to, e.g. ``torch.float16`` for a model in pure fp16.
        name: what errors call the model, with its precision.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable,
        tokenizer: Callable,
        *,
        device: Any = "cpu",
        autocast: Callable | None = None,
        input_dtype: Any = None,
        name: str = "",
    ):
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.device, self.input_dtype = device, input_dtype
        self.autocast = autocast or contextlib.nullcontext
        self.name = name or type(model).__name__
        self._encode_text: Callable | None = None
        self._pad: int | None = None
        self._fullest = -1
        self._sound = 0

    def images(self, tensors: Sequence) -> np.ndarray:
        """[n, D] float32, unit norm, of n preprocessed images.

        Raises:
            NonFiniteEmbeddings: the model gives NaN or infinity.
        """
        import torch

        batch = torch.stack(list(tensors)).to(self.device, dtype=self.input_dtype, non_blocking=True)
        return self._rows(self.model.encode_image, batch, "image")

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """[n, D] float32, unit norm, of n captions. Raises NonFiniteEmbeddings, as ``images``."""
        return self.tokens(self.tokenizer(list(captions)))

    def tokens(self, tokens: Any) -> np.ndarray:
        """[n, D] float32, unit norm, of n tokenized captions [n, L]."""
        from open_clip_triplet.evaluation.encode.trim import trimmed_text_encoder

        if self._encode_text is None:
            self._encode_text = trimmed_text_encoder(self.model, self.tokenizer, self.device, self._run)
        return self._rows(self._encode_text, tokens.to(self.device), "caption")

    def cut(self, captions: Sequence[str], tokens: Any) -> list[bool]:
        """Whether each caption is longer than the context [n, L] that its tokens had to fit.

        A caption that fills the context is tokenized once more with room for one token more. Where the
        tokenizer cannot do that, one that fills the context counts as cut.
        """
        if self._pad is None:
            self._pad = int(self.tokenizer(["a"])[0, -1])
            # where padding is the end mark again, a full row shows in the column before the last
            self._fullest = -2 if int(self.tokenizer(["a " * 1000])[0, -1]) == self._pad else -1
        length = tokens.shape[1]
        full = [i for i, last in enumerate(tokens[:, self._fullest].tolist()) if last != self._pad]
        found = [False] * len(captions)
        for index in full:
            try:
                longer = self.tokenizer([captions[index]], context_length=length + 1)
                found[index] = int(longer[0, self._fullest]) != self._pad
            except TypeError:
                found[index] = True
        return found

    def _run(self, encode: Callable, batch: Any) -> Any:
        import torch

        with torch.inference_mode(), self.autocast():
            return encode(batch)

    def _rows(self, encode: Callable, batch: Any, kind: str) -> np.ndarray:
        features = self._run(encode, batch).float()
        norms = features.norm(dim=-1, keepdim=True)
        bad = int((~norms.isfinite()).sum())  # a norm that overflows too: the row would become zeros
        if bad:
            raise NonFiniteEmbeddings(
                f"{self.name}: {bad} of {len(features)} {kind} embeddings of a batch are NaN or infinite, "
                f"after {self._sound} sound rows; none of that batch is stored. "
                "Try another --precision (fp32, amp_bf16), or look at the weights"
            )
        self._sound += len(features)
        return (features / norms.clamp_min(1e-12)).cpu().numpy()


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[Any]:
    """The model in eval mode; each submodule's own mode is put back afterwards."""
    modules = getattr(model, "modules", None)
    before = [(module, module.training) for module in modules()] if modules else []
    if before:
        model.eval()
    try:
        yield model
    finally:
        for module, training in before:
            module.training = training
