"""The paper's methods: their loss modules, the table of their names, and the loss that a run asks for."""

from __future__ import annotations

import importlib.metadata
import pkgutil
from dataclasses import dataclass
from typing import Any

import open_clip

from open_clip_triplet.errors import UsageError
from open_clip_triplet.losses.grouped import LOCAL_LOSS, GroupedLoss
from open_clip_triplet.losses.options import ADDED_TERMS, FLAGS, HARD_NEGATIVE_TERMS, dashed
from open_clip_triplet.losses.terms import cyclic_consistency

#: entry-point group in which a package offers losses: ``my-loss = "my_package.losses:MyLoss"``
ENTRY_POINTS = "open_clip_triplet.losses"


class ClipHnLoss(GroupedLoss):
    """CLIP with the negative pairs as ordinary pairs of the batch (the paper's LaCLIP+HN)."""

    reads_neg_images = reads_neg_captions = True
    several_neg_captions = False
    flags = (*HARD_NEGATIVE_TERMS, *ADDED_TERMS)

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        # [A, n, D] -> [1, n * A, D], in the order of the grouped rows
        images, captions = (rows.transpose(0, 1).flatten(0, 1)[None] for rows in (images, captions))
        return super().losses(images, captions, logit_scale, logit_bias)


class NegClipLoss(GroupedLoss):
    """NegCLIP: images are also classified over every negative caption. See ``negclip_loss``."""

    reads_neg_captions = True


class NegImageLoss(GroupedLoss):
    """NegImage: captions are also classified over every negative image. See ``negimage_loss``."""

    reads_neg_images = True

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        return super().losses(captions, images, logit_scale, logit_bias)


class TripletClipLoss(GroupedLoss):
    """TripletCLIP, NegCLIP on the positives plus NegCLIP on the negatives. See ``triplet_clip_loss``."""

    reads_neg_images = reads_neg_captions = True
    flags = (*GroupedLoss.flags, "neg_weight", "neg_images_in_text_denominator")

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        same_polarity = not self.options.neg_images_in_text_denominator
        positive, negative = self.terms(images, captions, logit_scale, logit_bias, same_polarity)
        return {"positive_loss": positive, "negative_loss": self.options.neg_weight * negative}


class CyClipLoss(GroupedLoss):
    """CyCLIP: CLIP plus consistency of every set of pairs that is read. See ``cyclip_loss``."""

    supports_sigmoid = False
    flags: tuple[str, ...] = (*ADDED_TERMS, "cyclip_in_modal", "cyclip_cross_modal")

    def losses(self, images, captions, logit_scale, logit_bias):  # type: ignore[no-untyped-def]
        weights = self.options.cyclip_in_modal, self.options.cyclip_cross_modal
        cyclic = sum(
            weight * cyclic_consistency(left, right, *weights, ranks=self.ranks)
            for weight, left, right in zip((1.0, self.options.neg_weight), images, captions)
        )
        return {**super().losses(images, captions, logit_scale, logit_bias), "cyclic_loss": cyclic}


class CyClipTripletLoss(CyClipLoss, TripletClipLoss):
    """TripletCLIP plus CyCLIP's consistency on the positive and on the negative pairs (Table 15)."""

    flags = (*TripletClipLoss.flags, *CyClipLoss.flags)


def _of_class(attribute: str, default: Any) -> property:
    """An attribute of the class of a method's loss."""
    return property(lambda method: getattr(method.loss, attribute, default))


@dataclass(frozen=True)
class Method:
    """A name of ``--loss``. Its class, of this package or a user's, says what it reads, supports and takes."""

    name: str
    loss: type
    summary: str = "a loss of the user's own"

    reads_neg_images = _of_class("reads_neg_images", False)
    reads_neg_captions = _of_class("reads_neg_captions", False)
    supports_sigmoid = _of_class("supports_sigmoid", True)
    flags = _of_class("flags", ())

    @property
    def several_neg_captions(self) -> bool:
        """Whether it reads any number of negative captions."""
        return self.reads_neg_captions and getattr(self.loss, "several_neg_captions", True)

    @property
    def fields(self) -> tuple[str, ...]:
        """Members it reads, under the names of ``shards``."""
        return "image", "text", *["neg_image"] * self.reads_neg_images, *["neg_text"] * self.reads_neg_captions

    def takes(self, option: str) -> bool:
        """Whether a flag means something to it: by itself, or beside the flag that it needs."""
        return option in self.flags or FLAGS[option].metadata["needs"] in self.flags


