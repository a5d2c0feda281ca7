"""What happened to the samples of each pass: seen, or dropped and why. Counted as batches are handed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

#: what is counted of the samples of batches; any other name is a reason why one does not reach a batch
FILLED = "captions used again"
KEPT = ("seen", FILLED, "filled up negative captions")  # the last is FILLED's name in older checkpoints
#: share of a pass's samples that may be dropped before it is warned of
WORTH_A_WARNING = 0.05


class Dropped(Exception):
    """A sample cannot be used; it is counted under ``reason``."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class PassCounts:
    """Counters by name for each pass and data stream.

    >>> counts = PassCounts()
    >>> counts.add(0, [(2, "seen", 8), (2, "corrupt image", 1)])
    >>> counts.line(2, total=10, whole=True)
    'pass 2: 8 of 10 samples seen, corrupt image 1'
    """

    def __init__(self, exported: Iterable[Sequence] = ()):
        self._counts: dict[int, dict[int, Counter]] = {}
        for pass_index, stream, named in exported:
            self._counts.setdefault(pass_index, {})[stream] = Counter(named)

    def export(self) -> list[list]:
        """``[pass, stream, {name: number}]`` of each, in plain types for a checkpoint."""
        return [
            [pass_index, stream, dict(named)]
            for pass_index in self.passes() for stream, named in sorted(self._counts[pass_index].items())
        ]

    def add(self, stream: int, counted: Iterable[tuple[int, str, int]]) -> None:
        for pass_index, name, number in counted:
            self._counts.setdefault(pass_index, {}).setdefault(stream, Counter())[name] += number

    def passes(self) -> list[int]:
        return sorted(self._counts)

    def forget(self, pass_index: int) -> None:
        self._counts.pop(pass_index, None)

    def totals(self, pass_index: int) -> Counter:
        return sum(self._counts.get(pass_index, {}).values(), Counter())

    def bad_fraction(self, pass_index: int, streams: int) -> tuple[float, int]:
        """Share of a pass that is bad, as far as is known, and the samples this rests on.

        The mean over all streams, so that one which ran through a bad shard ahead of the others does not
        stand for all. Streams not heard of yet count as good.
        """
        shares, tried = 0.0, 0
        for named in self._counts[pass_index].values():
            dropped = dropped_samples(named).total()
            of_stream = named["seen"] + dropped
            shares += dropped / max(1, of_stream)
            tried += of_stream
        return shares / streams, tried

    def line(self, pass_index: int, *, total: int | None, whole: bool) -> str:
        """One line on a pass. total: its samples, None where they are unknown. whole: it is over."""
        totals = self.totals(pass_index)
        parts = [f"{totals['seen']:,} of {total:,} samples seen" if total else f"{totals['seen']:,} samples seen"]
        parts += [f"{name} {number:,}" for name, number in dropped_samples(totals).most_common()]
        parts += [f"{FILLED} {totals[FILLED]:,}"] if totals[FILLED] else []
        return f"pass {pass_index}{'' if whole else ' so far'}: {', '.join(parts)}"


def dropped_samples(named: Counter) -> Counter:
    """Samples that did not reach a batch, by reason."""
    return Counter({name: number for name, number in sorted(named.items()) if name not in KEPT})


def too_many_dropped(totals: Counter) -> str:
    """A warning where so much was dropped that the data is hardly what was meant; else empty.

    >>> too_many_dropped(Counter({"seen": 8, "missing member": 2}))
    '20% of the samples were dropped, most of them for: missing member.'
    """
    dropped = dropped_samples(totals)
    share = dropped.total() / max(1, dropped.total() + totals["seen"])
    if share <= WORTH_A_WARNING:
        return ""
    return f"{share:.0%} of the samples were dropped, most of them for: {dropped.most_common(1)[0][0]}."
