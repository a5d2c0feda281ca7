"""Every method trains, resumes and validates on the OpenCLIP that is importable; see openclip_versions.sh."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import open_clip

from conftest import TINY_MODEL, train, train_argv, write_shards
from open_clip_triplet.losses import METHODS


def main(folder: Path) -> None:
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    folder = folder.with_name(f"{folder.name}-{world}")
    config, shards = folder / "tiny-test.json", folder / "shards"
    if rank == 0:
        shards.mkdir(parents=True)
        write_shards(shards, [16, 16])
        config.write_text(json.dumps(TINY_MODEL))
    while not (shards / "sizes.json").exists() or not config.exists():
        pass
    open_clip.add_model_config(config)
    import torch

    if world > 1:  # one group for all runs; OpenCLIP makes its own otherwise
        torch.distributed.init_process_group("gloo")
        torch.distributed.init_process_group = lambda *args, **kwargs: None
    for name, method in METHODS.items():
        spec = f"{shards}/{{00000..00001}}.tar"
        flags = {
            "loss": name, "train-data": spec, "batch-size": 8 // world, "total-steps": 4, "dist-backend": "gloo",
            "val-data": spec, "local-loss": True if world > 1 else None, "workers": 0,
            "gather-with-grad": True if world > 1 else None,
        }
        for epochs in (1, 2):
            argv = train_argv(str(config), folder, name, **{**flags, "total-steps": 2 * epochs, "epochs": epochs})
            train([*argv, "--resume", "latest"])
        if rank == 0:
            saved = torch.load(folder / name / "checkpoints" / "epoch_2.pt", weights_only=True)
            assert saved["triplet"]["optimizer_steps"] == 4, saved["triplet"]
            assert [position[0] for position in saved["triplet"]["stream"]["positions"]] == [1] * world
            assert method.name in (folder / name / "out.log").read_text()
        logging.info("%s trains.", name)
    if world > 1 and int(open_clip.__version__.split(".")[0]) >= 4:
        for epochs in (1, 2):  # a sharded checkpoint keeps the position beside the shards
            flags |= {"loss": "triplet", "val-data": None, "fsdp": True, "fsdp-checkpoint": "sharded"}
            argv = train_argv(str(config), folder, "fsdp", **{**flags, "total-steps": 2 * epochs, "epochs": epochs})
            train([*argv, "--resume", "latest"])
        saved = torch.load(folder / "fsdp/checkpoints/epoch_2/triplet_state.pt", weights_only=True)
        assert saved["optimizer_steps"] == 4 and [p[0] for p in saved["stream"]["positions"]] == [1] * world, saved
    if rank == 0:
        print(f"OpenCLIP {open_clip.__version__}, {world} processes: {', '.join(METHODS)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
