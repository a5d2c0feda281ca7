"""Entailment: a caption and its negative must not follow from each other.

A cross-encoder for natural language inference, loaded through transformers, gives each ordered pair of
captions the probabilities of entailment, neutral and contradiction. Two captions that entail each other
are paraphrases, and no negatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.language import loading
from open_clip_triplet.tripletdata.checks.base import store
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage, model_name, needs
from open_clip_triplet.tripletdata.run.task import ShardTask

LABELS = ("entailment", "neutral", "contradiction")


@dataclass
class Entailment(Stage):
    """Stage: ``entailment`` in ``verify``: the probabilities of both directions, and the greater entailment."""

    name: ClassVar[str] = "entailment"
    captions_first: ClassVar[bool] = True
    model: str = "cross-encoder/nli-deberta-v3-base"
    revision: str = ""
    batch_size: int = field(default=256, metadata=RUNTIME_ONLY)

    def open(self, device: str) -> None:
        with needs("this check needs transformers"):
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
            from transformers.utils import logging
        logging.disable_progress_bar()
        common = {"revision": self.revision} if self.revision else {}
        with loading(self.model):
            self._tokenizer = AutoTokenizer.from_pretrained(self.model, **common)
            self._model = AutoModelForSequenceClassification.from_pretrained(
                self.model, use_safetensors=True, **common
            )
        self._model.to(device).eval()
        self._device = device
        names = {label.lower(): index for index, label in self._model.config.id2label.items()}
        if not set(LABELS) <= set(names):
            raise PipelineError(
                f"--nli {self.model}: its labels are {', '.join(sorted(names))}; needed are {', '.join(LABELS)}"
            )
        self._columns = [names[label] for label in LABELS]

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        source = task.samples(stats, images=False)
        while batch := list(islice(source, self.batch_size)):
            pairs = [(sample.text, sample.neg_text) for sample in batch if sample.neg_text]
            forward = iter(self._probabilities(pairs))
            backward = iter(self._probabilities([(negative, text) for text, negative in pairs]))
            for sample in batch:
                if not sample.neg_text:
                    stats.drop("no negative caption", sample.key)
                    continue
                there, back = next(forward), next(backward)
                scores = {
                    "forward": there,
                    "backward": back,
                    "entailment": max(there["entailment"], back["entailment"]),
                    "model": model_name(self.model),
                }
                yield store(sample, stats, self.name, scores)

    def _probabilities(self, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        import torch

        if not pairs:
            return []
        tokens = self._tokenizer(
            [a for a, _ in pairs], [b for _, b in pairs], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self._model(**tokens.to(self._device)).logits.float()
        rows = logits.softmax(-1)[:, self._columns].cpu().tolist()
        return [dict(zip(LABELS, (round(value, 6) for value in row))) for row in rows]
