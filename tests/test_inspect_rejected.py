"""What a build dropped, with the refused answers, through the stages' own records."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from build_fixtures import plain_shards
from open_clip_triplet.inspect import cli
from open_clip_triplet.inspect.rejected import read_rejected
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.run.stage import Stage
from open_clip_triplet.tripletdata.run.task import Policy


@dataclass
class Strict(Stage):
    """Refuses captions that start with ``bad``, and tells what the model answered; fixed in a later round."""

    name: ClassVar[str] = "captions"

    def process(self, task, stats):
        for sample in task.samples(stats, images=False):
            if sample.text.startswith("bad") and f"round {stats.redo_round}" not in sample.text:
                stats.drop("a copy", sample.key, f"answer {stats.redo_round} to {sample.text}")
                continue
            sample.neg_text = f"not {sample.text}"
            yield sample


@dataclass
class Blank(Stage):
    """Draws nothing for captions with ``black`` in them."""

    name: ClassVar[str] = "images"

    def process(self, task, stats):
        for sample in task.samples(stats, images=False):
            if "black" in sample.text:
                stats.drop("a blank image", sample.key)
                continue
            yield sample


@pytest.fixture
def build(tmp_path):
    """(source, output): 00000 drops two captions and one image, 00001 one caption."""
    source = plain_shards(tmp_path / "in", [["a", "bad one", "a black dog", "bad round 1"], ["bad two", "b"]])
    output = tmp_path / "out"
    captions(source, output)
    run_stage(Blank(), plan_tasks(str(output / ".work" / "captions")), str(output / ".work" / "images"), Local(1, True))
    return source, output


def captions(source, output, redo=None):
    work = output / ".work" / "captions"
    tasks = plan_tasks(source, output=work, policy=Policy(redo=redo))
    return run_stage(Strict(), tasks, str(work), Local(1, True), quiet=True)


def test_dropped_samples_with_reason_answer_and_source(build):
    source, output = build
    found = {sample.key: sample for sample in read_rejected([str(output)], [source])}
    assert list(found) == ["00000_000001", "00000_000003", "00001_000000", "00000_000002"]
    one, image = found["00000_000001"], found["00000_000002"]
    assert one.facets == {"reason": "a copy", "stage": "captions"}
    assert one.captions == ["bad one"] and one.neg_captions == ["answer 0 to bad one"] and one.image
    assert image.facets == {"reason": "a blank image", "stage": "images"}
    assert image.captions == ["a black dog"] and image.neg_captions == ["not a black dog"] and image.image
    without = {sample.key: sample for sample in read_rejected([str(output)])}
    assert without["00000_000001"].captions == [] and without["00000_000001"].neg_captions == one.neg_captions
    assert without["00000_000002"].captions == ["a black dog"]
    assert len(list(read_rejected([str(output)], sample=2, seed=1))) == 2


def test_answers_follow_what_stays_dropped(build):
    source, output = build
    captions(source, output, redo=())
    answers = json.loads((output / ".work" / "captions" / "00000.answers.json").read_text())
    assert answers == {"00000_000001": "answer 1 to bad one"}


def test_gallery_of_rejected(build, tmp_path, capsys):
    source, output = build
    page = tmp_path / "rejected.html"
    argv = ["gallery", str(output), "--rejected", "--html", str(page), "--png", str(tmp_path / "r.png")]
    assert cli.main([*argv, "--source", source]) == 0
    data = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    assert data["labels"] == ["Source", "Refused answer"] and len(data["samples"]) == 4
    assert data["samples"][0]["images"][0] == [40, 48]
    assert cli.main(["gallery", source, "--rejected", "--html", str(page)]) == 2
    assert "nothing was dropped there" in capsys.readouterr().err
    assert cli.main(["gallery", str(output), "--source", source, "--html", str(page)]) == 2
    assert cli.main([*argv, "--source", str(tmp_path / "absent")]) == 2
    assert "--source" in capsys.readouterr().err
