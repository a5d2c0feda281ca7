"""Images and captions to unit-norm float32 rows, and a store filled with what it lacks."""

from open_clip_triplet.evaluation.encode.encoder import Encoder, evaluating
from open_clip_triplet.evaluation.encode.job import EncodingJob

__all__ = ["Encoder", "EncodingJob", "evaluating"]
