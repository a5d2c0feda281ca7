"""Hard negative images: a text-to-image pipeline draws each sample's first negative caption.

Every image has its own generator, seeded from the sample's key, and is resized once, on the way out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.language import missing_model
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.overlap import ahead
from open_clip_triplet.tripletdata.run.pictures import encode
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage, sample_seed, settings
from open_clip_triplet.tripletdata.run.task import ShardTask

HELP = "draw hard negative images with a text-to-image pipeline"
DEFAULT_MODEL = "stabilityai/sdxl-turbo"
#: images drawn and not yet encoded, so that a GPU draws while a CPU encodes
DRAWN_AHEAD = 64


class ImageModel(Protocol):
    """captions -> images."""

    def open(self, device: str) -> None: ...

    def draw(self, captions: list[str], seeds: list[int]) -> Iterator[Any]:
        """One PIL image per caption, in order."""
        ...


@dataclass
class Diffusers:
    """Any text-to-image pipeline of diffusers. The defaults are SDXL-Turbo's.

    An out-of-memory error halves the batch for good and goes on.
    """

    model: str = DEFAULT_MODEL
    steps: int = 1
    guidance: float = 0.0
    size: int = 512
    dtype: str = "float32"
    tiny_vae: str = ""
    compile: bool = field(default=False, metadata=RUNTIME_ONLY)
    batch_size: int = field(default=16, metadata=RUNTIME_ONLY)

    def open(self, device: str) -> None:
        try:
            import diffusers
            import torch
            import transformers
            from diffusers import AutoencoderTiny, AutoPipelineForText2Image
        except ImportError as error:
            raise PipelineError(
                f"images needs diffusers ({error}): install open_clip_triplet with its extra `build`"
            ) from error
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        dtype = getattr(torch, self.dtype)
        try:
            self._pipe = self._load(AutoPipelineForText2Image, dtype)
            if self.tiny_vae:
                self._pipe.vae = AutoencoderTiny.from_pretrained(self.tiny_vae, torch_dtype=dtype)
        except (OSError, ValueError) as error:
            raise PipelineError(missing_model(self.model, error)) from error
        self._pipe.to(device)
        self._pipe.set_progress_bar_config(disable=True)
        if self.compile:
            core = "unet" if hasattr(self._pipe, "unet") else "transformer"
            setattr(self._pipe, core, torch.compile(getattr(self._pipe, core)))
            self._pipe.vae.decode = torch.compile(self._pipe.vae.decode)

    def _load(self, loader, dtype):
        """The pipeline from safetensors, in the half-size fp16 files where the model has them."""
        common = {"torch_dtype": dtype, "use_safetensors": True}
        if str(dtype).endswith("16"):
            try:
                return loader.from_pretrained(self.model, variant="fp16", **common)
            except (OSError, ValueError):
                pass
        return loader.from_pretrained(self.model, **common)

    def draw(self, captions: list[str], seeds: list[int]) -> Iterator[Any]:
        import torch

        start = 0
        while start < len(captions):
            rows = slice(start, start + self.batch_size)
            # Noise is drawn on the CPU: the same on every kind of device.
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[rows]]
            try:
                with torch.inference_mode():
                    images = self._pipe(
                        captions[rows],
                        generator=generators,
                        num_inference_steps=self.steps,
                        guidance_scale=self.guidance,
                        height=self.size,
                        width=self.size,
                    ).images
            except torch.OutOfMemoryError as error:
                images = None
                self._halve(torch, error)
                continue
            yield from images
            start += len(images)

    def _halve(self, torch, error: Exception) -> None:
        if self.batch_size == 1:
            raise PipelineError(
                f"{self.model}: out of memory with one image at {self.size} px. Use a smaller --size."
            ) from error
        self.batch_size //= 2
        torch.cuda.empty_cache()
        print(f"out of memory; going on with batches of {self.batch_size}", file=sys.stderr)


@dataclass
class Images(Stage):
    """Stage: adds ``neg.jpg`` to samples that have a negative caption."""

    name: ClassVar[str] = "images"
    captions_first: ClassVar[bool] = True
    model: Any = None
    save_size: int = 256
    quality: int = 95
    seed: int = 0
    images: bool = True

    def config(self) -> dict:
        return {**super().config(), "model": settings(self.model)}

    def open(self, device: str) -> None:
        self.model.open(device)

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        samples = []
        for sample in task.samples(stats, images=False):
            if sample.neg_text and sample.neg_text.strip():
                samples.append(sample)
            else:
                stats.drop("no negative caption", sample.key)
        seeds = [sample_seed(self.seed, sample.key, stats.redo_round) for sample in samples]
        drawn = ahead(self.model.draw([sample.neg_text for sample in samples], seeds), DRAWN_AHEAD)
        source = task.samples(Stats()) if self.images else iter(samples)
        for number, (sample, seed, image) in enumerate(zip(samples, seeds, drawn, strict=True), 1):
            if self.images:
                sample = next(full for full in source if full.key == sample.key)
            sample.neg_image, sample.neg_suffix = encode(image, self.save_size, self.quality), "jpg"
            sample.meta = {**sample.meta, "t2i": self.model.model, "seed": seed}
            stats.report(number / len(samples))
            yield sample


def add_arguments(parser) -> None:
    options.add_common(parser)
    add_image_arguments(parser)


def add_image_arguments(parser) -> None:
    group = parser.add_argument_group("negative images")
    group.add_argument(
        "--t2i", default=DEFAULT_MODEL, metavar="MODEL", help=f"pipeline (default {DEFAULT_MODEL})"
    )
    group.add_argument("--steps", type=options.positive, default=1, help="denoising steps (default 1)")
    group.add_argument("--guidance", type=float, default=0.0, help="guidance scale (default 0)")
    group.add_argument("--size", type=options.positive, default=512, help="pixels drawn (default 512)")
    group.add_argument(
        "--save-size", type=int, default=256, help="shorter side kept, pixels (default 256; 0: all)"
    )
    group.add_argument("--quality", type=int, default=95, help="JPEG quality (default 95)")
    group.add_argument("--image-batch", type=options.positive, default=16, help="images per batch (default 16)")
    dtypes = ["auto", "float16", "bfloat16", "float32"]
    group.add_argument(
        "--dtype",
        choices=dtypes,
        default="auto",
        help="default float16 on a GPU or a joined cluster, else float32",
    )
    group.add_argument(
        "--tiny-vae", default="", metavar="MODEL", help="tiny autoencoder, e.g. madebyollin/taesdxl"
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
    model = Diffusers(
        args.t2i,
        args.steps,
        args.guidance,
        args.size,
        resolved_dtype(args),
        args.tiny_vae,
        args.compile,
        args.image_batch,
    )
    return Images(model, args.save_size, args.quality, args.seed, images)
