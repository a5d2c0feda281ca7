"""Processes with a pipe each, two tasks in flight in each: one is worked, one is read ahead.

A worker that dies is replaced, and its tasks are tried again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.queue import TaskQueue
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.run.worker import Worker


def worker_process(connection: Connection, stage: Stage, output: str, device: str, parent: int) -> None:
    """Body of a worker process. It takes tasks until it is sent None and sends back ``(kind, index, value)``:
    ``ready``, ``progress``, ``worked`` (the model is free), ``done``, ``unreadable``, ``failed``, ``stop``.
    """
    _die_with(parent)
    if device.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices(
            device.partition(":")[2], os.environ.get("CUDA_VISIBLE_DEVICES", "")
        )
    lock = threading.Lock()

    def send(kind: str, index: int | None, value: Any = None) -> None:
        with lock:
            connection.send((kind, index, value))

    try:
        worker = Worker(stage, device.partition(":")[0])
        send("ready", None)
        tasks: queue.Queue = queue.Queue()
        threading.Thread(target=_receive, args=(connection, worker, tasks), daemon=True).start()

        def work(task: ShardTask, reading: Future) -> None:
            report = _throttled(functools.partial(send, "progress", task.index))
            try:
                finish = worker.start(reading, output, report)
            except PipelineError as stop:
                send("stop", None, (str(stop), stop.status))
                return
            send("worked", task.index)
            finisher.submit(_finish, finish, task, send)

        with ThreadPoolExecutor(1) as finisher, ThreadPoolExecutor(stage.in_flight) as starters:
            while (item := tasks.get()) is not None:
                starters.submit(work, *item)
            starters.shutdown()
        worker.close()
    except PipelineError as stop:
        send("stop", None, (str(stop), stop.status))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone


def _finish(finish: Callable[[], tuple], task: ShardTask, send) -> None:
    try:
        kind, value = finish()
    except PipelineError as stop:
        kind, value = "stop", (str(stop), stop.status)
    send(kind, task.index, value)


def _receive(connection: Connection, worker: Worker, tasks: queue.Queue) -> None:
    """Take tasks off the pipe while the model works, and read each ahead."""
    try:
        while (task := connection.recv()) is not None:
            tasks.put((task, worker.read_ahead(task)))
    except (EOFError, OSError):
        pass
    tasks.put(None)


def visible_devices(numbers: str, visible: str) -> str:
    """GPU ``numbers`` of those that are ``visible`` (empty: all), as CUDA_VISIBLE_DEVICES takes them.

    >>> visible_devices("0,1", "4,5,6,7")
    '4,5'
    """
    names = visible.split(",") if visible else None
    return ",".join(names[int(number)] if names else number for number in numbers.split(","))


def _throttled(send: Callable[[float], None]) -> Callable[[float], None]:
    """``send`` twice a second at most."""
    last = 0.0

    def report(fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            send(fraction)

    return report


def _die_with(parent: int) -> None:
    """Have Linux kill this process when its parent is killed, so that no orphan writes beside a rerun."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


class _Process:
    """The parent's side of one worker process."""

    def __init__(self, process, device: str, in_flight: int):
        self.process, self.device, self.in_flight = process, device, in_flight
        self.ready, self.ending = False, False
        self.tasks: dict[int, ShardTask] = {}  # sent and not finished, oldest first
        self.worked: set[int] = set()

    def unfinished(self) -> list[ShardTask]:
        """What is lost when it dies: the task that the model was at first."""
        return sorted(self.tasks.values(), key=lambda task: task.index in self.worked)

    @property
    def wants(self) -> int:
        """Tasks to send: those to work at once, and one to read ahead."""
        return self.in_flight + 1 - sum(index not in self.worked for index in self.tasks) if self.ready else 0


class Pool:
    """See the module. ``events`` runs everything."""

    def __init__(self, stage: Stage, tasks: list[ShardTask], output: str, names: list[str], progress):
        self.stage, self.output, self.progress = stage, output, progress
        self.queue, self.names = TaskQueue(tasks), names
        self.workers: dict[Connection, _Process] = {}

    def _start(self, device: str) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.stage, self.output, device, os.getpid())
        process = context.Process(target=worker_process, args=arguments, daemon=False)
        process.start()
        theirs.close()
        self.workers[ours] = _Process(process, device, self.stage.in_flight)

    def events(self) -> Iterator[tuple]:
        try:
            for device in self.names:
                self._start(device)
            while self.workers:
                for connection in wait(list(self.workers)):
                    yield from self._handle(connection)
                self._feed()
        finally:
            for worker in self.workers.values():
                worker.process.kill()

    def _handle(self, connection) -> Iterator[tuple]:
        worker = self.workers[connection]
        try:
            kind, index, value = connection.recv()
        except (EOFError, OSError):
            yield from self._died(connection)
            return
        if kind == "stop":
            raise PipelineError(*value)
        if kind == "ready":
            worker.ready = True
        elif kind == "progress":
            self.progress(worker.tasks[index], value)
        elif kind == "worked":
            worker.worked.add(index)
        else:
            yield kind, worker.tasks.pop(index), value

    def _feed(self) -> None:
        """Give each worker a task to work before any gets one to read ahead; end those that are not needed."""
        most = self.stage.in_flight + 1
        for share in range(1, most + 1):
            for connection, worker in self.workers.items():
                idle = worker.ready and worker.wants == most + 1 - share
                if idle and not worker.ending and len(self.queue) >= (1 if share == 1 else len(self.workers)):
                    task = self.queue.take()
                    worker.tasks[task.index] = task
                    self._send(connection, task)
        for connection, worker in self.workers.items():
            if worker.ready and not worker.tasks and not worker.ending and not len(self.queue):
                worker.ending = True
                self._send(connection, None)

    @staticmethod
    def _send(connection, task: ShardTask | None) -> None:
        with contextlib.suppress(OSError):  # killed since its last word: reading from it will tell
            connection.send(task)

    def _died(self, connection) -> Iterator[tuple]:
        worker = self.workers.pop(connection)
        worker.process.join()
        if worker.ending and not worker.process.exitcode:
            return
        status = worker.process.exitcode or 0
        how = f"signal {-status}" if status < 0 else f"status {status}"
        if not worker.ready:
            raise PipelineError(
                f"a {self.stage.name} worker ended with {how} while it was starting; its output is above."
            )
        lost = worker.unfinished()
        given_up = self.queue.lost(lost)
        if given_up:
            yield "failed", given_up, f"its worker ended with {how}, twice (out of memory?)"
        elif lost:
            print(f"a worker ended with {how} in {lost[0].shard}; trying that shard again", file=sys.stderr)
        if len(self.queue):
            self._start(worker.device)
