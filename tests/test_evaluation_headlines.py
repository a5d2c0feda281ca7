"""The numbers that the benchmarks' authors report, each against their rule written out as a loop."""

import csv
import json

import numpy as np
import pytest
import torch

from evaluation_fixtures import (
    jpeg,
    picture,
    save_picture,
    tiny_clip,
    write_json,
    write_suite,
    write_zeroshot,
)
from open_clip_triplet.evaluation import evaluate
from open_clip_triplet.evaluation.benchmarks import get, names
from open_clip_triplet.evaluation.console import result_line
from open_clip_triplet.evaluation.encode import Encoder


def run(root, benchmark, **options):
    model, preprocess, tokenizer = tiny_clip()
    return evaluate(
        model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=[benchmark],
        data_root=root,
        allow_partial=True,
        **options,
    ).results[benchmark]


def headlines(result):
    return {headline["label"]: headline["value"] for headline in result["headlines"]}


class Cosine:
    """Cosine similarities of the tiny CLIP, one at a time."""

    def __init__(self):
        self.model, self.preprocess, self.tokenizer = tiny_clip()

    def text(self, caption):
        with torch.no_grad():
            return self.model.encode_text(self.tokenizer([caption]), normalize=True)[0].double()

    def image(self, image):
        with torch.no_grad():
            return self.model.encode_image(self.preprocess(image)[None], normalize=True)[0].double()


def test_sugarcrepe_pp_both_tasks(tmp_path):
    """github.com/Sri-Harsha/scpp: ITT as an image's two captions over the negative, TOT without an image."""
    save_picture(tmp_path / "coco" / "val2017" / "1.png", 1)
    entries = [
        {
            "filename": "1.png",
            "caption": f"a dog number {i} on a mat",
            "caption2": f"on a mat there is dog {i * i}" if i % 3 else f"a dog number {i} on the mat",
            "negative_caption": f"a mat number {i} on a dog",
        }
        for i in range(40)
    ]
    write_json(tmp_path / "scpp" / "swap_obj.json", entries)
    result = run(tmp_path, "sugarcrepe_pp")
    cosine = Cosine()
    x = cosine.image(picture(1))
    image_text, text_only = "", ""
    for entry in entries:
        p1, p2, n = (cosine.text(entry[name]) for name in ("caption", "caption2", "negative_caption"))
        image_text += "01"[bool(x @ p1 > x @ n and x @ p2 > x @ n)]
        text_only += "01"[bool(p1 @ p2 > p1 @ n and p1 @ p2 > p2 @ n)]
    outcomes = result["subsets"]["swap_obj"]["outcomes"]
    assert outcomes == {"accuracy": image_text, "text_only": text_only}
    assert 0 < text_only.count("1") < 40 and 0 < image_text.count("1") < 40
    assert headlines(result)["swap_obj, text-only"] == text_only.count("1") / 40


def test_aro_macro_accuracy_leaves_out_symmetric_relations_and_rare_attributes(tmp_path):
    save_picture(tmp_path / "aro" / "images" / "1.png", 1)

    def entry(i, **more):
        box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 40, "bbox_h": 40}
        captions = {"true_caption": f"the dog {i} is by the cat", "false_caption": f"the cat {i} is by the dog"}
        return {"image_path": "1.png", **captions, **box, **more}

    relations = ["on"] * 30 + ["behind"] * 7 + ["next to"] * 20  # the last reads the same both ways
    write_json(
        tmp_path / "aro" / "visual_genome_relation.json",
        [entry(i, relation_name=name) for i, name in enumerate(relations)],
    )
    pairs = [["red", "old"]] * 25 + [["wet", "dry"]] * 24 + [["big", "red"]] * 40
    write_json(
        tmp_path / "aro" / "visual_genome_attribution.json",
        [entry(100 + i, attributes=pair) for i, pair in enumerate(pairs)],
    )
    result = run(tmp_path, "aro")

    def mean(subset, parts):
        right = [c == "1" for c in result["subsets"][subset]["outcomes"]["accuracy"]]
        return np.mean([np.mean(right[start:stop]) for start, stop in parts])

    found = headlines(result)
    relation, attribution = mean("vg_relation", [(0, 30), (30, 37)]), mean("vg_attribution", [(0, 25), (49, 89)])
    assert found["VG-Relation, mean over relations (the authors')"] == pytest.approx(relation)
    assert found["VG-Attribution, mean over attribute pairs (the authors')"] == pytest.approx(attribution)
    assert found["VG-Relation, over items"] == pytest.approx(mean("vg_relation", [(0, 57)]))
    assert relation != pytest.approx(mean("vg_relation", [(0, 57)]))
    assert result["subsets"]["vg_relation"]["groups"]["next to"]["items"] == 20  # told, not counted


