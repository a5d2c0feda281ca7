"""Encoders by name: OpenCLIP checkpoints, vision models of timm (DINO), text models of sentence-transformers (GTE).

``[LABEL=]KIND:MODEL[:WEIGHTS]``::

    openclip:ViT-B-32:laion2b_s34b_b79k            ours=openclip:ViT-B-32:logs/run/checkpoints/epoch_9.pt
    timm:vit_small_patch14_dinov2.lvd142m          timm:tf_efficientnet_lite0:lite0.safetensors
    sentence:thenlper/gte-large                    sentence:path/of/a/folder
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from open_clip_triplet.errors import CheckpointError, UsageError

KINDS = ("openclip", "timm", "sentence")


@dataclass
class PairEncoder:
    """An encoder of images, of captions, or (``joint``) of both into one space.

    ``prepare``: PIL RGB image -> tensor [3, H, W]. ``images``: n of those -> [n, D] float32 of unit norm.
    ``texts``: n captions -> the same. None where the encoder has no such half.
    """

    label: str
    prepare: Callable | None = None
    images: Callable[[Sequence], np.ndarray] | None = None
    texts: Callable[[Sequence[str]], np.ndarray] | None = None

    @property
    def joint(self) -> bool:
        return self.images is not None and self.texts is not None


def make_encoder(text: str, device: str, model_config: str | None = None) -> PairEncoder:
    """The encoder that ``text`` names.

    Raises:
        UsageError: not such a name, or the library is not installed. CheckpointError: it cannot be loaded.
    """
    match = re.fullmatch(r"(?:([^=:/]+)=)?(\w+):([^:]+)(?::(.+))?", text)
    if not match or match[2] not in KINDS:
        raise UsageError(f"--encoder {text}: expected [LABEL=]KIND:MODEL[:WEIGHTS], KIND one of {', '.join(KINDS)}")
    label, kind, model, weights = match.groups()
    if kind == "openclip":
        if not weights:
            raise UsageError(f"--encoder {text}: name its weights too, openclip:{model}:PATH_OR_TAG")
        return openclip_encoder(f"{label}={weights}" if label else weights, device, model=model, config=model_config)
    make = {"timm": _timm_encoder, "sentence": _sentence_encoder}[kind]
    return make(label or Path(model).name, model, weights, device)


def openclip_encoder(
    pretrained: str, device: str, *, model: str | None, config: str | None = None, precision: str = "fp32"
) -> PairEncoder:
    """A checkpoint of OpenCLIP's, loaded and checked as ``triplet-evaluate`` does.

    Args:
        pretrained: ``[NAME=]PATH_OR_TAG``. model: OpenCLIP's name, None for the run's. config: a file of a model
            it does not know.
    """
    from open_clip_triplet.evaluation.checkpoints.load import CheckpointSpec, load
    from open_clip_triplet.evaluation.encode import Encoder

    name = Path(config).stem if config else model
    spec = CheckpointSpec.parse(pretrained, model=name, model_config=config, precision=precision)
    loaded = load(spec, device)
    encoder = Encoder(
        loaded.model, loaded.preprocess, loaded.tokenizer,
        device=device, autocast=loaded.autocast, input_dtype=loaded.input_dtype,
    )
    return PairEncoder(spec.label, loaded.preprocess, encoder.images, encoder.texts)


def _timm_encoder(label: str, name: str, weights: str | None, device: str) -> PairEncoder:
    try:
        import timm
        import torch
    except ImportError as error:
        raise UsageError("timm is missing: install open_clip_triplet with its extra `inspect`") from error
    try:
        model = timm.create_model(name, pretrained=weights is None, num_classes=0)
        if weights is not None:
            missing = model.load_state_dict(_read_weights(weights), strict=False).missing_keys
            if missing:
                raise CheckpointError(f"{weights}: lacks {', '.join(missing[:3])} of {name}")
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"timm:{name}: cannot be loaded ({str(error).splitlines()[0]})") from error
    model = model.to(device).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    def images(tensors: Sequence) -> np.ndarray:
        with torch.inference_mode():
            features = model(torch.stack(list(tensors)).to(device)).float()
            return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()

    return PairEncoder(label, prepare, images)


def _read_weights(path: str) -> dict[str, Any]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def _sentence_encoder(label: str, name: str, weights: str | None, device: str) -> PairEncoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError(
            "sentence-transformers is missing: install open_clip_triplet with its extra `inspect`"
        ) from error
    if weights:
        raise UsageError(f"sentence:{name}:{weights}: a sentence model's folder or name holds its weights")
    try:
        model = SentenceTransformer(name, device=device)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"sentence:{name}: cannot be loaded ({str(error).splitlines()[0]})") from error

    def texts(captions: Sequence[str]) -> np.ndarray:
        return model.encode(list(captions), normalize_embeddings=True, show_progress_bar=False).astype(np.float32)

    return PairEncoder(label, texts=texts)


def choose_device(name: str | None) -> str:
    """``name``, else cuda where there is one, else cpu."""
    if name:
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
