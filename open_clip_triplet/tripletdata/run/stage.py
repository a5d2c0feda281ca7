"""A stage: turns one shard into one shard. Plain data until ``open``, so that it can be sent to workers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.sample import Stats
from open_clip_triplet.tripletdata.run.task import ShardTask

#: metadata of fields that say how to work, not what comes out: left out of the configuration
RUNTIME_ONLY = {"runtime_only": True}


def settings(part) -> dict:
    """Fields of a dataclass that decide the output bytes."""
    return {f.name: getattr(part, f.name) for f in fields(part) if not f.metadata.get("runtime_only")}


@dataclass
class Stage:
    """Turns one task into one shard. Plain data until ``open``; pickled to the workers."""

    name: ClassVar[str] = "stage"
    #: the model needs the captions alone: they are read ahead, a shard's worth at a time
    captions_first: ClassVar[bool] = False

    @property
    def in_flight(self) -> int:
        """Tasks that ``process`` works at once, each in a thread; more than one needs a model that allows it."""
        return 1

    @property
    def reads_source(self) -> bool:
        """Whether it looks at images, so that in a build it reads the source beside the side shards."""
        return False

    @property
    def redoes_whole(self) -> bool:
        """Whether ``--redo-dropped`` makes whole shards anew: what becomes of a sample depends on its neighbours."""
        return False

    @property
    def gpus(self) -> int:
        """GPUs that each worker needs, where there are any."""
        return getattr(getattr(self, "model", None), "tensor_parallel", 1)

    @property
    def uses_gpu(self) -> bool:
        """Whether a GPU can help: by default where it has a ``model`` that does not deny it."""
        model = getattr(self, "model", None)
        return bool(model) and getattr(model, "uses_gpu", True)

    def config(self) -> dict:
        """What decides the output bytes."""
        return settings(self)

    def open(self, device: str) -> None:
        """Load models on ``device`` (``cpu``, ``cuda``); called once in each worker.

        Raises:
            PipelineError: a package, model or server is missing; the message says how to get it.
        """

    def process(self, task: ShardTask, stats: Stats) -> Iterator:
        """Yield the task's output Samples in key order; count every one that is not yielded."""
        raise NotImplementedError


def config_hash(stage: Stage) -> str:
    text = json.dumps([stage.name, stage.config()], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def needs(what: str, extra: str = "build") -> Iterator[None]:
    """Around imports of what need not be installed: the message names the extra that brings it.

    Raises:
        PipelineError: a package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise PipelineError(f"{what} ({error}): install open_clip_triplet with its extra `{extra}`") from error


def model_name(model: str) -> str:
    """A model's name without the folder that it lies in: a sample's json is given away, and says what, not where.

    >>> model_name("/data/models/smollm2/"), model_name("org/name"), model_name("local-dir:/data/clip")
    ('smollm2', 'org/name', 'local-dir:clip')
    """
    kind, colon, path = model.rpartition(":")
    if os.path.isabs(path) or os.path.isdir(path):
        return kind + colon + os.path.basename(os.path.abspath(path))
    return model


def sample_seed(seed: int, key: str, attempt: int = 0) -> int:
    """A 31-bit seed of one sample's one attempt, the same on every machine.

    >>> sample_seed(0, "00000_000001") == sample_seed(0, "00000_000001")
    True
    """
    digest = hashlib.sha256(f"{seed}/{attempt}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
