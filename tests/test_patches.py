"""The patches: they apply to OpenCLIP's released sources, add lines only, and stock main trains with the plugin."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from conftest import train_argv

REPOSITORY = Path(__file__).parents[1]
PATCHES = sorted((REPOSITORY / "patches").glob("*.patch"))
#: every supported line; without TRIPLET_ALL_VERSIONS=1 the oldest and the newest release of 3.x are trained with
VERSIONS = ["2.32.0", "3.0.0", "3.1.0", "3.2.0", "3.3.0", "main"]
QUICK = ("3.0.0", "3.3.0")


def patch_for(version: str) -> Path:
    line = {"2": "2.32", "3": "3"}.get(version.split(".")[0], "4")
    return REPOSITORY / "patches" / f"open_clip-{line}.patch"


def source(version: str, folder: Path) -> Path:
    """An unpacked source tree of OpenCLIP; released archives are downloaded once, into a cache."""
    if version == "main":
        checkout = os.environ.get("OPEN_CLIP_MAIN")
        if not checkout:
            pytest.skip("OPEN_CLIP_MAIN names no checkout of OpenCLIP's main branch")
        shutil.copytree(Path(checkout) / "src", folder / "src")
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "open_clip_triplet" / "sources"
    archive = cache / f"open_clip_torch-{version}.tar.gz"
    if not archive.is_file():
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(cache),
             f"open_clip_torch=={version}"],
            capture_output=True, text=True,
        )
        if done.returncode or not archive.is_file():
            why = (done.stderr.strip() or "?").splitlines()[-1]
            pytest.skip(f"no source archive of open_clip_torch {version}: {why}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"open_clip_torch-{version}"


@pytest.fixture(scope="session")
def metadata(tmp_path_factory) -> Path:
    """A folder with this package's metadata as its wheel has it, for ``importlib.metadata`` to find."""
    folder = tmp_path_factory.mktemp("metadata")
    code = f"import setuptools.build_meta as b; b.prepare_metadata_for_build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_only_adds_lines(patch):
    lines = patch.read_text().splitlines()
    assert not [line for line in lines if line.startswith("-") and not line.startswith("---")]
    assert len([line for line in lines if line.startswith("+")]) < 50


@pytest.fixture(params=VERSIONS)
def patched(request, tmp_path) -> Path:
    version = request.param
    if version not in QUICK and not os.environ.get("TRIPLET_ALL_VERSIONS"):
        pytest.skip("TRIPLET_ALL_VERSIONS is not set: the oldest and the newest 3.x release are tried")
    if shutil.which("patch") is None:
        pytest.skip("the program `patch` is not installed")
    tree = source(version, tmp_path)
    done = subprocess.run(["patch", "-p1", "-i", str(patch_for(version))], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0 and "fuzz" not in done.stdout, done.stdout + done.stderr
    return tree / "src"


def run_stock(patched: Path, metadata: Path, argv: list[str], **environment) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(patched), str(metadata), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, "-m", "open_clip_train.main", *argv], cwd=patched.parent, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def test_stock_main_trains_with_the_plugin(patched, metadata, paired_shards, tiny_config, tmp_path):
    argv = train_argv(tiny_config, tmp_path / "logs", "run", loss="triplet", **{"train-data": paired_shards})
    done = run_stock(patched, metadata, argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt").is_file()
    losses = [float(x) for x in re.findall(r" Loss: ([\d.]+)", done.stderr + done.stdout)]
    # TripletCLIP of 16 samples starts near ln 2 + 2 ln 16 = 6.2, CLIP near ln 16 = 2.8
    assert losses and min(losses) > 4, done.stderr[-2000:]


@pytest.mark.parametrize("patched", ["3.3.0"], indirect=True)
def test_without_the_plugin_the_program_is_stock(patched, metadata):
    done = run_stock(patched, metadata, ["--neg-captions", "2"], OPEN_CLIP_PLUGINS="")
    assert done.returncode == 2 and "unrecognized arguments: --neg-captions 2" in done.stderr
    done = run_stock(patched, metadata, ["--loss", "triplet", "--train-data", "a.csv"])
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    done = run_stock(patched, metadata, ["--help"], OPEN_CLIP_PLUGINS="open_clip_triplet")
    assert "--neg-captions" in done.stdout and "--accum-freq" in done.stdout
