"""``triplet-train --pretrained`` of a folder or repository: what OpenCLIP's ``--pretrained`` cannot name.

OpenCLIP starts from such a checkpoint by ``--model local-dir:FOLDER``, where FOLDER has its own layout. Other
layouts are converted into a cache first, once, under a lock.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from open_clip_triplet.errors import CheckpointError, UsageError
from open_clip_triplet.evaluation.checkpoints.spec import (
    OPEN_CLIP,
    CheckpointSpec,
    identify,
    layout,
    locate,
    model_config,
    read_json,
    repository,
)
from open_clip_triplet.pretrained import check_tag


def open_clip_folder(pretrained: str) -> Path | None:
    """The folder in OpenCLIP's layout that ``--pretrained`` stands for; None for a file or tag, which are OpenCLIP's.

    Raises:
        UsageError: no such folder or repository, or not one of the layouts.
    """
    local = Path(pretrained.removeprefix("local-dir:"))
    if not pretrained or not (local.is_dir() or pretrained.startswith("local-dir:") or repository(pretrained)):
        return None
    try:
        folder = locate(pretrained)
        assert folder is not None
        return folder if layout(folder) == OPEN_CLIP else _converted(pretrained, folder)
    except CheckpointError as error:
        raise UsageError(f"--pretrained {pretrained}: {error}") from error


def _converted(pretrained: str, folder: Path) -> Path:
    from open_clip_triplet.evaluation.checkpoints.export import export
    from open_clip_triplet.evaluation.hashes import file_digest

    facts = identify(CheckpointSpec("", str(folder)), file_digest)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "open_clip_triplet" / "converted"
    cache.mkdir(parents=True, exist_ok=True)
    name = CheckpointSpec("", pretrained).label
    there = cache / f"{name}-{facts['weights'][:12]}"
    with open(cache / f".{there.name}.lock", "w") as lock:  # every rank of a node comes here at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (there / "open_clip_config.json").is_file():
            export(CheckpointSpec("", str(folder)), there)
    return there


def check_same_model(folder: Path, model: str) -> None:
    """Refuse ``--model`` beside a checkpoint of another shape.

    Raises:
        UsageError: names what differs.
    """
    config = read_json(folder / "open_clip_config.json")["model_cfg"]
    try:
        asked = model_config(CheckpointSpec(model, "none"))
    except CheckpointError:
        asked = None
    if asked is None:  # a model of --model-config
        return
    for part, key in (
        (None, "embed_dim"), ("vision_cfg", "patch_size"), ("vision_cfg", "width"), ("vision_cfg", "layers"),
        ("text_cfg", "width"), ("text_cfg", "layers"),
    ):
        ours, theirs = ((c if part is None else c[part]).get(key) for c in (config, asked))
        if ours is not None and theirs is not None and ours != theirs:
            where = key if part is None else f"{part}.{key}"
            raise UsageError(
                f"--model {model} has {where} {theirs}, the checkpoint of --pretrained {ours}: "
                "leave out --model, the checkpoint brings its own"
            )


def check_weights(model: str | None, tag: str | None, flag: str, *, force_quick_gelu: bool = False) -> None:
    """Refuse weights that OpenCLIP will not find, or would load into another activation with a warning alone.

    Raises:
        UsageError: neither a file nor a tag of the model; trained with another activation.
    """
    import open_clip

    if not model or not tag or model.startswith(("local-dir:", "hf-hub:")) or os.path.exists(tag):
        return
    quick_gelu = force_quick_gelu or bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))
    try:
        check_tag(model, tag, quick_gelu, "--force-quick-gelu")
    except CheckpointError as error:
        raise UsageError(f"{flag}: {error}") from error


#: what OpenCLIP's parser gives without --model
UNSET_MODEL = "RN50"


def start_from(args) -> None:
    """Turn ``--pretrained`` of a folder or repository into ``--model local-dir:FOLDER``, in OpenCLIP's namespace.

    Raises:
        UsageError: no such checkpoint, or ``--model`` names a model of another shape.
    """
    folder = open_clip_folder(args.pretrained)
    if folder is None:
        if args.loss != "clip":  # which is stock OpenCLIP
            check_weights(args.model, args.pretrained, "--pretrained", force_quick_gelu=args.force_quick_gelu)
            check_weights(args.distill_model, args.distill_pretrained, "--distill-pretrained")
        return
    if args.model != UNSET_MODEL and not args.model.startswith(("local-dir:", "hf-hub:")):
        check_same_model(folder, args.model)
    args.model, args.pretrained = f"local-dir:{folder}", ""
