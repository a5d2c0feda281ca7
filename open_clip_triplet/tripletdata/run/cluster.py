"""Ray actors, each with its own model. A dead actor is replaced and its shards are redone."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.queue import TaskQueue
from open_clip_triplet.tripletdata.run.stage import Stage, needs
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.run.worker import Worker

#: seconds between two looks at how far the actors are
LOOK = 1.0


@dataclass
class Ray:
    """Work on a Ray cluster.

    Args:
        address: of a running cluster (``auto``, ``host:port``, ``ray://…``); empty starts a local one.
        workers: actors; 0 means one per GPU of the cluster, or one per two CPUs without GPU.
        gpus: GPUs each actor asks for; None means as many as the stage needs where the cluster has any.
    """

    address: str = ""
    workers: int = 0
    gpus: float | None = None
    cpu: bool = False

    def __call__(self, stage: Stage, tasks: list[ShardTask], output: str, progress) -> Iterator[tuple]:
        with needs("--engine ray needs Ray", "ray"):
            import ray
        mine = not ray.is_initialized()
        if mine:
            self._join(ray)
        try:
            yield from _Driver(self, ray, stage, tasks, output, progress).events()
        finally:
            if mine:
                ray.shutdown()

    def _join(self, ray) -> None:
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


class _Driver:
    """Deals tasks to actors, two to each, and gathers what comes back."""

    def __init__(self, engine: Ray, ray, stage: Stage, tasks: list[ShardTask], output: str, progress):
        self.ray, self.stage, self.progress = ray, stage, progress
        self.output = os.path.abspath(output) if not files.is_remote(output) else output
        cluster = ray.cluster_resources()
        gpus = 0 if engine.cpu else engine.gpus
        if gpus is None:
            gpus = stage.gpus if cluster.get("GPU", 0) else 0
        count = engine.workers or int(
            cluster.get("GPU", 0) / gpus if gpus else max(cluster.get("CPU", 1) // 2, 1)
        )
        self.device = "cuda" if gpus else "cpu"
        self.actor = ray.remote(num_gpus=gpus, num_cpus=1, max_concurrency=6)(RayWorker)
        self.queue = TaskQueue(tasks)
        self.actors: dict[Any, list[ShardTask]] = {self._new(): [] for _ in range(max(1, min(count, len(tasks))))}
        self.running: dict[Any, tuple[Any, ShardTask]] = {}

    def _new(self):
        return self.actor.remote(self.stage, self.device)

    def events(self) -> Iterator[tuple]:
        self._feed()
        while self.running:
            ready, _ = self.ray.wait(list(self.running), timeout=LOOK)
            for reference in ready:
                if reference in self.running:  # else it died with its neighbour
                    yield from self._take(reference)
            self._feed()
            if not ready:
                self._look()

    def _feed(self) -> None:
        for share in range(1, self.stage.in_flight + 2):
            for actor, tasks in self.actors.items():
                if len(tasks) < share and len(self.queue) >= (1 if share == 1 else len(self.actors)):
                    task = self.queue.take()
                    tasks.append(task)
                    self.running[actor.work.remote(task, self.output)] = (actor, task)

    def _take(self, reference) -> Iterator[tuple]:
        actor, task = self.running.pop(reference)
        try:
            kind, value = self.ray.get(reference)
        except self.ray.exceptions.RayActorError as error:
            yield from self._died(actor, error)
            return
        if kind == "stop":
            raise PipelineError(*value)
        self.actors[actor].remove(task)
        yield kind, task, value

    def _died(self, actor, error: Exception) -> Iterator[tuple]:
        lost = self.actors.pop(actor)
        self.running = {ref: value for ref, value in self.running.items() if value[0] is not actor}
        if given_up := self.queue.lost(lost):
            yield "failed", given_up, f"its Ray worker died more than once ({type(error).__name__})"
        if len(self.queue):
            self.actors[self._new()] = []

    def _look(self) -> None:
        """Show how far each actor is. One that is starting answers later, and is not waited for."""
        asked = {actor.share_done.remote(): tasks for actor, tasks in self.actors.items() if tasks}
        answered, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=0.5) if asked else ([], [])
        for reference in answered:
            try:
                index, share = self.ray.get(reference)
            except self.ray.exceptions.RayError:
                continue  # it died: its tasks tell
            for task in asked[reference]:
                if task.index == index:
                    self.progress(task, share)


class RayWorker:
    """One Ray actor. Faults of the run come back as values: an actor that raises tells less.

    ``work`` is called from several threads at once: one has the model, the others read ahead or write.
    """

    def __init__(self, stage: Stage, device: str):
        self.stop: tuple | None = None
        self._model, self._done = threading.Semaphore(stage.in_flight), (-1, 0.0)
        try:
            self._worker = Worker(stage, device)
        except PipelineError as stop:
            self.stop = ("stop", (str(stop), stop.status))
        except Exception as error:  # an actor that cannot be made says only that it died
            traceback.print_exc()
            self.stop = ("stop", (f"{stage.name} cannot start: {type(error).__name__}: {error}", 4))

    def share_done(self) -> tuple[int, float]:
        """Number of the task at hand and the share of it that is done."""
        return self._done

    def work(self, task: ShardTask, output: str) -> tuple:
        if self.stop:
            return self.stop
        reading: Future = self._worker.read_ahead(task)
        try:
            with self._model:
                finish = self._worker.start(reading, output, lambda share: self._note(task.index, share))
            return finish()
        except PipelineError as stop:
            return "stop", (str(stop), stop.status)

    def _note(self, index: int, share: float) -> None:
        self._done = (index, share)
