"""The tasks behind ``--input``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.shards import expand_shards
from open_clip_triplet.tripletdata.run.tables import TABLES, Table, read_table
from open_clip_triplet.tripletdata.run.task import ShardTask


def plan_tasks(
    spec: list[str] | str, table: Table | None = None, samples_per_shard: int = 10_000
) -> list[ShardTask]:
    """Units behind ``--input``: folders of shards, shard patterns, or tables, in the order given.

    Their paths are absolute: a worker of another machine has another working folder.

    Raises:
        PipelineError: nothing is found there.
    """
    tasks: list[ShardTask] = []
    for item in [spec] if isinstance(spec, str) else spec:
        if os.path.isdir(item):
            shards = sorted(str(path) for path in Path(item).glob("*.tar") if not path.name.startswith("."))
            if not shards:
                raise PipelineError(f"{item}: holds no .tar shard", 2)
        elif item.lower().endswith(TABLES):
            item = os.path.abspath(item)
            total = len(read_table(item, table or Table()))
            for start in range(0, total, samples_per_shard):
                rows = (start, min(start + samples_per_shard, total))
                tasks.append(ShardTask(len(tasks), (item,), rows, table or Table()))
            continue
        else:
            shards = expand_shards(item)
            if not any(os.path.exists(shard) for shard in shards):
                raise PipelineError(f"{item}: no such file or folder", 2)
        for shard in shards:
            tasks.append(ShardTask(len(tasks), (os.path.abspath(shard),)))
    if not tasks:
        raise PipelineError(f"{spec}: holds no sample", 2)
    return tasks


def known_samples(tasks: list[ShardTask]) -> int | None:
    """Samples in all tasks, by ``sizes.json``, img2dataset's ``_stats.json`` or row counts; None: unknown."""
    total, sizes = 0, {}
    for task in tasks:
        if task.rows:
            total += task.rows[1] - task.rows[0]
            continue
        folder, name = os.path.split(task.inputs[-1])
        if folder not in sizes:
            sizes[folder] = read_json(os.path.join(folder, "sizes.json"))
        size = sizes[folder].get(name)
        if size is None:
            size = read_json(os.path.join(folder, name.removesuffix(".tar") + "_stats.json")).get("successes")
        if size is None:
            return None
        total += int(size)
    return total


def read_json(path: str | os.PathLike) -> dict:
    """The object in a json file; ``{}`` where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
