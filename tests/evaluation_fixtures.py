"""A tiny CLIP of real OpenCLIP parts, and small format-faithful data, for the evaluation tests."""

import io
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_config(folder: Path, name: str = "tiny-eval", **changes) -> Path:
    """A model config file as ``--model-config`` takes; its stem is the model's name."""
    path = Path(folder) / f"{name}.json"
    path.write_text(json.dumps({**TINY, **changes}))
    return path


@lru_cache(maxsize=4)
def tiny_clip(seed: int = 0):
    """(model, preprocess, tokenizer): OpenCLIP's own CLIP, random weights, 32-pixel images."""
    import open_clip
    import torch
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model = CLIP(**TINY).eval()
    return model, open_clip.image_transform(32, is_train=False), open_clip.SimpleTokenizer()


def picture(seed: int, size=(48, 40), mode: str = "RGB") -> Image.Image:
    """Coloured noise in big blocks, so that JPEG keeps it and every seed differs."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)


def jpeg(seed: int, **kwargs) -> bytes:
    stream = io.BytesIO()
    picture(seed, **kwargs).save(stream, "JPEG")
    return stream.getvalue()


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path