def test_negbench_by_type(tmp_path):
    path = tmp_path / "negbench" / "COCO_val_mcq_llama3.1_rephrased.csv"
    path.parent.mkdir()
    kinds = ("positive", "negative", "hybrid")
    rows = [["image_path", "correct_answer", *(f"caption_{i}" for i in range(4)), "correct_answer_template"]]
    for i in range(30):
        save_picture(tmp_path / "coco" / "val2017" / f"{i}.png", i)
        captions = [f"a {word} number {i}" for word in ("dog", "cat", "cow", "bus")]
        rows.append([f"val2017/{i}.png", i % 4, *captions, kinds[i % 3]])
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    result = run(tmp_path, "negbench")
    cosine = Cosine()
    right = dict.fromkeys(kinds, 0)
    for i, (_, answer, *captions, kind) in enumerate(rows[1:]):
        x = cosine.image(picture(i))
        scores = [float(x @ cosine.text(caption)) for caption in captions]
        right[kind] += int(np.argmax(scores)) == answer
    for kind in kinds:
        assert headlines(result)[f"coco_mcq, {kind}"] == pytest.approx(right[kind] / 10)
    assert 0 < sum(right.values()) < 30
    assert not result["complete"] and result["expected"] == 5914 + 5031


def test_winoground_by_tag(tmp_path):
    write_suite(tmp_path)
    path = tmp_path / "winoground" / "data" / "examples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tags = ("Object", "Relation", "Both")
    for i, line in enumerate(lines):
        line |= {"collapsed_tag": tags[i % 3], "num_main_preds": 1 + i % 2}
        line["secondary_tag"] = "Symbolic" if i == 1 else ""
    path.write_text("\n".join(map(json.dumps, lines)))
    result = run(tmp_path, "winoground")
    subset = result["subsets"]["winoground"]
    assert {name: group["items"] for name, group in subset["groups"].items()} == {
        **dict.fromkeys(tags, 2),
        "1 main predicate": 3,
        "2 main predicates": 3,
        "Symbolic": 1,
    }
    for metric, outcome in subset["outcomes"].items():
        assert headlines(result)[f"Relation, {metric}"] == (int(outcome[1]) + int(outcome[4])) / 2


def test_averages_that_papers_define_in_two_ways(tmp_path):
    write_suite(tmp_path)
    path = tmp_path / "sugar-crepe" / "add_obj.json"
    path.write_text(json.dumps(dict(list(json.loads(path.read_text()).items())[:2])))  # 2 items, not 9
    found = run(tmp_path, "sugarcrepe")
    shares = [x["outcomes"]["accuracy"] for x in found["subsets"].values()]
    assert headlines(found)["mean of the 7 subsets"] == pytest.approx(
        np.mean([x.count("1") / len(x) for x in shares])
    )
    assert headlines(found)["weighted by items"] == pytest.approx("".join(shares).count("1") / (6 * 9 + 2))
    found = run(tmp_path, "valse")
    each = {name: np.mean([int(c) for c in x["outcomes"]["accuracy"]]) for name, x in found["subsets"].items()}
    assert headlines(found)["mean of the 11 files"] == pytest.approx(np.mean(list(each.values())))
    assert headlines(found)["mean of the 7 groups"] == found["summary"]["overall"]["value"]


def test_every_headline_names_what_its_benchmark_has(tmp_path):
    write_suite(tmp_path)
    for name in ("sugarcrepe", "winoground", "cola", "valse", "retrieval", "tripletdata"):
        result = run(tmp_path, name)
        missing = {h.label for h in get(name).headlines if not h.group} - set(headlines(result))
        assert not missing, name
    for name in names():
        for headline in get(name).headlines:
            expected = get(name).expected
            assert not headline.subset or not expected or headline.subset in {*expected, "synthetic_mcq"}


def test_equal_class_names_and_captions_count_as_right_and_are_told(tmp_path):
    write_zeroshot(tmp_path, classes=("missile", "river", "missile"))
    result = run(tmp_path, "zeroshot")["subsets"]["eurosat"]
    assert result["equal"] == 6 and result["ties"] == 0  # six of nine images are of a class named missile
    told_apart = tmp_path / "apart"
    write_zeroshot(told_apart, classes=("missile", "river", "missile."))
    assert run(told_apart, "zeroshot")["subsets"]["eurosat"]["equal"] == 0
    write_suite(tmp_path / "suite")
    path = tmp_path / "suite" / "mscoco_captions" / "coco_test_karpathy.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = content["annotations"][5]["caption"] = "a photo"
    write_json(path, content)
    result = run(tmp_path / "suite", "retrieval")
    assert result["subsets"]["mscoco"]["equal"] == 2 and "equal" in result["equal_rule"]


def test_caltech101_without_classnames_takes_vtabs(tmp_path):
    """clip_benchmark keeps two lists: torchvision's and, in another order, VTAB's, which the export follows."""
    write_zeroshot(tmp_path, "wds_vtab-caltech101")
    folder = tmp_path / "zeroshot" / "wds_vtab-caltech101"
    (folder / "classnames.txt").unlink()
    task = get("zeroshot").load(tmp_path)["caltech101"]
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    words = json.load(open(builder.__file__.replace("builder.py", "en_classnames.json")))
    assert task.classes == words["caltech101_vtab"] != words["caltech101"]


