"""Packing: joins captions, negatives and images into paired shards a trainer reads.

Images are decoded (a broken one is dropped and counted), brought down to ``--save-size`` pixels on
the shorter side, and encoded again only where that changed them or no trainer reads their format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from open_clip_triplet.errors import ImageError
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.pictures import decode, encode, refused
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import ShardTask

HELP = "resize images and write paired shards"


@dataclass
class Pack(Stage):
    """Stage: the last one.

    Args:
        negatives: what a sample must have besides image and caption: any of ``image``, ``text``.
        selection: which samples stay: ``keeper(task)`` gives a function of a sample, and ``reason`` why one
            is left out; None keeps all.
        images: False leaves the input's images out, and needs none.
    """

    name: ClassVar[str] = "pack"
    save_size: int = 256
    quality: int = 95
    negatives: tuple[str, ...] = ("text", "image")
    selection: Any = None
    images: bool = True

    @property
    def redoes_whole(self) -> bool:
        """A selection goes by a sample's place, or by how many of its score came before."""
        return self.selection is not None

    def config(self) -> dict:
        return {**super().config(), "selection": self.selection and self.selection.config()}

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        keep = self.selection.keeper(task) if self.selection else None
        for sample in task.samples(stats):
            if keep and not keep(sample):
                stats.leave_out(self.selection.reason)
                continue
            reason = self._missing(sample) or self._resize(sample)
            if reason:
                stats.drop(reason, sample.key)
            else:
                yield sample

    def _missing(self, sample: Sample) -> str | None:
        if not self.images:
            sample.image = None
        elif sample.image is None:
            return "no image"
        if "text" in self.negatives and not (sample.neg_text and sample.neg_text.strip()):
            return "no negative caption"
        if "image" in self.negatives and sample.neg_image is None:
            return "no negative image"
        return None

    def _resize(self, sample: Sample) -> str | None:
        """Bring both images of ``sample`` to size, in place; the reason to drop it, or None."""
        what = "image"
        try:
            if sample.image is not None:
                sample.image, sample.suffix = fit(sample.image, self.save_size, self.quality)
            what = "negative image"
            if sample.neg_image is not None:
                sample.neg_image, sample.neg_suffix = fit(sample.neg_image, self.save_size, self.quality)
        except ImageError:
            return f"{what} cannot be decoded"
        return None


def fit(data: bytes, size: int, quality: int) -> tuple[bytes, str]:
    """Image bytes whose shorter side is at most ``size`` pixels (0: any), and their member suffix.

    Bytes that are small enough, upright, and in a format that trainers read stay as they are.

    Raises:
        ImageError: no image, or too large to be one.
    """
    picture = decode(data, size)
    if picture.suffix and picture.upright and not (size and min(picture.size) > size):
        return data, picture.suffix
    with refused():
        return encode(picture.rgb, size, quality), "jpg"


def add_arguments(parser) -> None:
    options.add_common(parser)
    group = parser.add_argument_group("packing")
    group.add_argument(
        "--save-size", type=options.natural, default=256, help="shorter side, pixels (default 256; 0: all)"
    )
    group.add_argument("--quality", type=options.quality, default=95, help="JPEG quality (default 95)")
    group.add_argument(
        "--need",
        nargs="*",
        choices=["text", "image"],
        default=["text", "image"],
        help="negatives a sample must have (default both; '--need' alone packs plain pairs)",
    )


def make_stage(args, *, images: bool = True) -> Pack:
    return Pack(args.save_size, args.quality, tuple(args.need), None, images)
