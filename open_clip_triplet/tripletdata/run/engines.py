"""Where tasks are worked: processes on this machine (one per device), or Ray actors on a cluster.

An engine is called with (stage, tasks, output, progress) and yields ``(kind, task, value)``: ``done``
with the record or ``failed`` with a message; ``progress(task, fraction)`` is called in between. It
raises PipelineError when nothing can go on.
Both run the same ``run_task``, so that the bytes do not depend on the engine.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from open_clip_triplet.errors import PipelineError, ShardError
from open_clip_triplet.tripletdata.run.runner import run_task
from open_clip_triplet.tripletdata.run.task import ShardTask

#: times a task is tried again after its worker died
RETRIES = 1


def attempt(stage, task: ShardTask, output, report=lambda fraction: None) -> tuple[str, object]:
    """``("done", record)``, or ``("failed", message)`` where only this task is at fault.

    Raises:
        PipelineError: the whole run is at fault.
    """
    try:
        return "done", run_task(stage, task, output, report)
    except ShardError as error:
        return "failed", str(error)
    except PipelineError:
        raise
    except Exception as error:  # a defect met by one shard must not cost the others; the trace is shown
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"


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

    def __call__(
        self, stage, tasks: list[ShardTask], output, progress=lambda task, share: None
    ) -> Iterator[tuple]:
        names = ["cpu"] * max(self.workers, 1) if self.cpu else devices(self.workers, stage.gpus)
        names = names[: len(tasks)]
        # A GPU's memory is given back only when its process ends, and the next stage needs it.
        if len(names) > 1 or names[0] != "cpu":
            yield from _Pool(stage, tasks, output, names, progress).events()
            return
        stage.open("cpu")
        for task in tasks:
            kind, value = attempt(stage, task, output, functools.partial(progress, task))
            yield kind, task, value


def _worker(connection, stage, output, device: str, parent: int) -> None:
    """Body of a local worker process: open the stage on its device, then work tasks until told to end."""
    _die_with(parent)
    if device.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices(
            device.partition(":")[2], os.environ.get("CUDA_VISIBLE_DEVICES", "")
        )
    try:
        stage.open(device.partition(":")[0])
        connection.send(("ready", None))
        while (task := connection.recv()) is not None:
            connection.send(attempt(stage, task, output, _throttled(connection)))
    except PipelineError as stop:
        connection.send(("stop", (str(stop), stop.status)))
    except EOFError:
        pass  # the parent is gone


def visible_devices(numbers: str, visible: str) -> str:
    """GPU ``numbers`` of those that are ``visible`` (empty: all), as CUDA_VISIBLE_DEVICES takes them.

    >>> visible_devices("0,1", "4,5,6,7")
    '4,5'
    """
    names = visible.split(",") if visible else None
    return ",".join(names[int(number)] if names else number for number in numbers.split(","))


def _throttled(connection, interval: float = 0.5):
    last = 0.0

    def report(fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > interval:
            last = time.monotonic()
            connection.send(("progress", fraction))

    return report


def _die_with(parent: int) -> None:
    """Have Linux kill this process when its parent is killed, so that no orphan writes beside a rerun."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


class _Pool:
    """Processes with a pipe each. A worker that dies is replaced and its task tried once more."""

    def __init__(self, stage, tasks, output, names, progress):
        self.stage, self.output, self.progress = stage, output, progress
        self.queue, self.tries = deque(tasks), {}
        self.names, self.busy = list(names), {}

    def _start(self, device: str) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_worker, args=(theirs, self.stage, self.output, device, os.getpid()), daemon=False
        )
        process.start()
        theirs.close()
        self.busy[ours] = [process, device, None]

    def events(self) -> Iterator[tuple]:
        from multiprocessing.connection import wait

        try:
            for device in self.names:
                self._start(device)
            while self.busy:
                for connection in wait(list(self.busy)):
                    yield from self._handle(connection)
        finally:
            for process, *_ in self.busy.values():
                process.kill()

    def _handle(self, connection) -> Iterator[tuple]:
        worker = self.busy[connection]
        process, device, task = worker
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            yield from self._died(connection)
            return
        if kind == "stop":
            raise PipelineError(*value)
        if kind == "progress":
            self.progress(task, value)
            return
        if kind != "ready":
            yield kind, task, value
        worker[2] = self.queue.popleft() if self.queue else None
        try:
            connection.send(worker[2])
        except OSError:  # killed since its last word
            if worker[2] is not None:
                yield from self._died(connection)
                return
        if worker[2] is None:
            del self.busy[connection]
            process.join()

    def _died(self, connection) -> Iterator[tuple]:
        process, device, task = self.busy.pop(connection)
        process.join()
        how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
        if task is None:
            raise PipelineError(
                f"a {self.stage.name} worker ended with {how} while it was starting; its output is above."
            )
        self.tries[task.index] = self.tries.get(task.index, 0) + 1
        if self.tries[task.index] <= RETRIES:
            print(f"a worker ended with {how} in {task.shard}; trying that shard again", file=sys.stderr)
            self.queue.appendleft(task)
        else:
            yield "failed", task, f"its worker ended with {how}, twice (out of memory?)"
        if self.queue:
            self._start(device)