def test_a_part_of_flickr8k_is_partial_everywhere(tmp_path):
    """Beside complete COCO and Flickr30k too: it is no expected subset, so it has its own mark."""
    write_suite(tmp_path)
    (tmp_path / "flickr8k").mkdir()
    source = (tmp_path / "flickr30k" / "flickr30k_test_karpathy.txt").read_text()
    (tmp_path / "flickr8k" / "flickr8k_test_karpathy.txt").write_text(source)
    for i in range(8):
        (tmp_path / "flickr8k" / f"{i}.jpg").write_bytes(jpeg(i))
    model, preprocess, tokenizer = tiny_clip()
    found = evaluate(
        model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=["retrieval"],
        data_root=tmp_path,
        allow_partial=True,
    )
    result = found.results["retrieval"]
    assert not result["subsets"]["flickr8k"]["complete"]
    from open_clip_triplet.evaluation.results import flat_metrics

    for name in ("mscoco", "flickr30k"):
        result["subsets"][name]["complete"] = True
    result["complete"] = True
    flat = flat_metrics(result)
    assert "retrieval/mscoco/i2t_r5" in flat and "retrieval-partial/flickr8k/i2t_r5" in flat
    assert "retrieval/flickr8k/i2t_r5" not in flat
    assert "flickr8k" in result_line(result) and "(PARTIAL: 8 of 1000)" in result_line(result)


def test_captions_cut_at_the_context_length_are_counted(tmp_path):
    write_suite(tmp_path)
    path = tmp_path / "cola" / "COLA_multiobjects_matching_benchmark.json"
    items = json.loads(path.read_text())
    items[0][1] = "dog " * 75  # 75 tokens and two marks: fits exactly
    items[1][1] = "dog " * 76
    items[2][3] = "a very long caption " * 40
    write_json(path, items)
    result = run(tmp_path, "cola")
    assert result["captions"] == {"unique": 12, "cut": 2}
    assert "2 of 12 captions cut at the context length" in result_line(result)
    model, preprocess, tokenizer = tiny_clip()
    encoder = Encoder(model, preprocess, tokenizer)
    captions = ["a dog", "dog " * 75, "dog " * 76]
    assert encoder.cut(captions, tokenizer(captions)) == [False, False, True]

    class PaddedWithTheEndMark:
        """As transformers' CLIP tokenizers: a row ends in the end mark, repeated."""

        def __call__(self, texts, context_length=77):
            rows = tokenizer(texts, context_length=context_length)
            return torch.where(rows == 0, torch.tensor(49407), rows)

    padded = PaddedWithTheEndMark()
    assert Encoder(model, preprocess, padded).cut(captions, padded(captions)) == [False, False, True]
    alone = lambda texts: tokenizer(texts)  # noqa: E731 - knows no other length, so what fills it counts as cut
    assert Encoder(model, preprocess, alone).cut(captions, alone(captions)) == [False, True, True]


def test_a_limited_run_says_so(tmp_path):
    write_suite(tmp_path)
    result = run(tmp_path, "tripletdata")
    assert result["complete"] and result["limit"] is None
    result = run(tmp_path, "tripletdata", limit=3)
    assert not result["complete"] and result["limit"] == 3 and result["items"] == 3
    assert "LIMITED to 3 items" in result_line(result)


def test_each_items_outcome_is_written(tmp_path):
    """Key, captions, scores, outcome of every item; the scores decide the outcome."""
    from open_clip_triplet.evaluation.result_files import write_result
    from open_clip_triplet.evaluation.run import run_suite
    from open_clip_triplet.evaluation.store import EmbeddingStore

    write_suite(tmp_path)
    model, preprocess, tokenizer = tiny_clip()
    found = run_suite(
        lambda: Encoder(model, preprocess, tokenizer),
        [get(name) for name in ("sugarcrepe", "cola", "retrieval", "zeroshot")],
        tmp_path,
        EmbeddingStore(),
        checkpoint={"name": "x"},
        allow_partial=True,
        on_result=lambda result, outcomes: write_result(tmp_path / "out", result, outcomes),
    )

    def rows(name):
        return [json.loads(line) for line in (tmp_path / "out" / "x" / f"{name}.items.jsonl").read_text().splitlines()]

    choices = rows("sugarcrepe")
    assert len(choices) == 63
    for row in choices:
        assert row["outcome"]["accuracy"] == (row["scores"][0] > row["scores"][1])
    outcomes = found.results["sugarcrepe"]["subsets"]["add_obj"]["outcomes"]["accuracy"]
    assert [row["outcome"]["accuracy"] for row in choices if row["subset"] == "add_obj"] == [c == "1" for c in outcomes]
    for row in rows("cola"):
        (s00, s01), (s10, s11) = row["scores"]
        assert row["outcome"]["group"] == (s00 > s01 and s11 > s10 and s00 > s10 and s11 > s01)
        assert len(row["captions"]) == len(row["images"]) == 2
    for row in rows("retrieval"):
        assert (row["outcome"]["rank"] == 0) == (row["scores"][0] > row["scores"][1])
    assert {row["direction"] for row in rows("retrieval")} == {"i2t", "t2i"}
    for row in rows("zeroshot"):
        assert row["outcome"]["top1"] == (row["scores"][0] > row["scores"][1])
