"""Nothing that is wrong passes for a number: bad models, bad files, bad places to write to."""

import csv
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from composition_fixtures import WRITERS
from evaluation_fixtures import (
    jpeg,
    save_picture,
    tiny_clip,
    write_config,
    write_json,
    write_paired_shard,
    write_pairs,
    write_retrieval,
    write_sugarcrepe,
    write_suite,
    write_valse,
    write_zeroshot,
)
from open_clip_triplet.errors import DataError, NonFiniteEmbeddings, PartialData, UsageError
from open_clip_triplet.evaluation import cli, evaluate
from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.benchmarks.tripletdata import composition_scores
from open_clip_triplet.evaluation.encode import Encoder
from open_clip_triplet.evaluation.result_files import claim_folders, read_results, safe_name
from open_clip_triplet.evaluation.run import require_data, run_suite
from open_clip_triplet.evaluation.store import EmbeddingStore

REPOSITORY = Path(__file__).resolve().parents[1]


class Broken:
    """The tiny CLIP, with one bad number in each batch of images or of captions."""

    def __init__(self, images=None, texts=None):
        self.model, self.bad = tiny_clip()[0], {"image": images, "text": texts}

    def _spoil(self, features, kind):
        if self.bad[kind] is not None:
            features = features.clone()
            features[0, 3] = self.bad[kind]
        return features

    def encode_image(self, batch):
        return self._spoil(self.model.encode_image(batch), "image")

    def encode_text(self, tokens):
        return self._spoil(self.model.encode_text(tokens), "text")


def run(root, benchmarks, model=None, **options):
    clip, preprocess, tokenizer = tiny_clip()
    options = {"allow_partial": True, **options}
    return evaluate(
        model or clip, preprocess=preprocess, tokenizer=tokenizer, benchmarks=benchmarks, data_root=root, **options
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])  # the last one overflows in the norm
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_embeddings_that_are_not_finite_stop_the_run_and_are_not_stored(tmp_path, kind, bad):
    """They scored 100 %: no wrong answer compares as higher than NaN."""
    write_retrieval(tmp_path)
    write_zeroshot(tmp_path)
    store = EmbeddingStore(tmp_path / "store", {"weights": "a"})
    for benchmark in ("retrieval", "zeroshot"):
        with pytest.raises(NonFiniteEmbeddings, match="our-run in fp16: 1 of .* are NaN or infinite") as caught:
            run(
                tmp_path,
                [benchmark],
                Broken(**{kind: bad}),
                store=store,
                checkpoint={"name": "our-run in fp16"},
                batch_size=4,
            )
        assert "--precision" in str(caught.value)
    rows = [np.load(part) for part in store.folder.glob("*.npy")]
    assert all(np.isfinite(part).all() for part in rows)
    with pytest.raises(ValueError, match="1 of 2 rows"):
        store.add("images", ["a", "b"], np.array([[1, 0], [math.nan, 1]]))
    write_paired_shard(tmp_path / "0.tar", range(3))
    _, preprocess, tokenizer = tiny_clip()
    with pytest.raises(NonFiniteEmbeddings):
        composition_scores(Broken(**{kind: bad}), str(tmp_path / "0.tar"), preprocess, tokenizer)


def test_a_checkpoint_of_nan_ends_the_command_with_one_line(tmp_path, capsys):
    write_pairs(tmp_path / "data")
    state = tiny_clip()[0].state_dict()
    state = {name: x.clone() for name, x in state.items()}
    state["visual.proj"][0, 0] = math.nan
    torch.save({"state_dict": state}, tmp_path / "nan.pt")
    arguments = ["--model-config", str(write_config(tmp_path)), "--pretrained", str(tmp_path / "nan.pt")]
    places = ["--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--quiet"]
    status = cli.main(["run", *arguments, *places, "--benchmarks", "cola", "--allow-partial", "--device", "cpu"])
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: nan in fp32: 12 of 12 image embeddings")
    assert error.count("\n") == 1 and not (tmp_path / "out" / "nan").exists()


# --- annotation files -------------------------------------------------------------------------------

JUNK = [
    None, 5, -1, 1e400, True, [], {}, ["a"], {"a": 1}, "", " ", "x" * 5000, "\ud800", [[]], "../../etc/passwd", "a\0b",
    math.nan, 10**400,
]


