"""A written folder to the Hugging Face hub; who you are is what ``hf auth login`` or ``HF_TOKEN`` says."""

from __future__ import annotations

import json
from pathlib import Path

from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation.checkpoints.spec import shorten


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder as a model repository, made if it is not there. Returns the commit's address.

    Raises:
        CheckpointError: the hub cannot be reached, or refuses; its answer is in the message.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    name_tokenizer(folder, repo)
    api = HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: the owner's default
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add model")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise CheckpointError(f"{repo}: not pushed ({shorten(error, 3)}); the folder {folder} is kept") from error
    return str(commit.commit_url)


def name_tokenizer(folder: Path, repo: str) -> None:
    """OpenCLIP looks for a hub model's tokenizer under the name its config gives: the repository's own."""
    file = folder / "open_clip_config.json"
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    if config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = repo
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
