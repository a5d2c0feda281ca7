"""transformers' CLIP under OpenCLIP's two names."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.load import (
    CheckpointSpec,
    LoadedCheckpoint,
    autocast_and_dtype,
    shorten,
)


class TransformersClip(torch.nn.Module):
    """A ``transformers.CLIPModel`` with ``encode_image`` ([n, 3, H, W]) and ``encode_text`` ([n, L])."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def encode_image(self, images):
        vision = self.clip.vision_model(pixel_values=images)
        return self.clip.visual_projection(vision.pooler_output)

    def encode_text(self, tokens):
        text = self.clip.text_model(input_ids=tokens)
        return self.clip.text_projection(text.pooler_output)


def load_transformers(spec: CheckpointSpec, device: str) -> LoadedCheckpoint:
    """Load a folder that transformers' ``CLIPModel.save_pretrained`` and its processor wrote.

    Raises:
        CheckpointError: another kind of model, or its tokenizer or image processor is missing.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    folder = spec.pretrained
    config = Path(folder) / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind != "clip":
        raise CheckpointError(f"{folder}: neither open_clip_config.json nor a transformers CLIP config.json")
    try:
        tokenizer, processor = (
            AutoTokenizer.from_pretrained(folder),
            AutoImageProcessor.from_pretrained(folder),
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: no tokenizer or image processor beside the weights "
            f"({shorten(error, 2)}). Save both into the folder"
        ) from error
    clip = CLIPModel.from_pretrained(folder).to(device)
    length = clip.config.text_config.max_position_embeddings
    autocast, input_dtype = autocast_and_dtype(spec.precision, device)
    if input_dtype:
        clip = clip.to(input_dtype)

    def tokenize(captions: list[str]):
        return tokenizer(
            captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids

    def preprocess(image):
        return processor(images=image, return_tensors="pt").pixel_values[0]

    return LoadedCheckpoint(TransformersClip(clip).eval(), preprocess, tokenize, autocast, input_dtype)
