"""The options of the losses: each is a field of ``LossOptions``, a flag of the trainer, and a row of its help."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from open_clip_triplet.errors import UsageError
from open_clip_triplet.losses.functional import NEG_SCOPES
from open_clip_triplet.losses.hard_negatives import MARGINS
from open_clip_triplet.losses.methods import METHODS, Method, find_method


def above_zero(kind: type) -> Any:
    """An argparse type: a number above 0."""

    def parse(text: str) -> Any:
        if not (value := kind(text)) > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
        return value

    parse.__name__ = f"{kind.__name__} above 0"
    return parse


def not_negative(text: str) -> float:
    """An argparse type: 0 or above."""
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or above, not {text}")
    return value


def fraction(text: str) -> float:
    """An argparse type: from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


_NUMBER, _WEIGHT = above_zero(int), above_zero(float)


def _flag(default: Any, text: str, parse: Any = None, *, needs: str = "", **options: Any) -> Any:
    """A field of ``LossOptions``. parse: argparse type. needs: the option without which it means nothing."""
    if parse:
        options |= {"type": parse, "metavar": {_NUMBER: "N", _WEIGHT: "W"}.get(parse, "X")}
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
    cyclip_in_modal: float = _flag(0.25, "cyclip: weight of the in-modal consistency term", float)
    cyclip_cross_modal: float = _flag(0.25, "cyclip: weight of the cross-modal consistency term", float)
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
        0.02, "label smoothing of --hard-negative-weight", not_negative, needs="hard_negative_weight"
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
    plain_every: int = _flag(0, "make every N-th step a CLIP step on the positive pairs; 0: none (CLIC: 2)", _NUMBER)
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
#: OpenCLIP's precisions whose weights are in half precision
HALF_WEIGHTS = ("bf16", "fp16", "pure_bf16", "pure_fp16")
#: the flag of this name; the rows of the similarity matrix that exist at a time
CHUNK = "loss_chunk_size"


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this package's losses (``--loss`` and ``--neg-captions`` are the trainer's)."""
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--loss-chunk-size", type=above_zero(int), metavar="N",
        help="rows of the similarity matrix formed at a time; bounds memory (default: automatic)",
    )
    for name, field in FLAGS.items():
        if name == "margin":
            group = parser.add_argument_group("terms added to a loss, off by default")
        text = f"{field.metadata['help']} (default: {field.default})"
        group.add_argument(_dashed(name), default=field.default, help=text, **field.metadata["argparse"])


def check_supported(args: Any) -> None:
    """Refuse flags that the loss of ``args.loss`` does not support, or would ignore in silence.

    Raises:
        UsageError: says which losses do.
    """
    method, neg_captions = find_method(getattr(args, "loss", "clip")), getattr(args, "neg_captions", 1)
    for name, field in FLAGS.items():
        if _given(args, name) and name not in method.options:
            raise UsageError(
                f"{_dashed(name)} means nothing to --loss {method.name}, only to {_names(lambda m: name in m.options)}"  # noqa: B023
            )
        if _given(args, name) and (needs := field.metadata["needs"]) and not _given(args, needs):
            raise UsageError(f"{_dashed(name)} means nothing without {_dashed(needs)}")
    if neg_captions > 1 and not method.several_neg_captions:
        count = "one negative caption" if method.reads_neg_captions else "no negative captions"
        names = _names(lambda other: other.several_neg_captions)
        raise UsageError(f"--loss {method.name} reads {count}; --neg-captions {neg_captions} is for {names}")
    if method.name != "clip":
        _check_combinations(args, method)
    elif getattr(args, CHUNK, None):
        raise UsageError(f"{_dashed(CHUNK)} is for the other losses: --loss clip is OpenCLIP's own, unchanged")


def _check_combinations(args: Any, method: Method) -> None:
    scope, sigmoid = getattr(args, "neg_scope", "batch"), getattr(args, "siglip", False)
    all_images = _given(args, "neg_images_in_text_denominator")
    if sigmoid and not method.supports_sigmoid:
        names = _names(lambda other: other.supports_sigmoid)
        raise UsageError(f"--siglip with --loss {method.name} is not defined; it works with {names}")
    if sigmoid and all_images:
        raise UsageError("--siglip has no denominators: drop --neg-images-in-text-denominator")
    if sigmoid and scope != "batch":
        raise UsageError(f"--siglip has no denominators: drop --neg-scope {scope}")
    if all_images and scope != "batch":
        raise UsageError("--neg-images-in-text-denominator is for --neg-scope batch")
    if _given(args, "teacher"):
        if getattr(args, "distill_model", None):
            raise UsageError("--teacher and --distill-model are two teachers; leave out one of them")
        if getattr(args, "accum_freq", 1) > 1:
            raise UsageError("OpenCLIP distils without accumulation alone: --teacher needs --accum-freq 1")
        if getattr(args, "fsdp", False):
            raise UsageError("--teacher keeps the whole model on every rank; leave out --fsdp")
        if args.teacher == "ema" and getattr(args, "precision", "") in HALF_WEIGHTS:
            raise UsageError(f"--teacher ema does not move in weights of --precision {args.precision}; use amp_bf16")
    elif _given(args, "distill_weight") and not getattr(args, "distill_model", None):
        raise UsageError("--distill-weight means nothing without --teacher or --distill-model")
    if "coca" in str(getattr(args, "model", "")).lower():
        raise UsageError(f"--loss {method.name} trains CLIP models alone; CoCa has a loss of its own: --loss clip")


def _given(args: Any, name: str) -> bool:
    default = FLAGS[name].default
    return bool(getattr(args, name, default) != default)


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _names(keep: Callable[[Method], bool]) -> str:
    return ", ".join(name for name, method in METHODS.items() if keep(method))
