"""Where the stream of a run stands, as it travels in a checkpoint and is continued from one."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field, replace

from open_clip_triplet.data.counts import PassCounts
from open_clip_triplet.data.stream import Position, StreamPlan


@dataclass
class StreamState:
    """Where all streams of a run stand, and the counts of passes that are not over."""

    positions: list[Position]
    step: int = 0
    counts: PassCounts = field(default_factory=PassCounts)

    def is_over(self, pass_index: int) -> bool:
        """Whether every stream has left a pass behind."""
        return all(position.pass_index > pass_index for position in self.positions)

    def export(self, plan: StreamPlan) -> dict:
        """In plain types, with what the order of samples depends on."""
        return {
            **order_of(plan), "shuffle": plan.shuffle, "step": self.step,
            "positions": [list(position) for position in self.positions], "counts": self.counts.export(),
        }


def order_of(plan: StreamPlan) -> dict:
    """What the order of samples depends on: the shards by name and size, wherever they lie."""
    digest = hashlib.sha256()
    for number, url in enumerate(plan.urls):
        digest.update(f"{os.path.basename(url)} {plan.sizes[number] if plan.sizes else '?'}\n".encode())
    return {
        "shards": digest.hexdigest()[:16], "streams": plan.streams, "seed": plan.seed,
        "resampled": repr(plan.weights) if plan.resampled else "",
    }


def continued(plan: StreamPlan, saved: dict | None, *, epoch: int, log: bool) -> tuple[StreamPlan, StreamState]:
    """The plan and state with which a run goes on from a checkpoint's ``saved`` state.

    Under another order (other shards, seed or number of streams) no position means anything, so the stream
    starts at the first pass that the checkpoint has not begun, with a warning that says what changed.

    Args:
        epoch: completed, where there is no state: a checkpoint of stock OpenCLIP or of version 0.1.
    """
    if not saved:
        return plan, StreamState([Position(epoch)] * plan.streams)
    positions = [Position(*position) for position in saved["positions"]]
    now = order_of(plan)
    changed = [name for name in now if now[name] != saved.get(name)]
    if not changed:
        plan = replace(plan, shuffle=saved["shuffle"])
        return plan, StreamState(positions, saved["step"], PassCounts(saved["counts"]))
    first = max(position.pass_index for position in positions) + 1
    if log:
        what = ", ".join(f"{_SHOWN[name]} ({saved.get(name)} before, {now[name]} now)" for name in changed)
        logging.warning(
            "The training data is in another order than the checkpoint's: %s. The stream starts at pass %d.",
            what, first,
        )
    return plan, StreamState([Position(first)] * plan.streams)


_SHOWN = {
    "shards": "other shards or sizes", "streams": "--data-streams", "seed": "--seed",
    "resampled": "--dataset-resampled or its factors",
}
