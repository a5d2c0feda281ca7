"""Hard negative images: drawn from each sample's negative caption, or edited from its positive image.

``--mode draw`` (default) asks a text-to-image pipeline. ``--mode edit`` asks an editing pipeline to make
the negative image from the positive one, so that little but the changed thing changes: an
image-to-image pipeline is given the negative caption, one that follows instructions the sample's
``instruction`` (``captions --instructions`` has the language model write it).

An image that shows nothing (NaN, one colour, blanked by a safety checker) is drawn again with another
seed, then its sample is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from open_clip_triplet.errors import ImageError
from open_clip_triplet.threads import map_ahead
from open_clip_triplet.tripletdata.backends.diffusers import Diffusers
from open_clip_triplet.tripletdata.backends.drawn import BadImage
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.overlap import ahead
from open_clip_triplet.tripletdata.run.pictures import decode, encode
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import Stage, model_name, sample_seed, settings
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.edits import instruction

HELP = "draw hard negative images, or edit the positive ones into them"
#: times an image is drawn before its sample is dropped
ATTEMPTS = 3
#: threads that resize and encode
ENCODERS = 2


@dataclass
class Images(Stage):
    """Stage: adds ``neg.jpg`` to samples that have a negative caption.

    Reading, drawing and encoding overlap, each in threads of its own.

    Args:
        model: as ``backends.diffusers.Diffusers``.
        long_prompts: ``drop`` samples whose prompt the text encoder cannot read whole, or ``truncate`` it.
        images: whether the new shards hold the positive images.
    """

    name: ClassVar[str] = "images"
    captions_first: ClassVar[bool] = True
    model: Any = None
    save_size: int = 256
    quality: int = 95
    seed: int = 0
    long_prompts: str = "drop"
    images: bool = True

    def config(self) -> dict:
        return {**super().config(), "model": settings(self.model)}

    def open(self, device: str) -> None:
        self.model.open(device)

    @property
    def _edit(self) -> bool:
        return getattr(self.model, "edit", False)

    @property
    def reads_source(self) -> bool:
        return self._edit

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        total = sum(1 for _ in task.samples(Stats(), images=False))
        source = ahead(task.samples(stats, images=self.images or self._edit), self.model.window)
        drawn = ahead(self._drawn(source, stats), 2 * self.model.window)
        for number, sample in enumerate(map_ahead(self._encoded, drawn, ENCODERS, 8), 1):
            stats.report(number / max(total, 1))
            yield sample

    def _drawn(self, source: Iterator[Sample], stats: Stats) -> Iterator[tuple[Sample, Any, Any]]:
        """(sample with its origin in the json, PIL image, size of the one that was edited) of those that came out."""
        first = stats.redo_round * ATTEMPTS  # asked again after a run: other seeds
        while window := list(islice(source, self.model.window)):
            rows = self._usable(window, stats)
            for row, image in zip(rows, self._draw(rows, first), strict=True):
                sample, prompt, picture = row
                attempt = first
                while isinstance(image, BadImage) and attempt + 1 < first + ATTEMPTS:
                    attempt += 1
                    stats.count("drawn again")
                    (image,) = self._draw([row], attempt)
                if isinstance(image, BadImage):
                    stats.drop(image.reason, sample.key)
                    continue
                sample.meta = {**sample.meta, **self._origin(prompt, self._seed(sample, attempt))}
                yield sample, image, picture and picture.size

    def _usable(self, samples: list[Sample], stats: Stats) -> list[tuple[Sample, str, Any]]:
        """(sample, prompt, PIL image to edit or None); what cannot be drawn is counted."""
        found = []
        for sample in samples:
            if not (sample.neg_text and sample.neg_text.strip()):
                stats.drop("no negative caption", sample.key)
                continue
            try:
                picture = decode(sample.image or b"").rgb if self._edit else None
            except ImageError:
                stats.drop("image cannot be decoded" if sample.image else "no image", sample.key)
                continue
            found.append((sample, self._prompt(sample), picture))
        long = self.model.too_long([prompt for _, prompt, _ in found])
        if self.long_prompts == "truncate":
            if any(long):
                stats.count("prompts truncated", sum(long))
            return found
        for (sample, *_), is_long in zip(found, long, strict=True):
            if is_long:
                stats.drop("prompt longer than the text encoder reads", sample.key)
        return [row for row, is_long in zip(found, long) if not is_long]

    def _prompt(self, sample: Sample) -> str:
        caption = sample.neg_text or ""
        if self._edit and self.model.follows_instructions:
            return sample.meta.get("instruction") or instruction(sample.text, caption)
        return caption

    def _draw(self, rows: list[tuple], attempt: int) -> Iterator[Any]:
        seeds = [self._seed(sample, attempt) for sample, *_ in rows]
        pictures = [picture for _, _, picture in rows] if self._edit else None
        return self.model.draw([prompt for _, prompt, _ in rows], seeds, pictures) if rows else iter(())

    def _seed(self, sample: Sample, attempt: int) -> int:
        return sample_seed(self.seed, sample.key, attempt)

    def _origin(self, prompt: str, seed: int) -> dict:
        """What a sample's json says of its negative image."""
        origin = {"t2i": model_name(self.model.model), "seed": seed}
        return {**origin, "edit_prompt": prompt, "strength": self.model.strength} if self._edit else origin

    def _encoded(self, drawn: tuple[Sample, Any, Any]) -> Sample:
        sample, image, size = drawn
        if size:
            image = _shaped_like(size, image)
        sample.neg_image, sample.neg_suffix = encode(image, self.save_size, self.quality), "jpg"
        if not self.images:
            sample.image = None
        return sample


