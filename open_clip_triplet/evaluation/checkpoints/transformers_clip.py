"""transformers' CLIP and SigLIP folders, and the towers that TripletCLIP's authors released.

The release has two folders, ``text-encoder/`` and ``vision-encoder/``, each a Hugging Face CLIP tower with
its projection in ``model.safetensors``; parameter names start with ``model.`` or another wrapper's name, and
texts have 64 or 77 positions. Shapes say everything but heads, activation and end-of-text token, which
``config.json`` says; the Python file beside it is not run.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.checks import check_tokenizer
from open_clip_triplet.evaluation.checkpoints.loaded import (
    LoadedCheckpoint,
    autocast_and_dtype,
    no_code_from_checkpoints,
)
from open_clip_triplet.evaluation.checkpoints.spec import (
    RELEASED,
    TOKENIZER_FILES,
    layout,
    read_json,
    shorten,
)

#: logit_scale (a logarithm) of released towers, which come without one: CLIP's upper bound
RELEASED_LOGIT_SCALE = 4.6052


class TransformersClip(torch.nn.Module):
    """A ``CLIPModel`` or ``SiglipModel`` with ``encode_image`` ([n, 3, H, W]) and ``encode_text`` ([n, L])."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def encode_image(self, images):
        features = self.clip.vision_model(pixel_values=images).pooler_output
        return self.clip.visual_projection(features) if hasattr(self.clip, "visual_projection") else features

    def encode_text(self, tokens):
        features = self.clip.text_model(input_ids=tokens).pooler_output
        return self.clip.text_projection(features) if hasattr(self.clip, "text_projection") else features


def load_transformers(path: Path, precision: str = "fp32", device: str = "cpu") -> LoadedCheckpoint:
    """Load a folder of one of the layouts above.

    Raises:
        CheckpointError: another kind of model, or its tokenizer or image processor is missing.
    """
    read = _released if layout(path) == RELEASED else _folder
    with no_code_from_checkpoints():
        try:
            clip, tokenizer, processor = read(path)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: cannot be loaded ({shorten(error, 3)})") from error
    check_tokenizer(str(path), tokenizer, clip.config.text_config.vocab_size)
    autocast, input_dtype = autocast_and_dtype(precision, device)
    clip = clip.to(device, dtype=input_dtype)

    def preprocess(image):
        return processor(images=image, return_tensors="pt").pixel_values[0]

    preprocess.processor = processor  # type: ignore[attr-defined]
    return LoadedCheckpoint(TransformersClip(clip).eval(), preprocess, tokenizer, autocast, input_dtype)


class FolderTokenizer:
    """A transformers tokenizer that pads and cuts captions to the text tower's positions."""

    def __init__(self, tokenizer, context_length: int):
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, captions: list[str], context_length: int | None = None) -> torch.Tensor:
        """[n, context_length] token ids."""
        length = context_length or self.context_length
        return self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids


