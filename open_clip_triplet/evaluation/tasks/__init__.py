"""What a benchmark asks, in five forms: choice, image choice, pair, retrieval, classification.

A task is a list of items over images and captions. It names the images and captions it needs, is told
which images turned out unusable, and scores itself from embeddings. It knows nothing of files or models.
"""

from open_clip_triplet.evaluation.tasks.base import CONTENT, Outcome, Task, proportion
from open_clip_triplet.evaluation.tasks.choice import Choice, ChoiceTask
from open_clip_triplet.evaluation.tasks.classify import ClassifyTask, Labelled
from open_clip_triplet.evaluation.tasks.image_choice import ImageChoice, ImageChoiceTask
from open_clip_triplet.evaluation.tasks.pair import Pair, PairTask, pair_outcome
from open_clip_triplet.evaluation.tasks.retrieval import Captioned, RetrievalTask

__all__ = [
    "CONTENT",
    "Captioned",
    "Choice",
    "ChoiceTask",
    "ClassifyTask",
    "ImageChoice",
    "ImageChoiceTask",
    "Labelled",
    "Outcome",
    "Pair",
    "PairTask",
    "RetrievalTask",
    "Task",
    "pair_outcome",
    "proportion",
]
