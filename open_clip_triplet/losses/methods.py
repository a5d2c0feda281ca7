"""The table of methods, and the loss that a training run asks for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from open_clip_triplet.losses.functional import NEG_SCOPES


@dataclass(frozen=True)
class Method:
    """A row of the paper: a loss and the members of a sample that it reads.

    ``loss_class`` is "module:Class", imported when the loss is built, so that the table costs no
    OpenCLIP. ``options`` are the arguments, beside the common ones, that the loss takes.
    """

    name: str
    loss_class: str
    summary: str
    reads_neg_images: bool = False
    reads_neg_captions: bool = False
    several_neg_captions: bool = False
    supports_sigmoid: bool = True
    options: tuple[str, ...] = ()

    @property
    def loss(self) -> Any:
        """The class of the loss, a subclass of OpenCLIP's ``ClipLoss``."""
        module, name = self.loss_class.split(":")
        return getattr(importlib.import_module(module), name)

    @property
    def paired(self) -> bool:
        """Whether it reads any negative, and so needs paired shards."""
        return self.reads_neg_images or self.reads_neg_captions

    @property
    def roles(self) -> tuple[str, ...]:
        """Members it reads, under the role names of ``shards``."""
        negatives = {"neg_image": self.reads_neg_images, "neg_text": self.reads_neg_captions}
        return "image", "text", *(role for role, read in negatives.items() if read)

    def image_group(self, neg_captions: int = 1) -> int:
        """Image rows that a sample contributes."""
        return 1 + self.reads_neg_images

    def text_group(self, neg_captions: int = 1) -> int:
        """Text rows that a sample contributes."""
        return 1 + neg_captions * self.reads_neg_captions


_TRIPLET = ("neg_weight", "neg_scope", "neg_images_in_text_denominator")
_CYCLIP = ("cyclip_in_modal", "cyclip_cross_modal")
_DEFAULTS = {
    "neg_weight": 1.0,
    "neg_scope": "batch",
    "neg_images_in_text_denominator": False,
    "cyclip_in_modal": 0.25,
    "cyclip_cross_modal": 0.25,
}


def _method(name: str, loss: str, summary: str, reads: str = "", **options: Any) -> Method:
    return Method(
        name,
        f"open_clip_triplet.losses.modules:{loss}",
        summary,
        reads_neg_images="images" in reads,
        reads_neg_captions="captions" in reads,
        **options,
    )


METHODS = {
    method.name: method
    for method in (
        Method("clip", "open_clip.loss:ClipLoss", "OpenCLIP's own loss on the positive pairs"),
        _method("clip-hn", "ClipHnLoss", "CLIP, negative pairs as ordinary pairs", "images, captions"),
        _method(
            "negclip",
            "NegClipLoss",
            "NegCLIP: negative captions only",
            "captions",
            several_neg_captions=True,
            options=("neg_scope",),
        ),
        _method(
            "negimage",
            "NegImageLoss",
            "NegCLIP with modalities swapped: negative images only",
            "images",
            options=("neg_scope",),
        ),
        _method(
            "triplet",
            "TripletClipLoss",
            "TripletCLIP: negative captions and images",
            "images, captions",
            several_neg_captions=True,
            options=_TRIPLET,
        ),
        _method(
            "cyclip",
            "CyClipLoss",
            "CLIP with CyCLIP's consistency terms",
            supports_sigmoid=False,
            options=_CYCLIP,
        ),
        _method(
            "cyclip-triplet",
            "CyClipTripletLoss",
            "TripletCLIP with CyCLIP's consistency terms",
            "images, captions",
            several_neg_captions=True,
            supports_sigmoid=False,
            options=_TRIPLET + _CYCLIP,
        ),
    )
}


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this package's losses (``--loss`` and ``--neg-captions`` are the trainer's)."""
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--loss-chunk-size",
        type=positive(int),
        metavar="C",
        help="rows of the similarity matrix formed at a time; bounds memory (default: automatic)",
    )
    group.add_argument(
        "--neg-weight",
        type=positive(float),
        default=_DEFAULTS["neg_weight"],
        help="triplet: weight of the negative pairs' term (default: 1)",
    )
    group.add_argument(
        "--neg-scope",
        choices=NEG_SCOPES,
        default=_DEFAULTS["neg_scope"],
        help="whose hard negatives a row meets: of the whole batch (the paper) or its own only (CS-CLIP)",
    )
    group.add_argument(
        "--neg-images-in-text-denominator",
        action="store_true",
        help="triplet ablation: captions are classified over the images of both sides",
    )
    for term in ("in-modal", "cross-modal"):
        default = _DEFAULTS[f"cyclip_{term.replace('-', '_')}"]
        group.add_argument(
            f"--cyclip-{term}",
            type=float,
            default=default,
            metavar="WEIGHT",
            help=f"cyclip: weight of the {term} consistency term (default: {default})",
        )


def positive(kind: type) -> Any:
    """An argparse type: a number above 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def create_loss(args: Any) -> Any:
    """The loss module for OpenCLIP's parsed arguments; its own for ``--loss clip``.

    Raises:
        ValueError: an unknown loss, or a combination that the loss does not support.
    """
    method = METHODS.get(getattr(args, "loss", "clip"))
    if method is None:
        raise ValueError(f"unknown loss {args.loss!r}; choose from {', '.join(METHODS)}")
    check_supported(args)
    if method.name == "clip":
        import open_clip  # type: ignore[import-untyped]

        return open_clip.create_loss(args)
    return method.loss(
        local_loss=getattr(args, "local_loss", False),
        gather_with_grad=getattr(args, "gather_with_grad", False),
        cache_labels=True,
        rank=getattr(args, "rank", None),
        world_size=getattr(args, "world_size", None),
        use_horovod=getattr(args, "horovod", False),
        neg_captions=getattr(args, "neg_captions", 1),
        accum_freq=getattr(args, "accum_freq", 1),
        chunk_size=getattr(args, "loss_chunk_size", None),
        sigmoid=getattr(args, "siglip", False),
        **{name: getattr(args, name) for name in method.options if hasattr(args, name)},
    )


