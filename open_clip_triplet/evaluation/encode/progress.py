"""How far a run is, and how long it still takes: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

#: seconds between two lines where standard error is no terminal
EVERY_S = 20.0
#: a phase that is over sooner is not worth a line
WORTH_A_LINE_S = 5.0


class Progress:
    """Counts ``total`` things of one phase of a benchmark.

    >>> with Progress(3, "cola: images", enabled=False) as progress:
    ...     progress.update(3)
    """

    def __init__(self, total: int, label: str, enabled: bool):
        self.total, self.label, self.done = total, label, 0
        self._started = self._printed = time.monotonic()
        self._bar: Any = None
        self._lines = enabled and not sys.stderr.isatty()
        if enabled and not self._lines:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit="", leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._lines and error is None and self._elapsed() >= WORTH_A_LINE_S:
            print(f"{self.label}: {self.done} in {duration(self._elapsed())}", file=sys.stderr, flush=True)

    def update(self, number: int = 1) -> None:
        """Count ``number`` more."""
        self.done += number
        if self._bar is not None:
            self._bar.update(number)
        elif self._lines and time.monotonic() - self._printed >= EVERY_S:
            self._printed = time.monotonic()
            rate = self.done / max(self._elapsed(), 1e-9)
            left = duration((self.total - self.done) / rate)
            print(
                f"{self.label}: {self.done} of {self.total}, {rate:.1f} per second, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(7.4), duration(185), duration(3 * 3600 + 120)
    ('7 s', '3 min 05 s', '3 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
