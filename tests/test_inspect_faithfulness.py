"""Accuracy of answers about negative images, by hand; the worst samples into the gallery."""

import csv
import json

import numpy as np
import pytest

from conftest import paired_sample
from open_clip_triplet.inspect import cli
from open_clip_triplet.inspect.faithfulness import accuracy
from open_clip_triplet.inspect.samples import questions, view_sample
from open_clip_triplet.shards import ShardWriter


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
