"""What every check shares: where its scores go."""

from __future__ import annotations

from open_clip_triplet.tripletdata.run.sample import Sample, Stats


def store(sample: Sample, stats: Stats, check: str, scores: dict) -> Sample:
    """``sample`` with ``scores`` under its json's ``verify``, and the same in the values beside the record."""
    sample.meta = {**sample.meta, "verify": {**sample.meta.get("verify", {}), check: scores}}
    stats.values.setdefault(check, []).append(scores)
    return sample
