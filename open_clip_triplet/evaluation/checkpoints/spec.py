"""What the user named and where it lies, found without importing torch.

So results whose embeddings are all stored need no model at all. A checkpoint is given as

- a weights file: OpenCLIP's ``epoch_9.pt``, or safetensors;
- a folder: OpenCLIP's (``open_clip_config.json``; ``local-dir:FOLDER`` as well), transformers' CLIP or
  SigLIP (``config.json``), or the layout TripletCLIP's authors released (``text-encoder/`` and
  ``vision-encoder/``);
- a Hugging Face repository that holds one of those: ``hf-hub:OWNER/NAME`` or ``OWNER/NAME``;
- one of OpenCLIP's tags.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.params import (
    training_model_config,
    training_options,
    training_preprocessing,
)

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")
#: files any of which decides how captions become tokens
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

OPEN_CLIP, TRANSFORMERS, RELEASED = "open_clip", "transformers", "tripletclip"
#: what `convert` writes; "pt" is OpenCLIP's training checkpoint
TARGETS = (OPEN_CLIP, TRANSFORMERS, RELEASED, "pt")


@dataclass(frozen=True)
class CheckpointSpec:
    """What the user named: a model (of OpenCLIP's, or a config file), weights, and how to run them.

    ``model_config`` is a JSON file as OpenCLIP's ``model_configs``; its stem is the model's name.
    """

    model: str
    pretrained: str
    name: str = ""
    precision: str = "fp32"
    model_config: str | None = None
    force_quick_gelu: bool = False
    force_image_size: int | None = None

    @classmethod
    def parse(cls, text: str, **options) -> CheckpointSpec:
        """``PATH_OR_TAG`` or ``NAME=PATH_OR_TAG``.

        >>> CheckpointSpec.parse("ours=logs/triplet/checkpoints/epoch_9.pt", model="ViT-B-32").label
        'ours'
        >>> CheckpointSpec.parse("logs/triplet/checkpoints/epoch_9.pt", model="ViT-B-32").label
        'triplet-epoch_9'
        >>> CheckpointSpec.parse("hf-hub:TripletCLIP/CC12M_TripletCLIP_ViTB12", model="ViT-B-32").label
        'CC12M_TripletCLIP_ViTB12'

        Without a ``model`` it is the one that the checkpoint's run names in its ``params.txt``, or ViT-B-32; so is
        its ``model_config``. A folder or repository brings its own: there it is empty.
        """
        name, equals, pretrained = text.partition("=")
        if not equals or "/" in name or Path(text).exists():
            name, pretrained = "", text
        return cls.of_run(pretrained, name=name, **options)

    @classmethod
    def of_run(cls, pretrained: str, *, model: str | None = None, model_config: str | None = None, **options):
        """A checkpoint whose model, where none is given, is what its run was given."""
        if model is None and (repository(pretrained) or Path(pretrained.removeprefix("local-dir:")).is_dir()):
            model = ""
        elif model is None:
            model = training_options(Path(pretrained)).get("model") or "ViT-B-32"
        model_config = model_config or training_model_config(Path(pretrained), model)
        return cls(model=model, pretrained=pretrained, model_config=model_config, **options)

    @property
    def label(self) -> str:
        """What results are called: the given name, else run and epoch of a path, else model and tag."""
        if self.name:
            return self.name
        if repository(self.pretrained):
            return self.pretrained.rpartition("/")[2]
        path = Path(self.pretrained.removeprefix("local-dir:"))
        if not path.exists() and path.suffix == "":
            return f"{self.model}-{self.pretrained}"
        if path.is_dir():
            return path.absolute().name
        parent = path.parent.parent.name if path.parent.name == "checkpoints" else ""
        return f"{parent}-{path.stem}" if parent else path.stem


def repository(pretrained: str) -> str | None:
    """The Hugging Face repository that is meant, or None for a path or tag.

    >>> repository("hf-hub:apple/DFN2B-CLIP"), repository("openai"), repository("logs/epoch_1.pt")
    ('apple/DFN2B-CLIP', None, None)
    """
    if pretrained.startswith("hf-hub:"):
        return pretrained.removeprefix("hf-hub:")
    if Path(pretrained).exists() or not _REPOSITORY.fullmatch(pretrained):
        return None
    return None if Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors") else pretrained


def locate(pretrained: str) -> Path | None:
    """The file or folder that holds the weights; a repository is downloaded. None for a tag.

    Raises:
        CheckpointError: no such file, folder or repository.
    """
    if repo := repository(pretrained):
        return _snapshot(repo)
    path = Path(pretrained.removeprefix("local-dir:"))
    if path.exists():
        return path
    if "/" in pretrained or path.suffix:
        raise CheckpointError(f"{pretrained}: no such file or folder (and not a pretrained tag)")
    return None


def _snapshot(repo: str) -> Path:
    """A repository's weights, configs and tokenizer files in Hugging Face's cache; never its code."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    names = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        try:
            files = HfApi().list_repo_files(repo)
        except OfflineModeIsEnabled:
            files = [f"{repo}.safetensors"]  # what an earlier run left in the cache
        if not any(name.endswith(".safetensors") for name in files):
            names += ["*.bin", "*.pt"]
        return Path(snapshot_download(repo, allow_patterns=names))
    except Exception as error:  # the hub's own, and those of the http client beneath it
        raise CheckpointError(
            f"{repo}: no such file or folder, and as a Hugging Face repository it cannot be read "
            f"({shorten(error, 1)})"
        ) from error


def layout(folder: Path) -> str:
    """Which of the layouts a folder has: ``OPEN_CLIP``, ``TRANSFORMERS`` or ``RELEASED``.

    Raises:
        CheckpointError: none of them; what was found is named.
    """
    if (folder / "open_clip_config.json").is_file():
        return OPEN_CLIP
    if all((folder / part / "config.json").is_file() for part in ("text-encoder", "vision-encoder")):
        return RELEASED
    kind = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if kind in ("clip", "siglip"):
        return TRANSFORMERS
    what = f"its config.json says model_type {kind!r}" if kind else "it has no config.json"
    raise CheckpointError(
        f"{folder}: neither open_clip_config.json nor a transformers CLIP or SigLIP config.json "
        f"nor text-encoder/ and vision-encoder/ ({what})"
    )


def read_json(path: Path) -> dict:
    """A JSON object from a checkpoint's folder.

    Raises:
        CheckpointError: not there, not JSON, not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a config ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a {type(content).__name__}, where a config is an object")
    return content


def identify(spec: CheckpointSpec, digest: Callable[[Path], str]) -> dict:
    """The facts that decide an embedding, without loading anything.

    Args:
        digest: path -> SHA-256 of the file (a caller may remember it between runs).

    Raises:
        CheckpointError: neither a path nor something that could be a tag or repository.
    """
    path = locate(spec.pretrained)
    facts: dict[str, Any] = {
        "model": spec.model,
        "model_config": model_config(spec),
        "precision": spec.precision,
        "force_quick_gelu": spec.force_quick_gelu,
        "force_image_size": spec.force_image_size,
        # beyond these it follows from the model, the weights and OpenCLIP's version
        "preprocessing": training_preprocessing(path) if path else {},
        "tokenizer": _tokenizer_digest(spec, path, digest),
        "open_clip": version("open_clip_torch"),
    }
    if path is None:
        return {**facts, "weights": f"tag:{spec.pretrained}"}
    if path.is_file():
        return {**facts, "weights": digest(path)}
    kind = layout(path)
    parts = [path / "text-encoder", path / "vision-encoder"] if kind == RELEASED else []
    patterns = (*WEIGHT_FILES, "*.json")
    files = sorted(f for folder in [path, *parts] for pattern in patterns for f in folder.glob(pattern))
    if not any(f.suffix != ".json" for f in files):
        raise CheckpointError(f"{path}: a folder without weights; expected a Hugging Face model folder")
    lines = "".join(f"{f.relative_to(path)}:{digest(f)}\n" for f in files)
    return {**facts, "weights": hashlib.sha256(lines.encode()).hexdigest()}


def _tokenizer_digest(spec: CheckpointSpec, path: Path | None, digest: Callable[[Path], str]) -> str:
    """Content of the tokenizer's files, in the checkpoint's folder or ``hf_tokenizer_name``'s; '' if bundled."""
    folders = [path, path / "text-encoder"] if path and path.is_dir() else []
    text = (model_config(spec) or {}).get("text_cfg", {})
    folders += [Path(text[key]) for key in ("hf_tokenizer_name", "hf_model_name") if text.get(key)]
    found = [
        f"{name}:{digest(folder / name)}"
        for folder in folders
        for name in TOKENIZER_FILES
        if (folder / name).is_file()
    ]
    return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else ""


def model_config(spec: CheckpointSpec) -> dict | None:
    """The config the model is built from, read without importing open_clip; None for a folder's own."""
    import importlib.util

    path = Path(spec.pretrained.removeprefix("local-dir:"))
    if path.is_dir() or repository(spec.pretrained):
        return None
    if spec.model_config:
        return read_json(Path(spec.model_config))
    if spec.model.startswith("local-dir:"):
        return read_json(Path(spec.model.removeprefix("local-dir:")) / "open_clip_config.json")["model_cfg"]
    if spec.model.startswith("hf-hub:"):
        folder = _snapshot(spec.model.removeprefix("hf-hub:"))
        return read_json(folder / "open_clip_config.json")["model_cfg"]
    found = importlib.util.find_spec("open_clip")
    assert found and found.submodule_search_locations
    package = Path(found.submodule_search_locations[0])
    file = package / "model_configs" / f"{spec.model}.json"
    if not file.is_file():
        known = [f.stem for f in (package / "model_configs").glob("*.json")]
        near = ", ".join(difflib.get_close_matches(spec.model, known, 3))
        listed = f"near it: {near}" if near else "open_clip.list_models() lists those of OpenCLIP's"
        raise CheckpointError(
            f"unknown model {spec.model!r}; {listed}. A config of your own goes in with --model-config FILE.json"
        )
    return read_json(file)


def shorten(error: BaseException, lines: int = 6) -> str:
    """The first lines of an error's text; OpenCLIP's list every key of a model."""
    found = str(error).strip().splitlines()
    return "\n".join(found[:lines] + ([f"... and {len(found) - lines} more"] if len(found) > lines else []))
