"""One worker: a stage on a device, and three threads' worth of work around it.

While the model works on one shard, the next one's captions are read and the last one is written. The
model itself is only ever called from the threads that call ``start``: one, or the stage's ``in_flight``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from open_clip_triplet.errors import PipelineError, ShardError, TooManyDropped
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.run.work import start_task


class Worker:
    """Opens ``stage`` on ``device``.

    Raises:
        PipelineError: the stage cannot be opened.
    """

    def __init__(self, stage: Stage, device: str):
        self.stage = stage
        self._reader = ThreadPoolExecutor(1)
        stage.open(device)

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)

    def read_ahead(self, task: ShardTask) -> Future:
        """The task with its captions in memory, or as it is where the stage reads images anyway."""
        if self.stage.captions_first and task.policy.redo is None:
            return self._reader.submit(_read_ahead, task)
        ready: Future = Future()
        ready.set_result(task)
        return ready

    def start(self, reading: Future, output: str, report=lambda fraction: None) -> Callable[[], tuple]:
        """Do the model's part of a task. The function returned does the rest and gives ``(kind, value)``:
        ``("done", record)``, or ``("unreadable" or "failed", message)`` where only this task is at fault.

        Raises:
            PipelineError: the whole run is at fault.
        """
        begun = _attempt(lambda: start_task(self.stage, reading.result(), output, report))
        return (lambda: _attempt(begun[1])) if begun[0] == "done" else (lambda: begun)


def _read_ahead(task: ShardTask) -> ShardTask:
    """Faults are left to be met where they are counted."""
    try:
        return task.read_ahead()
    except ShardError:
        return task


def _attempt(work: Callable) -> tuple:
    try:
        return "done", work()
    except TooManyDropped as error:
        return "failed", str(error)
    except ShardError as error:
        return "unreadable", str(error)
    except PipelineError:
        raise
    except Exception as error:  # a defect met by one shard must not cost the others; the trace is shown
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
