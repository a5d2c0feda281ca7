"""What passes between two stages (Sample), and what a stage counts of one shard (Stats)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Sample:
    """One sample between two stages. ``meta`` is the ``json`` member."""

    key: str
    text: str
    image: bytes | None = None
    suffix: str = "jpg"
    neg_text: str | None = None
    neg_image: bytes | None = None
    neg_suffix: str = "jpg"
    meta: dict = field(default_factory=dict)

    def members(self) -> dict:
        """The sample as ShardWriter takes it; absent members left out."""
        members = {"__key__": self.key, "txt": self.text, "json": self.meta}
        if self.image is not None:
            members[self.suffix] = self.image
        if self.neg_text is not None:
            members["neg.txt"] = self.neg_text
        if self.neg_image is not None:
            members[f"neg.{self.neg_suffix}"] = self.neg_image
        return members


class Stats:
    """Counts of one task: samples read, dropped by reason, and whatever else a stage counts.

    ``values`` are lists with a value for each sample that is kept.
    ``report(fraction)`` is called by a stage now and then with the share of the task that is done.
    """

    def __init__(self, report=lambda fraction: None):
        self.read = 0
        self.dropped: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.values: dict[str, list] = {}
        self.report = report

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number
