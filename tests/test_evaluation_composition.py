"""The composition benchmarks beyond the paper, each against its authors' evaluator written out plainly.

The plain versions read the authors' files themselves and follow their scripts' rules with loops; both sides
see the same made-up embeddings, so every item's outcome has to agree, not an average.
"""

import csv
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from composition_fixtures import WRITERS, write_csv
from evaluation_fixtures import tiny_clip, write_json
from open_clip_triplet.errors import DataError
from open_clip_triplet.evaluation import evaluate
from open_clip_triplet.evaluation.benchmarks import RETENTION, get, names, suite
from open_clip_triplet.evaluation.benchmarks.half_truths import OrderTask
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.results import build_result
from open_clip_triplet.evaluation.tasks import Choice, ImageChoice, ImageChoiceTask


def vector(key: str) -> np.ndarray:
    """A unit vector in 3 dimensions that depends on the key alone."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    found = np.random.default_rng(seed).standard_normal(3)
    return found / np.linalg.norm(found)


def similarity(image: str, caption: str) -> float:
    return float(vector(f"image {image}") @ vector(f"caption {caption}"))


def image_rows(refs) -> np.ndarray:
    return np.stack([vector(f"image {ref}") for ref in refs])


def text_rows(captions) -> np.ndarray:
    return np.stack([vector(f"caption {caption}") for caption in captions])


@pytest.fixture(scope="module", params=WRITERS)
def loaded(request, tmp_path_factory):
    """(name, root, tasks, outcomes) of one benchmark's small data."""
    root = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](root)
    tasks = get(request.param).load(root)
    return (
        request.param,
        root,
        tasks,
        {name: task.score(image_rows, text_rows) for name, task in tasks.items()},
    )


def winoground(i0, i1, c0, c1) -> dict[str, bool]:
    text = similarity(i0, c0) > similarity(i0, c1) and similarity(i1, c1) > similarity(i1, c0)
    image = similarity(i0, c0) > similarity(i1, c0) and similarity(i1, c1) > similarity(i0, c1)
    return {"text": text, "image": image, "group": text and image}


def columns(rows: list[dict]) -> dict[str, list[bool]]:
    return {metric: [row[metric] for row in rows] for metric in rows[0]}


def plain_whatsup(root: Path):
    """The authors' Controlled_Images.evaluate_scores and COCO_QA/VG_QA.evaluate_scores."""
    for subset, folder in (("controlled_a", "controlled_images"), ("controlled_b", "controlled_clevr")):
        right, by_objects = [], defaultdict(dict)
        for entry in json.loads((root / "whatsup" / f"{folder}_dataset.json").read_text()):
            name = entry["image_path"].split("/")[-1]
            scores = [similarity(root / "whatsup" / folder / name, c) for c in entry["caption_options"]]
            right.append(int(np.argmax(scores)) == 0)
            by_objects[name.split("_")[0], name.split("_")[-1][:-5]][name.split("_")[1]] = right[-1]
        other = ("on", "under") if subset == "controlled_a" else ("in-front", "behind")
        pairs = [
            all(found[r] for r in pair)
            for found in by_objects.values()
            for pair in (("left", "right"), other)
        ]
        sets = [sum(found.values()) == 4 for found in by_objects.values()]
        yield subset, {"accuracy": right, "pair": pairs, "set": sets}
    for subset, file, place in (
        ("coco_one", "coco_qa_one_obj", "coco/val2017/{:012d}.jpg"),
        ("coco_two", "coco_qa_two_obj", "coco/val2017/{:012d}.jpg"),
        ("vg_one", "vg_qa_one_obj", "whatsup/vg_images/{}.jpg"),
        ("vg_two", "vg_qa_two_obj", "whatsup/vg_images/{}.jpg"),
    ):
        right = []
        for identity, good, bad in json.loads((root / "whatsup" / f"{file}.json").read_text()):
            scores = [similarity(root / place.format(identity), c) for c in (good, bad)]
            right.append(int(np.argmax(scores)) == 0)
        yield subset, {"accuracy": right}


