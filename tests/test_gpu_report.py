"""The GPU report: its small form runs on a CPU, is resumed by part, and is told apart from a result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import gpu_report  # noqa: E402


def test_parts_are_kept_and_the_page_says_what_it_is(tmp_path, capsys):
    argv = ["--output", str(tmp_path), "--tiny", "--parts", "loss"]
    assert gpu_report.main(argv) == 0
    first = (tmp_path / "loss.json").read_bytes()
    assert gpu_report.main(argv) == 0
    assert "loss: done before" in capsys.readouterr().out and (tmp_path / "loss.json").read_bytes() == first
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    for peers in report["parts"]["loss"]["sizes"].values():
        assert all(run["fastest"] <= run["seconds"] <= run["slowest"] for run in peers.values())
    page = (tmp_path / "gpu_report.md").read_text()
    assert "not a result" in page and "triplet, ours" in page and report["surroundings"]["torch"] in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_form_is_refused(tmp_path, capsys):
    assert gpu_report.main(["--output", str(tmp_path)]) == 2
    assert "--tiny" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_part_that_fails_leaves_the_others_and_is_tried_again(tmp_path, monkeypatch, capsys):
    def run(command, **_):
        name = command[command.index("--one") + 1]
        if name == "step":
            return subprocess.CompletedProcess(command, 1, stdout="")
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps({"vllm": "not installed"}))

    monkeypatch.setattr(gpu_report.subprocess, "run", run)
    monkeypatch.setattr(gpu_report, "surroundings", lambda: {
        "card": "none", "cores": 2, "torch": "2", "open_clip": "3", "commit": "x", "date": "today"
    })
    argv = ["--output", str(tmp_path), "--tiny", "--parts", "step", "captions"]
    assert gpu_report.main(argv) == 1
    assert "failed: step" in capsys.readouterr().err
    assert (tmp_path / "captions.json").exists() and not (tmp_path / "step.json").exists()
