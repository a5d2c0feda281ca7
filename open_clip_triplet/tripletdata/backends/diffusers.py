"""Images from any pipeline of diffusers: drawn from a text, or made from an image by an editing pipeline.

Every image has its own generator, whose noise is drawn on the CPU: the same on every kind of device.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.drawn import fitted, images_of
from open_clip_triplet.tripletdata.backends.language import loading
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, needs

#: batches whose prompts are encoded, and whose images are read, ahead of the drawing
BATCHES_AHEAD = 8


@dataclass
class Diffusers:
    """A pipeline by name. The defaults are SDXL-Turbo's.

    An out-of-memory error halves the batch for good and goes on.

    Args:
        size: pixels of the image drawn; of an image that is edited, its shorter side.
        vae: another autoencoder: a name or folder. Empty takes the model's; one that cannot work in
            float16 (``force_upcast``) then works in bfloat16 rather than in float32.
        edit: images are made from images, by the pipeline itself where it takes any, else by its
            image-to-image relative.
        strength: how much of an edited image is drawn anew, 0 to 1, where the pipeline has that.
    """

    model: str = "stabilityai/sdxl-turbo"
    steps: int = 1
    guidance: float = 0.0
    size: int = 512
    dtype: str = "float32"
    vae: str = ""
    edit: bool = False
    strength: float = 0.6
    compile: bool = field(default=False, metadata=RUNTIME_ONLY)
    batch_size: int = field(default=16, metadata=RUNTIME_ONLY)

    @property
    def window(self) -> int:
        """Images to ask for at once."""
        return BATCHES_AHEAD * self.batch_size

    @property
    def _images_at_once(self) -> int:
        """Of the newer editing pipelines, a list of images is several references for one result."""
        batches = not self.edit or "strength" in self._parameters
        return self.batch_size if batches or type(self._pipe).__name__.startswith("StableDiffusion") else 1

    @property
    def follows_instructions(self) -> bool:
        """Whether the open pipeline edits by instruction, not by a description of the result."""
        return self.edit and "strength" not in self._parameters

    def open(self, device: str) -> None:
        with needs("images needs diffusers"):
            import diffusers
            import torch
            import transformers
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        with loading(self.model), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch_dtype has another name from 1.0 on
            self._pipe = self._load(diffusers, getattr(torch, self.dtype))
        # Long prompts are counted, not logged; each logger by name, since OpenCLIP's training sets each one's level.
        for name in ("diffusers.pipelines", "transformers.tokenization_utils_base", *logging.root.manager.loggerDict):
            if name.startswith(("diffusers.pipelines", "transformers.tokenization")):
                logging.getLogger(name).setLevel(logging.ERROR)
        self._pipe.to(device)
        self._pipe.set_progress_bar_config(disable=True)
        self._parameters = inspect.signature(type(self._pipe).__call__).parameters
        if "strength" in self._parameters and self.edit and self.steps * self.strength < 1:
            raise PipelineError(
                f"--steps {self.steps} at --strength {self.strength} is less than one step: raise either", 2
            )
        self._tune(torch, device)

    def _load(self, diffusers, dtype):
        """The pipeline from safetensors, in the half-size fp16 files where the model has them."""
        loader = diffusers.DiffusionPipeline if self.edit else diffusers.AutoPipelineForText2Image
        common = {"torch_dtype": dtype, "use_safetensors": True}
        if self.vae:
            kind = diffusers.AutoencoderKL.load_config(self.vae)["_class_name"]
            if not kind.startswith("Autoencoder"):
                raise ValueError(f"--vae {self.vae} is no autoencoder but a {kind}")
            common["vae"] = getattr(diffusers, kind).from_pretrained(self.vae, torch_dtype=dtype)
        pipe = None
        if str(dtype).endswith("16"):
            with contextlib.suppress(OSError, ValueError):
                pipe = loader.from_pretrained(self.model, variant="fp16", **common)
        pipe = pipe or loader.from_pretrained(self.model, **common)
        if self.edit and "image" not in inspect.signature(type(pipe).__call__).parameters:
            pipe = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
        return pipe

    def _tune(self, torch, device: str) -> None:
        """Half-precision decoding, memory layout, compilation."""
        vae: Any = getattr(self._pipe, "vae", None)
        core = "unet" if hasattr(self._pipe, "unet") else "transformer"
        if getattr(getattr(vae, "config", None), "force_upcast", False):
            if vae.dtype == torch.float16:
                vae.to(torch.bfloat16)
                _cast_inputs(vae)
            vae.register_to_config(force_upcast=False)  # else pipelines would take it to float32 and back
        for part in (vae, getattr(self._pipe, "unet", None)) if device == "cuda" else ():
            if part is not None and all(weight.dim() != 5 for weight in part.parameters()):  # no video model
                part.to(memory_format=torch.channels_last)
        if self.compile:
            setattr(self._pipe, core, torch.compile(getattr(self._pipe, core)))
            if vae is not None:
                vae.decode = torch.compile(vae.decode)

    def too_long(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts have more tokens than any text encoder of the pipeline reads."""
        names = ("tokenizer", "tokenizer_2", "tokenizer_3")
        found: list[Any] = [getattr(self._pipe, name, None) for name in names]
        tokenizers = [tokenizer for tokenizer in found if callable(tokenizer)]
        long = [True] * len(prompts) if tokenizers and prompts else [False] * len(prompts)
        most = getattr(self._parameters.get("max_sequence_length"), "default", None) or sys.maxsize
        for tokenizer in tokenizers if prompts else ():
            limit = min(tokenizer.model_max_length, most)
            ids = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
            long = [was and len(row) > limit for was, row in zip(long, ids)]
        return long

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], images: Sequence[Any] | None = None
    ) -> Iterator[Any]:
        """One PIL image, or BadImage, for each prompt, in order, as they come out.

        Args:
            images: PIL images to edit; those of a like shape are worked together.
        """
        if images is not None:
            images = [fitted(image, self.size) for image in images]
        order = sorted(range(len(prompts)), key=lambda i: images[i].size) if images else list(range(len(prompts)))
        encoded = self._encode([prompts[i] for i in order])
        drawn: dict[int, Any] = {}
        start, following = 0, 0
        while start < len(order):
            rows = order[start : start + self._images_at_once]
            if images:
                rows = [i for i in rows if images[i].size == images[rows[0]].size]
            options = {name: value[start : start + len(rows)] for name, value in encoded.items()}
            if images:
                options["image"] = [images[i] for i in rows] if self._images_at_once > 1 else images[rows[0]]
            try:
                drawn.update(zip(rows, self._run(options, [seeds[i] for i in rows]), strict=True))
            except Exception as error:
                self._halve(error)
                continue
            start += len(rows)
            while following in drawn:
                yield drawn.pop(following)
                following += 1

    def _encode(self, prompts: list[str]) -> dict[str, Any]:
        """What the pipeline takes for its prompts: of the SDXL family their embeddings, all encoded at once."""
        import torch

        sdxl = type(self._pipe).__name__.startswith("StableDiffusionXL")
        if not sdxl or self.guidance > 1 or not prompts:
            return {"prompt": prompts}
        parts: list[tuple] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), 64):
                part = prompts[start : start + 64]
                embeds, _, pooled, _ = self._pipe.encode_prompt(part, do_classifier_free_guidance=False)
                parts.append((embeds, pooled))
        embeds, pooled = map(torch.cat, zip(*parts))
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _run(self, options: dict, seeds: list[int]) -> Iterator[Any]:
        import torch

        wanted = {
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "strength": self.strength if self.edit else None,
            "output_type": "pt",
        }
        if self.edit:
            image = options["image"]
            width, height = (image[0] if isinstance(image, list) else image).size
        else:
            width = height = self.size
        wanted.update(width=width, height=height)
        options = {**options, **{k: v for k, v in wanted.items() if v is not None and k in self._parameters}}
        with torch.inference_mode():
            result = self._pipe(**options)
        blanked = getattr(result, "nsfw_content_detected", None) or [False] * len(seeds)
        return images_of(result.images, blanked)

    def _halve(self, error: Exception) -> None:
        """Go on with smaller batches after running out of memory; any other error is raised again."""
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise error
        if self.batch_size == 1:
            raise PipelineError(
                f"{self.model}: out of memory with one image at {self.size} px. Use a smaller --size."
            ) from error
        self.batch_size //= 2
        torch.cuda.empty_cache()
        print(f"out of memory; going on with batches of {self.batch_size}", file=sys.stderr)


def _cast_inputs(vae) -> None:
    """Have an autoencoder take inputs of the pipeline's precision in its own."""
    encode, decode = vae.encode, vae.decode
    vae.encode = lambda images, *args, **options: encode(images.to(vae.dtype), *args, **options)
    vae.decode = lambda latents, *args, **options: decode(latents.to(vae.dtype), *args, **options)
