"""Loaders of the benchmarks: their authors' formats, what is damaged or missing, what is left out."""

import csv
import json
import zipfile

import pytest

from evaluation_fixtures import (
    SUGARCREPE_SUBSETS,
    jpeg,
    save_picture,
    write_json,
    write_paired_shard,
    write_pairs,
    write_retrieval,
    write_sugarcrepe,
    write_suite,
    write_valse,
    write_zeroshot,
)
from open_clip_triplet.errors import DataError, MissingData
from open_clip_triplet.evaluation.benchmarks import PAPER_SUITE, get, names
from open_clip_triplet.evaluation.benchmarks.base import tree_leaves, tree_mean
from open_clip_triplet.evaluation.inventory import describe


@pytest.mark.parametrize("name", names())
def test_missing_data_says_what_goes_where(name, tmp_path):
    with pytest.raises(MissingData) as caught:
        get(name).load(tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text and "Expected" in text and get(name).source in text
    assert get(name).licence in describe(get(name), tmp_path)


def test_unknown_benchmark_lists_the_known():
    with pytest.raises(ValueError, match="sugarcrepe, winoground"):
        get("sugarcrape")


def test_sizes_are_the_papers():
    assert sum(get("sugarcrepe").expected.values()) == 7511
    assert len(get("zeroshot").expected) == 18
    assert len(get("valse").groups) == 7 and set(tree_leaves(get("valse").groups)) == set(
        get("valse").expected
    )


def test_valse_average_by_hand():
    values = dict.fromkeys(tree_leaves(get("valse").groups), 0.0)
    values["actant-swap"] = 1.0  # half of one group of seven
    values["counting-hard"] = 1.0  # a third of another
    assert tree_mean(get("valse").groups, values) == pytest.approx((1 / 2 + 1 / 3) / 7)


def test_suite_loads_every_item(tmp_path):
    write_suite(tmp_path)
    counts = {b: {n: len(t.items) for n, t in get(b).load(tmp_path).items()} for b in PAPER_SUITE}
    assert counts["sugarcrepe"] == dict.fromkeys(SUGARCREPE_SUBSETS, 9)
    assert counts["winoground"] == {"winoground": 6} and counts["cola"] == {"cola": 6}
    assert set(counts["valse"].values()) == {3} and len(counts["valse"]) == 11  # one of four lacks votes
    assert counts["retrieval"] == {"mscoco": 8, "flickr30k": 8}
    assert counts["zeroshot"] == {"eurosat": 9, "cifar10": 4}
    assert counts["tripletdata"] == {"tripletdata": 7}
    for name in PAPER_SUITE:
        for task in get(name).load(tmp_path).values():
            assert all(ref.exists() for ref in task.images()), name


def test_sugarcrepe_keys_stray_values_and_missing_images(tmp_path):
    write_sugarcrepe(tmp_path, {"swap_obj": 3}, images=2)
    path = tmp_path / "sugar-crepe" / "swap_obj.json"
    content = json.loads(path.read_text())
    content["999"] = {"filename": "gone.jpg", "caption": "a", "negative_caption": "b"}
    content["1234"] = {"filename": "gone.jpg", "caption": "a"}
    content["version"] = 2
    content["7"] = {"filename": "../../etc/passwd", "caption": "a", "negative_caption": "b"}
    path.write_text(json.dumps(content))
    task = get("sugarcrepe").load(tmp_path)["swap_obj"]
    assert [item.name for item in task.items] == ["0", "1", "2", "999", "7"]
    assert dict(task.dropped) == {"annotation incomplete": 1, "stray value in the annotations": 1}
    assert any("1234 lacks negative_caption" in name for name in task.named)
    assert task.items[-1].image.path.endswith("val2017/passwd")  # never outside the images' folder
    missing = {ref: "image missing" for ref in set(task.images()) if not ref.exists()}
    task.drop(missing)
    assert len(task.items) == 3 and task.dropped["image missing"] == 2


def test_damaged_annotations_are_named(tmp_path):
    write_sugarcrepe(tmp_path, {"add_att": 1})
    (tmp_path / "sugar-crepe" / "add_att.json").write_text('{"0": {"filename"')
    with pytest.raises(DataError, match="add_att.json: cannot be read as JSON"):
        get("sugarcrepe").load(tmp_path)
    (tmp_path / "sugar-crepe" / "add_att.json").write_text('"text"')
    with pytest.raises(DataError, match="found str"):
        get("sugarcrepe").load(tmp_path)


def test_sugarcrepe_in_the_authors_and_clip_benchmarks_layout(tmp_path):
    for folder, images in (("sugar-crepe/data", "coco/val2017"), ("", "val2017")):
        root = tmp_path / (folder or "flat").replace("/", "_")
        save_picture(root / images / "1.jpg", 0)
        entry = {"filename": "1.jpg", "caption": "a", "negative_caption": "b"}
        write_json(root / folder / "add_obj.json", {"0": entry})
        assert get("sugarcrepe").load(root)["add_obj"].items[0].image.exists()


def test_winoground_from_the_zip_as_published(tmp_path):
    write_pairs(tmp_path)
    folder = tmp_path / "winoground" / "data"
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for path in sorted((folder / "images").iterdir()):
            archive.write(path, f"images/{path.name}")
            path.unlink()
    (folder / "images").rmdir()
    with open(folder / "examples.jsonl", "a") as file:
        file.write('{"id": 9}\nnot json\n')
    task = get("winoground").load(tmp_path)["winoground"]
    assert len(task.items) == 6 and task.dropped["annotation incomplete"] == 2
    ref = task.items[3].images[1]
    assert ref.exists() and ref.read()[:4] == b"\x89PNG"


def test_retrieval_keeps_captions_with_commas_and_counts_images_without(tmp_path):
    write_retrieval(tmp_path)
    tasks = get("retrieval").load(tmp_path)
    assert tasks["flickr30k"].items[2].captions[0] == "A caption, with commas, 2 0"
    assert [len(item.captions) for item in tasks["mscoco"].items[:3]] == [5, 4, 5]
    path = tmp_path / "mscoco_captions" / "coco_test_karpathy.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 99, "file_name": "x.jpg"})
    path.write_text(json.dumps(content))
    assert get("retrieval").load(tmp_path)["mscoco"].dropped == {"image without captions": 1}


def test_retrieval_from_shards_is_noted_as_another_split(tmp_path):
    write_paired_shard(
        tmp_path / "flickr8k" / "val-00000.tar", range(3), s1={"json": {"captions": ["x", "y"]}}
    )
    task = get("retrieval").load(tmp_path)["flickr8k"]
    assert [item.captions for item in task.items] == [
        ("a thing number 0",),
        ("x", "y"),
        ("a thing number 2",),
    ]
    assert "not the Karpathy" in task.note
    assert task.items[0].image.read() == jpeg(0)


def test_zeroshot_export_has_its_own_words_and_reads_in_place(tmp_path):
    write_zeroshot(tmp_path)
    with open(tmp_path / "zeroshot" / "wds_vtab-eurosat" / "classnames.txt", "a") as file:
        file.write("\n  \n")  # blank lines at the end are no class
    task = get("zeroshot").load(tmp_path)["eurosat"]
    assert (
        task.classes == ["forest", "river", "sea"] and task.prompts("sea")[1] == "a satellite photo of sea."
    )
    assert sorted(item.label for item in task.items) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert task.items[0].image.read()[8:12] == b"WEBP"
    (tmp_path / "zeroshot" / "wds_vtab-eurosat" / "test" / "1.tar").unlink()
    assert get("zeroshot").load(tmp_path)["eurosat"].dropped == {"shard missing": 1}


def test_zeroshot_words_of_a_plain_folder_are_clip_benchmarks(tmp_path):
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    write_zeroshot(tmp_path)
    task = get("zeroshot").load(tmp_path)["cifar10"]
    templates = json.load(
        open(builder.__file__.replace("builder.py", "en_zeroshot_classification_templates.json"))
    )
    assert task.templates == templates["cifar10"] and task.classes == ["airplane", "bird"]


def test_zeroshot_export_matches_clip_benchmarks_reader(tmp_path):
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    write_zeroshot(tmp_path)
    theirs = builder.build_dataset(
        "wds/vtab/eurosat",
        root=str(tmp_path / "zeroshot" / "wds_vtab-eurosat"),
        transform=lambda image: image.size,
    )
    ours = get("zeroshot").load(tmp_path)["eurosat"]
    assert theirs.classes == ours.classes and theirs.templates == ours.templates
    assert [label for _, label in theirs] == [item.label for item in ours.items]


def test_tripletdata_leaves_out_half_samples_and_damaged_shards(tmp_path):
    path = tmp_path / "tripletdata" / "0.tar"
    write_paired_shard(
        path, range(4), s1={"neg.jpg": None}, s2={"neg.txt": None, "json": {"neg_captions": ["z"]}}
    )
    task = get("tripletdata").load(tmp_path)["tripletdata"]
    assert len(task.items) == 3 and task.dropped == {"without neg_image": 1}
    assert task.items[1].captions == ("a thing number 2", "z")
    path.write_bytes(path.read_bytes()[:1300])
    task = get("tripletdata").load(tmp_path)["tripletdata"]
    assert task.dropped == {"shard damaged": 1} and "0.tar" in task.named[0] and not task.items


def test_aro_crops_to_the_box(tmp_path):
    save_picture(tmp_path / "aro" / "images" / "7.jpg", 1)
    entry = {
        "image_path": "7.jpg",
        "true_caption": "a on b",
        "false_caption": "b on a",
        "relation_name": "on",
        "bbox_x": 4,
        "bbox_y": 6,
        "bbox_w": 10,
        "bbox_h": 12,
    }
    write_json(tmp_path / "aro" / "visual_genome_relation.json", [entry, {**entry, "bbox_w": 0}])
    task = get("aro").load(tmp_path)["vg_relation"]
    assert task.items[0].image.crop == (4, 6, 14, 18) and task.items[0].groups == ("on",)
    assert task.dropped == {"annotation incomplete": 1}


def test_sugarcrepe_pp_needs_both_positives(tmp_path):
    entry = {"id": 0, "filename": "1.jpg", "caption": "a", "caption2": "b", "negative_caption": "c"}
    write_json(tmp_path / "scpp" / "data" / "swap_obj.json", [entry])
    item = get("sugarcrepe_pp").load(tmp_path)["swap_obj"].items[0]
    assert item.positives == ("a", "b") and item.negatives == ("c",)


def test_bivlc_from_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet  # noqa: F401

    row = {
        "image": {"bytes": jpeg(0), "path": None},
        "caption": "a",
        "negative_caption": "b",
        "negative_image": {"bytes": jpeg(1), "path": None},
        "type": "swap",
        "subtype": "obj",
    }
    folder = tmp_path / "bivlc" / "data"
    folder.mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist([row, row]), folder / "test-00000-of-00001.parquet")
    items = get("bivlc").load(tmp_path)["bivlc"].items
    assert len(items) == 2 and items[0].captions == ("a", "b")
    assert [ref.read() for ref in items[0].images] == [jpeg(0), jpeg(1)]


