"""What happened to the samples of an epoch, counted by every worker in memory they share.

Each worker writes its own row and nobody else's, so no lock is needed, and the rows survive being
sent to spawned workers.
"""

from __future__ import annotations

#: reasons why a sample does not reach a batch
DROPPED = (
    "corrupt image",
    "empty caption",
    "unreadable caption",
    "missing member",
    "damaged shard",
    "shard shorter than sizes.json",
)
#: other things counted, in samples unless named otherwise
EVENTS = ("seen", "repeated", "not in sizes.json", "filled up negative captions")
NAMES = DROPPED + EVENTS
#: share of an epoch's samples that may be dropped before it is warned of
WORTH_A_WARNING = 0.05


class Dropped(Exception):
    """A sample cannot be used; ``reason`` is one of :data:`DROPPED`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Counts:
    """Counters by name for each worker, and the shard each one is reading.

    ``reading`` holds, per worker, the index of the current shard in the list of urls (-1 for none).
    """

    def __init__(self, workers: int):
        import torch

        self._rows = torch.zeros(workers, len(NAMES), dtype=torch.int64).share_memory_()
        self._reading = torch.full((workers,), -1, dtype=torch.int64).share_memory_()

    def clear(self, worker: int) -> None:
        self._rows[worker].zero_()
        self._reading[worker] = -1

    def add(self, worker: int, name: str, number: int = 1) -> None:
        self._rows.numpy()[worker, NAMES.index(name)] += number  # tensors take 20 times as long

    def set_reading(self, worker: int, shard: int) -> None:
        self._reading[worker] = shard

    def reading(self) -> list[int]:
        return self._reading.tolist()

    def totals(self, device=None) -> dict[str, int]:
        """Sums over the workers, and over the ranks where ``device`` is given (a collective call)."""
        import torch.distributed as dist

        sums = self._rows.sum(0)
        if device is not None and dist.is_available() and dist.is_initialized():
            sums = sums.to(device)
            dist.all_reduce(sums)
        return dict(zip(NAMES, sums.tolist()))


def summary(totals: dict[str, int], *, total: int | None, used: int, passed_over: int = 0) -> str:
    """One line on the coverage of an epoch.

    Args:
        totals: as :meth:`Counts.totals` returns them.
        total: samples in the data set; None where an epoch is not an exact pass over it.
        used: samples in the epoch's batches, over all ranks.
        passed_over: those of the epoch's batches before a resume.

    >>> print(summary({"seen": 8, "corrupt image": 1}, total=10, used=9))
    8 of 10 samples seen once, 1 in none of its batches; 1 dropped (corrupt image 1)
    """
    totals = {name: totals.get(name, 0) for name in NAMES}
    reasons = {name: totals[name] for name in DROPPED if totals[name]}
    if total is None:
        parts = [f"{totals['seen']:,} samples read"]
    elif used > total:
        parts = [f"{totals['seen']:,} samples read, in {used / total:.3g} passes over {total:,}"]
    else:
        parts = [f"{totals['seen']:,} of {total:,} samples seen once"]
    if total is not None:
        if passed_over:
            parts.append(f"{passed_over:,} before the resume")
        if total > used:
            parts.append(f"{total - used:,} in none of its batches")
    line = ", ".join(parts)
    if reasons:
        listed = ", ".join(f"{name} {number:,}" for name, number in reasons.items())
        line += f"; {sum(reasons.values()):,} dropped ({listed})"
        if totals["repeated"]:
            line += f", {totals['repeated']:,} repeated instead"
    for name in EVENTS[2:]:
        if totals[name]:
            line += f"; {name}: {totals[name]:,}"
    return line


def too_many_dropped(totals: dict[str, int]) -> str:
    """A warning where so much was dropped that the data is hardly what was meant; else empty.

    >>> print(too_many_dropped({"seen": 8, "missing member": 2}))
    20% of the samples were dropped, most of them for: missing member. Others were repeated instead.
    """
    reasons = {name: totals.get(name, 0) for name in DROPPED}
    dropped = sum(reasons.values())
    share = dropped / max(1, dropped + totals.get("seen", 0))
    if share <= WORTH_A_WARNING:
        return ""
    worst = max(reasons, key=reasons.get)
    return (
        f"{share:.0%} of the samples were dropped, most of them for: {worst}. Others were repeated instead."
    )
