"""Which items of a suite can be scored: benchmarks loaded, images found, what is lacking named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from open_clip_triplet.errors import DataError, PartialData
from open_clip_triplet.evaluation.benchmarks import Benchmark, get
from open_clip_triplet.evaluation.tasks import Task

#: benchmark name -> (benchmark, task per subset)
Suite = dict[str, tuple[Benchmark, dict[str, Task]]]


def require_data(
    benchmarks: Sequence[str], data_root: str | os.PathLike[str], *, allow_partial: bool = False
) -> None:
    """Check, before a long run, that the benchmarks' data is there; images are looked for, not opened.

    Raises:
        MissingData, PartialData: as ``evaluate``. ValueError: unknown benchmark.
    """
    load_suite([get(name) for name in benchmarks], data_root, allow_partial=allow_partial)


def load_suite(
    benchmarks: Iterable[Benchmark], data_root: str | os.PathLike[str], *, allow_partial: bool
) -> tuple[Suite, dict[str, str]]:
    """Tasks of each benchmark, items with missing images dropped.

    Returns:
        ({name: (benchmark, tasks)}, {name: why it was skipped}).

    Raises:
        MissingData, PartialData: something is lacking, and that is not allowed.
    """
    suite: Suite = {}
    skipped: dict[str, str] = {}
    for benchmark in benchmarks:
        try:
            tasks = benchmark.load(Path(data_root))
        except DataError as error:
            if not allow_partial:
                raise
            named = str(error).startswith(benchmark.name)
            skipped[benchmark.name] = str(error) if named else f"{benchmark.name}: {error}"
            continue
        for task in tasks.values():
            task.drop_missing()
        if any(task.items for task in tasks.values()):
            suite[benchmark.name] = (benchmark, tasks)
        elif allow_partial:
            skipped[benchmark.name] = _nothing_usable(benchmark, tasks)
        else:
            raise PartialData(
                f"{_nothing_usable(benchmark, tasks)}. Expected:\n  "
                + "\n  ".join(str(Path(data_root) / place) for place in benchmark.layout)
            )
    require_whole(suite, allow_partial)
    return suite, skipped


def _nothing_usable(benchmark: Benchmark, tasks: dict[str, Task]) -> str:
    reasons = sum((task.dropped for task in tasks.values()), Counter())
    if not reasons:
        return f"{benchmark.name}: annotations found, but no item in them"
    if set(reasons) == {"image missing"}:
        return f"{benchmark.name}: annotations found, but none of the images"
    first = next(name for task in tasks.values() for name in task.named)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{benchmark.name}: nothing there can be scored ({why}; the first: {first})"


def require_whole(suite: Suite, allow_partial: bool) -> None:
    """Check that every item that the benchmarks expect is there.

    Raises:
        PartialData: some are not, and that is not allowed; they are listed.
    """
    if allow_partial:
        return
    lines = []
    for benchmark, tasks in suite.values():
        lines += [f"{benchmark.name}/{name}: not there" for name in benchmark.expected if name not in tasks]
        for name, task in tasks.items():
            if not task.whole and (name in benchmark.expected or not benchmark.expected):
                why = ", ".join(f"{count} {reason}" for reason, count in task.dropped.items())
                first = f"the first: {task.named[0]}" if task.named else ""
                known = "; ".join(filter(None, (why, first, task.note))) or "not as many as published"
                count = f"{len(task.items)} of {task.expected or '?'} items"
                lines.append(f"{benchmark.name}/{name}: {count} ({known})")
    if lines:
        listed = "\n  ".join(lines)
        raise PartialData(
            f"the data is not complete:\n  {listed}\n"
            "Complete it, or score what is there with --allow-partial (in training --eval-allow-partial, in "
            "Python allow_partial=True); such results are labelled partial, apart from the paper's tables."
        )
