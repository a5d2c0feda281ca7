"""CLIP scores of both pairs of a sample: what ``filter`` selects by, and what ``four-way`` builds on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

from open_clip_triplet.errors import ImageError
from open_clip_triplet.threads import map_ahead
from open_clip_triplet.tripletdata.backends.openclip import WITH_WEIGHTS, load_openclip, provenance
from open_clip_triplet.tripletdata.run.overlap import ahead
from open_clip_triplet.tripletdata.run.pictures import decode, refused
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage
from open_clip_triplet.tripletdata.run.task import ShardTask

#: threads that decode images while the model scores others
WORKERS = max(2, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


@dataclass
class Scores(Stage):
    """Stage: side shards whose json has ``scores`` (``positive``, ``negative``, ``mean``)."""

    name: ClassVar[str] = "scores"
    reads_source: ClassVar[bool] = True  # two images a sample
    model: str = "ViT-L-14-quickgelu"  # OpenAI trained with QuickGELU
    pretrained: str = "openai"
    batch_size: int = field(default=128, metadata=RUNTIME_ONLY)

    def __post_init__(self):
        if self.model.startswith(WITH_WEIGHTS):
            self.pretrained = ""

    @property
    def provenance(self) -> str:
        return provenance(self.model, self.pretrained)

    def open(self, device: str) -> None:
        precision = "fp16" if device == "cuda" else "fp32"
        self._model, self._preprocess, self._tokenizer = load_openclip(
            self.model, self.pretrained, device, precision
        )
        self._device = device

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        values = stats.values["scores"] = []
        for batch in ahead(self._batches(task, stats)):
            for (sample, *_), scores in zip(batch, self._scores(batch), strict=True):
                values.append(scores["mean"])
                sample.meta = {
                    **sample.meta,
                    "scores": {**scores, "model": self.provenance},
                }
                yield dataclasses.replace(sample, image=None, neg_image=None)

    def _batches(self, task: ShardTask, stats: Stats) -> Iterator[list[tuple]]:
        """Batches of (sample, image tensor, negative image tensor), both [3, H, W], decoded by threads."""
        found = map_ahead(self._decoded, task.samples(stats), WORKERS, self.batch_size)
        while rows := list(islice(found, self.batch_size)):
            for sample, images in rows:
                if isinstance(images, str):
                    stats.drop(images, sample.key)
            if batch := [(sample, *images) for sample, images in rows if not isinstance(images, str)]:
                yield batch

    def _decoded(self, sample: Sample) -> tuple[Sample, list | str]:
        """A sample with its two image tensors, or with the reason to drop it."""
        if not (sample.image and sample.neg_image and sample.neg_text):
            return sample, "no pair to score"
        try:
            with refused():
                return sample, [self._preprocess(decode(d).rgb) for d in (sample.image, sample.neg_image)]
        except ImageError:
            return sample, "image cannot be decoded"

    def _scores(self, batch: list[tuple]) -> list[dict]:
        import torch

        samples, images, neg_images = zip(*batch)
        texts = [s.text for s in samples] + [s.neg_text for s in samples]
        with torch.inference_mode():
            pixels = torch.stack([*images, *neg_images]).to(
                self._device, next(self._model.parameters()).dtype
            )
            image_features = self._model.encode_image(pixels, normalize=True)
            text_features = self._model.encode_text(self._tokenizer(texts).to(self._device), normalize=True)
            cosines = (image_features * text_features).sum(-1)
            positive, negative = cosines.float().cpu().double().chunk(2)
        rows = zip(positive.tolist(), negative.tolist(), ((positive + negative) / 2).tolist())
        return [
            {"positive": round(p, 6), "negative": round(n, 6), "mean": round(mean, 6)} for p, n, mean in rows
        ]
