"""Random-weight checkpoints in each layout that is read, tiny, made by the libraries that define them."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def save_clip(folder: Path, *, seed: int = 0, positions: int = 77, act: str = "quick_gelu", heads: int = 2) -> Path:
    """A transformers ``CLIPModel`` folder with CLIP's tokenizer and an image processor of 32 pixels."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from build_fixtures import clip_tokenizer

    size = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": heads,
            "hidden_act": act}
    text = {**size, "vocab_size": 49408, "max_position_embeddings": positions, "bos_token_id": 49406,
            "eos_token_id": 49407, "pad_token_id": 49407}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=12)
    model = CLIPModel(config)
    with torch.no_grad():  # so that no parameter is at a value which a wrong mapping would not change
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    clip_tokenizer(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_released(folder: Path, prefix: str = "model.", *, nested: bool = False, **options) -> tuple[Path, Path]:
    """(released layout, the ``CLIPModel`` folder with the same weights)."""
    from safetensors.torch import load_file, save_file

    clip = save_clip(folder / "clip", **options)
    config = json.loads((clip / "config.json").read_text())
    state = load_file(clip / "model.safetensors")
    for part, names, key in (
        ("text-encoder", ("text_model.", "text_projection."), "text_config"),
        ("vision-encoder", ("vision_model.", "visual_projection."), "vision_config"),
    ):
        place = folder / "released" / part
        place.mkdir(parents=True)
        save_file({prefix + n: x for n, x in state.items() if n.startswith(names)}, place / "model.safetensors")
        said = config if nested else config[key]
        code = {"auto_map": {"AutoModel": "utils.Encoder"}, "architectures": ["CLIPTextEncoderOnly"]}
        (place / "config.json").write_text(json.dumps({**said, **code}))
        (place / "utils.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    return folder / "released", clip


def tiny_siglip_tower(monkeypatch) -> None:
    """Let timm know a SigLIP image tower of one layer, as it knows base and large."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    from open_clip_triplet.evaluation.checkpoints import convert

    def vit_tiny_patch16_siglip_32(pretrained=False, **kwargs):
        kwargs = {k: v for k, v in kwargs.items() if k in ("num_classes", "global_pool")}
        return VisionTransformer(
            img_size=32, patch_size=16, embed_dim=64, depth=1, num_heads=1, class_token=False,
            **{"global_pool": "map", **kwargs},
        )

    monkeypatch.setitem(convert._SIGLIP_TRUNKS, (64, 1), "tiny")
    if not timm.is_model("vit_tiny_patch16_siglip_32"):
        vit_tiny_patch16_siglip_32.__module__ = "timm.models.vision_transformer"
        timm.models.register_model(vit_tiny_patch16_siglip_32)


def save_siglip(folder: Path, act: str = "gelu") -> Path:
    """A ``SiglipModel`` folder with ``tiny_siglip_tower``'s image tower."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    from build_fixtures import clip_tokenizer

    size = {"intermediate_size": 256, "num_hidden_layers": 1, "hidden_act": act}
    text = {**size, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 49408, "max_position_embeddings": 24,
            "projection_size": 64, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = {**size, "hidden_size": 64, "num_attention_heads": 1, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    clip_tokenizer(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