def plain_mmvp_vlm(root: Path):
    """The authors' benchmark_model: two statements, each with the softmax over the two images."""
    with open(root / "mmvp_vlm" / "Questions.csv", newline="") as stream:
        reader = csv.reader(stream)
        next(reader)
        rows = list(reader)
    patterns = list(get("mmvp_vlm").expected)
    found = defaultdict(list)
    for number, (first, second) in enumerate(zip(rows[::2], rows[1::2])):
        folder = root / "mmvp_vlm" / "MLLM_VLM Images" / first[1]
        images = [folder / f"{row[0]}.jpg" for row in (first, second)]
        picks = []
        for row in (first, second):
            scores = np.exp([100 * similarity(image, "a photo of " + row[2]) for image in images])
            picks.append("img1" if scores[0] / scores.sum() > 0.5 else "img2")
        found[patterns[number // 15]].append(picks == ["img1", "img2"])
    for pattern in patterns:
        yield pattern, {"image": found[pattern]}


def plain_colorswap(root: Path):
    rows = []
    for x in json.loads((root / "colorswap" / "test.json").read_text()):
        images = [root / "colorswap" / x[f"image_{i}"] for i in (1, 2)]
        rows.append(winoground(*images, x["caption_1"], x["caption_2"]))
    yield "colorswap", columns(rows)


def plain_crepe(root: Path):
    """get_one2many_rank: the place of the caption among itself and its hard negatives; R@1."""
    for kind in ("atom", "swap", "negate"):
        right = []
        for complexity in range(4, 13):
            folder = root / "crepe" / "prod_hard_negatives" / kind
            with open(folder / f"prod_vg_hard_negs_{kind}_complexity_{complexity}.csv", newline="") as stream:
                for row in csv.DictReader(stream):
                    x, y, w, h = (int(row[k]) for k in ("x", "y", "width", "height"))
                    places = [
                        root / "visual_genome" / d / f"{row['image_id']}.jpg"
                        for d in ("VG_100K", "VG_100K_2")
                    ]
                    image = f"{next(p for p in places if p.exists())} {(x, y, x + w, y + h)}"
                    # the fixture's captions hold both kinds of quotes: a JSON reader would not do
                    import ast

                    captions = [row["caption"], *ast.literal_eval(row["hard_negs"])]
                    ranking = np.argsort([-similarity(image, caption) for caption in captions])
                    right.append(int(np.where(ranking == 0)[0][0]) < 1)
        yield kind, {"accuracy": right}


def plain_half_truths(root: Path):
    """summarize of the authors' script."""
    import pyarrow.parquet as parquet

    for subset in ("coco_qwen", "coco_mistral", "cc3m_qwen"):
        path = root / "half_truths" / "data" / f"{subset}.parquet"
        accuracy, ordering = [], []
        for number, row in enumerate(parquet.read_table(path).to_pylist()):
            anchor, half, full = (
                similarity(f"{path}!image[{number}]", row[k]) for k in ("anchor", "half_truth", "full_truth")
            )
            accuracy.append(anchor > half)
            ordering.append(full > anchor > half)
        yield subset, {"accuracy": accuracy, "ordering": ordering}


def plain_vismin(root: Path):
    """compute_contrastive_accuracy."""
    import pyarrow.parquet as parquet

    path, rows = root / "vismin" / "test.parquet", []
    for number, row in enumerate(parquet.read_table(path).to_pylist()):
        images = [f"{path}!image_{i}[{number}]" for i in (0, 1)]
        rows.append(winoground(*images, row["text_0"], row["text_1"]))
    yield "vismin", columns(rows)


def plain_spec(root: Path):
    """i2t_evaluate and t2i_evaluate: the arg-max is the label."""
    for folder in sorted((root / "spec" / "data").iterdir()):
        right = []
        for x in json.loads((folder / "image2text.json").read_text()):
            right.append(
                int(np.argmax([similarity(folder / x["query"], key) for key in x["keys"]])) == x["label"]
            )
        yield f"{folder.name}_i2t", {"accuracy": right}
        right = []
        for x in json.loads((folder / "text2image.json").read_text()):
            right.append(
                int(np.argmax([similarity(folder / key, x["query"]) for key in x["keys"]])) == x["label"]
            )
        yield f"{folder.name}_t2i", {"accuracy": right}


def plain_svo_probes(root: Path):
    found = defaultdict(list)
    with open(root / "svo_probes" / "svo_probes.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            images = [
                next((root / "svo_probes" / "images").glob(f"{row[f'{side}_image_id']}.*"))
                for side in ("pos", "neg")
            ]
            kind = next(kind for kind in ("subj_neg", "verb_neg", "obj_neg") if row[kind] == "True")
            found[kind].append(
                similarity(images[0], row["sentence"]) > similarity(images[1], row["sentence"])
            )
    for kind, right in found.items():
        yield kind, {"accuracy": right}


def plain_vl_checklist(root: Path):
    """eval of task itc: the first positive text above the first negative one."""
    from open_clip_triplet.evaluation.benchmarks.vl_checklist import TYPES

    for kind, files in TYPES.items():
        for name, file in files.items():
            folder = (
                root / "vl_checklist" / {"swig": "swig", "hake": "hake"}.get(name.partition("_")[0], "vg")
            )
            right = []
            for path, texts in json.loads((root / "vl_checklist" / "data" / file).read_text())[:1000]:
                right.append(
                    similarity(folder / path, texts["POS"][0]) > similarity(folder / path, texts["NEG"][0])
                )
            yield f"{kind}_{name}", {"accuracy": right}


def plain_eqben(root: Path):
    """cal_wino_score per subset."""
    found = defaultdict(list)
    for x in json.loads((root / "eqben" / "all_select.json").read_text()):
        subset = x["image0"].split("/")[0].removeprefix("eqben")
        if subset == "youcook2":
            continue
        images = [root / "eqben" / "images" / x[f"image{i}"] for i in (0, 1)]
        images = [image if image.exists() else image.with_suffix(".jpg") for image in images]
        captions = [x[f"caption{i}"] for i in (0, 1)]
        found[subset].append(winoground(*images, *(c[0] if isinstance(c, list) else c for c in captions)))
    for subset, rows in found.items():
        yield subset, columns(rows)


def plain_long_retrieval(root: Path):
    """Urban1k.py: the arg-max of each row, and of each column, is its own."""
    docci = [
        json.loads(line)
        for line in (root / "docci" / "docci_descriptions.jsonlines").read_text().splitlines()
    ]
    sets = {
        "docci": [
            (root / "docci" / "images" / x["image_file"], x["description"])
            for x in docci
            if x["split"] == "test"
        ],
        "urban1k": [
            (root / "Urban1k" / "image" / f"{path.stem}.jpg", path.read_text().splitlines()[0].strip())
            for path in sorted((root / "Urban1k" / "caption").glob("*.txt"))
        ],
    }
    for name, pairs in sets.items():
        scores = np.array([[similarity(image, caption) for _, caption in pairs] for image, _ in pairs])
        own = np.arange(len(pairs))
        yield name, {"i2t_r1": scores.argmax(1) == own, "t2i_r1": scores.argmax(0) == own}


def test_every_item_is_as_the_authors_evaluator_has_it(loaded):
    name, root, tasks, outcomes = loaded
    compared = 0
    for subset, expected in globals()[f"plain_{name}"](root):
        outcome = outcomes[subset]
        assert not tasks[subset].dropped, subset
        for metric, right in expected.items():
            assert outcome.right[metric].tolist() == [bool(x) for x in right], (subset, metric)
            assert outcome.metrics[metric]["value"] == pytest.approx(np.mean(right))
            compared += len(right)
    assert compared and set(outcomes) == {subset for subset, _ in globals()[f"plain_{name}"](root)}


def test_both_outcomes_occur(loaded):
    """The comparison above can fail: neither all items are right nor all wrong."""
    _, _, _, outcomes = loaded
    everything = np.concatenate([right for outcome in outcomes.values() for right in outcome.right.values()])
    assert 0 < everything.mean() < 1


def test_every_image_is_there_and_every_item_has_a_row(loaded):
    name, _, tasks, outcomes = loaded
    for subset, task in tasks.items():
        assert all(ref.exists() for ref in task.images()), subset
        rows = list(outcomes[subset].rows())
        if name == "long_retrieval":  # a row each way
            assert len(rows) == 2 * len(task.items)
            continue
        assert [row["key"] for row in rows] == [item.name for item in task.items]
        for metric in rows[0]["outcome"]:
            assert [row["outcome"][metric] for row in rows] == outcomes[subset].right[metric].tolist()
        json.dumps(rows, allow_nan=False)


def test_vl_checklist_averages_data_sets_then_types(tmp_path):
    benchmark = get("vl_checklist")
    WRITERS["vl_checklist"](tmp_path)
    tasks = benchmark.load(tmp_path)
    outcomes = {name: task.score(image_rows, text_rows) for name, task in tasks.items()}
    result = build_result(benchmark, tasks, outcomes, checkpoint={"name": "x"}, remarks={}, captions={})
    by_type = defaultdict(lambda: defaultdict(list))
    for name, outcome in outcomes.items():
        kind = next(k for k in sorted(_types(), key=len, reverse=True) if name.startswith(k))
        by_type[kind][name[len(kind) + 1 :].split("_")[0]].append(outcome.right["accuracy"].mean())
    means = [np.mean([np.mean(files) for files in data.values()]) for data in by_type.values()]
    assert len(means) == 13
    assert result["summary"]["overall"]["value"] == pytest.approx(np.mean(means))


def _types():
    from open_clip_triplet.evaluation.benchmarks.vl_checklist import TYPES

    return TYPES


@pytest.mark.parametrize("name", WRITERS)
def test_the_whole_way_with_a_real_model(name, tmp_path):
    """Images are decoded, cropped and encoded; metrics come out under the benchmark's partial name."""
    WRITERS[name](tmp_path)
    model, preprocess, tokenizer = tiny_clip()
    found = evaluate(
        model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=[name],
        data_root=tmp_path,
        allow_partial=True,
    )
    result = found.results[name]
    assert not found.skipped and all(not s["dropped"] for s in result["subsets"].values())
    assert result["complete"] == (name in ("mmvp_vlm", "half_truths"))  # those whose fixture has every item
    labels = [headline["label"] for headline in result["headlines"]]
    assert len(labels) == len(set(labels)) and bool(labels) == bool(get(name).headlines)


def test_sizes_are_the_published_ones():
    sums = {name: sum(get(name).expected.values()) for name in WRITERS}
    assert sums == {
        "whatsup": 4958,
        "mmvp_vlm": 135,
        "colorswap": 300,
        "crepe": 42406,
        "half_truths": 0,
        "vismin": 2084,
        "spec": 30000,
        "svo_probes": 0,
        "vl_checklist": 46797,
        "eqben": 205199,
        "long_retrieval": 6000,
    }


def test_suites():
    assert suite("all") == names() and set(suite("composition")) == set(names()) - set(RETENTION)
    assert {"whatsup", "half_truths", "sugarcrepe", "aro"} <= set(suite("composition"))
    with pytest.raises(ValueError, match="paper, composition, all"):
        suite("x")


JUNK = [
    None,
    7,
    [],
    ["x"],
    {},
    {"query": "a", "keys": ["b"], "label": 0},
    [1, None, "x"],
    ["../../etc/passwd", {}],
]


@pytest.mark.parametrize(
    "name, file",
    [
        ("whatsup", "whatsup/controlled_images_dataset.json"),
        ("whatsup", "whatsup/vg_qa_one_obj.json"),
        ("spec", "spec/data/count/image2text.json"),
        ("vl_checklist", "vl_checklist/data/Attribute/vg/color.json"),
        ("eqben", "eqben/all_select.json"),
        ("colorswap", "colorswap/test.json"),
    ],
)
def test_malformed_items_are_named_and_files_refused(name, file, tmp_path):
    write_json(tmp_path / file, JUNK)
    tasks = get(name).load(str(tmp_path))
    dropped = sum(sum(task.dropped.values()) for task in tasks.values())
    assert dropped == len(JUNK) and not any(task.items for task in tasks.values())
    write_json(tmp_path / file, "text")
    with pytest.raises(DataError, match=Path(file).name):
        get(name).load(tmp_path)


def test_captions_of_crepe_are_parsed_and_never_run(tmp_path):
    folder = tmp_path / "crepe" / "prod_hard_negatives" / "atom"
    fields = ["image_id", "caption", "hard_negs", "x", "y", "width", "height"]
    marker = tmp_path / "ran"
    code = f"[open({str(marker)!r}, 'w').write('x')]"
    rows = [
        [1, "a", negatives, 0, 0, 9, 9]
        for negatives in (code, "__import__('os')", "[1, 2]", "[", "[]", "'x'")
    ]
    rows += [
        [1, "a", "['b']", *box] for box in (("nan", 0, 9, 9), (0, 0, 0, 9), ("inf", 0, 1, 1), (0, 0, 1e9, 1))
    ]
    write_csv(
        folder / "prod_vg_hard_negs_atom_complexity_4.csv",
        fields,
        [*rows, [1, "a", "['b', 'c']", 0, 0, 9, 9]],
    )
    task = get("crepe").load(tmp_path)["atom"]
    assert [item.negatives for item in task.items] == [("b", "c")] and sum(task.dropped.values()) == len(rows)
    assert not marker.exists()


def test_paths_in_annotations_stay_inside(tmp_path):
    WRITERS["spec"](tmp_path)
    folder = tmp_path / "spec" / "data" / "count"
    keys = ["a", "b"]
    write_json(folder / "image2text.json", [{"query": "../../../../etc/passwd", "keys": keys, "label": 0}])
    (item,) = get("spec").load(tmp_path)["count_i2t"].items
    assert Path(item.image.path).resolve().is_relative_to(folder.resolve())


def rows_from(table: dict):
    """Embeddings by name, as a task asks for them."""
    return lambda keys: np.array([table[str(key)] for key in keys], dtype=float)


def test_image_choice_by_hand():
    images = {"right": (1, 0), "near": (0.8, 0.6), "same": (1, 0), "far": (-1, 0)}
    refs = {name: ImageRef(name) for name in images}
    items = [
        ImageChoice("right", "c", (refs["right"], refs["near"], refs["far"])),
        ImageChoice("wrong", "c", (refs["near"], refs["right"])),
        ImageChoice("tie", "c", (refs["right"], refs["same"])),
    ]
    outcome = ImageChoiceTask(items).score(rows_from(images), rows_from({"c": (1, 0)}))
    assert outcome.right["accuracy"].tolist() == [True, False, False] and outcome.ties == 1
    assert [row["scores"] for row in outcome.rows()] == [[1, 0.8, -1], [0.8, 1], [1, 1]]
    assert np.isnan(ImageChoiceTask([]).score(None, None).metrics["accuracy"]["value"])
    broken = rows_from({**images, "near": (np.nan, 0)})
    with pytest.raises(ValueError, match="NaN"):
        ImageChoiceTask(items).score(broken, rows_from({"c": (1, 0)}))


def test_half_truths_by_hand():
    captions = {"a": (0.6, 0.8), "better": (0.8, 0.6), "worse": (0.0, 1.0), "b": (0.6, 0.8)}
    cases = {  # anchor, full truth, half-truth -> accuracy, ordering
        ("a", "better", "worse"): (True, True),
        ("a", "worse", "worse"): (True, False),
        ("a", "better", "better"): (False, False),
        ("a", "better", "b"): (False, False),  # a tie with the half-truth
        ("a", "b", "worse"): (True, False),  # a tie with the full truth
    }
    items = [
        Choice(str(i), ImageRef("x"), names[:2], names[2:], ("entity",)) for i, names in enumerate(cases)
    ]
    outcome = OrderTask(items).score(rows_from({"x": (1, 0)}), rows_from(captions))
    assert list(zip(outcome.right["accuracy"].tolist(), outcome.right["ordering"].tolist())) == list(
        cases.values()
    )
    assert outcome.ties == 2 and outcome.groups["entity"]["items"] == 5


def test_pairs_and_sets_of_whatsup_by_hand(tmp_path):
    """Both of a pair, all four of a set; an item that is missing makes its pair and set wrong."""
    WRITERS["whatsup"](tmp_path)
    task = get("whatsup").load(tmp_path)["controlled_a"]
    wrong = {"mug-1_on_plate.jpeg", "mug-2_left_of_plate.jpeg", "mug-2_right_of_plate.jpeg"}
    answers = {}
    for item in task.items:
        for caption in item.captions:
            is_right = (caption in item.positives) != (Path(item.image.path).name in wrong)
            answers[item.image, caption] = is_right
    task.items = [item for item in task.items if Path(item.image.path).name != "mug-3_under_plate.jpeg"]

    order = {str(item.image): i for i, item in enumerate(task.items)}
    image_vectors = {name: np.eye(len(order))[i] for name, i in order.items()}
    text_vectors: dict[str, np.ndarray] = {}
    for (image, caption), is_right in answers.items():
        vector_of = text_vectors.setdefault(caption, np.full(len(order), 0.5))
        if str(image) in order:
            vector_of[order[str(image)]] = 1.0 if is_right else 0.0
    outcome = task.score(rows_from(image_vectors), rows_from(text_vectors))
    assert int(outcome.right["accuracy"].sum()) == 24 - 1 - 3
    assert (int(outcome.right["pair"].sum()), len(outcome.right["pair"])) == (12 - 3, 12)
    assert (int(outcome.right["set"].sum()), len(outcome.right["set"])) == (6 - 3, 6)
