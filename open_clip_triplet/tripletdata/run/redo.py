"""Asking again for what was dropped: only those samples are worked, and join the shard at their place.

The shard is replaced first and the record last, as always: a run killed in between is redone to the same
bytes, because what is settled is told by the shard's own keys and by the keys recorded as dropped.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass

from open_clip_triplet import files
from open_clip_triplet.errors import ShardError
from open_clip_triplet.shards import read_samples
from open_clip_triplet.tripletdata.run.plan import read_json
from open_clip_triplet.tripletdata.run.records import DROPPED, RECORD, VALUES, dump
from open_clip_triplet.tripletdata.run.sample import Stats, key_order
from open_clip_triplet.tripletdata.run.stage import Stage, config_hash
from open_clip_triplet.tripletdata.run.task import ShardTask


@dataclass
class Redo:
    """One finished shard whose dropped samples are asked for again.

    Args:
        round: how often that has been done, this time included.
        kept: keys of the shard as it is. left: keys that stay dropped, by reason.
        counts: what the stage counted at first.
    """

    path: str
    round: int
    kept: list[str]
    left: dict[str, list[str]]
    counts: dict[str, int]

    @classmethod
    def of(cls, stage: Stage, task: ShardTask, output: str) -> Redo | None:
        """None where the task's policy asks for nothing again, or the stage as it is has finished nothing yet."""
        path = files.join(output, task.name)
        record = read_json(path + RECORD)
        if task.policy.redo is None or record.get("config") != config_hash(stage) or record.get("salvaged"):
            return None
        number = record.get("redo_round", 0) + 1
        if stage.redoes_whole:
            return cls(path, number, [], {}, record["counts"])
        try:
            kept = [s["__key__"] for s in read_samples(f"{path}.tar")] if record["kept"] else []
        except (OSError, ShardError):
            return None
        if not kept and record["kept"]:
            return None
        dropped = read_json(path + DROPPED)
        wanted = task.policy.redo or tuple(dropped)
        left = {reason: keys for reason, keys in dropped.items() if reason not in wanted}
        return cls(path, number, kept, left, record["counts"])

    @property
    def settled(self) -> frozenset[str]:
        """Keys that are not asked for again."""
        return frozenset(self.kept).union(*self.left.values())

    def merged(self, rows: Iterator[dict], shard: str) -> Iterator[dict]:
        """New rows among those that the shard holds, in key order."""
        old = read_samples(shard) if self.kept else iter(())
        return heapq.merge(old, rows, key=lambda row: key_order(row["__key__"]))

    def kept_with(self, made: list[str]) -> list[str]:
        return sorted({*self.kept, *made}, key=key_order)

    def dropped_keys(self, stats: Stats) -> dict[str, list[str]]:
        reasons = {*self.left, *stats.dropped_keys}
        return {r: [*self.left.get(r, []), *stats.dropped_keys.get(r, [])] for r in reasons}

    def dropped(self, stats: Stats) -> dict[str, int]:
        reasons = {*self.left, *stats.dropped}
        return {r: len(self.left.get(r, [])) + stats.dropped.get(r, 0) for r in sorted(reasons)}

    def write_values(self, stats: Stats, made: list[str]) -> None:
        """The shard's values with those of the new samples, before the shard itself."""
        try:
            old = json.loads(files.read_bytes(self.path + VALUES))
        except OSError:
            return
        keys = self.kept_with(made)
        table = {name: dict(zip(old["key"], values)) for name, values in old.items()}
        for name, values in stats.values.items():
            table[name].update(zip(made, values))
        table["key"].update(zip(made, made))
        merged = {name: [values[key] for key in keys] for name, values in table.items()}
        files.write_text_durably(self.path + VALUES, dump(merged))