def write_aro(root, **changes):
    save_picture(root / "aro" / "images" / "7.jpg", 1)
    entry = {
        "image_path": "7.jpg", "true_caption": "a on b", "false_caption": "b on a", "relation_name": "on",
        "bbox_x": 4, "bbox_y": 6, "bbox_w": 10, "bbox_h": 12, **changes,
    }
    write_json(root / "aro" / "visual_genome_relation.json", [entry] * 2)
    attribution = {**entry, "attributes": ["red", "blue"]}
    write_json(root / "aro" / "visual_genome_attribution.json", [attribution, {**attribution, **changes}])


def write_scpp(root):
    entry = {"id": 0, "filename": "1.jpg", "caption": "a", "caption2": "b", "negative_caption": "c"}
    save_picture(root / "coco" / "val2017" / "1.jpg", 1)
    write_json(root / "scpp" / "data" / "swap_obj.json", [entry])


ANNOTATIONS = {
    "sugarcrepe": (lambda root: write_sugarcrepe(root, {"add_obj": 3}), "sugar-crepe/add_obj.json"),
    "valse": (lambda root: write_valse(root), "valse/plurals.json"),
    "cola": (lambda root: write_pairs(root), "cola/COLA_multiobjects_matching_benchmark.json"),
    "winoground": (lambda root: write_pairs(root), "winoground/data/examples.jsonl"),
    "retrieval": (lambda root: write_retrieval(root), "mscoco_captions/coco_test_karpathy.json"),
    "aro": (write_aro, "aro/visual_genome_attribution.json"),
    "sugarcrepe_pp": (write_scpp, "scpp/data/swap_obj.json"),
    "colorswap": (WRITERS["colorswap"], "colorswap/test.json"),
    "eqben": (WRITERS["eqben"], "eqben/all_select.json"),
    "spec": (WRITERS["spec"], "spec/data/count/text2image.json"),
    "vl_checklist": (WRITERS["vl_checklist"], "vl_checklist/data/Attribute/vg/color.json"),
    "whatsup": (WRITERS["whatsup"], "whatsup/controlled_images_dataset.json"),
}


def _places(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


def _with(value, path, junk):
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], junk)
    return copy


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_junk_anywhere_in_annotations_is_left_out_or_refused_by_name(tmp_path, name):
    write, place = ANNOTATIONS[name]
    write(tmp_path)
    file, lines = tmp_path / place, place.endswith("jsonl")
    text = file.read_text()
    content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    places = list(_places(content))
    tries = [(path, junk) for path in places for junk in JUNK]
    for path, junk in random.Random(0).sample(tries, min(len(tries), 150)):
        changed = _with(content, path, junk)
        if lines:
            changed = changed if isinstance(changed, list) else [changed]
            file.write_text("\n".join(map(json.dumps, changed)))
        else:
            file.write_text(json.dumps(changed))
        try:
            tasks = get(name).load(tmp_path)
        except DataError as error:
            assert place.rpartition("/")[2] in str(error), (path, junk)
            continue
        for task in tasks.values():
            for item in task.items:
                assert all(isinstance(c, str) and c.strip() and c != "None" for c in item.captions), (path, junk)
                assert all(ref.exists() in (True, False) for ref in item.images)
                assert all(isinstance(group, str) for group in getattr(item, "groups", ()))
            assert all(len(named) < 400 for named in task.named)
            if task.dropped:
                assert any(place.rpartition("/")[2].partition(".")[0] in named for named in task.named)


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_bytes_that_are_not_utf8_are_refused_by_name(tmp_path, name):
    write, place = ANNOTATIONS[name]
    write(tmp_path)
    (tmp_path / place).write_bytes(b"\xff\xfe" + (tmp_path / place).read_bytes())
    with pytest.raises(DataError, match=Path(place).name):
        get(name).load(tmp_path)


def test_a_caption_that_is_none_makes_retrieval_partial(tmp_path):
    """A caption fewer changes the recall of all the others."""
    write_retrieval(tmp_path)
    assert not get("retrieval").load(tmp_path)["mscoco"].note
    path = tmp_path / "mscoco_captions" / "coco_test_karpathy.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["caption"] = None
    write_json(path, content)
    task = get("retrieval").load(tmp_path)["mscoco"]
    assert task.note == "1 captions cannot be read" and not task.whole
    assert task.named == ["annotation incomplete: coco_test_karpathy.json annotations[3]"]


