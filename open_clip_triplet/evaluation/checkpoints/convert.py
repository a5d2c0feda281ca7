"""Parameters of OpenCLIP's CLIP and SigLIP under transformers' names, and back; nothing is read or written.

Shapes: W width, D embedding, P positions. OpenCLIP keeps projections as [W, D] and attention's query, key
and value in one [3W, W]; transformers keeps [D, W] and three of [W, W]. What the other side cannot hold is
refused by name.
"""

from __future__ import annotations

import re

import torch

from open_clip_triplet.errors import CheckpointError

State = dict[str, torch.Tensor]

_BLOCK = {  # transformers -> OpenCLIP's residual block
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TIMM_BLOCK = {  # transformers -> timm's vision transformer
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_CLIP = {
    **_TEXT,
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_CLIP_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_TRUNK = {"patch_embedding": "patch_embed.proj", "post_layernorm": "norm", "attention.out_proj": "attn_pool.proj",
          "layernorm": "attn_pool.norm", "mlp.fc1": "attn_pool.mlp.fc1", "mlp.fc2": "attn_pool.mlp.fc2"}
_SIGLIP = {
    **{name: f"text.{other}" for name, other in _TEXT.items()},
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    **{f"text_model.head.{x}": f"text.text_projection.{x}" for x in ("weight", "bias")},
    **{
        f"vision_model.{where}{name}.{x}": f"visual.trunk.{_TRUNK[name]}.{x}"
        for where, names in {"embeddings.": ["patch_embedding"], "": ["post_layernorm"],
                             "head.": ["attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2"]}.items()
        for name in names
        for x in ("weight", "bias")
    },
}


def to_open_clip(state: State, kind: str) -> State:
    """OpenCLIP's state dict of a ``CLIPModel``'s (kind "clip") or ``SiglipModel``'s ("siglip")."""
    state = {name: x for name, x in state.items() if not name.endswith("position_ids")}
    text, vision, table, block = _names(kind)
    out = {other: state[name] for name, other in table.items()}
    for tower, blocks, names in (("text_model", text, _BLOCK), ("vision_model", vision, block)):
        layers = {int(name.split(".")[3]) for name in state if name.startswith(f"{tower}.encoder.layers.")}
        for i in sorted(layers):
            here, there = f"{tower}.encoder.layers.{i}", f"{blocks}.{i}"
            for x in ("weight", "bias"):
                parts = [state[f"{here}.self_attn.{p}_proj.{x}"] for p in "qkv"]
                out[there + _in_projection(blocks, x)] = torch.cat(parts)
                out.update({f"{there}.{b}.{x}": state[f"{here}.{a}.{x}"] for a, b in names.items()})
    if kind == "clip":
        out.update({other: state[name].T.contiguous() for name, other in _CLIP_TRANSPOSED.items()})
        return out
    trunk = "visual.trunk"
    out[f"{trunk}.pos_embed"] = state["vision_model.embeddings.position_embedding.weight"][None]
    out[f"{trunk}.attn_pool.latent"] = state["vision_model.head.probe"]
    for x in ("weight", "bias"):
        q, k, v = state[f"vision_model.head.attention.in_proj_{x}"].chunk(3)
        out[f"{trunk}.attn_pool.q.{x}"], out[f"{trunk}.attn_pool.kv.{x}"] = q, torch.cat([k, v])
    return {**out, "logit_scale": out["logit_scale"].reshape(()), "logit_bias": out["logit_bias"].reshape(())}


def to_transformers(state: State, kind: str) -> State:
    """The inverse of ``to_open_clip``."""
    text, vision, table, block = _names(kind)
    out = {name: state[other] for name, other in table.items()}
    for tower, blocks, names in (("text_model", text, _BLOCK), ("vision_model", vision, block)):
        pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.")
        layers = {int(found[1]) for name in state if (found := pattern.match(name))}
        for i in sorted(layers):
            here, there = f"{tower}.encoder.layers.{i}", f"{blocks}.{i}"
            for x in ("weight", "bias"):
                parts = state[there + _in_projection(blocks, x)].chunk(3)
                out.update({f"{here}.self_attn.{p}_proj.{x}": part for p, part in zip("qkv", parts)})
                out.update({f"{here}.{a}.{x}": state[f"{there}.{b}.{x}"] for a, b in names.items()})
    if kind == "clip":
        out.update({name: state[other].T.contiguous() for name, other in _CLIP_TRANSPOSED.items()})
        return {**out, "logit_scale": out["logit_scale"].reshape(())}
    trunk = "visual.trunk"
    out["vision_model.embeddings.position_embedding.weight"] = state[f"{trunk}.pos_embed"][0]
    out["vision_model.head.probe"] = state[f"{trunk}.attn_pool.latent"]
    for x in ("weight", "bias"):
        q, kv = (state[f"{trunk}.attn_pool.{p}.{x}"] for p in ("q", "kv"))
        out[f"vision_model.head.attention.in_proj_{x}"] = torch.cat([q, kv])
    return {**out, "logit_scale": out["logit_scale"].reshape(1), "logit_bias": out["logit_bias"].reshape(1)}


def _names(kind: str) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """(blocks of the text tower, blocks of the vision tower, table of names, names inside a vision block)."""
    if kind == "clip":
        return "transformer.resblocks", "visual.transformer.resblocks", _CLIP, _BLOCK
    return "text.transformer.resblocks", "visual.trunk.blocks", _SIGLIP, _TIMM_BLOCK


def _in_projection(blocks: str, x: str) -> str:
    return f".attn.qkv.{x}" if "trunk" in blocks else f".attn.in_proj_{x}"


# -- configs ------------------------------------------------------------------------------------------

_SIGLIP_TRUNKS = {(768, 12): "base", (1024, 24): "large", (1152, 27): "so400m", (1536, 40): "giantopt"}


def open_clip_config(config) -> dict:
    """OpenCLIP's model config of a ``CLIPConfig`` or ``SiglipConfig``.

    Raises:
        CheckpointError: an activation, a pooling or a tower that OpenCLIP has no name for.
    """
    text, vision = config.text_config, config.vision_config
    text_cfg = {
        "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "width": text.hidden_size,
        "heads": text.num_attention_heads, "layers": text.num_hidden_layers,
        "mlp_ratio": text.intermediate_size / text.hidden_size,
    }
    if config.model_type == "siglip":
        return _open_clip_siglip(text, vision, text_cfg)
    act = text.hidden_act
    if act != vision.hidden_act:
        raise CheckpointError(
            f"text tower with {act} and vision tower with {vision.hidden_act}: OpenCLIP has one for both"
        )
    vision_cfg = {
        "image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.hidden_size,
        "layers": vision.num_hidden_layers, "head_width": vision.hidden_size // vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
    }
    for cfg, tower in ((text_cfg, text), (vision_cfg, vision)):
        cfg.update(_act_and_norm(act, tower.layer_norm_eps, 1e-5))
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2: transformers pools at the highest token
        text_cfg.update({"pool_type": "eos", "eos_id": text.eos_token_id})
    return {
        "embed_dim": config.projection_dim, "quick_gelu": act == "quick_gelu", "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }


def _open_clip_siglip(text, vision, text_cfg: dict) -> dict:
    import timm

    size = _SIGLIP_TRUNKS.get((vision.hidden_size, vision.num_hidden_layers), "unknown")
    trunk = f"vit_{size}_patch{vision.patch_size}_siglip_{vision.image_size}"
    if not timm.is_model(trunk):
        raise CheckpointError(
            f"timm has no SigLIP tower of width {vision.hidden_size}, {vision.num_hidden_layers} layers, patch "
            f"{vision.patch_size} and {vision.image_size} pixels, so OpenCLIP cannot build one ({trunk})"
        )
    text_cfg.update(
        {"no_causal_mask": True, "proj_bias": True, "pool_type": "last",
         **_act_and_norm(text.hidden_act, text.layer_norm_eps, 1e-5)}
    )
    return {
        "embed_dim": vision.hidden_size, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {"image_size": vision.image_size, "timm_model_name": trunk, "timm_model_pretrained": False,
                       "timm_pool": "map", "timm_proj": "none",
                       # timm's tower does not read it; kept for the way back
                       **_act_and_norm(vision.hidden_act, 1e-6, 1e-6)},
        "text_cfg": text_cfg,
    }


def _act_and_norm(act: str, eps: float, default: float) -> dict:
    if act not in ("quick_gelu", "gelu", "gelu_pytorch_tanh"):
        raise CheckpointError(f"hidden_act {act!r}: OpenCLIP has quick_gelu, gelu and gelu_pytorch_tanh")
    cfg: dict = {"act_kwargs": {"approximate": "tanh"}} if act == "gelu_pytorch_tanh" else {}
    return {**cfg, **({"norm_kwargs": {"eps": eps}} if eps != default else {})}


def transformers_config(config: dict, state: State):
    """(kind, ``CLIPConfig`` or ``SiglipConfig``) of OpenCLIP's model config and its weights.

    Raises:
        CheckpointError: names the part that transformers' CLIP does not have.
    """
    vision = config["vision_cfg"]
    siglip = str(vision.get("timm_model_name", "")).find("_siglip_") > 0 and vision.get("timm_pool") == "map"
    if refused := _not_in_transformers(config, state, siglip):
        raise CheckpointError(
            f"transformers' {'SiglipModel' if siglip else 'CLIPModel'} has no {refused}; write it as open_clip"
        )
    return ("siglip", _siglip_config(config, state)) if siglip else ("clip", _clip_config(config, state))


def _not_in_transformers(config: dict, state: State, siglip: bool) -> str:
    text, vision = config["text_cfg"], config["vision_cfg"]
    custom = ("ls_init_value", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn",
              "scale_fc", "attentional_pool", "no_ln_pre", "final_ln_after_pool", "embed_cls", "block_type")
    found = [f"{part}.{name}" for part in ("vision_cfg", "text_cfg") for name in custom if config[part].get(name)]
    if "multimodal_cfg" in config:
        found.append("captioning decoder (CoCa)")
    if text.get("hf_model_name"):
        found.append(f"text tower {text['hf_model_name']}")
    if siglip:
        return ", ".join(found)
    if vision.get("timm_model_name"):
        found.append(f"image tower {vision['timm_model_name']}")
    elif not isinstance(vision.get("layers", 12), int):
        found.append("ResNet image tower")
    if "logit_bias" in state:
        found.append("logit_bias (--siglip)")
    if text.get("no_causal_mask"):
        found.append("text tower without causal mask")
    if text.get("proj_bias") or text.get("proj_type", "linear") != "linear":
        found.append("text projection other than a matrix")
    if vision.get("pool_type", "tok") != "tok" or text.get("pool_type", "argmax") not in ("argmax", "eos"):
        found.append("pooling other than the class token's and the end-of-text token's")
    return ", ".join(found)


def _act(config: dict, cfg: dict) -> str:
    if config.get("quick_gelu"):
        return "quick_gelu"
    return "gelu_pytorch_tanh" if (cfg.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def _eps(cfg: dict, default: float) -> float:
    return (cfg.get("norm_kwargs") or {}).get("eps", default)


def _clip_config(config: dict, state: State):
    from transformers import CLIPConfig

    text, vision = config["text_cfg"], config["vision_cfg"]
    vocabulary, width = state["token_embedding.weight"].shape
    image_width = state["visual.conv1.weight"].shape[0]
    eos = text.get("eos_id", 2) if text.get("pool_type") == "eos" else 2  # 2: pools at the highest token
    if vocabulary == 49408 and eos == 2:
        eos = 49407
    size = vision.get("image_size", 224)
    return CLIPConfig(
        projection_dim=config["embed_dim"],
        text_config={
            "vocab_size": vocabulary, "hidden_size": width, "max_position_embeddings":
            state["positional_embedding"].shape[0], "num_attention_heads": text.get("heads", 8),
            "num_hidden_layers": text.get("layers", 12), "hidden_act": _act(config, text),
            "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "layer_norm_eps": _eps(text, 1e-5), "eos_token_id": eos,
            "bos_token_id": vocabulary - 2, "pad_token_id": vocabulary - 1,
            "projection_dim": config["embed_dim"],  # what the towers with projection read, when taken alone
        },
        vision_config={
            "hidden_size": image_width, "num_hidden_layers": vision.get("layers", 12),
            "num_attention_heads": image_width // vision.get("head_width", 64),
            "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "patch_size": state["visual.conv1.weight"].shape[-1], "image_size": _square(size),
            "hidden_act": _act(config, vision), "layer_norm_eps": _eps(vision, 1e-5),
            "projection_dim": config["embed_dim"],
        },
    )


def _siglip_config(config: dict, state: State):
    from transformers import SiglipConfig

    text, vision = config["text_cfg"], config["vision_cfg"]
    vocabulary, width = state["text.token_embedding.weight"].shape
    trunk = "visual.trunk"
    image_width = state[f"{trunk}.patch_embed.proj.weight"].shape[0]
    layers = {int(name.split(".")[3]) for name in state if name.startswith(f"{trunk}.blocks.")}
    heads = {"so400m": 16, "giantopt": 16}.get(vision["timm_model_name"].split("_")[1], image_width // 64)
    return SiglipConfig(
        text_config={
            "vocab_size": vocabulary, "hidden_size": width, "projection_size": config["embed_dim"],
            "max_position_embeddings": state["text.positional_embedding"].shape[0],
            "num_attention_heads": text.get("heads", 8), "num_hidden_layers": text.get("layers", 12),
            "intermediate_size": state["text.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "hidden_act": _act(config, text), "layer_norm_eps": _eps(text, 1e-5),
        },
        vision_config={
            "hidden_size": image_width, "num_hidden_layers": len(layers), "num_attention_heads": heads,
            "intermediate_size": state[f"{trunk}.blocks.0.mlp.fc1.weight"].shape[0],
            "patch_size": state[f"{trunk}.patch_embed.proj.weight"].shape[-1],
            "image_size": _square(vision.get("image_size", 224)), "hidden_act": _act(config, vision),
            "layer_norm_eps": 1e-6,
        },
    )


def _square(size) -> int:
    if isinstance(size, (list, tuple)):
        if len(set(size)) > 1:
            raise CheckpointError(f"transformers' CLIP takes square images, not {size[0]}x{size[1]}")
        size = size[0]
    return int(size)