@dataclass
class Ray:
    """Ray actors, each with its own model. A dead actor is restarted and its shard redone, once.

    Args:
        address: of a running cluster (``auto``, ``host:port``, ``ray://…``); empty starts a local one.
        workers: actors; 0 means one per GPU of the cluster, or one per two CPUs without GPU.
        gpus: GPUs each actor asks for; None means as many as the stage needs where the cluster has any.
    """

    address: str = ""
    workers: int = 0
    gpus: float | None = None
    cpu: bool = False

    def __call__(
        self, stage, tasks: list[ShardTask], output, progress=lambda task, share: None
    ) -> Iterator[tuple]:
        try:
            import ray
        except ImportError as error:
            raise PipelineError("--engine ray needs Ray: pip install 'open_clip_triplet[ray]'") from error
        mine = not ray.is_initialized()
        if mine:
            root = str(Path(__file__).resolve().parents[3])
            path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            local = {} if self.address else {"include_dashboard": False}
            try:
                ray.init(
                    self.address or "local",
                    logging_level="ERROR",
                    **local,
                    runtime_env={"env_vars": {"PYTHONPATH": path}},
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise PipelineError(
                    f"no Ray cluster at {self.address!r} ({error}). Leave --ray-address out for a local one."
                ) from error
        try:
            yield from self._drive(ray, stage, tasks, output)
        finally:
            if mine:
                ray.shutdown()

    def _drive(self, ray, stage, tasks, output) -> Iterator[tuple]:
        cluster = ray.cluster_resources()
        gpus = 0 if self.cpu else self.gpus
        if gpus is None:
            gpus = stage.gpus if cluster.get("GPU", 0) else 0
        count = self.workers or int(
            cluster.get("GPU", 0) / gpus if gpus else max(cluster.get("CPU", 1) // 2, 1)
        )
        options = {"num_gpus": gpus, "num_cpus": 1, "max_restarts": -1, "max_task_retries": RETRIES}
        actor = ray.remote(**options)(_RayWorker)
        queue = deque(tasks)
        workers = [
            actor.remote(stage, "cuda" if gpus else "cpu") for _ in range(max(1, min(count, len(tasks))))
        ]
        running: dict = {}

        def give(worker) -> None:
            if queue:
                task = queue.popleft()
                running[worker.work.remote(task, os.path.abspath(output))] = (worker, task)

        for worker in workers:
            give(worker)
        while running:
            (ready, *_), _ = ray.wait(list(running))
            worker, task = running.pop(ready)
            try:
                kind, value = ray.get(ready)
            except ray.exceptions.RayActorError as error:
                kind, value = "failed", f"its Ray worker died more than once ({type(error).__name__})"
            if kind == "stop":
                raise PipelineError(*value)
            yield kind, task, value
            give(worker)


class _RayWorker:
    """One Ray actor. Faults of the run come back as values: an actor that raises is retried for nothing."""

    def __init__(self, stage, device: str):
        self.stage, self.stop = stage, None
        try:
            stage.open(device)
        except PipelineError as stop:
            self.stop = ("stop", (str(stop), stop.status))
        except Exception as error:  # an actor that cannot be made says only that it died
            traceback.print_exc()
            self.stop = ("stop", (f"{stage.name} cannot start: {type(error).__name__}: {error}", 4))

    def work(self, task: ShardTask, output: str):
        try:
            return self.stop or attempt(self.stage, task, output)
        except PipelineError as stop:
            return "stop", (str(stop), stop.status)
