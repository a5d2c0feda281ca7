"""``triplet-evaluate run --watch LOGS``: evaluate each checkpoint of a running training as it appears.

After each, ``OUTPUT/curve.csv`` holds every headline by run and epoch, and ``OUTPUT/curve.svg`` draws one
of each benchmark.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from open_clip_triplet.errors import CheckpointError, UsageError
from open_clip_triplet.evaluation.checkpoints.params import training_options
from open_clip_triplet.evaluation.results import whole_headline
from open_clip_triplet.files import write_text_durably, write_whole

COLUMNS = ("run", "epoch", "benchmark", "headline", "value", "low", "high", "items", "complete")


@dataclass(frozen=True, order=True)
class Found:
    """A training checkpoint, and which it is."""

    run: str
    epoch: int
    path: Path = field(compare=False)

    @property
    def label(self) -> str:
        return f"{self.run}-epoch_{self.epoch}"


def find(logs: Path) -> list[Found]:
    """Numbered checkpoints of a run's folder, or of all runs in a folder, in order of epoch.

    ``epoch_latest.pt`` is left alone: it is rewritten in place. A file that is not yet written whole is
    not listed: an archive's directory is its last part.
    """
    found = []
    for pattern in ("checkpoints/epoch_*.pt", "*/checkpoints/epoch_*.pt"):
        for path in logs.glob(pattern):
            number = re.fullmatch(r"epoch_([0-9]+)\.pt", path.name)
            if number and zipfile.is_zipfile(path):
                found.append(Found(path.absolute().parent.parent.name, int(number[1]), path))
    return sorted(found, key=lambda x: (x.epoch, x.run))


def is_last(found: Found) -> bool:
    """Whether the run trains no further, by the ``epochs`` in its ``params.txt``."""
    return training_options(found.path).get("epochs") == str(found.epoch)


def watch(
    logs: Path,
    evaluate: Callable[[Found], list[dict]],
    output: Path,
    *,
    poll_s: float = 30.0,
    idle_s: float | None = None,
) -> int:
    """Evaluate checkpoints as they appear, until every run found has ended, or nothing came for ``idle_s``.

    Args:
        evaluate: a checkpoint to its results, by benchmark; already written to disk.

    Returns:
        Number of checkpoints evaluated.

    Raises:
        UsageError: no such folder.
    """
    if not logs.is_dir():
        raise UsageError(f"--watch {logs}: no such folder")
    done: dict[Path, bool] = {}
    rows: list[dict] = []
    evaluated = 0
    quiet_since = time.monotonic()
    while True:
        new = next((found for found in find(logs) if found.path not in done), None)
        if new is not None:
            try:
                rows += _rows(new, evaluate(new))
            except (CheckpointError, FileNotFoundError) as error:  # deleted by the training meanwhile
                print(f"skipped {new.path}: {str(error).splitlines()[0]}", file=sys.stderr)
            else:
                evaluated += 1
                write_curve(rows, output)
            done[new.path] = is_last(new)
            quiet_since = time.monotonic()
            continue
        runs = {path.parent for path in done}
        if runs and all(any(last for path, last in done.items() if path.parent == run) for run in runs):
            break
        if idle_s is not None and time.monotonic() - quiet_since >= idle_s:
            break
        time.sleep(poll_s)
    return evaluated


def _rows(found: Found, results: Sequence[dict]) -> Iterator[dict]:
    for result in results:
        for headline in result["headlines"]:
            yield {
                "run": found.run,
                "epoch": found.epoch,
                "benchmark": result["benchmark"],
                "headline": headline["label"],
                **{name: headline[name] for name in ("value", "low", "high", "items")},
                "complete": whole_headline(result, headline["label"]),
            }


def write_curve(rows: Sequence[dict], output: Path) -> None:
    """``curve.csv``, and ``curve.svg`` where matplotlib is installed (extra ``eval``)."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text_durably(output / "curve.csv", stream.getvalue())
    if not rows:  # benchmarks of which their authors report no number
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no curve.svg: install open_clip_triplet with its extra `eval`", file=sys.stderr)
        return
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    drawn = {name: _drawn([row["headline"] for row in rows if row["benchmark"] == name]) for name in names}
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * lines), layout="constrained")
    for axes, name in zip(figure.subplots(lines, columns, squeeze=False).flat, names):
        _draw(axes, [row for row in rows if (row["benchmark"], row["headline"]) == (name, drawn[name])])
        axes.set_title(f"{name}: {drawn[name]}", fontsize=9, parse_math=False)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    with write_whole(output / "curve.svg") as file:
        figure.savefig(file, format="svg")


def _drawn(headlines: Sequence[str]) -> str:
    """The headline that the curve shows: the group score where there is one, else the first."""
    return next((label for label in headlines if label.startswith("group")), headlines[0])


def _draw(axes, rows: Sequence[dict]) -> None:
    """One benchmark: a line per run over epochs, with its 95% band."""
    for run in dict.fromkeys(row["run"] for row in rows):
        of_run = [row for row in rows if row["run"] == run]
        x = [row["epoch"] for row in of_run]
        (line,) = axes.plot(x, [100 * row["value"] for row in of_run], marker="o", markersize=3, label=run)
        ends = ([row[end] for row in of_run] for end in ("low", "high"))
        low, high = ([math.nan if value is None else 100 * value for value in values] for values in ends)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch", fontsize=8)
    axes.set_ylabel("%", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if not all(row["complete"] for row in rows):
        axes.text(0.02, 0.03, "partial data", transform=axes.transAxes, fontsize=7, color="0.4")
    axes.legend(fontsize=7, frameon=False)
