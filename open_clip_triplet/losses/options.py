"""The options of the losses: each is a field of ``LossOptions``, a flag of the trainer, and a row of its help."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from open_clip_triplet.losses.functional import NEG_SCOPES
from open_clip_triplet.losses.terms import MARGINS


def _number(kind: type, allowed: str, holds: Callable[[float], bool]) -> Any:
    """An argparse type: a number in a range, which ``allowed`` names."""

    def parse(text: str) -> Any:
        if not (math.isfinite(value := kind(text)) and holds(value)):
            raise argparse.ArgumentTypeError(f"must be {allowed}, not {text}")
        return value

    parse.__name__ = f"{kind.__name__} {allowed}"
    return parse


def above_zero(kind: type) -> Any:
    """An argparse type: a number above 0."""
    return _number(kind, "above 0", lambda value: value > 0)


not_negative = _number(float, "0 or above", lambda value: value >= 0)
fraction = _number(float, "from 0 to 1", lambda value: 0 <= value <= 1)
_NUMBER, _WEIGHT = above_zero(int), above_zero(float)
_INTERVAL = _number(int, "above 1", lambda value: value > 1)


def _flag(default: Any, text: str, parse: Any = None, *, needs: str = "", **options: Any) -> Any:
    """A field of ``LossOptions``. parse: argparse type. needs: the option without which it means nothing."""
    if parse:
        options |= {"type": parse, "metavar": {_NUMBER: "N", _INTERVAL: "N", _WEIGHT: "W"}.get(parse, "X")}
    return dataclasses.field(default=default, metadata={"help": text, "needs": needs, "argparse": options})


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """What the losses take beside OpenCLIP's arguments; ``METHODS`` says which loss takes which.

    The terms that are added to a loss are off by default, and weigh what their sources say.
    """

    neg_captions: int = 1
    neg_weight: float = _flag(1.0, "triplet: weight of the negative pairs' term", _WEIGHT)
    neg_scope: str = _flag(
        "batch", "whose hard negatives a row is classified over: of the whole batch (the paper), its own only "
        "(CS-CLIP), or none", choices=NEG_SCOPES,
    )
    neg_images_in_text_denominator: bool = _flag(
        False, "triplet ablation: captions are classified over the images of both polarities", action="store_true"
    )
    cyclip_in_modal: float = _flag(0.25, "cyclip: weight of the in-modal consistency term", not_negative)
    cyclip_cross_modal: float = _flag(0.25, "cyclip: weight of the cross-modal consistency term", not_negative)
    margin: str = _flag(
        "none", "hinge on positive against own hard negative; adaptive leaves out negatives taken for wrong "
        "(SPARCL)", choices=MARGINS,
    )
    margin_weight: float = _flag(0.01, "weight of --margin", _WEIGHT, needs="margin")
    hard_negative_weight: float = _flag(
        0.0, "weight of classifying each row over its own pair and hard negatives only, with focal loss "
        "(FSC-CLIP: 0.5)", _WEIGHT,
    )
    focal_gamma: float = _flag(
        2.0, "focal exponent of --hard-negative-weight; 0: cross-entropy", not_negative, needs="hard_negative_weight"
    )
    label_smoothing: float = _flag(
        0.02, "label smoothing of --hard-negative-weight", fraction, needs="hard_negative_weight"
    )
    paraphrase_weight: float = _flag(
        0.0, "weight of classifying another caption of the sample (json: captions) over the captions (READ: 0.5)",
        _WEIGHT,
    )
    units: int = _flag(
        0, "parts of the caption read per sample, each with a hard negative (json: units), for own-scope NegCLIP "
        "terms (CS-CLIP)", _NUMBER,
    )
    unit_weight: float = _flag(0.5, "weight of --units", _WEIGHT, needs="units")
    plain_every: int = _flag(0, "make every N-th step a CLIP step on the positive pairs; 0: none (CLIC: 2)", _INTERVAL)
    teacher: str = _flag(
        "none", "pull embeddings to those of a moving average of the model (DeGLA), or of the model it started "
        "from", choices=("none", "ema", "frozen"),
    )
    teacher_decay: float = _flag(0.9996, "decay of --teacher ema per step", fraction, needs="teacher")
    distill_weight: float = _flag(1.28, "weight of the squared distance to the teacher", _WEIGHT)

    def __post_init__(self) -> None:
        for name, field in FLAGS.items():
            choices, value = field.metadata["argparse"].get("choices"), getattr(self, name)
            if choices and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        if not self.neg_weight > 0:
            raise ValueError(f"neg_weight must be above 0, not {self.neg_weight}; for no second term use negclip")


#: the options that are flags, by name; ``--neg-captions`` is the data's as much as the loss's
FLAGS = {field.name: field for field in dataclasses.fields(LossOptions) if field.metadata}
#: those of the terms added to a loss: what matters where hard negatives are read, and what matters to every loss
HARD_NEGATIVE_TERMS = ("margin", "hard_negative_weight", "plain_every")
ADDED_TERMS = ("paraphrase_weight", "units", "teacher", "distill_weight")


def dashed(name: str) -> str:
    """The flag of an option."""
    return f"--{name.replace('_', '-')}"


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this package's losses (``--loss`` and ``--neg-captions`` are the trainer's)."""
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--loss-chunk-size", type=_NUMBER, metavar="N",
        help="rows of the similarity matrix formed at a time; bounds memory (default: automatic)",
    )
    for name, field in FLAGS.items():
        if name == "margin":
            group = parser.add_argument_group("terms added to a loss, off by default")
        text = f"{field.metadata['help']} (default: {field.default})"
        group.add_argument(dashed(name), default=field.default, help=text, **field.metadata["argparse"])
