"""What passes between two stages (Sample), and what a stage counts of one shard (Stats)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def key_order(key: str) -> tuple[int, str]:
    """Sort key of the keys of one task, whose numbers grow by a digit beyond a million samples."""
    return len(key), key


@dataclass
class Sample:
    """One sample between two stages. ``meta`` is the ``json`` member, ``input_key`` its key in the input."""

    key: str
    text: str
    image: bytes | None = None
    suffix: str = "jpg"
    neg_text: str | None = None
    neg_image: bytes | None = None
    neg_suffix: str = "jpg"
    meta: dict = field(default_factory=dict)
    input_key: str = ""

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

    ``values`` are lists with a value for each sample that is kept, ``arrays`` the same for numbers in bulk
    (a file of each, ``00017.NAME.npy``, to be mapped into memory). ``dropped_keys`` has the keys behind
    ``dropped``, as far as they were told: only those can be asked for again. ``answers`` has what a model
    answered for them, where that was refused. ``redo_round`` is 0 the first
    time a sample is asked for, and grows each time that dropped ones are asked for again.
    ``report(fraction)`` is called by a stage now and then with the share of the task that is done.
    """

    def __init__(self, report=lambda fraction: None, redo_round: int = 0):
        self.read = 0
        self.dropped: dict[str, int] = {}
        self.dropped_keys: dict[str, list[str]] = {}
        self.answers: dict[str, str] = {}
        self.left_out: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.values: dict[str, list] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.salvaged = ""
        self.report, self.redo_round = report, redo_round

    def drop(self, reason: str, key: str | None = None, answer: str | None = None) -> None:
        """Count a sample that could not be used or made. ``answer``: what a model made of it, and was refused."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if key is not None:
            self.dropped_keys.setdefault(reason, []).append(key)
            if answer:
                self.answers[key] = answer

    def leave_out(self, reason: str) -> None:
        """Count a sample that a selection does not want: no fault, so ``--max-drop`` does not count it."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def add(self, other: Stats) -> None:
        """Take over what reading counted ahead of time."""
        self.read += other.read
        for reason, number in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + number
        for reason, keys in other.dropped_keys.items():
            self.dropped_keys.setdefault(reason, []).extend(keys)
        for name, number in other.counts.items():
            self.count(name, number)
        self.salvaged = self.salvaged or other.salvaged
