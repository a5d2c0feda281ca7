"""One progress line per stage: share done, samples, rate, time left."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from tqdm import tqdm

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"


def bar(*args: Any, **options: Any) -> tqdm:
    """tqdm that writes to a log file every ten seconds, not every tenth of one."""
    options.setdefault("mininterval", 0.5 if sys.stderr.isatty() else 10)
    return tqdm(*args, **options)


class Progress:
    """Counts shards (in fractions, as stages report them) and the samples they kept."""

    def __init__(self, name: str, shards: int, done: int, quiet: bool = False):
        self._shards, self._done = shards, done
        self._begun: dict = {}  # task at hand -> share of it that is done
        self._samples, self._start = 0, time.monotonic()
        self._bar = bar(
            total=shards, initial=done, desc=name, bar_format=FORMAT, disable=quiet, file=sys.stderr
        )

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(self, *exc) -> None:
        self._bar.close()

    def fraction(self, task, fraction: float) -> None:
        """Show how far a task is; one that is begun again goes on from where it was."""
        self._begun[task] = max(min(fraction, 1.0), self._begun.get(task, 0.0))
        self._update()

    def done(self, task, record: dict) -> None:
        """Count a task, done or failed, and the samples that it kept."""
        self._begun.pop(task, None)
        self._done += 1
        self._update()
        self._samples += record["kept"]
        self._show()

    def _update(self) -> None:
        """Steps that are added up would round to more than all."""
        self._bar.n = min(self._done + math.fsum(self._begun.values()), self._shards)
        self._bar.update(0)

    def say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def _show(self) -> None:
        rate = self._samples / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"{self._done}/{self._shards} shards, {self._samples:,} samples, {rate:.1f}/s", refresh=False
        )
