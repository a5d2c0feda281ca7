"""A checkpoint in memory, ready to encode, with what OpenCLIP skips in silence checked.

QuickGELU weights on a GELU model, an image size other than the trained one, a tokenizer that does not
belong to the model are refused. What the run was given is honoured: ``--siglip`` and
``--force-context-length`` from the tensors, ``--image-mean`` and its like from ``params.txt``. No code
that lies in a checkpoint is run, whatever its config asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.checks import (
    QUICK_GELU,
    FileFacts,
    check_file,
    check_forced_size,
    check_tag,
    check_tokenizer,
    trained_size,
)
from open_clip_triplet.evaluation.checkpoints.loaded import (
    LoadedCheckpoint,
    autocast_and_dtype,
    no_code_from_checkpoints,
)
from open_clip_triplet.evaluation.checkpoints.params import training_preprocessing
from open_clip_triplet.evaluation.checkpoints.spec import (
    OPEN_CLIP,
    CheckpointSpec,
    layout,
    locate,
    model_config,
    read_json,
    shorten,
)


def load(spec: CheckpointSpec, device: str = "cpu") -> LoadedCheckpoint:
    """Load a checkpoint for evaluation, of any layout that ``spec`` describes.

    Raises:
        CheckpointError: unknown model or tag; QuickGELU, image size, shapes or tokenizer do not fit.
    """
    path = locate(spec.pretrained)
    if path and path.is_dir() and layout(path) != OPEN_CLIP:
        from open_clip_triplet.evaluation.checkpoints.transformers_clip import load_transformers

        loaded = load_transformers(path, spec.precision, device)
        trained: Any = loaded.model.clip.config
        check_forced_size(spec, trained.vision_config.image_size)
        if spec.force_quick_gelu and trained.text_config.hidden_act != "quick_gelu":
            raise CheckpointError(f"{path}: trained with {trained.text_config.hidden_act}: leave out {QUICK_GELU}")
        return loaded
    return load_open_clip(spec, path, device)


def load_open_clip(spec: CheckpointSpec, path: Path | None, device: str = "cpu") -> LoadedCheckpoint:
    """Load one of OpenCLIP's own: a weights file, a folder with ``open_clip_config.json``, or a tag (None)."""
    import open_clip

    if spec.model_config:
        open_clip.add_model_config(spec.model_config)
    facts = FileFacts(None, False, spec.force_image_size)
    name = spec.model
    if path is None:
        check_tag(spec)
    elif path.is_dir():
        name = f"local-dir:{path}"
        check_forced_size(spec, trained_size(read_json(path / "open_clip_config.json").get("model_cfg", {})))
    else:
        facts = check_file(spec, path)
    config = _final_config(spec, path, facts)
    model, preprocess = _create(spec, name, path, facts, config, device)
    tokenizer = _tokenizer(name, model, config, facts.context_length)
    autocast, input_dtype = autocast_and_dtype(spec.precision, device)
    return LoadedCheckpoint(model.eval(), preprocess, tokenizer, autocast, input_dtype, config)


def _final_config(spec: CheckpointSpec, path: Path | None, facts: FileFacts) -> dict:
    """OpenCLIP's model config with what this checkpoint was trained with, other than its model's."""
    config = model_config(spec) if path is None or path.is_file() else None
    if config is None:
        assert path is not None
        config = read_json(path / "open_clip_config.json").get("model_cfg", {})
    config = {**config}
    if spec.force_quick_gelu:
        config["quick_gelu"] = True
    if facts.image_size:
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": facts.image_size}
    if facts.context_length:
        config["text_cfg"] = {**config["text_cfg"], "context_length": facts.context_length}
    if facts.has_logit_bias:
        config.setdefault("init_logit_bias", -10)
    return config


def _create(spec: CheckpointSpec, name: str, path: Path | None, facts: FileFacts, config: dict, device: str):
    import open_clip

    schema = name.startswith(("local-dir:", "hf-hub:"))
    own_weights = path is not None and path.is_file() and schema  # --model local-dir:..., weights of a run
    bias = {"init_logit_bias": config["init_logit_bias"]} if facts.has_logit_bias else {}
    try:
        with no_code_from_checkpoints():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=None if schema else str(path or spec.pretrained),
                load_weights=not own_weights,
                precision=spec.precision,
                device=device,
                force_quick_gelu=spec.force_quick_gelu,
                force_image_size=facts.image_size,
                force_context_length=facts.context_length,
                **(training_preprocessing(path) if path else {}),
                **bias,
            )
            if own_weights:
                open_clip.load_checkpoint(model, str(path))
    except (RuntimeError, KeyError, ValueError, OSError, TypeError) as error:
        if "weights_only" in str(error) or "Unpickling" in type(error).__name__:
            raise CheckpointError(
                f"{spec.pretrained}: holds more than tensors, so it is not loaded. "
                "Save its state dict alone, or as safetensors"
            ) from error
        raise CheckpointError(f"{spec.pretrained} does not load as {name}: {shorten(error)}") from error
    return model, preprocess


def _tokenizer(name: str, model, config: dict, context_length: int | None) -> Callable:
    import open_clip

    # overrides what the config's tokenizer_kwargs ask for; OpenCLIP's own tokenizers take no such argument
    safe = {"trust_remote_code": False} if config.get("text_cfg", {}).get("hf_tokenizer_name") else {}
    try:
        with no_code_from_checkpoints():
            tokenizer = open_clip.get_tokenizer(name, context_length=context_length, **safe)
            tokenizer(["a photo of a dog!"])
    except Exception as error:  # transformers and huggingface_hub raise many kinds
        raise CheckpointError(
            f"{name}: its tokenizer cannot be loaded ({shorten(error, 2)}). Put the tokenizer's "
            "files in a folder and name it as text_cfg.hf_tokenizer_name in the config"
        ) from error
    embedding = getattr(model, "token_embedding", None) or getattr(
        getattr(model, "text", None), "token_embedding", None
    )
    check_tokenizer(name, tokenizer, embedding.num_embeddings if embedding is not None else None)
    return tokenizer
