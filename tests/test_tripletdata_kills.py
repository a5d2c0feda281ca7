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

from build_fixtures import contents, plain_shards, tiny_clip, tiny_sdxl
from conftest import write_shards
from open_clip_triplet import make_shards

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; from open_clip_triplet.make_shards import main; sys.exit(main())"
CAPTIONS = [[f"A red {a} beside a small {b}." for a in ("car", "dog", "bus")] for b in ("cat", "ball", "tree", "hat")]
#: how often each command is killed: a script may ask for more, and then gets every command (TRIPLET_KILLS=5)
KILLS = int(os.environ.get("TRIPLET_KILLS", "2"))
ON_REQUEST = "TRIPLET_KILLS" in os.environ
only_on_request = pytest.mark.skipif(not ON_REQUEST, reason="takes minutes: set TRIPLET_KILLS=2")


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


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> dict[str, list[str]]:
    """A command for each stage, engine and way to share work, by name."""
    folder = tmp_path_factory.mktemp("inputs")
    source = ["--input", plain_shards(folder / "in", CAPTIONS)]
    pairs = ["--input", str(folder / "pairs")]
    write_shards(folder / "pairs", [3, 3, 3, 3])
    marks = folder / "marks.csv"
    marks.write_text("key,mark\n00000001,bad\n00000007,bad\n")
    pack = ["pack", *source, "--need", "--save-size", "32"]
    rules = [*source, "--backend", "rules"]
    score = ["--clip", f"local-dir:{folder / 'clip'}", "--clip-pretrained", "", "--clip-batch", "2"]
    draw = ["--t2i", str(folder / "sdxl" / "pipe"), "--size", "64", "--image-batch", "2"]
    if ON_REQUEST:
        tiny_clip(folder / "clip")
        tiny_sdxl(folder / "sdxl")
    return {
        "pack": [*pack, "--workers", "2"],
        "part": [*pack, "--part", "2/2"],
        "redo": [*pack, "--redo-dropped"],
        "ray": [*pack, "--engine", "ray", "--workers", "2"],
        "shapes": ["shapes", "--samples", "60", "--val-samples", "20", "--shards", "3", "--workers", "2"],
        "mine": ["mine", *source, "--max-similarity", "1"],
        "drop list": ["filter", *pairs, "--drop-list", str(marks), "--workers", "2"],
        "top-k": ["filter", *pairs, "--top-k", "7", *score],
        "verify": ["verify", *pairs, "--checks", "four-way", "--action", "mark", *score],
        "captions": ["captions", *rules, "--workers", "2"],
        "images": ["images", *pairs, *draw],
        "build": ["build", *rules, "--no-images", "--title", "pairs"],
        "build parts": ["build", *rules, "--no-images", "--title", "pairs", "--part"],
        "build on ray": ["build", *rules, "--no-images", "--title", "pairs", "--engine", "ray", "--workers", "1"],
    }


def steps(argv: list[str]) -> list[list[str]]:
    """The commands that a name of ``commands`` stands for, in order."""
    if argv[-1] != "--part":
        return [argv]
    return [[*argv, "1/2"], [*argv, "2/2"], [*argv[:-1], "--finish"]]


QUICK = ["pack", "part", "redo", "shapes", "mine", "drop list"]
#: start a cluster or load a model each time
LONG = ["ray", "top-k", "verify", "images", "captions", "build", "build parts", "build on ray"]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=[pytest.mark.slow, only_on_request]) for name in LONG)]
)
def test_killed_at_random_moments(name, commands, tmp_path):
    calm, output = tmp_path / "calm" / "set", tmp_path / "killed" / "set"
    seed = random.Random(f"{name}/{os.environ.get('TRIPLET_KILL_SEED', 0)}")
    for argv in steps(commands[name]):
        assert make_shards.main([*argv, "--output", str(calm)]) == 0
    for number, argv in enumerate(steps(commands[name])):
        for _ in range(KILLS):
            if not number and seed.random() < 0.2:
                shutil.rmtree(output, ignore_errors=True)
            kill_at_a_change([*argv, "--output", str(output)], output, seed.randrange(1, 16))
        assert make_shards.main([*argv, "--output", str(output)]) == 0
    assert kept(output, name) == kept(calm, name)


def kept(folder: Path, name: str) -> dict[str, bytes]:
    """Contents without locks; of parts also without temporary files, which another part could be writing."""
    left = (".lock", ".tmp") if "part" in name else (".lock",)
    return {file: data for file, data in contents(folder).items() if not any(suffix in file for suffix in left)}
