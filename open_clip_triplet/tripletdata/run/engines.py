"""Where tasks are worked: in this process, in processes of this machine (one per device), or on Ray.

An engine is called with (stage, tasks, output, progress) and yields ``(kind, task, value)``: ``done``
with the record, ``unreadable`` or ``failed`` with a message; ``progress(task, fraction)`` is called in
between. It raises PipelineError when nothing can go on. Every engine runs the same ``Worker``, so that
the bytes do not depend on the engine.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.run.worker import Worker


def devices(wanted: int = 0, each: int = 1) -> list[str]:
    """One name per worker: ``each`` of the visible GPUs (``cuda:0,1``), else ``wanted`` times ``cpu``.

    Raises:
        PipelineError: there are GPUs, but fewer than ``each``.
    """
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        return ["cpu"] * max(wanted, 1)
    if gpus < each:
        raise PipelineError(f"--tensor-parallel {each} needs {each} GPUs; {gpus} can be seen here", 2)
    groups = [",".join(map(str, range(i, i + each))) for i in range(0, gpus - each + 1, each)]
    return [f"cuda:{groups[i % len(groups)]}" for i in range(wanted or len(groups))]


@dataclass
class Local:
    """A process per device; a single CPU worker runs in this process.

    Args:
        workers: processes; 0 means one per visible GPU, or one without GPU.
        cpu: never use a GPU, whatever is there (stages without a model).
    """

    workers: int = 0
    cpu: bool = False

    def __call__(self, stage: Stage, tasks: list[ShardTask], output: str, progress) -> Iterator[tuple]:
        names = ["cpu"] * max(self.workers, 1) if self.cpu else devices(self.workers, stage.gpus)
        names = names[: len(tasks)]
        # A GPU's memory is given back only when its process ends, and the next stage needs it.
        if len(names) > 1 or names[0] != "cpu":
            from open_clip_triplet.tripletdata.run.pool import Pool

            yield from Pool(stage, tasks, output, names, progress).events()
        else:
            yield from _here(stage, tasks, output, progress)


def _here(stage: Stage, tasks: list[ShardTask], output: str, progress) -> Iterator[tuple]:
    """All tasks in this process: the next one is read, and the last one finished, while one is worked."""
    worker = Worker(stage, "cpu")
    with ThreadPoolExecutor(1) as finisher:
        reading: Future | None = worker.read_ahead(tasks[0])
        finishing: deque[tuple[ShardTask, Future]] = deque()
        try:
            for number, task in enumerate(tasks):
                current, reading = reading, None
                assert current is not None
                if number + 1 < len(tasks):
                    reading = worker.read_ahead(tasks[number + 1])
                finish = worker.start(current, output, functools.partial(progress, task))
                finishing.append((task, finisher.submit(finish)))
                while finishing and (len(finishing) > 1 or finishing[0][1].done()):
                    yield _event(*finishing.popleft())
            while finishing:
                yield _event(*finishing.popleft())
        finally:
            worker.close()


def _event(task: ShardTask, finishing: Future) -> tuple:
    kind, value = finishing.result()
    return kind, task, value
