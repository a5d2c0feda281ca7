"""The flags of the losses, and what is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from open_clip_triplet.errors import UsageError
from open_clip_triplet.losses.functional import NEG_SCOPES
from open_clip_triplet.losses.hard_negatives import MARGINS
from open_clip_triplet.losses.methods import METHODS, Method, find_method

TEACHERS = ("none", "ema", "frozen")


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this package's losses (``--loss`` and ``--neg-captions`` are the trainer's)."""

    def add(group: Any, flag: str, default: Any, text: str, **options: Any) -> None:
        group.add_argument(flag, default=default, help=f"{text} (default: {default})", **options)

    group = parser.add_argument_group("loss")
    group.add_argument(
        "--loss-chunk-size", type=positive(int), metavar="C",
        help="rows of the similarity matrix formed at a time; bounds memory (default: automatic)",
    )
    weight = {"type": positive(float), "metavar": "W"}
    add(group, "--neg-weight", 1.0, "triplet: weight of the negative pairs' term", **weight)
    add(
        group, "--neg-scope", "batch",
        "whose hard negatives a row is classified over: of the whole batch (the paper), its own only "
        "(CS-CLIP), or none", choices=NEG_SCOPES,
    )
    group.add_argument(
        "--neg-images-in-text-denominator", action="store_true",
        help="triplet ablation: captions are classified over the images of both polarities",
    )
    for term in ("in-modal", "cross-modal"):
        text = f"cyclip: weight of the {term} consistency term"
        add(group, f"--cyclip-{term}", 0.25, text, type=float, metavar="W")

    group = parser.add_argument_group("terms added to a loss, off by default")
    add(
        group, "--margin", "none",
        "hinge on positive against own hard negative; adaptive leaves out negatives taken for wrong (SPARCL)",
        choices=MARGINS,
    )
    add(group, "--margin-weight", 0.01, "weight of --margin", **weight)
    add(
        group, "--hard-negative-weight", 0.0,
        "weight of classifying each row over its own pair and hard negatives only, with focal loss "
        "(FSC-CLIP: 0.5)", **weight,
    )
    number = {"type": not_negative, "metavar": "X"}
    add(group, "--focal-gamma", 2.0, "focal exponent of --hard-negative-weight; 0: cross-entropy", **number)
    add(group, "--label-smoothing", 0.02, "label smoothing of --hard-negative-weight", **number)
    add(
        group, "--paraphrase-weight", 0.0,
        "weight of classifying another caption of the sample (json: captions) over the captions (READ: 0.5)",
        **weight,
    )
    add(
        group, "--units", 0,
        "parts of the caption read per sample, each with a hard negative (json: units), for own-scope "
        "NegCLIP terms (CS-CLIP)", type=int, metavar="M",
    )
    add(group, "--unit-weight", 0.5, "weight of --units", **weight)
    add(
        group, "--plain-every", 0, "make every K-th step a CLIP step on the positive pairs; 0: none (CLIC: 2)",
        type=int, metavar="K",
    )
    add(
        group, "--teacher", "none",
        "pull embeddings to those of a moving average of the model (DeGLA), or of the model it started from",
        choices=TEACHERS,
    )
    add(group, "--teacher-decay", 0.9996, "decay of --teacher ema per step", type=float, metavar="X")
    add(group, "--distill-weight", 1.28, "weight of the squared distance to the teacher", **weight)


def positive(kind: type) -> Any:
    """An argparse type: a number above 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def not_negative(text: str) -> float:
    """An argparse type: 0 or above."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or above, not {text}")
    return value


#: flags that mean something only beside another
_NEEDS = {
    "margin_weight": "margin",
    "focal_gamma": "hard_negative_weight",
    "label_smoothing": "hard_negative_weight",
    "unit_weight": "units",
    "teacher_decay": "teacher",
}


def _defaults() -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False)
    add_loss_arguments(parser)
    return vars(parser.parse_args([]))


def check_supported(args: Any) -> None:
    """Refuse flags that the loss of ``args.loss`` does not support, or would ignore in silence.

    Raises:
        UsageError: says which losses do.
    """
    method = find_method(getattr(args, "loss", "clip"))
    _refuse_unused_flags(args, method, getattr(args, "neg_captions", 1))
    if method.name != "clip":
        _refuse_unsupported(args, method, getattr(args, "siglip", False))


def _refuse_unused_flags(args: Any, method: Method, neg_captions: int) -> None:
    """A flag that the method would ignore in silence is an error."""
    defaults = _defaults()
    for name, default in defaults.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(args, name, default)
        if value == default:
            continue
        if name == "loss_chunk_size" and method.name == "clip":
            raise UsageError(f"{flag} is for the other losses: --loss clip is OpenCLIP's own, unchanged")
        if name != "loss_chunk_size" and name not in method.options:
            names = _names(lambda other: name in other.options)  # noqa: B023
            raise UsageError(f"{flag} means nothing to --loss {method.name}, only to {names}")
        other = _NEEDS.get(name)
        if other and getattr(args, other, defaults[other]) == defaults[other]:
            raise UsageError(f"{flag} means nothing without --{other.replace('_', '-')}")
    if neg_captions > 1 and not method.several_neg_captions:
        names = _names(lambda other: other.several_neg_captions)
        count = "one negative caption" if method.reads_neg_captions else "no negative captions"
        raise UsageError(f"--loss {method.name} reads {count}; --neg-captions {neg_captions} is for {names}")


def _refuse_unsupported(args: Any, method: Method, sigmoid: bool) -> None:
    scope = getattr(args, "neg_scope", "batch")
    all_images = getattr(args, "neg_images_in_text_denominator", False)
    if sigmoid and not method.supports_sigmoid:
        names = _names(lambda other: other.supports_sigmoid)
        raise UsageError(f"--siglip with --loss {method.name} is not defined; it works with {names}")
    if sigmoid and all_images:
        raise UsageError("--siglip has no denominators: drop --neg-images-in-text-denominator")
    if sigmoid and scope != "batch":
        raise UsageError(f"--siglip has no denominators: drop --neg-scope {scope}")
    if all_images and scope != "batch":
        raise UsageError("--neg-images-in-text-denominator is for --neg-scope batch")
    if getattr(args, "teacher", "none") != "none":
        if getattr(args, "distill_model", None):
            raise UsageError("--teacher and --distill-model are two teachers; leave out one of them")
        if getattr(args, "accum_freq", 1) > 1:
            raise UsageError("OpenCLIP distils without accumulation alone: --teacher needs --accum-freq 1")
        if getattr(args, "fsdp", False):
            raise UsageError("--teacher keeps the whole model on every rank; leave out --fsdp")
    elif getattr(args, "distill_weight", 1.28) != 1.28 and not getattr(args, "distill_model", None):
        raise UsageError("--distill-weight means nothing without --teacher or --distill-model")
    if "coca" in str(getattr(args, "model", "")).lower():
        raise UsageError(f"--loss {method.name} trains CLIP models alone; CoCa has a loss of its own: --loss clip")


def _names(keep: Callable[[Method], bool]) -> str:
    return ", ".join(name for name, method in METHODS.items() if keep(method))