def test_a_line_that_is_no_caption_makes_flickr_partial(tmp_path):
    write_retrieval(tmp_path)
    path = tmp_path / "flickr30k" / "flickr30k_test_karpathy.txt"
    lines = path.read_text().splitlines()
    caption = lines[1].partition(",")[2]
    path.write_text("\n".join([lines[0], f"{lines[1]}\u2028next to it", *lines[2:]]))
    task = get("retrieval").load(tmp_path)["flickr30k"]
    assert task.items[0].captions[0] == f"{caption}\u2028next to it" and not task.note  # one line, as JSON's and csv's
    path.write_text("\n".join([*lines, "1.jpg"]))
    task = get("retrieval").load(tmp_path)["flickr30k"]
    task.expected = len(task.items)  # every image is there
    assert task.note == "1 captions cannot be read" and not task.whole
    assert task.named == ["annotation incomplete: flickr30k_test_karpathy.txt: 1.jpg"]


def test_a_line_separator_within_a_caption_ends_no_line(tmp_path):
    write_pairs(tmp_path)
    path = tmp_path / "winoground" / "data" / "examples.jsonl"
    first, *others = map(json.loads, path.read_text().splitlines())
    first["caption_0"] = "a dog\u2028on a mat"
    path.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in (first, *others)))
    task = get("winoground").load(tmp_path)["winoground"]
    assert not task.dropped and task.items[0].captions[0] == "a dog\u2028on a mat"


def test_a_field_too_long_for_csv_is_refused_by_name(tmp_path):
    WRITERS["mmvp_vlm"](tmp_path)
    path = next(tmp_path.glob("*/Questions.csv"))
    path.write_text(path.read_text() + f'\n271,Texts,"{"x" * 200_000}"\n')
    with pytest.raises(DataError, match=r"Questions.csv line \d+: field larger than field limit"):
        get("mmvp_vlm").load(tmp_path)


def test_annotations_without_an_item_are_told_as_such(tmp_path):
    write_json(tmp_path / "cola" / "COLA_multiobjects_matching_benchmark.json", [])
    with pytest.raises(PartialData, match="cola: annotations found, but no item in them"):
        require_data(["cola"], tmp_path)


@pytest.mark.parametrize("shape", [[], 5, "captions", {"images": {}}, {"images": [], "annotations": None}, None])
def test_coco_captions_of_another_shape_are_refused(tmp_path, shape):
    write_retrieval(tmp_path)
    write_json(tmp_path / "mscoco_captions" / "coco_test_karpathy.json", shape)
    with pytest.raises(DataError, match="coco_test_karpathy.json: expected COCO's captions format"):
        get("retrieval").load(tmp_path)


def test_boxes(tmp_path):
    """Infinite, huge, or of another image: left out by name. A little beyond the edge is black, as PIL does."""
    for box in ({"bbox_x": math.inf}, {"bbox_w": 1e9}, {"bbox_h": math.nan}, {"bbox_y": "4"}, {"bbox_w": None}):
        write_aro(tmp_path, **box)
        assert get("aro").load(tmp_path)["vg_relation"].dropped == {"annotation incomplete": 2}
    write_aro(tmp_path, attributes=5)
    assert len(get("aro").load(tmp_path)["vg_attribution"].items) == 1
    for box, items in (({"bbox_w": 90_000, "bbox_h": 90_000}, 0), ({"bbox_x": 300}, 0), ({"bbox_w": 60}, 2)):
        write_aro(tmp_path, **box)
        subset = run(tmp_path, ["aro"]).results["aro"]["subsets"].get("vg_relation", {"items": 0})
        assert subset["items"] == items, box
        assert items or subset["dropped"] == {"image damaged": 2}


def test_negbench_fields_that_cannot_be(tmp_path):
    path = tmp_path / "negbench" / "COCO_val_mcq_llama3.1_rephrased.csv"
    path.parent.mkdir()
    columns = ["image_path", "correct_answer", *(f"caption_{i}" for i in range(4)), "correct_answer_template"]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, ["1.jpg", 0, "a" * 140_000, "b", "c", "d", "hybrid"]])
    with pytest.raises(DataError, match="rephrased.csv line 2: field larger than field limit"):
        get("negbench").load(tmp_path)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, ["1.jpg", 0, "a", "b", "c", "d", "hybrid"]])
    task = get("negbench").load(tmp_path)["coco_mcq"]
    assert task.expected == 5914 and not task.whole  # shorter than published


@pytest.mark.parametrize("text", ["99999999999", "-1", "two", "", "²"])
def test_an_impossible_number_of_shards_is_refused_at_once(tmp_path, text):
    write_zeroshot(tmp_path)
    (tmp_path / "zeroshot" / "wds_vtab-eurosat" / "test" / "nshards.txt").write_text(text)
    with pytest.raises(DataError, match="nshards.txt: expected a number"):
        get("zeroshot").load(tmp_path)


