"""One progress line per stage: share done, samples, rate, time left."""

from __future__ import annotations

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
        self._fractions: dict = {}
        self._samples, self._start = 0, time.monotonic()
        self._bar = tqdm(
            total=shards,
            initial=done,
            desc=name,
            bar_format=FORMAT,
            disable=quiet,
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(self, *exc) -> None:
        self._bar.close()

    def fraction(self, task, fraction: float) -> None:
        step = max(0.0, min(fraction, 1.0) - self._fractions.get(task, 0.0))
        self._fractions[task] = self._fractions.get(task, 0.0) + step
        self._bar.update(step)

    def done(self, task, record: dict) -> None:
        self.fraction(task, 1.0)
        self._done += 1
        self._samples += record["kept"]
        self._show()

    def say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def _show(self) -> None:
        rate = self._samples / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"{self._done}/{self._shards} shards, {self._samples:,} samples, {rate:.1f}/s", refresh=False
        )
