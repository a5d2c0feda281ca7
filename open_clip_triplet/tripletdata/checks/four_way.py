"""Four-way CLIP: each image must be closer to its own caption than to the other one.

s(x,y) > s(x,y') and s(x',y') > s(x',y), with s the cosine similarity of an OpenCLIP model. What is stored
are both margins, -2 to 2, and the four similarities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from open_clip_triplet.tripletdata.checks.base import store
from open_clip_triplet.tripletdata.checks.clip_scores import Scores
from open_clip_triplet.tripletdata.run.overlap import ahead
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.task import ShardTask


@dataclass
class FourWay(Scores):
    """Stage: ``four-way`` in ``verify``: ``margin`` and ``neg_margin``, and ``similarity``, 2x2 rows of images."""

    name: ClassVar[str] = "four-way"

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        for batch in ahead(self._batches(task, stats)):
            for (sample, *_), (row, neg_row) in zip(batch, self._similarities(batch), strict=True):
                scores = {
                    "margin": round(row[0] - row[1], 6),
                    "neg_margin": round(neg_row[1] - neg_row[0], 6),
                    "similarity": [row, neg_row],
                    "model": self.provenance,
                }
                yield store(dataclasses.replace(sample, image=None, neg_image=None), stats, self.name, scores)

    def _similarities(self, batch: list[tuple]) -> list[list[list[float]]]:
        """[N][2][2] cosine similarities: rows image and negative image, columns caption and negative caption."""
        import torch

        samples, images, neg_images = zip(*batch)
        texts = [text for s in samples for text in (s.text, s.neg_text)]
        pixels = [pixel for pair in zip(images, neg_images) for pixel in pair]
        with torch.inference_mode():
            dtype = next(self._model.parameters()).dtype
            image_features = self._model.encode_image(
                torch.stack(pixels).to(self._device, dtype), normalize=True
            )
            text_features = self._model.encode_text(self._tokenizer(texts).to(self._device), normalize=True)
            pairs = image_features.float().unflatten(0, (-1, 2)), text_features.float().unflatten(0, (-1, 2))
            cosines = torch.einsum("nid,ntd->nit", *pairs).double().cpu().tolist()
        return [[[round(value, 6) for value in row] for row in rows] for rows in cosines]
