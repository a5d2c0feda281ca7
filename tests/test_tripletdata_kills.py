"""Killed at moments chosen at random, over every stage and engine, a rerun leaves the bytes of a calm run."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from build_fixtures import contents, plain_shards
from open_clip_triplet.tripletdata import cli

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; from open_clip_triplet.tripletdata.cli import main; sys.exit(main())"
CAPTIONS = [[f"A red {a} beside a small {b}." for a in ("car", "dog", "bus")] for b in ("cat", "ball", "tree", "hat")]
#: how often each command is killed: a script may ask for more (TRIPLET_KILLS=20)
KILLS = int(os.environ.get("TRIPLET_KILLS", "2"))


def start(argv: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def sizes(folder: Path) -> dict[Path, int]:
    """Size of each file in ``folder``, while a run renames and removes files there."""
    found = {}
    for directory, _, names in os.walk(folder):
        for path in (Path(directory, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_size
    return found


def kill_at_a_change(argv: list[str], output: Path, changes: int) -> None:
    """Start a command and kill it once its folder has changed ``changes`` times; its workers die with it."""
    process, seen, count = start(argv), None, 0
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        now = sizes(output)
        if now != seen:
            seen, count = now, count + 1
        if count > changes:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)


def commands(tmp_path: Path) -> dict[str, list[str]]:
    source = plain_shards(tmp_path / "in", CAPTIONS)
    return {
        "pack": ["pack", "--input", source, "--need", "--save-size", "32", "--workers", "2"],
        "mine": ["mine", "--input", source, "--max-similarity", "1.1"],
        "shapes": ["shapes", "--samples", "60", "--val-samples", "20", "--shards", "3", "--workers", "2"],
        "part": ["pack", "--input", source, "--need", "--save-size", "32", "--part", "2/2"],
        "redo": ["pack", "--input", source, "--need", "--save-size", "32", "--redo-dropped"],
    }


@pytest.mark.parametrize("command", ["pack", "mine", "shapes", "part", "redo"])
def test_killed_at_random_moments(command, tmp_path):
    argv = commands(tmp_path)[command]
    calm, output = tmp_path / "calm", tmp_path / "out"
    assert cli.main([*argv, "--output", str(calm)]) == 0
    seed = random.Random(f"{command}/{os.environ.get('TRIPLET_KILL_SEED', 0)}")
    for _ in range(KILLS):
        if seed.random() < 0.2:
            shutil.rmtree(output, ignore_errors=True)
        kill_at_a_change([*argv, "--output", str(output)], output, seed.randrange(1, 16))
    assert cli.main([*argv, "--output", str(output)]) == 0
    assert {n: d for n, d in contents(output).items() if ".lock" not in n} == {
        n: d for n, d in contents(calm).items() if ".lock" not in n
    }