def test_negbench_choice_of_four(tmp_path):
    path = tmp_path / "negbench" / "images" / "COCO_val_mcq_llama3.1_rephrased.csv"
    path.parent.mkdir(parents=True)
    columns = ["image_path", "correct_answer", *(f"caption_{i}" for i in range(4)), "correct_answer_template"]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [columns, ["data/1.jpg", 2, "a", "b", "c", "d", "negative"], ["x.jpg", 9, *"abcd", ""]]
        )
    task = get("negbench").load(tmp_path)["coco_mcq"]
    assert task.items[0].positives == ("c",) and task.items[0].negatives == ("a", "b", "d")
    assert task.items[0].groups == ("negative",) and task.dropped == {"annotation incomplete": 1}


def test_real_annotations_have_the_published_sizes(real_data):
    for name in ("sugarcrepe", "valse", "cola"):
        tasks = get(name).load(real_data)
        assert {n: len(t.items) for n, t in tasks.items()} == dict(get(name).expected)
        assert not any(task.dropped for task in tasks.values())


def test_inventory_tells_found_from_expected(tmp_path):
    write_valse(tmp_path)
    text = describe(get("valse"), tmp_path)
    assert "plurals: 3 of 851 items" in text and "MIT" in text


@pytest.fixture
def real_data():
    import os
    from pathlib import Path

    root = os.environ.get("TRIPLET_TEST_DATA")
    if not root:
        pytest.skip("TRIPLET_TEST_DATA is not set: no real data to read")
    return Path(root)
