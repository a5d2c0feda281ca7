"""``--version`` and ``--config`` of the four commands."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest
import torch
import yaml

from conftest import checkpoint, train_argv
from open_clip_triplet import __version__
from open_clip_triplet.command import expand_config, flags_as_yaml
from open_clip_triplet.errors import UsageError
from open_clip_triplet.train import main as train_main

COMMANDS = {
    "triplet-train": "open_clip_triplet.train",
    "triplet-shards": "open_clip_triplet.make_shards",
    "triplet-evaluate": "open_clip_triplet.evaluation.cli",
    "triplet-inspect": "open_clip_triplet.inspect.cli",
}


def write(tmp_path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_flags_of_each_kind(tmp_path):
    file = write(
        tmp_path,
        "loss: triplet\nbatch_size: 1024\nlr: 5e-4\ngather-with-grad: true\nlocal-loss: false\nresume: null\n"
        "force-image-size: [224, 224]\naug-cfg: {scale: '(0.4, 1.0)'}\nseed: -1\n",
    )
    assert expand_config(["--config", file]) == [
        "--loss", "triplet", "--batch-size", "1024", "--lr", "5e-4", "--gather-with-grad",
        "--force-image-size", "224", "224", "--aug-cfg", "scale=(0.4, 1.0)", "--seed=-1",
    ]


def test_the_command_line_wins(tmp_path):
    file = write(tmp_path, "loss: triplet\nlr: 0.1\nmodel-config: [a.json]\n")
    assert expand_config(["--lr", "1", f"--config={file}", "--model-config=b.json"]) == [
        "--lr", "1", "--model-config=b.json", "--loss", "triplet",
    ]


def test_subcommands(tmp_path):
    file = write(tmp_path, "command: run\nmodel: RN50\n")
    assert expand_config(["--config", file], subcommand=True) == ["run", "--model", "RN50"]
    assert expand_config(["list", "--config", file], subcommand=True) == ["list", "--model", "RN50"]


def test_a_positional_argument_is_not_taken_for_a_value_of_the_files_last_flag(tmp_path):
    file = write(tmp_path, "reference: true\n")
    argv = ["report", "results", "--config", file]
    assert expand_config(argv, subcommand=True) == ["report", "results", "--reference"]


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "just words", "a: [", "1: 2\n", "x: [[1]]\n", "\x00", "config: b.yaml\n"]
)
def test_what_is_no_mapping_of_flags_is_one_error(tmp_path, text):
    with pytest.raises(UsageError, match="--config"):
        expand_config(["--config", write(tmp_path, text)])
    with pytest.raises(UsageError, match="--config"):
        expand_config(["--config", str(tmp_path / "none.yaml")])


def test_a_command_line_and_its_yaml_give_the_same_flags(tmp_path):
    argv = ["--loss", "triplet", "--local-loss", "--betas", "0.9", "0.98", "--seed=-1", "--aug-cfg", "a=1", "b=(1, 2)"]
    argv += ["--data-stage", "a:f", "--data-stage", "b:g"]
    text = flags_as_yaml(argv)
    assert yaml.safe_load(text)["betas"] == ["0.9", "0.98"]
    assert expand_config(["--config", write(tmp_path, text)]) == argv


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_its_version(command, capsys):
    main = importlib.import_module(COMMANDS[command]).main
    try:
        status = main(["--version"])
    except SystemExit as stopped:
        status = stopped.code
    out = capsys.readouterr().out
    assert status in (0, None)
    assert re.fullmatch(rf"{command} {re.escape(__version__)} \(Python [\d.]+, open_clip_torch [\d.]+.*\)\n", out), out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_a_config(command, tmp_path):
    """A flag that no command has: its own parser, or OpenCLIP's, refuses it by name."""
    more = "command: gallery\n" if command == "triplet-inspect" else ""
    file = write(tmp_path, f"no-such-flag: 1\n{more}")
    argv = {"triplet-shards": ["validate", "--input", "a.tar"], "triplet-evaluate": ["data"]}.get(command, [])
    done = subprocess.run(
        [sys.executable, "-m", COMMANDS[command], *argv, "--config", file], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no-such-flag" in done.stderr, done.stderr[-800:]


def test_a_run_keeps_its_flags_and_they_repeat_it(tmp_path, paired_shards, tiny_config):
    argv = train_argv(tiny_config, tmp_path / "logs", "first", loss="triplet", **{"train-data": paired_shards})
    file = tmp_path / "run.yaml"
    file.write_text(flags_as_yaml(argv))
    assert train_main(["--config", str(file), "--lr", "0.002"]) == 0
    kept = tmp_path / "logs" / "first" / "run.yaml"
    assert yaml.safe_load(kept.read_text())["lr"] == "0.002" and yaml.safe_load(kept.read_text())["loss"] == "triplet"
    assert train_main(["--config", str(kept), "--name", "again"]) == 0
    first, again = (checkpoint(tmp_path / "logs", name)["state_dict"] for name in ("first", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
