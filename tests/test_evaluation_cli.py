"""``triplet-evaluate`` as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation_fixtures import tiny_clip, write_config, write_suite
from open_clip_triplet.evaluation import cli

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_suite(folder / "data")
    write_config(folder)
    for seed, name in enumerate(("clip", "triplet")):
        torch.save({"state_dict": tiny_clip(seed)[0].state_dict()}, folder / f"{name}.pt")
    return folder


def run(folder, *more):
    return cli.main(
        [
            "run",
            "--model-config",
            str(folder / "tiny-eval.json"),
            "--pretrained",
            str(folder / "clip.pt"),
            f"ours={folder / 'triplet.pt'}",
            "--data-root",
            str(folder / "data"),
            "--output",
            str(folder / "results"),
            "--device",
            "cpu",
            *more,
        ]
    )


def test_run_and_report(workplace, capsys):
    assert run(workplace, "--suite", "paper", "--allow-partial") == 0
    out = capsys.readouterr().out
    assert "clip: encoded 100 images" in out and "PARTIAL: 63 of 7511 items" in out
    written = sorted(
        p.relative_to(workplace / "results").as_posix()
        for p in (workplace / "results").glob("*/*.json")
        if p.parent.name[0] != "."
    )
    assert len(written) == 14 and written[0] == "clip/cola.json" and "ours/zeroshot.json" in written
    result = json.loads((workplace / "results" / "ours" / "sugarcrepe.json").read_text())
    assert len(result["checkpoint"]["weights"]) == 64 and result["versions"]["open_clip_torch"]

    assert run(workplace, "--suite", "paper", "--allow-partial") == 0
    assert capsys.readouterr().out.count("encoded 0 images and 0 captions (nothing new)") == 2

    page = workplace / "report.html"
    assert (
        cli.main(
            [
                "report",
                str(workplace / "results"),
                "--format",
                "html",
                "--baseline",
                "clip",
                "--output",
                str(page),
            ]
        )
        == 0
    )
    assert page.read_text().startswith("<!doctype html>") and "<svg" in page.read_text()
    capsys.readouterr()
    assert cli.main(["report", str(workplace / "results")]) == 0
    assert "## Tables 4 and 7. SugarCrepe" in capsys.readouterr().out


def test_second_run_imports_no_torch(workplace):
    """What makes it quick: with everything stored, neither torch nor OpenCLIP is loaded."""
    assert run(workplace, "--benchmarks", "sugarcrepe", "--allow-partial") == 0
    code = (
        "import sys; from open_clip_triplet.evaluation.cli import main; status = main(sys.argv[1:]);"
        "loaded = {'torch', 'open_clip', 'clip_benchmark', 'matplotlib', 'PIL.Image'} & set(sys.modules);"
        "sys.exit(f'loaded: {loaded}' if loaded else status)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "run",
        "--model-config",
        str(workplace / "tiny-eval.json"),
        "--pretrained",
        str(workplace / "clip.pt"),
        "--benchmarks",
        "sugarcrepe",
        "--data-root",
        str(workplace / "data"),
        "--output",
        str(workplace / "results"),
        "--allow-partial",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 0, done.stderr
    assert "nothing new" in done.stdout


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["run", "--pretrained", "openai", "--benchmarks", "sugarcrape"], "unknown benchmark 'sugarcrape'"),
        (["run", "--pretrained", "openai", "--suite", "paper", "--data-root", "nowhere"], "no such folder"),
        (["run", "--pretrained", "a/x.pt", "b/x.pt", "--suite", "paper"], "two checkpoints are called x"),
        (
            [
                "run",
                "--model",
                "ViT-B-31",
                "--pretrained",
                "openai",
                "--benchmarks",
                "cola",
                "--data-root",
                ".",
            ],
            "unknown model 'ViT-B-31'",
        ),
        (["report", "nowhere"], "no results in nowhere"),
        (["data", "--download", "winoground"], "nothing to download freely"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error


def test_partial_data_stops_the_run_before_the_model_is_made(workplace, capsys):
    assert run(workplace, "--benchmarks", "sugarcrepe", "--model", "ignored") == 2
    assert "--allow-partial" in capsys.readouterr().err


def test_a_run_that_scored_nothing_fails(workplace, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    bare = ["--data-root", str(tmp_path / "bare"), "--allow-partial"]
    assert run(workplace, "--benchmarks", "sugarcrepe", *bare) == 2
    error = capsys.readouterr().err
    assert "skipped sugarcrepe: no data under" in error
    assert error.splitlines()[-1].startswith("error: no benchmark had anything to score")


def test_data_lists_every_benchmark(workplace, capsys):
    assert cli.main(["data", "--data-root", str(workplace / "data")]) == 0
    out = capsys.readouterr().out
    assert "mscoco: 8 of 5000 items" in out and "bivlc: no data under" in out
    for word in ("found", "expected", "licence", "from"):
        assert out.count(f"\n  {word}") >= 11


def test_download_fetches_annotations_once(tmp_path, monkeypatch, capsys):
    from open_clip_triplet.evaluation import inventory

    served = tmp_path / "served.json"
    served.write_text("[]")
    place = "cola/COLA_multiobjects_matching_benchmark.json"
    monkeypatch.setitem(inventory.DOWNLOADS, "cola", {place: served.as_uri()})
    root = tmp_path / "data"
    assert cli.main(["data", "--data-root", str(root), "--benchmarks", "cola", "--download", "cola"]) == 0
    assert (root / place).read_text() == "[]" and served.as_uri() in capsys.readouterr().err
    assert cli.main(["data", "--data-root", str(root), "--benchmarks", "cola", "--download", "cola"]) == 0
    assert served.as_uri() not in capsys.readouterr().err
    monkeypatch.setitem(inventory.DOWNLOADS, "cola", {"cola/x.json": (tmp_path / "gone.json").as_uri()})
    assert cli.main(["data", "--data-root", str(root), "--download", "cola"]) == 2
    assert not list(root.rglob("*.tmp"))


def test_convert_writes_a_folder(workplace, capsys):
    assert (
        cli.main(
            [
                "convert",
                "--model-config",
                str(workplace / "tiny-eval.json"),
                "--pretrained",
                str(workplace / "clip.pt"),
                "--output",
                str(workplace / "hub"),
            ]
        )
        == 0
    )
    assert (workplace / "hub" / "open_clip_config.json").is_file()