def _shaped_like(size: tuple[int, int], image):
    """An edited image in the proportions of the one it was made from."""
    from PIL import Image

    width, height = size
    scale = min(image.size) / min(width, height)
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)


def add_arguments(parser) -> None:
    options.add_common(parser)
    add_image_arguments(parser)


def add_image_arguments(parser) -> None:
    group = parser.add_argument_group("negative images")
    default = Diffusers()
    group.add_argument(
        "--t2i", default=default.model, metavar="MODEL", help="pipeline of diffusers (default %(default)s)"
    )
    group.add_argument(
        "--mode", choices=["draw", "edit"], default="draw", help="from the caption, or from the positive image"
    )
    group.add_argument(
        "--steps", type=options.positive, help="denoising steps (default 1; 4 with --mode edit)"
    )
    group.add_argument("--guidance", type=float, default=0.0, help="guidance scale (default 0)")
    group.add_argument(
        "--strength", type=options.share, default=default.strength, help="edit: share drawn anew (default %(default)s)"
    )
    group.add_argument("--size", type=options.positive, default=512, help="pixels drawn (default 512)")
    group.add_argument(
        "--save-size", type=options.natural, default=256, help="shorter side kept, pixels (default 256; 0: all)"
    )
    group.add_argument("--quality", type=options.quality, default=95, help="JPEG quality (default 95)")
    group.add_argument("--image-batch", type=options.positive, default=16, help="images per batch (default 16)")
    group.add_argument(
        "--long-prompts",
        choices=["drop", "truncate"],
        default="drop",
        help="prompts longer than the text encoder reads (default drop); counted",
    )
    dtypes = ["auto", "float16", "bfloat16", "float32"]
    group.add_argument(
        "--dtype",
        choices=dtypes,
        default="auto",
        help="default float16 on a GPU or a joined cluster, else float32",
    )
    group.add_argument(
        "--vae",
        default="",
        metavar="MODEL",
        help="another autoencoder, e.g. madebyollin/sdxl-vae-fp16-fix or madebyollin/taesdxl",
    )
    group.add_argument("--compile", action="store_true", help="torch.compile the network and the decoder")


def resolved_dtype(args) -> str:
    """The precision that ``--dtype auto`` means here: images differ by it, so the configuration names it."""
    if args.dtype != "auto":
        return args.dtype
    if args.engine == "ray" and args.ray_address:
        return "float32" if args.ray_gpus == 0 else "float16"
    import torch

    return "float16" if torch.cuda.is_available() else "float32"


def make_stage(args, *, images: bool = True) -> Images:
    edit = args.mode == "edit"
    model = Diffusers(
        model=args.t2i,
        steps=args.steps or (4 if edit else 1),
        guidance=args.guidance,
        size=args.size,
        dtype=resolved_dtype(args),
        vae=args.vae,
        edit=edit,
        strength=args.strength if edit else 0.0,
        compile=args.compile,
        batch_size=args.image_batch,
    )
    return Images(model, args.save_size, args.quality, args.seed, args.long_prompts, images)
