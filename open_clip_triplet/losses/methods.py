"""The table of methods, losses of the user's own, and the loss that a training run asks for."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass, replace
from typing import Any

from open_clip_triplet.errors import UsageError

#: entry-point group in which a package offers losses: ``my-loss = "my_package.losses:MyLoss"``
ENTRY_POINTS = "open_clip_triplet.losses"


@dataclass(frozen=True)
class Method:
    """A row of the paper: a loss and the members of a sample that it reads.

    ``loss_class`` is "module:Class", imported when the loss is built, so that the table costs no
    OpenCLIP. ``options`` are the flags, beside those of every loss, that it takes.
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
        module, _, name = self.loss_class.partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def fields(self) -> tuple[str, ...]:
        """Members it reads, under the names of ``shards``."""
        negatives = {"neg_image": self.reads_neg_images, "neg_text": self.reads_neg_captions}
        return "image", "text", *(name for name, read in negatives.items() if read)

    def image_group(self, neg_captions: int = 1) -> int:
        """Image rows that a sample contributes."""
        return 1 + self.reads_neg_images

    def text_group(self, neg_captions: int = 1, paraphrases: int = 0, units: int = 0) -> int:
        """Text rows that a sample contributes."""
        return 1 + neg_captions * self.reads_neg_captions + paraphrases + 2 * units


_RETENTION = ("paraphrase_weight", "units", "unit_weight", "teacher", "teacher_decay", "distill_weight")
_OWN = ("margin", "margin_weight", "hard_negative_weight", "focal_gamma", "label_smoothing", "plain_every")
TRIPLET_OPTIONS = ("neg_weight", "neg_images_in_text_denominator")
CYCLIP_OPTIONS = ("cyclip_in_modal", "cyclip_cross_modal")


def _method(name: str, loss: str, summary: str, reads: str = "", **fields: Any) -> Method:
    images, captions = "images" in reads, "captions" in reads
    fields["options"] = _RETENTION + _OWN * bool(reads) + fields.get("options", ())
    return Method(name, f"{__package__}.modules:{loss}", summary, images, captions, **fields)


METHODS = {
    method.name: method
    for method in (
        Method("clip", "open_clip.loss:ClipLoss", "OpenCLIP's own loss on the positive pairs"),
        _method("clip-hn", "ClipHnLoss", "CLIP, negative pairs as ordinary pairs", "images, captions"),
        _method(
            "negclip", "NegClipLoss", "NegCLIP: negative captions only", "captions",
            several_neg_captions=True, options=("neg_scope",),
        ),
        _method(
            "negimage", "NegImageLoss", "NegCLIP with modalities swapped: negative images only", "images",
            options=("neg_scope",),
        ),
        _method(
            "triplet", "TripletClipLoss", "TripletCLIP: negative captions and images", "images, captions",
            several_neg_captions=True, options=("neg_scope", *TRIPLET_OPTIONS),
        ),
        _method(
            "cyclip", "CyClipLoss", "CLIP with CyCLIP's consistency terms",
            supports_sigmoid=False, options=CYCLIP_OPTIONS,
        ),
        _method(
            "cyclip-triplet", "CyClipTripletLoss", "TripletCLIP with CyCLIP's consistency terms",
            "images, captions",
            several_neg_captions=True, supports_sigmoid=False, options=("neg_scope", *TRIPLET_OPTIONS, *CYCLIP_OPTIONS),
        ),
    )
}


def find_method(name: str) -> Method:
    """A row of ``METHODS``, a loss that an installed package offers, or the user's "package.module:Class".

    Raises:
        UsageError: there is none of this name, or it cannot be imported; says why.
    """
    if name in METHODS:
        return METHODS[name]
    offered = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in offered and ":" not in name:
        raise UsageError(f"unknown loss {name!r}; choose from {', '.join([*METHODS, *offered])}")
    return _own_method(name, offered.get(name, name))


def create_loss(args: Any) -> Any:
    """The loss module for OpenCLIP's parsed arguments; its own for ``--loss clip``.

    Raises:
        UsageError: an unknown loss, or a combination that the loss does not support.
    """
    from open_clip_triplet.losses.options import FLAGS, check_supported

    method = find_method(getattr(args, "loss", "clip"))
    check_supported(args)
    if method.name == "clip":
        import open_clip

        return open_clip.create_loss(args)
    from open_clip_triplet.losses.grouped import GroupedLoss

    shared = ("local_loss", "gather_with_grad", "rank", "world_size")
    options = {name: getattr(args, name) for name in shared if hasattr(args, name)}
    options |= {"cache_labels": True, "use_horovod": getattr(args, "horovod", False)}
    if issubclass(method.loss, GroupedLoss):
        names = {"neg_captions", "accum_freq", *(FLAGS.keys() & set(method.options))}
        options |= {name: getattr(args, name) for name in names if hasattr(args, name)}
        options["chunk_size"] = getattr(args, "loss_chunk_size", None)
        options["sigmoid"] = getattr(args, "siglip", False)
    loss = method.loss(**options)
    loss.check_rows = False  # our loader gives every rank as many
    return loss


def _own_method(name: str, loss_class: str) -> Method:
    method = Method(name, loss_class, "a loss of the user's own")
    try:
        loss = method.loss
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--loss {name}: cannot import {loss_class} ({error})") from error
    if not isinstance(loss, type):
        raise UsageError(f"--loss {name}: {loss_class} is not a class")
    from open_clip_triplet.losses.grouped import GroupedLoss

    reads_captions = bool(getattr(loss, "reads_neg_captions", False))
    return replace(
        method,
        reads_neg_images=bool(getattr(loss, "reads_neg_images", False)),
        reads_neg_captions=reads_captions,
        several_neg_captions=reads_captions,
        options=("neg_scope", *_RETENTION, *_OWN) if issubclass(loss, GroupedLoss) else (),
    )
