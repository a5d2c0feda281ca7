"""Tasks that wait for a worker, of either engine."""

from __future__ import annotations

from collections import deque

from open_clip_triplet.tripletdata.run.task import ShardTask

#: times a task is tried again after its worker died
RETRIES = 1


class TaskQueue:
    """Tasks that wait, and how often each has lost its worker."""

    def __init__(self, tasks: list[ShardTask]):
        self._waiting, self._tries = deque(tasks), {task.index: 0 for task in tasks}

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> ShardTask:
        return self._waiting.popleft()

    def lost(self, tasks: list[ShardTask]) -> ShardTask | None:
        """Take back the tasks of a worker that died. The first was being worked, and is to blame: it goes
        after the others, so that it dies alone next time. The task to give up, if that was its last try.
        """
        if not tasks:
            return None
        blamed, *innocent = tasks
        self._tries[blamed.index] += 1
        again = self._tries[blamed.index] <= RETRIES
        self._waiting.extendleft(reversed([*innocent, blamed] if again else innocent))
        return None if again else blamed
