"""Accuracy of answers about negative images, by hand; the worst samples into the gallery."""

import csv
import json

import numpy as np
import pytest

from build_fixtures import tiny_vilt
from conftest import paired_sample
from open_clip_triplet.inspect import cli
from open_clip_triplet.inspect.faithfulness import accuracy
from open_clip_triplet.inspect.samples import questions, view_sample
from open_clip_triplet.shards import ShardWriter
from open_clip_triplet.tripletdata.backends.language import LanguageModel, read_prompt
from open_clip_triplet.tripletdata.backends.vqa import VisualQuestions
from open_clip_triplet.tripletdata.checks.questions import PROMPT, Questions
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import run_stage


def asked(*answers: str) -> dict:
    """As ``triplet-shards verify --checks questions`` stores it: expected and given, in pairs of letters."""
    words = {"y": "yes", "n": "no", "-": ""}
    items = [
        {"question": f"Is it {number}?", "expected": words[pair[0]], "answer": words[pair[1]]}
        for number, pair in enumerate(answers)
    ]
    right = sum(item["answer"] == item["expected"] for item in items)
    return {"questions": {"items": items, "accuracy": right / len(items), "llm": "a", "vqa": "b"}}


@pytest.fixture
def shards(tmp_path):
    given = [asked("yy", "yy"), asked("yn", "nn"), asked("yn", "n-", "ny"), None, {"questions": {"items": [3, {}]}}]
    with ShardWriter(tmp_path / "00000.tar") as writer:
        for number, verify in enumerate(given):
            sample = paired_sample(number)
            sample["json"]["category"] = ["count", "action"][number % 2]
            sample["json"].update({"verify": verify} if verify else {})
            writer.write(sample)
    return tmp_path


def test_accuracy_by_hand(shards, tmp_path, capsys):
    out = tmp_path / "out"
    page = tmp_path / "worst.html"
    assert cli.main(["faithfulness", str(shards), "--output", str(out), "--html", str(page)]) == 0
    assert "Samples without a question: 2." in capsys.readouterr().out
    rows = {(r["table"], r["row"], r["column"]): r["value"] for r in csv.DictReader(open(out / "faithfulness.csv"))}
    column = "as expected, %"
    assert rows["questions", "all", "questions"] == "7"
    assert float(rows["questions", "all", column]) == pytest.approx(100 * 3 / 7)
    assert float(rows["questions", "expected yes", column]) == 50
    assert float(rows["questions", "expected no", column]) == pytest.approx(100 / 3)
    assert float(rows["questions", "action", column]) == 50  # sample 1
    assert rows["answered otherwise most often", "Is it 0?", "not as expected"] == "2"
    samples = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])["samples"]
    assert [sample["key"] for sample in samples] == ["00000002", "00000001"]
    assert samples[0]["notes"] == [
        "Is it 0? no (expected yes)", "Is it 1? no answer (expected no)", "Is it 2? yes (expected no)"
    ]


def test_interval_draws_samples_not_questions():
    spread = accuracy([(5, 5), (0, 5)] * 20)
    even = accuracy([(5, 10)] * 20)
    assert spread[0] == even[0] == 0.5 and even[1:] == (0.5, 0.5)
    expected = 1.96 * 0.5 / np.sqrt(40)  # 40 samples that are all right or all wrong
    assert (spread[2] - spread[1]) / 2 == pytest.approx(expected, rel=0.1)


def test_scores_of_checks_can_be_sorted_by(shards):
    checks = {"four-way": {"margin": 0.25, "model": "x"}, "entailment": {"entailment": 0.5}, "failed": ["four-way"]}
    meta = {"verify": checks}
    sample = view_sample({"__key__": "0", "__url__": "x", "json": json.dumps(meta).encode()})
    assert sample.scores == {"four-way margin": 0.25, "entailment": 0.5}
    assert sample.facets == {"verify": "fails four-way"}
    for odd in ({}, {"verify": 3}, {"verify": {"questions": []}}, {"verify": {"questions": {"items": {}}}}):
        assert questions(odd) == []


def test_shards_without_questions_are_refused(paired_shards, capsys):
    assert cli.main(["faithfulness", paired_shards]) == 2
    assert "verify --checks questions" in capsys.readouterr().err


def test_reads_what_verify_stores(tmp_path, capsys):
    """The stage itself, with a tiny ViLT, and then the command."""
    pytest.importorskip("transformers")

    class Writer(LanguageModel):
        """Writes the same questions about every caption."""

        def complete(self, prompts, seeds, progress):
            return ["1. Is it red? Yes\n2. Is it a square? Yes\n3. Is it blue? No"] * len(prompts)

    with ShardWriter(tmp_path / "in" / "00000.tar") as writer:
        for number in range(4):
            writer.write(paired_sample(number))
    stage = Questions(Writer("writer", read_prompt(None, PROMPT)), VisualQuestions(tiny_vilt(tmp_path / "vilt")))
    run = run_stage(stage, plan_tasks(str(tmp_path / "in")), str(tmp_path / "out"), Local(cpu=True), quiet=True)
    stored = [scores["accuracy"] for scores in run.read_values(run.tasks[0])["questions"]]
    assert cli.main(["faithfulness", str(tmp_path / "out"), "--format", "json"]) == 0
    (table, *_) = json.loads(capsys.readouterr().out)["tables"].values()
    assert table[0]["questions"] == 12 and table[0]["as expected, %"] == pytest.approx(100 * np.mean(stored), abs=1e-3)
