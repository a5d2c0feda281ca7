"""Verification of negatives: four-way CLIP, entailment, question answering, thresholds over stored scores."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from build_fixtures import tiny_chat, tiny_llava, tiny_nli, tiny_vilt
from conftest import TINY_MODEL, picture, write_shards
from open_clip_triplet import make_shards
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.shards import ShardWriter, read_samples
from open_clip_triplet.tripletdata.backends.language import LanguageModel, read_prompt
from open_clip_triplet.tripletdata.backends.vqa import VisualQuestions
from open_clip_triplet.tripletdata.checks.entailment import Entailment
from open_clip_triplet.tripletdata.checks.questions import PROMPT, Questions, read_questions
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.stages.verify import Verified

pytest.importorskip("transformers", reason="transformers is not installed: open_clip_triplet's extra `build`")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny OpenCLIP model registered by name, with its weights in a file."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-verify.json").write_text(json.dumps(TINY_MODEL))
    open_clip.add_model_config(folder / "tiny-verify.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-verify").state_dict(), folder / "weights.pt")
    return ["--clip", "tiny-verify", "--clip-pretrained", str(folder / "weights.pt"), "--clip-batch", "3"]


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    return tiny_nli(tmp_path_factory.mktemp("nli"))


def samples_of(folder) -> dict[str, dict]:
    """json of every packed sample by source key."""
    metas = (json.loads(s["json"]) for p in sorted(folder.glob("*.tar")) for s in read_samples(p))
    return {meta["source_key"]: meta for meta in metas}


def similarities(clip, shards, pairs) -> dict[str, list[list[float]]]:
    """[[s(x,y), s(x,y')], [s(x',y), s(x',y')]] of every sample, one image at a time."""
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(clip[1], pretrained=clip[3])
    tokenizer, found = open_clip.get_tokenizer(clip[1]), {}
    model.eval()
    for shard in pairs:
        for sample in read_samples(f"{shards}/{shard}.tar"):
            with torch.inference_mode():
                x = [
                    model.encode_image(preprocess(Image.open(io.BytesIO(sample[m])))[None], normalize=True)
                    for m in ("jpg", "neg.jpg")
                ]
                y = [
                    model.encode_text(tokenizer([sample[m].decode()]), normalize=True) for m in ("txt", "neg.txt")
                ]
            found[sample["__key__"]] = [[float((a * b).sum()) for b in y] for a in x]
    return found


def test_four_way_keeps_what_is_closer_to_its_own_caption(clip, tmp_path, capfd):
    shards = write_shards(tmp_path / "in", [5, 4])
    argv = ["verify", "--checks", "four-way", "--input", shards, *clip, "--quiet", "--output"]
    assert make_shards.main([*argv, str(tmp_path / "out"), "--min-margin", "-2"]) == 0
    expected = similarities(clip, tmp_path / "in", ("00000", "00001"))
    kept = samples_of(tmp_path / "out")
    assert set(kept) == set(expected)
    for key, meta in kept.items():
        scores, (row, neg_row) = meta["verify"]["four-way"], expected[key]
        assert scores["margin"] == pytest.approx(row[0] - row[1], abs=2e-5)
        assert scores["neg_margin"] == pytest.approx(neg_row[1] - neg_row[0], abs=2e-5)
    good = {k for k, (row, neg_row) in expected.items() if row[0] > row[1] and neg_row[1] > neg_row[0]}
    assert len(good) < len(expected)  # a random model has no idea
    status = make_shards.main([*argv, str(tmp_path / "out")])
    assert status == (0 if good else 3) and set(samples_of(tmp_path / "out")) == good
    assert f"fails four-way {len(expected) - len(good)}" in capfd.readouterr().err


def test_another_threshold_scores_nothing_again(clip, tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "in", [4])
    argv = ["verify", "--checks", "four-way", "--input", shards, *clip, "--quiet", "--output", str(tmp_path / "out")]
    assert make_shards.main([*argv, "--min-margin", "-2"]) == 0
    from open_clip_triplet.tripletdata.checks.four_way import FourWay

    def opened(self, device):
        raise AssertionError("scores again")

    monkeypatch.setattr(FourWay, "open", opened)
    assert make_shards.main([*argv, "--action", "mark", "--min-margin", "2"]) == 0
    marked = samples_of(tmp_path / "out")
    assert len(marked) == 4 and all(meta["verify"]["failed"] == ["four-way"] for meta in marked.values())


def test_entailment_is_looked_for_in_both_directions(nli):
    check = Entailment(nli)
    check.open("cpu")
    there, back = check._probabilities([("a red dog", "a blue cat"), ("a blue cat", "a red dog")])
    assert set(there) == {"entailment", "neutral", "contradiction"}
    assert sum(there.values()) == pytest.approx(1, abs=1e-5)
    tokens = check._tokenizer("a red dog", "a blue cat", return_tensors="pt")
    logits = check._model(**tokens).logits.softmax(-1)[0]  # contradiction, entailment, neutral
    assert there["entailment"] == pytest.approx(logits[1].item(), abs=1e-5)
    assert there["contradiction"] == pytest.approx(logits[0].item(), abs=1e-5)
    assert there != back


def test_a_model_without_the_labels_is_refused(nli, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(
        nli, num_labels=2, id2label={0: "bad", 1: "good"}, ignore_mismatched_sizes=True
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(nli).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match="labels are bad, good; needed are entailment"):
        Entailment(str(tmp_path)).open("cpu")


def test_two_checks_in_one_command_and_one_more_later(clip, nli, tmp_path):
    shards = write_shards(tmp_path / "in", [3])
    argv = ["verify", "--input", shards, *clip, "--nli", nli, "--action", "mark", "--quiet"]
    argv += ["--output", str(tmp_path / "out")]
    assert make_shards.main([*argv, "--checks", "four-way"]) == 0
    scored = (tmp_path / "out/.work/four-way/00000.values.json").stat().st_mtime_ns
    assert make_shards.main([*argv, "--checks", "entailment", "four-way"]) == 0
    assert (tmp_path / "out/.work/four-way/00000.values.json").stat().st_mtime_ns == scored
    for meta in samples_of(tmp_path / "out").values():
        assert set(meta["verify"]) == {"four-way", "entailment", "failed"}
    table = json.loads((tmp_path / "out/.work/entailment/00000.values.json").read_text())
    assert len(table["entailment"]) == 3 and {"forward", "backward", "entailment"} < set(table["entailment"][0])


def test_thresholds_by_hand():
    scores = {
        "four-way": {"margin": 0.1, "neg_margin": 0.2},
        "entailment": {"entailment": 0.5},
        "questions": {"accuracy": 0.6},
    }
    every = ("four-way", "entailment", "questions")
    assert Verified(every).failed(scores) == []
    assert Verified(every, min_margin=0.1).failed(scores) == ["four-way"]
    assert Verified(every, max_entailment=0.4, min_accuracy=0.8).failed(scores) == ["entailment", "questions"]
    assert Verified(every, min_accuracy=0.0).failed({**scores, "questions": {"accuracy": None}}) == ["questions"]
    assert Verified(every).failed({}) == list(every)


# question answering


def test_questions_are_read_from_lines():
    answer = "Here you go:\n1. Is there a dog? Yes\n2) Is the dog red? **No**\n- Is it day? (yes)\nIs it? Maybe\n"
    assert read_questions(answer, 5) == [("Is there a dog?", "yes"), ("Is the dog red?", "no"), ("Is it day?", "yes")]
    assert len(read_questions(answer, 2)) == 2 and read_questions("I cannot.", 5) == []


class Writer(LanguageModel):
    """Writes the same questions about every caption."""

    def __init__(self):
        super().__init__("writer", read_prompt(None, PROMPT))

    def complete(self, prompts, seeds, progress):
        return ["1. Is there a dog? Yes\n2. Is it red? No" if "dog" in p[-40:] else "?" for p in prompts]


@pytest.fixture(scope="module")
def vilt(tmp_path_factory):
    return tiny_vilt(tmp_path_factory.mktemp("vilt"))


def test_vilt_answers_yes_or_no_by_its_own_scores(vilt):
    vqa = VisualQuestions(vilt, batch_size=2)
    vqa.open("cpu")
    pairs = [(Image.open(io.BytesIO(picture(n, size=(48, 32)))), q) for n in (1, 2) for q in ("is a dog?", "red?")]
    answers = vqa.answer(pairs)
    assert set(answers) <= {"yes", "no"} and answers == vqa.answer(pairs)
    for (image, question), answer in zip(pairs, answers):
        logits = vqa._model(**vqa._processor(image, question, return_tensors="pt")).logits[0]
        assert answer == ("yes" if logits[2] > logits[1] else "no")  # maybe is no answer


def test_a_vision_language_model_answers_by_chat(tmp_path):
    vqa = VisualQuestions(tiny_llava(tmp_path / "llava"), batch_size=2)
    vqa.open("cpu")
    image = Image.open(io.BytesIO(picture(1, size=(48, 32))))
    assert set(vqa.answer([(image, "Is there a dog?")] * 3)) <= {"yes", "no", ""}


def test_questions_answers_and_accuracy_are_stored(vilt, tmp_path):
    image = picture(1)
    with ShardWriter(tmp_path / "in/00000.tar") as writer:
        for key, text in (("a", "A dog."), ("b", "A boat.")):
            writer.write({"__key__": key, "jpg": image, "txt": "A cat.", "neg.txt": text, "neg.jpg": image})
        writer.write({"__key__": "c", "jpg": image, "txt": "A cat."})
    stage = Questions(Writer(), VisualQuestions(vilt))
    run = run_stage(stage, plan_tasks(str(tmp_path / "in")), tmp_path / "out", Local(cpu=True), quiet=True)
    (record,) = run.records()
    assert record["dropped"] == {"no negative to ask about": 1} and record["counts"] == {"no questions": 1}
    table = json.loads((tmp_path / "out/00000.values.json").read_text())
    dog, boat = table["questions"]
    assert [(i["question"], i["expected"]) for i in dog["items"]] == [("Is there a dog?", "yes"), ("Is it red?", "no")]
    right = sum(item["answer"] == item["expected"] for item in dog["items"])
    assert dog["accuracy"] == right / 2 and dog["llm"] == "writer" and dog["vqa"] == Path(vilt).name
    assert boat == {"items": [], "accuracy": None, "llm": "writer", "vqa": Path(vilt).name}


def test_questions_through_the_command_line(vilt, tmp_path, capfd):
    chat = tiny_chat(tmp_path / "chat")
    shards = write_shards(tmp_path / "in", [2])
    argv = ["verify", "--checks", "questions", "--input", shards, "--output", str(tmp_path / "out"), "--quiet"]
    argv += ["--backend", "transformers", "--llm", chat, "--max-tokens", "8", "--vqa", vilt]
    assert make_shards.main(argv) == 0
    for meta in samples_of(tmp_path / "out").values():
        # noise writes no questions; nothing is dropped for it
        assert meta["verify"]["questions"]["vqa"] == Path(vilt).name