def check_supported(args: Any) -> None:
    """Refuse flags that the loss of ``args.loss`` does not support, or would pass over in silence.

    Raises:
        ValueError: says which losses do.
    """
    method = METHODS[args.loss]
    _refuse_unused_flags(args, method, getattr(args, "neg_captions", 1))
    if method.name != "clip":
        _refuse_unsupported(args, method, getattr(args, "siglip", False))


def _refuse_unused_flags(args: Any, method: Method, neg_captions: int) -> None:
    """A flag that the method would pass over in silence is an error."""
    for name, default in _DEFAULTS.items():
        if name not in method.options and getattr(args, name, default) != default:
            names = ", ".join(other.name for other in METHODS.values() if name in other.options)
            raise ValueError(
                f"--{name.replace('_', '-')} means nothing to --loss {method.name}, only to {names}"
            )
    if neg_captions > 1 and not method.several_neg_captions:
        names = _names(lambda other: other.several_neg_captions)
        count = "one negative caption" if method.reads_neg_captions else "no negative captions"
        raise ValueError(f"--loss {method.name} reads {count}; --neg-captions {neg_captions} is for {names}")
    if getattr(args, "loss_chunk_size", None) and method.name == "clip":
        raise ValueError(
            "--loss-chunk-size is for the other losses: --loss clip is OpenCLIP's own, unchanged"
        )


def _refuse_unsupported(args: Any, method: Method, sigmoid: bool) -> None:
    if sigmoid and not method.supports_sigmoid:
        names = _names(lambda other: other.supports_sigmoid)
        raise ValueError(f"--siglip with --loss {method.name} is not defined; it works with {names}")
    if sigmoid and getattr(args, "neg_images_in_text_denominator", False):
        raise ValueError("--siglip has no denominators: drop --neg-images-in-text-denominator")
    if getattr(args, "neg_scope", "batch") == "own":
        if sigmoid:
            raise ValueError("--siglip has no denominators: drop --neg-scope own")
        if getattr(args, "neg_images_in_text_denominator", False):
            raise ValueError("--neg-images-in-text-denominator is for --neg-scope batch")
    if getattr(args, "distill", False) or "coca" in str(getattr(args, "model", "")).lower():
        raise ValueError(
            f"--loss {method.name} trains CLIP models alone: CoCa and distillation have losses of "
            "their own; use --loss clip with them"
        )


def _names(keep: Callable[[Method], bool]) -> str:
    return ", ".join(name for name, method in METHODS.items() if keep(method))
