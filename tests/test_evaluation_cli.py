"""``triplet-evaluate`` as a user types it."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from evaluation_fixtures import tiny_clip, write_config, write_suite
from open_clip_triplet.errors import CheckpointError
from open_clip_triplet.evaluation import cli
from open_clip_triplet.evaluation.benchmarks import names
from open_clip_triplet.evaluation.encode import progress
from open_clip_triplet.evaluation.watch import find, watch
from report_fixtures import share

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
        (["report", "there.json", "nowhere"], "no results in nowhere"),
        (["report", "nowhere", "--output", "."], "--output . is a folder; name a file"),
        (["data", "--download", "winoground"], "nothing to download freely"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text(json.dumps(share("cola", "clip", {"group": 0.5})))
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


def test_list_is_a_line_per_benchmark(workplace, capsys):
    assert cli.main(["list", "--data-root", str(workplace / "data")]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {"benchmark", *names()}
    assert lines["sugarcrepe"].split()[1:3] == ["7,511", "63"] and "MIT" in lines["sugarcrepe"]
    assert lines["bivlc"].split()[1:3] == ["2,933", "no"]


def test_progress_is_told_where_there_is_no_terminal(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(progress, "WORTH_A_LINE_S", 0.0)
    arguments = ["--benchmarks", "cola", "--allow-partial", "--output", str(tmp_path)]
    assert run(workplace, *arguments) == 0
    error = capsys.readouterr().err
    assert "cola: captions: 12 of 12, " in error and " per second, 0 s left" in error
    assert run(workplace, *arguments, "--store", str(tmp_path / "other"), "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_watch_evaluates_each_checkpoint_of_a_training_and_draws_the_curve(workplace, tmp_path, capsys):
    """A training that writes its second checkpoint while the first is evaluated."""
    logs, out = tmp_path / "logs" / "run-a", tmp_path / "out"
    (logs / "checkpoints").mkdir(parents=True)
    (logs / "params.txt").write_text("epochs: 2\nmodel: tiny-eval\n")
    shutil.copy(workplace / "clip.pt", logs / "checkpoints" / "epoch_1.pt")
    half = (workplace / "triplet.pt").read_bytes()[:4000]  # still being written
    (logs / "checkpoints" / "epoch_2.pt").write_bytes(half)
    threading.Timer(2, lambda: shutil.copy(workplace / "triplet.pt", logs / "checkpoints" / "epoch_2.pt")).start()
    arguments = ["--watch", str(tmp_path / "logs"), "--model-config", str(workplace / "tiny-eval.json")]
    places = ["--data-root", str(workplace / "data"), "--output", str(out), "--device", "cpu", "--allow-partial"]
    assert cli.main(["run", *arguments, *places, "--benchmarks", "cola,sugarcrepe", "--watch-poll", "0.2"]) == 0
    captured = capsys.readouterr()
    assert "run-a-epoch_1: encoded" in captured.out and "run-a-epoch_2: encoded" in captured.out
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert {(row["run"], row["epoch"]) for row in rows} == {("run-a", "1"), ("run-a", "2")}
    result = json.loads((out / "run-a-epoch_2" / "sugarcrepe.json").read_text())
    (mean,) = [r for r in rows if r["epoch"] == "2" and r["headline"] == "mean of the 7 subsets"]
    assert float(mean["value"]) == result["summary"]["overall"]["value"]
    assert "<svg" in (out / "curve.svg").read_text()
    assert cli.main(["run", *arguments[:1], str(tmp_path / "gone"), *places, "--benchmarks", "cola"]) == 2
    assert "gone: no such folder" in capsys.readouterr().err


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


def test_watch_counts_what_it_evaluated_and_draws_nothing_of_no_headlines(workplace, tmp_path, monkeypatch, capsys):
    """Long-caption retrieval has no headlines, as its authors report none that is here."""
    folder = tmp_path / "logs" / "run-a" / "checkpoints"
    folder.mkdir(parents=True)
    (folder.parent / "params.txt").write_text("epochs: 2\n")
    for epoch in (1, 2):
        shutil.copy(workplace / "clip.pt", folder / f"epoch_{epoch}.pt")

    monkeypatch.chdir(folder.parent)
    assert [found.label for found in find(Path("."))] == ["run-a-epoch_1", "run-a-epoch_2"]

    def evaluate(found):
        if found.epoch == 1:
            raise CheckpointError("gone meanwhile")
        return []

    assert watch(tmp_path / "logs", evaluate, tmp_path) == 1
    assert "epoch_1.pt: gone meanwhile" in capsys.readouterr().err
    assert (tmp_path / "curve.csv").is_file() and not (tmp_path / "curve.svg").exists()


def test_a_device_that_is_not_there_is_told_in_one_line(workplace, tmp_path, capsys):
    for device in ("gpu", "cuda:99"):
        more = ["--store", str(tmp_path / "store"), "--device", device, "--allow-partial", "--quiet"]
        assert run(workplace, "--benchmarks", "cola", *more) == 2
        assert capsys.readouterr().err.startswith(f"error: --device {device}: ")
