"""The tasks behind ``--input``, and the number that each input keeps in an output folder.

An output shard takes the number of its input's name (``00017.tar``, ``train-0017.tar``) where every name
ends in a number of its own, else the input's place in the list. ``plan.json`` in the output folder
remembers who has which number, so that removing, fixing or adding an input renumbers nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.shards import expand_shards
from open_clip_triplet.tripletdata.run.tables import TABLES, Table, count_rows
from open_clip_triplet.tripletdata.run.task import Policy, ShardTask

PLAN = "plan.json"


def plan_tasks(
    spec: list[str] | str,
    table: Table | None = None,
    samples_per_shard: int = 10_000,
    *,
    output: str | os.PathLike | None = None,
    policy: Policy | None = None,
) -> list[ShardTask]:
    """Tasks behind ``--input``: folders of shards, shard patterns, tables, or folders of tables.

    Their paths are absolute: a worker of another machine has another working folder.

    Args:
        output: folder whose plan numbers them; None numbers them afresh.

    Raises:
        PipelineError: nothing is found there.
    """
    tasks: list[ShardTask] = []
    for item in [spec] if isinstance(spec, str) else spec:
        for url in _inputs(item):
            if url.lower().endswith(TABLES):
                total = count_rows(url, table or Table())
                spans = [(s, min(s + samples_per_shard, total)) for s in range(0, total, samples_per_shard)]
                tasks += [ShardTask(0, (url,), rows, table or Table()) for rows in spans]
            else:
                tasks.append(ShardTask(0, (url,)))
    if not tasks:
        raise PipelineError(f"{spec}: holds no sample", 2)
    tasks = [replace(task, policy=policy or Policy()) for task in tasks]
    return number_tasks(tasks, read_plan(output) if output else {})


def _inputs(item: str) -> Iterator[str]:
    """Absolute inputs of one item: shards, tables, folders of files."""
    files.require_scheme(item)
    if not item.startswith("pipe:") and files.is_folder(item):
        found = list(_in_folder(item))
        if not found:
            raise PipelineError(f"{item}: holds no .tar shard, no table and no folder of pairs", 2)
    else:
        found = expand_shards(item)
        files.require_scheme(*found)
        if not any(url.startswith("pipe:") or files.exists(url) for url in found):
            raise PipelineError(f"{item}: no such file or folder", 2)
    yield from (url if files.is_remote(url) else os.path.abspath(files.local_path(url)) for url in found)


def _in_folder(folder: str) -> Iterator[str]:
    """Shards of a folder; where there are none its tables, or its numbered folders of files."""
    names = files.list_files(folder)
    for ends in ((".tar", ".tar.gz"), TABLES):
        if chosen := [name for name in names if name.lower().endswith(ends)]:
            yield from (files.join(folder, name) for name in chosen)
            return
    if not files.is_remote(folder):  # Hugging Face keeps its parquet in data/, img2dataset its files in 00000/
        for child in sorted(Path(folder).iterdir()):
            if child.is_dir() and child.name == "data":
                yield from _in_folder(str(child))
            elif child.is_dir() and child.name.isdigit():
                yield str(child)
    elif files.is_folder(files.join(folder, "data")):
        yield from _in_folder(files.join(folder, "data"))


# --- numbers --------------------------------------------------------------------------------------


def labels(task: ShardTask) -> tuple[str, str]:
    """A task's name in a plan: short, and with its folder's hash where several inputs share a name.

    Neither tells where the data lies, so that a data set can be moved, and its plan published.
    """
    url = task.inputs[0]
    if url.startswith("pipe:"):
        name = task.identity()[0]["name"]
        return name, name
    name = os.path.basename(url.rstrip("/"))
    if task.rows:
        name += "[{}:{}]".format(*task.rows)
    return name, f"{hashlib.sha256(os.path.dirname(url).encode()).hexdigest()[:8]}/{name}"


def number_tasks(tasks: list[ShardTask], plan: dict[int, str]) -> list[ShardTask]:
    """``tasks`` with the numbers that ``plan`` gives them, the rest numbered after it; sorted by number.

    Raises:
        PipelineError: the rows of a table are cut another way than the plan says.
    """
    named = [(task, *labels(task)) for task in tasks]
    shared = Counter(short for _, short, _ in named)
    numbered: dict[int, int] = {}  # position in the list -> number
    left = dict(sorted(plan.items()))
    # The exact name first; then the short one, for a data set that was moved or stood alone before.
    for key, part in ((2, lambda label: label), (1, lambda label: label.rpartition("/")[2])):
        waiting: dict[str, list[int]] = {}
        for position in range(len(named) - 1, -1, -1):
            if position not in numbered:
                waiting.setdefault(str(named[position][key]), []).append(position)
        for number, label in list(left.items()):
            if positions := waiting.get(part(label)):
                numbered[positions.pop()] = number
                del left[number]
    new = [position for position in range(len(named)) if position not in numbered]
    _refuse_other_cut([named[p][0] for p in new], plan)
    for position, number in zip(new, _new_numbers([named[p][1] for p in new], plan)):
        numbered[position] = number
    result = [
        replace(task, index=numbered[p], source=plan.get(numbered[p]) or (full if shared[short] > 1 else short))
        for p, (task, short, full) in enumerate(named)
    ]
    return sorted(result, key=lambda task: task.index)


def _new_numbers(names: list[str], plan: dict[int, str]) -> list[int]:
    """Numbers of inputs that the plan does not know: those of their names, if that is clear, else the next."""
    found = [re.search(r"(\d{1,8})(\.tar|\.tar\.gz|)$", name) for name in names if name[:5] != "pipe-"]
    own = [int(match[1]) for match in found if match]
    if len(set(own)) == len(names) and not set(own) & set(plan):
        return own
    first = max(plan, default=-1) + 1
    return list(range(first, first + len(names)))


def _refuse_other_cut(new: list[ShardTask], plan: dict[int, str]) -> None:
    cut = {label.rpartition("/")[2].partition("[")[0] for label in plan.values() if label.endswith("]")}
    ends = {
        label.rpartition("/")[2].partition("[")[0]: int(label.rpartition(":")[2][:-1])
        for _, label in sorted(plan.items())
        if label.endswith("]")
    }
    for task in new:
        name = os.path.basename(task.inputs[0])
        if task.rows and name in cut and task.rows[0] < ends[name]:
            raise PipelineError(
                f"{name}: was cut into shards of another size, or has another number of rows now. "
                "Use the same --samples-per-shard and table, or choose another --output.",
                2,
            )


def read_plan(output: str | os.PathLike) -> dict[int, str]:
    """Number -> input of an output folder; ``{}`` where it has no plan.

    Raises:
        PipelineError: the plan is damaged.
    """
    path = files.join(output, PLAN)
    inputs = read_json(path).get("inputs")
    if isinstance(inputs, dict):
        return {int(n): str(label) for n, label in inputs.items()}
    if files.exists(path):  # without it finished shards would be given to other inputs
        raise PipelineError(f"{path}: cannot be read. Restore it, or remove the folder to start again.", 2)
    return {}


def write_plan(output: str | os.PathLike, tasks: list[ShardTask]) -> dict[int, str]:
    """Add ``tasks`` to the plan of a folder; the plan as it is then.

    Raises:
        PipelineError: one of their numbers belongs to another input.
    """
    plan = read_plan(output)
    wanted = {task.index: task.source or labels(task)[0] for task in tasks}
    for number, label in wanted.items():
        if plan.get(number, label) != label:
            raise PipelineError(
                f"{output}: shard {number:05d} was made from {plan[number]}; this run would make it from "
                f"{label}. Choose another --output.",
                2,
            )
    whole = {**plan, **wanted}
    if whole != plan:
        text = json.dumps({"inputs": {f"{n:05d}": whole[n] for n in sorted(whole)}}, indent=1)
        files.write_text_durably(files.join(output, PLAN), text + "\n")
    return whole


def known_samples(tasks: list[ShardTask]) -> int | None:
    """Samples in all tasks, by ``sizes.json``, img2dataset's ``_stats.json`` or row counts; None: unknown."""
    total, sizes = 0, {}
    for task in tasks:
        if task.rows:
            total += task.rows[1] - task.rows[0]
            continue
        folder, name = os.path.split(task.inputs[-1])
        if folder not in sizes:
            sizes[folder] = read_json(files.join(folder, "sizes.json"))
        size = sizes[folder].get(name)
        if size is None:
            size = read_json(files.join(folder, name.removesuffix(".tar") + "_stats.json")).get("successes")
        if size is None:
            return None
        total += int(size)
    return total


def read_json(path: str | os.PathLike) -> dict:
    """The object in a json file; ``{}`` where there is none."""
    try:
        value = json.loads(files.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