METHODS = {
    method.name: method
    for method in (
        Method("clip", open_clip.ClipLoss, "OpenCLIP's own loss on the positive pairs"),
        Method("clip-hn", ClipHnLoss, "CLIP, negative pairs as ordinary pairs"),
        Method("negclip", NegClipLoss, "NegCLIP: negative captions only"),
        Method("negimage", NegImageLoss, "NegCLIP with modalities swapped: negative images only"),
        Method("triplet", TripletClipLoss, "TripletCLIP: negative captions and images"),
        Method("cyclip", CyClipLoss, "CLIP with CyCLIP's consistency terms"),
        Method("cyclip-triplet", CyClipTripletLoss, "TripletCLIP with CyCLIP's consistency terms"),
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
    path = offered.get(name, name)
    try:
        loss = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--loss {name}: cannot import {path} ({error})") from error
    if not isinstance(loss, type):
        raise UsageError(f"--loss {name}: {path} is not a class")
    return Method(name, loss)


def create_loss(args: Any) -> Any:
    """The loss module for OpenCLIP's parsed arguments; its own for ``--loss clip``.

    Raises:
        UsageError: an unknown loss, or a combination that the loss does not support.
    """
    method = find_method(getattr(args, "loss", "clip"))
    check_supported(args)
    if method.name == "clip":
        return open_clip.create_loss(args)
    names = ["local_loss", "gather_with_grad", "rank", "world_size"]
    options = {"cache_labels": True, "use_horovod": getattr(args, "horovod", False)}
    if issubclass(method.loss, GroupedLoss):
        names += ["neg_captions", "accum_freq", *FLAGS]
        options["chunk_size"] = getattr(args, "loss_chunk_size", None)
        options["sigmoid"] = getattr(args, "siglip", False)
    options |= {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        loss: Any = method.loss(**options)
    except TypeError as error:
        raise UsageError(f"--loss {method.name} takes the arguments of open_clip.ClipLoss: {error}") from error
    loss.check_rows = False  # our loader gives every rank as many
    return loss


def check_supported(args: Any) -> None:
    """Refuse flags that the loss of ``args.loss`` does not support, or would ignore in silence.

    Raises:
        UsageError: says which losses do.
    """
    get = vars(args).get
    method = find_method(get("loss", "clip"))
    given = [name for name, field in FLAGS.items() if get(name, field.default) != field.default]
    for name in given:
        needs = FLAGS[name].metadata["needs"]
        if not method.takes(name):
            takers = ", ".join(other.name for other in METHODS.values() if other.takes(name))
            raise UsageError(f"{dashed(name)} means nothing to --loss {method.name}, only to {takers}")
        if needs and needs not in given:
            raise UsageError(f"{dashed(name)} means nothing without {dashed(needs)}")

    def those(attribute: str) -> str:
        return ", ".join(other.name for other in METHODS.values() if getattr(other, attribute))

    loss, stock, neg_captions = f"--loss {method.name}", method.name == "clip", get("neg_captions", 1)
    count = "one negative caption" if method.reads_neg_captions else "no negative captions"
    sigmoid, distill_model, precision = get("siglip"), get("distill_model"), get("precision")
    scope, all_images = "neg_scope" in given, "neg_images_in_text_denominator" in given
    teacher = "teacher" in given
    refused = {
        f"{loss} reads {count}; --neg-captions {neg_captions} is for {those('several_neg_captions')}":
            neg_captions > 1 and not method.several_neg_captions,
        f"--loss-chunk-size is for the other losses: {loss} is {'OpenCLIP' if stock else 'the user'}'s own, unchanged":
            get("loss_chunk_size") and not issubclass(method.loss, GroupedLoss),
        f"--siglip with {loss} is not defined; it works with {those('supports_sigmoid')}":
            sigmoid and not method.supports_sigmoid,
        "--siglip has no denominators: drop --neg-images-in-text-denominator": sigmoid and all_images,
        f"--siglip has no denominators: drop --neg-scope {get('neg_scope')}": sigmoid and scope,
        "--neg-images-in-text-denominator is for --neg-scope batch": all_images and scope,
        "--teacher and --distill-model are two teachers; leave out one of them": teacher and distill_model,
        "OpenCLIP distils without accumulation alone: --teacher needs --accum-freq 1":
            teacher and get("accum_freq", 1) > 1,
        "--teacher-decay is for --teacher ema": "teacher_decay" in given and get("teacher") == "frozen",
        "--teacher keeps the whole model on every rank; leave out --fsdp": teacher and get("fsdp"),
        f"--teacher ema does not move in weights of --precision {precision}; use amp_bf16":
            get("teacher") == "ema" and precision in ("bf16", "fp16", "pure_bf16", "pure_fp16"),
        "--distill-weight means nothing without --teacher or --distill-model":
            "distill_weight" in given and not teacher and not distill_model,
        f"{loss} trains CLIP models (two towers), not {get('model')}; CoCa has a loss of its own: --loss clip":
            not stock and any(word in str(get("model")).lower() for word in ("coca", "genlip", "genlap", "clap")),
        LOCAL_LOSS: not stock and get("local_loss") and not get("gather_with_grad"),
    }
    for message, holds in refused.items():
        if holds:
            raise UsageError(message)