def test_bivlc_reads_a_read_only_root_in_place_and_leaves_out_what_is_no_caption(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def row(seed, **changes):
        image = {"bytes": jpeg(seed), "path": None}
        negative = {"bytes": jpeg(seed + 50), "path": None}
        texts = {"caption": f"a {seed}", "negative_caption": f"b {seed}", "type": ("add", "swap")[seed % 2]}
        return {"image": image, "negative_image": negative, **texts, "subtype": "obj", **changes}

    folder = tmp_path / "bivlc" / "data"
    folder.mkdir(parents=True)
    rows = [row(0), row(1, caption=None), row(2, image=None), row(3), row(4)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "test-0.parquet", row_group_size=2)
    before = sorted(tmp_path.rglob("*"))
    found = run(tmp_path, ["bivlc"]).results["bivlc"]
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked
    subset = found["subsets"]["bivlc"]
    assert subset["items"] == 3 and subset["dropped"] == {"annotation incomplete": 1, "image unreadable": 1}
    assert {name: group["items"] for name, group in subset["groups"].items()} == {"add": 2, "swap": 1}
    images = [ref.read() for item in get("bivlc").load(tmp_path)["bivlc"].items[2:] for ref in item.images]
    assert images == [jpeg(3), jpeg(53), jpeg(4), jpeg(54)]  # across row groups
    numbers = [{**row(0), "caption": 7, "negative_caption": 8}]
    parquet.write_table(pa.Table.from_pylist(numbers), folder / "test-0.parquet")
    assert get("bivlc").load(tmp_path)["bivlc"].dropped == {"annotation incomplete": 1}
    parquet.write_table(pa.Table.from_pylist([{"caption": "a"}]), folder / "test-0.parquet")
    with pytest.raises(DataError, match="test-0.parquet: lacks the columns negative_caption, type"):
        get("bivlc").load(tmp_path)
    (folder / "test-0.parquet").write_bytes(b"PAR1 not a parquet file")
    with pytest.raises(DataError, match="test-0.parquet: cannot be read as Parquet"):
        get("bivlc").load(tmp_path)


# --- results, labels, places to write to ------------------------------------------------------------


def test_labels_that_fall_on_one_folder_are_refused(tmp_path):
    def checkpoint(name, precision="fp32"):
        return {"name": name, "precision": precision, "pretrained": "x.pt"}

    assert safe_name("模型一") != safe_name("模型二") and safe_name("..") == "checkpoint"
    assert len(safe_name("模" * 300).encode()) < 255 and safe_name("x" * 300) != safe_name("x" * 301)
    claim_folders(tmp_path, [checkpoint("模型一"), checkpoint("模型二")])
    for names in (("a/b", "a b"), ("Clip", "clip")):
        with pytest.raises(UsageError, match="would both go to"):
            claim_folders(tmp_path, [checkpoint(name) for name in names])
    write_json(tmp_path / "clip" / "cola.json", {"checkpoint": checkpoint("clip", "bf16")})
    claim_folders(tmp_path, [checkpoint("clip", "bf16")])
    with pytest.raises(UsageError, match="holds results of precision 'bf16', not 'fp32'"):
        claim_folders(tmp_path, [checkpoint("clip")])


def result(**changes):
    return {
        "schema": 1, "benchmark": "cola", "title": "Cola", "complete": True, "items": 1, "expected": 1,
        "summary": {}, "subsets": {}, "checkpoint": {"name": "clip", "precision": "fp32", "weights": "a" * 64},
        **changes,
    }


def test_results_of_two_precisions_or_weights_under_one_name_never_share_a_row(tmp_path):
    write_json(tmp_path / "a" / "cola.json", result())
    other = {"name": "clip", "precision": "amp", "weights": "a" * 64}
    write_json(tmp_path / "b" / "aro.json", result(benchmark="aro", checkpoint=other))
    assert [r["checkpoint"]["name"] for r in read_results([tmp_path])] == ["clip (fp32)", "clip (amp)"]
    other = {"name": "clip", "precision": "fp32", "weights": "b" * 64}
    write_json(tmp_path / "b" / "aro.json", result(benchmark="aro", checkpoint=other))
    assert [r["checkpoint"]["name"] for r in read_results([tmp_path])] == ["clip (aaaaaaaaaaaa)", "clip (bbbbbbbbbbbb)"]


@pytest.mark.parametrize("key", ["title", "checkpoint", "complete", "items", "expected", "summary"])
def test_results_without_keys_are_refused_by_name(tmp_path, key):
    broken = result()
    del broken[key]
    write_json(tmp_path / "cola.json", broken)
    with pytest.raises(DataError, match=f"cola.json: a result without .*{key}"):
        read_results([tmp_path])


@pytest.mark.parametrize(
    "changes", [{"checkpoint": 5}, {"checkpoint": {"name": None}}, {"subsets": [1]}, {"subsets": {"a": {"items": 1}}}]
)
def test_results_of_another_shape_are_refused_by_name(tmp_path, changes):
    write_json(tmp_path / "cola.json", result(**changes))
    with pytest.raises(DataError, match="cola.json: a result without"):
        read_results([tmp_path])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write_suite(folder / "data")
    write_config(folder)
    torch.save({"state_dict": tiny_clip()[0].state_dict()}, folder / "clip.pt")
    return folder


def command(folder, *more, pretrained=("clip.pt",)):
    return [
        "run", "--model-config", str(folder / "tiny-eval.json"), "--pretrained",
        *(str(folder / name) if "=" not in name else name for name in pretrained),
        "--data-root", str(folder / "data"), "--device", "cpu", "--allow-partial", *more,
    ]  # fmt: skip


def test_a_missing_second_checkpoint_is_found_before_the_first_is_evaluated(workplace, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = command(workplace, "--suite", "paper", "--output", str(out), pretrained=("clip.pt", "gone.pt"))
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert "gone.pt: no such file" in captured.err and captured.out == ""
    assert not list(out.glob("*/*.json"))


def test_the_model_is_loaded_once(workplace, tmp_path, monkeypatch):
    from open_clip_triplet.evaluation.checkpoints import load as module

    loads, load = [], module.load
    monkeypatch.setattr(module, "load", lambda *a: loads.append(a) or load(*a))
    assert cli.main(command(workplace, "--suite", "paper", "--output", str(tmp_path))) == 0
    assert len(loads) == 1


def test_an_output_that_cannot_be_written_is_one_line(workplace, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        assert cli.main(command(workplace, "--benchmarks", "cola", "--output", str(place))) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --output {place}: cannot be written to") and error.count("\n") == 1


def test_a_full_disk_is_one_line(workplace, tmp_path):
    """A limit on a file's size stands for the full disk: both are OSErrors in the middle of a write."""

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    arguments = command(workplace, "--benchmarks", "sugarcrepe", "--output", str(tmp_path / "out"), "--quiet")
    done = subprocess.run(
        [sys.executable, "-m", "open_clip_triplet.evaluation.cli", *arguments],
        capture_output=True, text=True, preexec_fn=full, timeout=300,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "File too large" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "more, says", [(["--precision", "fp23"], "invalid choice"), (["--batch-size", "0"], "whole number of 1 or more")]
)
def test_flags_that_cannot_be(workplace, capsys, more, says):
    with pytest.raises(SystemExit) as caught:
        cli.main(command(workplace, "--benchmarks", "cola", *more))
    assert caught.value.code == 2 and says in capsys.readouterr().err


# --- killed and run again ---------------------------------------------------------------------------


def test_a_run_killed_anywhere_goes_on_where_it_was(tmp_path):
    """SIGKILL at each of the run's durable steps in turn; the last run's files equal an uninterrupted run's."""
    data = tmp_path / "data"
    write_sugarcrepe(data, {"add_obj": 9, "swap_obj": 4})
    write_pairs(data)
    model, preprocess, tokenizer = tiny_clip()

    def whole_run(folder):
        from open_clip_triplet.evaluation.result_files import write_result

        names = ["sugarcrepe", "cola", "winoground"]
        store = EmbeddingStore(folder / "store", {"weights": "a"})
        return run_suite(
            lambda: Encoder(model, preprocess, tokenizer), list(map(get, names)), data, store,
            checkpoint={"name": "x"}, allow_partial=True,
            on_result=lambda result, outcomes: write_result(folder, result, outcomes),
        )  # fmt: skip

    undisturbed = whole_run(tmp_path / "reference")
    steps = len(list((tmp_path / "reference").rglob("*.*")))
    for step in range(1, steps + 1):
        pid = os.fork()
        if pid == 0:
            replace, count = os.replace, [0]

            def killing(*arguments, replace=replace, count=count, step=step):
                count[0] += 1
                if count[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return replace(*arguments)

            os.replace = killing
            try:
                whole_run(tmp_path / "out")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    assert whole_run(tmp_path / "out") == undisturbed
    for file in (tmp_path / "reference" / "x").iterdir():
        ours, theirs = ((folder / "x" / file.name).read_text() for folder in (tmp_path / "out", tmp_path / "reference"))
        without_date = [[line for line in text.splitlines() if '"date"' not in line] for text in (ours, theirs)]
        assert without_date[0] == without_date[1]
