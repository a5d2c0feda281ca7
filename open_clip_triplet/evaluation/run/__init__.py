"""Running benchmarks: on a model in memory (``evaluate``), or on checkpoints (``start``, ``run_checkpoint``)."""

from open_clip_triplet.evaluation.run.scoring import Evaluation, evaluate, run_suite
from open_clip_triplet.evaluation.run.session import Session, identify_all, run_checkpoint, start
from open_clip_triplet.evaluation.run.suite import require_data

__all__ = [
    "Evaluation",
    "Session",
    "evaluate",
    "identify_all",
    "require_data",
    "run_checkpoint",
    "run_suite",
    "start",
]