def _folder(path: Path):
    """(model, tokenizer, image processor) of a folder that ``save_pretrained`` wrote."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

    try:
        # without its vocabulary, transformers makes up a tokenizer of two or three tokens
        if not any((path / name).is_file() for name in TOKENIZER_FILES if "config" not in name):
            raise OSError(f"none of {', '.join(TOKENIZER_FILES[:6])} is there")
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no tokenizer or image processor beside the weights ({shorten(error, 2)}). "
            "Save both into the folder"
        ) from error
    kind = CLIPModel if read_json(path / "config.json")["model_type"] == "clip" else SiglipModel
    model, info = kind.from_pretrained(path, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{path}: its weights lack {len(missing)} tensors, {missing[0]} among them")
    return model, FolderTokenizer(tokenizer, model.config.text_config.max_position_embeddings), processor


def _released(path: Path):
    """(model, tokenizer, image processor) of the released layout."""
    from transformers import CLIPImageProcessor, CLIPModel

    text = _tower(path / "text-encoder", "text_model", "text_projection")
    vision = _tower(path / "vision-encoder", "vision_model", "visual_projection")
    config = _released_config(path, text, vision)
    model = CLIPModel(config)
    state = {**text, **vision}
    state.setdefault("logit_scale", torch.tensor(RELEASED_LOGIT_SCALE))
    wanted = model.state_dict().keys()
    if missing := sorted(wanted - state.keys() - {k for k in wanted if k.endswith("position_ids")}):
        raise CheckpointError(f"{path}: its towers lack {len(missing)} tensors, {missing[0]} among them")
    model.load_state_dict({name: x for name, x in state.items() if name in wanted}, strict=False)
    size = config.vision_config.image_size
    found = [f.parent for f in (path / "preprocessor_config.json", path / "vision-encoder" / "preprocessor_config.json")
             if f.is_file()]
    processor = (
        CLIPImageProcessor.from_pretrained(found[0])
        if found
        else CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    )
    return model, _released_tokenizer(path, config.text_config), processor


def _released_tokenizer(path: Path, text):
    """The folder's tokenizer, or CLIP's own, which the release leaves to be taken from elsewhere."""
    from transformers import AutoTokenizer

    for folder in (path, path / "text-encoder"):
        if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            return FolderTokenizer(tokenizer, text.max_position_embeddings)
    if text.vocab_size != 49408:
        raise CheckpointError(
            f"{path}: no tokenizer files, and its {text.vocab_size} tokens are not those of CLIP's tokenizer"
        )
    from open_clip import SimpleTokenizer

    return SimpleTokenizer(context_length=text.max_position_embeddings)


_PARTS = r"(embeddings|encoder|final_layer_norm|pre_layrnorm|post_layernorm|text_projection|visual_projection)"


def _tower(folder: Path, model: str, projection: str) -> dict[str, torch.Tensor]:
    """A tower's tensors under ``CLIPModel``'s names, whatever wrapper's name stands before them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({shorten(error, 1)})") from error
    found = {}
    for name, tensor in state.items():
        part = re.search(rf"(?:^|\.){_PARTS}\.", name)
        if name.rpartition(".")[2] == "logit_scale":
            found["logit_scale"] = tensor.reshape(())
        elif part and not name.endswith("position_ids"):
            inner = name[part.start(1) :]
            found[inner if part[1] == projection else f"{model}.{inner}"] = tensor.float()
    if f"{projection}.weight" not in found:
        raise CheckpointError(f"{file}: no {projection}.weight among its {len(state)} tensors")
    return found


def _released_config(path: Path, text: dict, vision: dict):
    from transformers import CLIPConfig

    tokens, width = text["text_model.embeddings.token_embedding.weight"].shape
    positions = text["text_model.embeddings.position_embedding.weight"].shape[0]
    patch = vision["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    cells = vision["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    dimensions = text["text_projection.weight"].shape[0], vision["visual_projection.weight"].shape[0]
    if len(set(dimensions)) > 1:
        raise CheckpointError(f"{path}: text and image features have {dimensions[0]} and {dimensions[1]} values")
    text_says = _said(path / "text-encoder", "text_config")
    said = {"eos_token_id": text_says.get("eos_token_id", tokens - 1)}
    if said["eos_token_id"] >= tokens or said["eos_token_id"] == 2:
        said["eos_token_id"] = tokens - 1
    return CLIPConfig(
        projection_dim=dimensions[0],
        text_config={
            **_shape_config(text, "text_model", text_says), **said, "bos_token_id": tokens - 2,
            "pad_token_id": tokens - 1, "vocab_size": tokens, "max_position_embeddings": positions,
        },
        vision_config={
            **_shape_config(vision, "vision_model", _said(path / "vision-encoder", "vision_config")),
            "patch_size": patch, "image_size": patch * round(cells**0.5),
        },
    )


def _said(folder: Path, nested: str) -> dict:
    """The tower's entries of ``config.json``, at its top or nested."""
    content = read_json(folder / "config.json")
    inner = content.get(nested)
    return {**content, **inner} if isinstance(inner, dict) else content


def _shape_config(state: dict, model: str, said: dict) -> dict:
    width = state[f"{model}.embeddings.position_embedding.weight"].shape[1]
    layers = {int(name.split(".")[3]) for name in state if name.startswith(f"{model}.encoder.layers.")}
    heads = said.get("num_attention_heads", max(1, width // 64))
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(f"config.json says num_attention_heads {heads!r} of a tower {width} wide")
    return {
        "hidden_size": width,
        "intermediate_size": state[f"{model}.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "hidden_act": said.get("hidden_act", "quick_gelu"),
        "layer_norm_eps": said.get("layer_norm_eps", 1e-5),
    }
