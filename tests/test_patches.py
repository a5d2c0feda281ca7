"""The patch for OpenCLIP checkouts: applies to the installed version, adds lines only, and takes effect."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip_train
import pytest

PATCH = Path(__file__).parents[1] / "patches" / "open_clip.patch"


@pytest.fixture
def patched(tmp_path) -> Path:
    """A copy of OpenCLIP's training package with the patch applied."""
    if shutil.which("patch") is None:
        pytest.skip("the program `patch` is not installed")
    shutil.copytree(Path(open_clip_train.__file__).parent, tmp_path / "open_clip_train")
    subprocess.run(["patch", "-p1", "-i", str(PATCH)], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def test_only_adds_lines():
    lines = PATCH.read_text().splitlines()
    assert not [line for line in lines if line.startswith("-") and not line.startswith("---")]


def test_the_patched_program_takes_our_flags_when_asked(patched):
    path = os.pathsep.join([str(patched), str(PATCH.parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "open_clip_train.main", "--help"], cwd=patched, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "OPEN_CLIP_TRIPLET": "1"},
    )
    assert "--neg-captions" in done.stdout and "--accum-freq" in done.stdout, done.stderr
