"""What a report compares: the same items alone, and enough of them."""

import csv
import io
from copy import deepcopy

import numpy as np
import pytest

import report_fixtures
from evaluation_fixtures import (
    SUGARCREPE_SUBSETS,
    jpeg,
    save_picture,
    tiny_clip,
    write_paired_shard,
    write_sugarcrepe,
)
from open_clip_triplet.evaluation import evaluate
from open_clip_triplet.evaluation.console import result_line
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.report.render import render
from open_clip_triplet.evaluation.results import why_not_paired
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask, ClassifyTask, Labelled
from open_clip_triplet.files import write_text_durably
from open_clip_triplet.shards import write_sizes


def run(root, name, benchmark):
    model, preprocess, tokenizer = tiny_clip()
    found = evaluate(
        model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=[benchmark],
        data_root=root,
        allow_partial=True,
        checkpoint={"name": name, "weights": name},
    )
    return found.results[benchmark]


def p_column(results):
    """Row -> what the column p says, of the paired tests."""
    rows = csv.DictReader(io.StringIO(render(results, "csv")))
    return {row["row"]: row["text"] for row in rows if " vs " in row["table"] and row["column"] == "p"}


def held_out(root, shift=0, **changes):
    """Twelve samples; ``shift``: of other images and captions under the same keys."""
    samples = {
        f"s{n}": {
            "jpg": jpeg(n + shift),
            "txt": f"thing {n + shift}",
            "neg.jpg": jpeg(n + shift + 500),
            "neg.txt": f"other {n + shift}",
            **changes.get(f"s{n}", {}),
        }
        for n in range(12)
    }
    write_paired_shard(root / "tripletdata" / "00000.tar", range(12), **samples)
    write_sizes(root / "tripletdata", {"00000.tar": 12})
    return root


@pytest.mark.parametrize("change", ["everything", "an image", "a caption"])
def test_equal_keys_of_other_data_are_not_paired(change, tmp_path):
    first = run(held_out(tmp_path / "a"), "a", "tripletdata")
    changed = {"an image": {"s3": {"jpg": jpeg(77)}}, "a caption": {"s3": {"txt": "a dog"}}}.get(change, {})
    second = run(held_out(tmp_path / "b", 100 * (change == "everything"), **changed), "b", "tripletdata")
    assert p_column([first, second]) == {"tripletdata tripletdata": "no test: the items differ"}
    page = render([first, second], "md")
    assert page.count("TripletData of b is not to be compared with that of a: the items differ (tripletdata)") >= 3


def test_the_same_data_elsewhere_is_paired(tmp_path):
    results = [run(held_out(tmp_path / name), name, "tripletdata") for name in "ab"]
    assert p_column(results)["tripletdata tripletdata group"] == "1.0000"
    assert "is not to be compared" not in render(results, "md")


def test_retrieval_of_one_and_of_five_captions_is_not_paired(tmp_path):
    for name, number in (("one", 1), ("five", 5)):
        for n in range(12):
            save_picture(tmp_path / name / "flickr30k" / f"{n}.jpg", n)
        lines = [f"{n}.jpg,caption {n} {k}" for n in range(12) for k in range(number)]
        write_text_durably(
            tmp_path / name / "flickr30k" / "flickr30k_test_karpathy.txt", "\n".join(["image,caption", *lines])
        )
    results = [run(tmp_path / name, name, "retrieval") for name in ("one", "five")]
    assert p_column(results) == {"retrieval flickr30k (partial)": "no test: the items differ"}
    for result in results:  # as if of an older version, whose hash was of the images' names
        result["subsets"]["flickr30k"]["items_hash"] = "0123456789abcdef"
    assert p_column(results) == {"retrieval flickr30k (partial)": "no test: the items differ"}


def test_results_of_an_older_version_say_what_is_not_known():
    a, b = (report_fixtures.share("winoground", name, {"group": 0.5}) for name in "ab")
    old_a, old_b = deepcopy(a), deepcopy(b)
    for old in (old_a, old_b):
        old["subsets"]["winoground"]["items_hash"] = "0123456789abcdef"
    assert p_column([a, b]) == p_column([old_a, old_b]) == {"winoground winoground group": "1.0000"}
    assert "paired by their names alone" in render([old_a, old_b], "md")
    assert "paired by their names alone" not in render([a, b], "md")
    (text,) = p_column([old_a, b]).values()
    assert text.startswith("no test: not known whether the items are the same") and "run it again" in text


def test_what_is_right_is_part_of_an_items_identity():
    image = ImageRef("x.jpg")
    two, one = (
        ChoiceTask([Choice("0", image, ("a", "b", "c")[:n], ("a", "b", "c")[n:])]).items_hash({}) for n in (2, 1)
    )
    assert two != one
    hashes = {
        ClassifyTask([Labelled("0", image, label)], classes=classes, templates=templates).items_hash({})
        for label, classes, templates in (
            (0, ["cat", "dog"], ["{c}"]),
            (1, ["cat", "dog"], ["{c}"]),
            (0, ["cat", "cow"], ["{c}"]),
            (0, ["cat", "dog"], ["a {c}"]),
        )
    }
    assert len(hashes) == 4


def test_outcomes_of_two_lengths_are_never_paired():
    a, b = ({"items_hash": "content:1", "outcomes": {"accuracy": right}} for right in ("0110", "011"))
    assert why_not_paired(a, b) == "the items differ" and why_not_paired(a, a) == ""


def test_few_items_have_neither_interval_nor_test():
    """SugarCrepe with one item in swap_obj: resampling one item shows no variance."""
    results = [
        report_fixtures.share("sugarcrepe", name, {"accuracy": part}, sizes={"swap_obj": 1})
        for name, part in (("a", 1), ("b", 0))
    ]
    found = p_column(results)
    few = "no test: fewer than 10 items in swap_obj"
    assert found["sugarcrepe swap_obj accuracy"] == found["sugarcrepe overall"] == few
    assert found["sugarcrepe add_obj accuracy"] == "< 0.0001"
    assert results[0]["summary"]["overall"] == {"value": 1.0, "low": None, "high": None}
    rows = list(csv.DictReader(io.StringIO(render(results, "csv"))))
    bounds = [row["row"] for row in rows if row["column"] in ("95% low", "95% high")]
    assert "sugarcrepe overall" not in bounds and "sugarcrepe swap_obj accuracy" not in bounds
    assert "overall" not in bounds and "swap_obj accuracy" in bounds  # Wilson's, which holds for one item
    assert "No interval for a mean in which a subset or class has fewer than 10 items." in render(results, "md")
    render(results, "html")


def test_classes_of_few_items_have_no_interval():
    items = [Labelled(str(n), ImageRef(f"{n}.jpg"), n // 10) for n in range(20)]
    rows = {
        "images": lambda refs: np.eye(2)[[int(ref.path[:-4]) // 10 for ref in refs]],
        "texts": lambda prompts: np.eye(2)[[int(prompt == "dog") for prompt in prompts]],
    }
    task = ClassifyTask(items, classes=["cat", "dog"], templates=["{c}"])
    assert task.score(**rows).metrics["mean_per_class"]["low"] == 1.0
    task.items = items[:15]
    assert np.isnan(task.score(**rows).metrics["mean_per_class"]["low"])


def test_the_line_of_a_run_has_no_interval_either(tmp_path):
    write_sugarcrepe(tmp_path, dict.fromkeys(SUGARCREPE_SUBSETS, 9))
    result = run(tmp_path, "a", "sugarcrepe")
    assert "[" not in result_line(result) and "PARTIAL" in result_line(result)
