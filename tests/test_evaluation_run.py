"""Running benchmarks: encode once, score as the authors do, partial data, odd images, several processes."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation_fixtures import (
    SUGARCREPE_SUBSETS,
    jpeg,
    picture,
    tiny_clip,
    write_config,
    write_json,
    write_paired_shard,
    write_sugarcrepe,
    write_suite,
)
from open_clip_triplet.errors import DataError, MissingData, PartialData
from open_clip_triplet.evaluation import evaluate, require_data
from open_clip_triplet.evaluation import hashes as hashes_module
from open_clip_triplet.evaluation.benchmarks import PAPER_SUITE, get
from open_clip_triplet.evaluation.benchmarks.tripletdata import composition_scores
from open_clip_triplet.evaluation.console import result_line
from open_clip_triplet.evaluation.encode import Encoder
from open_clip_triplet.evaluation.hashes import ContentHashes
from open_clip_triplet.evaluation.images import ImageRef, read_tar_index
from open_clip_triplet.evaluation.run import run_suite
from open_clip_triplet.evaluation.store import EmbeddingStore

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite"))


def run(root, benchmarks, seed=0, **options):
    model, preprocess, tokenizer = tiny_clip(seed)
    return evaluate(
        model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=benchmarks,
        data_root=root,
        **{"allow_partial": True, **options},
    )


class Counting:
    """A model that counts what it encodes."""

    def __init__(self, model):
        self.model, self.images, self.texts = model, 0, 0

    def encode_image(self, batch):
        self.images += len(batch)
        return self.model.encode_image(batch)

    def encode_text(self, tokens):
        self.texts += len(tokens)
        return self.model.encode_text(tokens)


def test_suite_in_one_call(suite):
    found = run(suite, PAPER_SUITE)
    assert set(found.results) == set(PAPER_SUITE) and not found.skipped
    assert all(0 <= value <= 1 for value in found.values())
    assert "valse-partial/overall" in found and "winoground-partial/group" in found
    # every unique image once: SugarCrepe 9, pairs 24, VALSE 33 (the other 11 lack votes), retrieval 16,
    # EuroSAT 9, CIFAR-10 2 (its classes share them), shards 7 (their positives are SugarCrepe's)
    assert found.encoded["images"] == 9 + 24 + 33 + 16 + 9 + 2 + 7
    for name, result in found.results.items():
        json.dumps(result, allow_nan=False)
        assert result["complete"] == (name == "tripletdata")  # as its sizes.json says


def test_sugarcrepe_equals_the_authors_rule_item_by_item(suite):
    model, preprocess, tokenizer = tiny_clip()
    result = run(suite, ["sugarcrepe"]).results["sugarcrepe"]
    right = total = 0
    for subset in SUGARCREPE_SUBSETS:
        outcome = ""
        for entry in json.loads((suite / "sugar-crepe" / f"{subset}.json").read_text()).values():
            image = preprocess(Image.open(suite / "coco" / "val2017" / entry["filename"]))[None]
            with torch.no_grad():
                x = model.encode_image(image, normalize=True)
                y = model.encode_text(
                    tokenizer([entry["caption"], entry["negative_caption"]]), normalize=True
                )
            scores = (x @ y.T)[0].tolist()
            outcome += "01"[scores[0] > scores[1]]
        assert result["subsets"][subset]["outcomes"]["accuracy"] == outcome, subset
        right, total = right + outcome.count("1"), total + len(outcome)
    assert 0 < right < total


def test_sugarcrepe_equals_clip_benchmark(suite):
    selection = pytest.importorskip("clip_benchmark.metrics.image_caption_selection")
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    model, preprocess, tokenizer = tiny_clip()
    result = run(suite, ["sugarcrepe"]).results["sugarcrepe"]
    root = suite / "sugar-crepe"
    if not (root / "val2017").exists():
        (root / "val2017").symlink_to(suite / "coco" / "val2017")
    for subset in ("add_obj", "swap_att"):
        dataset = builder.build_dataset(
            f"sugar_crepe/{subset}",
            root=str(root),
            transform=preprocess,
            task="image_caption_selection",
            download=False,
        )
        collate = builder.get_dataset_collate_fn(f"sugar_crepe/{subset}")
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate)
        theirs = selection.evaluate(model, loader, tokenizer, "cpu", amp=False)
        ours = result["subsets"][subset]
        assert ours["metrics"]["accuracy"]["value"] + ours["ties"] / ours["items"] == pytest.approx(
            theirs["text_acc"]
        )


def test_a_tie_is_wrong_and_counted(tmp_path):
    write_sugarcrepe(tmp_path, {"add_obj": 1})
    entry = {"filename": "000000000000.jpg", "caption": "the same", "negative_caption": "the same"}
    write_json(tmp_path / "sugar-crepe" / "add_obj.json", {"0": entry})
    result = run(tmp_path, ["sugarcrepe"]).results["sugarcrepe"]
    assert result["ties"] == 1 and result["subsets"]["add_obj"]["metrics"]["accuracy"]["value"] == 0
    assert "wrong" in result["tie_rule"]


def test_tripletdata_equals_the_streamed_scores(suite):
    model, preprocess, tokenizer = tiny_clip()
    streamed = composition_scores(model, str(suite / "tripletdata" / "00000.tar"), preprocess, tokenizer)
    found = run(suite, ["tripletdata"])
    assert found.results["tripletdata"]["complete"]
    for name in ("text", "image", "group"):
        assert found[f"tripletdata/{name}"] == streamed[f"{name}_score"]
    histograms = found.results["tripletdata"]["subsets"]["tripletdata"]["histograms"]
    assert histograms == streamed["histograms"]


def test_second_run_encodes_nothing_and_new_captions_only_themselves(tmp_path):
    write_sugarcrepe(tmp_path, {"add_obj": 9, "swap_obj": 5})
    model, preprocess, tokenizer = tiny_clip()
    counting = Counting(model)
    options = dict(
        preprocess=preprocess,
        tokenizer=tokenizer,
        benchmarks=["sugarcrepe"],
        data_root=tmp_path,
        allow_partial=True,
    )
    facts = {"weights": "a"}
    first = evaluate(counting, store=EmbeddingStore(tmp_path / "store", facts), **options)
    assert counting.images == 9
    images, texts = counting.images, counting.texts
    again = evaluate(counting, store=EmbeddingStore(tmp_path / "store", facts), **options)
    assert (counting.images, counting.texts) == (images, texts) and again == first
    assert again.encoded == {"images": 0, "texts": 0}
    path = tmp_path / "sugar-crepe" / "add_obj.json"
    content = json.loads(path.read_text())
    content["0"]["caption"] = "words not seen before"
    path.write_text(json.dumps(content))
    assert (
        evaluate(counting, store=EmbeddingStore(tmp_path / "store", facts), **options).encoded["texts"] == 1
    )
    other = evaluate(counting, store=EmbeddingStore(tmp_path / "store", {"weights": "b"}), **options)
    assert other.encoded["images"] == 9


def test_the_same_image_under_two_names_is_encoded_once(tmp_path):
    write_sugarcrepe(tmp_path, {"add_obj": 4}, images=2)
    folder = tmp_path / "coco" / "val2017"
    (folder / "000000000001.jpg").write_bytes((folder / "000000000000.jpg").read_bytes())
    assert run(tmp_path, ["sugarcrepe"]).encoded["images"] == 1


def test_store_survives_damage_and_concurrent_writers(tmp_path):
    facts = {"weights": "x"}
    a, b = EmbeddingStore(tmp_path, facts), EmbeddingStore(tmp_path, facts)
    a.add("images", ["i", "j"], np.eye(2, 4), remarks={"i": ["grey"]})
    b.add("images", ["k"], np.full((1, 4), 0.5), failed={"broken": "truncated"})
    (a.folder / "images-dead.json").write_text('{"ids": ["m"]')  # killed in the middle of a write
    (a.folder / "images-half.json").write_text(json.dumps({"ids": ["n"], "remarks": {}, "failed": {}}))
    c = EmbeddingStore(tmp_path, facts)
    assert c.missing("images", ["i", "m", "k", "n", "broken", "m"]) == ["m", "n"]
    assert c.get("images", ["k", "i"]).tolist() == [[0.5] * 4, [1, 0, 0, 0]]
    assert c.remarks == {"i": ["grey"]} and c.failed == {"broken": "truncated"}
    a.reload()
    assert a.missing("images", ["k"]) == []
    left = [a.folder / ".images-x.npy.99.tmp", a.folder / "images-alone.npy"]
    for path in left:
        path.write_bytes(b"half")
    EmbeddingStore(tmp_path, facts)  # who knows, somebody may be writing them now
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (0, 0))
    assert EmbeddingStore(tmp_path, facts).missing("images", ["i", "k"]) == []
    assert not any(path.exists() for path in left)
    with pytest.raises(KeyError):
        a.get("images", ["m"])


def test_partial_data_is_refused_by_default_and_named(suite):
    with pytest.raises(PartialData) as caught:
        run(suite, ["sugarcrepe", "retrieval"], allow_partial=False)
    assert "sugarcrepe/add_obj: 9 of 2062 items" in str(caught.value) and "--allow-partial" in str(
        caught.value
    )
    with pytest.raises(PartialData):
        require_data(["sugarcrepe"], suite)
    require_data(["sugarcrepe"], suite, allow_partial=True)
    with pytest.raises(MissingData):
        run(suite / "nothing", ["sugarcrepe"], allow_partial=False)
    assert "no data under" in run(suite / "nothing", ["sugarcrepe"]).skipped["sugarcrepe"]


def test_complete_sugarcrepe_is_complete(tmp_path):
    write_sugarcrepe(tmp_path, get("sugarcrepe").expected)
    found = run(tmp_path, ["sugarcrepe"], allow_partial=False)
    result = found.results["sugarcrepe"]
    assert result["complete"] and result["items"] == result["expected"] == 7511
    mean = np.mean([found[f"sugarcrepe/{subset}/accuracy"] for subset in SUGARCREPE_SUBSETS])
    assert found["sugarcrepe/overall"] == pytest.approx(mean)
    overall = result["summary"]["overall"]
    assert overall["low"] < overall["value"] < overall["high"]


def test_odd_images_are_handled_counted_and_named(tmp_path):
    write_sugarcrepe(tmp_path, {"add_obj": 8}, images=8)
    folder = tmp_path / "coco" / "val2017"

    def path(i):
        return folder / f"{i:012d}.jpg"

    picture(0, mode="L").save(path(0))
    picture(1, mode="CMYK").save(path(1))
    frames = [picture(s).convert("P") for s in (2, 3)]
    frames[0].save(path(2), "GIF", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[274] = 6
    picture(3).save(path(3), exif=exif)
    path(4).write_bytes(jpeg(4)[:200])
    path(5).write_text("<html>not found</html>")
    path(6).unlink()
    found = run(tmp_path, ["sugarcrepe"])
    result = found.results["sugarcrepe"]
    assert result["images"] == {"unique": 5, "grey": 1, "cmyk": 1, "animated": 1, "exif-rotated": 1}
    subset = result["subsets"]["add_obj"]
    assert subset["items"] == 5 and subset["dropped"] == {"image missing": 1, "image damaged": 2}
    assert any("000000000005.jpg" in name for name in subset["named"])
    with pytest.raises(PartialData, match="add_obj: 7 of 2062 items .1 image missing"):
        run(tmp_path, ["sugarcrepe"], allow_partial=False)


def test_damage_found_while_decoding_stops_a_run_that_must_be_whole(tmp_path):
    write_paired_shard(tmp_path / "tripletdata" / "0.tar", range(3), s1={"jpg": jpeg(4)[:200]})
    write_json(tmp_path / "tripletdata" / "sizes.json", {"0.tar": 3})
    with pytest.raises(PartialData, match="tripletdata: 2 of . items .1 image damaged"):
        run(tmp_path, ["tripletdata"], allow_partial=False)


def test_damaged_files_cost_a_partial_run_only_themselves(tmp_path):
    write_sugarcrepe(tmp_path, {"add_obj": 4})
    write_paired_shard(tmp_path / "tripletdata" / "0.tar", range(3))
    write_paired_shard(tmp_path / "tripletdata" / "1.tar", range(3, 6))
    cut = tmp_path / "tripletdata" / "1.tar"
    cut.write_bytes(cut.read_bytes()[:1300])
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "COLA_multiobjects_matching_benchmark.json").write_text("[[")
    names = ["sugarcrepe", "cola", "tripletdata"]
    found = run(tmp_path, names)
    assert list(found.results) == ["sugarcrepe", "tripletdata"]
    subset = found.results["tripletdata"]["subsets"]["tripletdata"]
    assert subset["items"] == 3 and subset["dropped"] == {"shard damaged": 1}
    assert found.skipped["cola"].startswith("cola: ") and "cannot be read as JSON" in found.skipped["cola"]
    with pytest.raises(PartialData, match="1 shard damaged; the first: .*1.tar"):
        run(tmp_path, ["tripletdata"], allow_partial=False)
    with pytest.raises(DataError, match="fetch it again"):
        run(tmp_path, names, allow_partial=False)
    (tmp_path / "tripletdata" / "0.tar").unlink()
    assert "1 shard damaged" in run(tmp_path, ["tripletdata"]).skipped["tripletdata"]


def test_only_damage_is_remembered_not_a_passing_read_error(tmp_path, monkeypatch):
    write_sugarcrepe(tmp_path, {"add_obj": 3}, images=3)
    folder = tmp_path / "coco" / "val2017"
    picture(0, size=(400, 400)).save(folder / "000000000000.jpg")
    (folder / "000000000001.jpg").write_bytes(jpeg(1)[:200])
    store = EmbeddingStore(tmp_path / "store", {"weights": "a"})
    reads, read = [], ImageRef.read

    def flaky(ref):
        reads.append(ref.path)
        if ref.path.endswith("2.jpg") and reads.count(ref.path) == 2:  # hashed, then gone for a moment
            raise OSError("stale file handle")
        return read(ref)

    monkeypatch.setattr(ImageRef, "read", flaky)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)  # 400 x 400: a decompression bomb
    dropped = run(tmp_path, ["sugarcrepe"], store=store).results["sugarcrepe"]["subsets"]["add_obj"][
        "dropped"
    ]
    assert dropped == {"image damaged": 2, "image unreadable": 1}
    again = run(tmp_path, ["sugarcrepe"], store=EmbeddingStore(tmp_path / "store", {"weights": "a"}))
    assert again.results["sugarcrepe"]["subsets"]["add_obj"]["dropped"] == {"image damaged": 2}
    assert again.encoded["images"] == 1 and len(store.failed) == 2


def test_tripletdata_is_complete_only_by_its_sizes(tmp_path):
    write_paired_shard(tmp_path / "tripletdata" / "0.tar", range(3))
    assert "tripletdata-partial/text" in run(tmp_path, ["tripletdata"])
    with pytest.raises(PartialData, match="3 of . items .no sizes.json"):
        run(tmp_path, ["tripletdata"], allow_partial=False)
    write_json(tmp_path / "tripletdata" / "sizes.json", {"0.tar": 3})
    assert "tripletdata/text" in run(tmp_path, ["tripletdata"], allow_partial=False)


def test_sizes_that_are_too_small_are_named(tmp_path):
    write_paired_shard(tmp_path / "tripletdata" / "00000.tar", range(7), s3={"neg.txt": ""})
    write_json(tmp_path / "tripletdata" / "sizes.json", {"00000.tar": 5})
    says = "sizes.json says 5, the shards hold more"
    with pytest.raises(PartialData, match=says):
        run(tmp_path, ["tripletdata"], allow_partial=False)
    line = result_line(run(tmp_path, ["tripletdata"]).results["tripletdata"])
    assert f"PARTIAL: 6 of ? items ({says})" in line
    write_json(tmp_path / "tripletdata" / "sizes.json", {"00000.tar": 7})
    assert "PARTIAL: 6 of 7 items" in result_line(run(tmp_path, ["tripletdata"]).results["tripletdata"])


def test_exif_rotation_is_left_as_stored(tmp_path):
    """As the authors and clip_benchmark do: the same pixels with and without the tag embed alike."""
    from open_clip_triplet.evaluation.images import open_image

    stream = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    picture(3).save(stream, "JPEG", exif=exif)
    image, remarks = open_image(stream.getvalue())
    assert image.size == picture(3).size and remarks == ["exif-rotated"]


def test_trimmed_captions_give_the_same_embeddings():
    model, preprocess, tokenizer = tiny_clip()
    lengths = []

    def watched(tokens):
        lengths.append(tokens.shape[1])
        return type(model).encode_text(model, tokens)

    captions = ["a dog!", "a much longer caption about several dogs, cats and birds", "x " * 100]
    encoder = Encoder(model, preprocess, tokenizer)
    encoder.model.encode_text = watched
    try:
        one_by_one = np.concatenate([encoder.texts([caption]) for caption in captions])
    finally:
        del model.encode_text
    with torch.no_grad():
        full = model.encode_text(tokenizer(captions), normalize=True).numpy()
    assert np.abs(one_by_one - full).max() < 1e-6
    assert lengths[-3:] == [5, 13, 77]


def test_a_model_that_needs_its_padding_gets_it():
    class MeanOverAll:
        """Averages over every position, padding too: trimming would change its answer."""

        def encode_text(self, tokens):
            return torch.stack([tokens.float().mean(dim=1), tokens.float().std(dim=1)], dim=1)

    _, preprocess, tokenizer = tiny_clip()
    model = MeanOverAll()
    rows = Encoder(model, preprocess, tokenizer).texts(["a dog"])
    full = torch.nn.functional.normalize(model.encode_text(tokenizer(["a dog"])), dim=-1).numpy()
    assert np.array_equal(rows, full)


def test_training_mode_is_put_back(suite):
    model, preprocess, tokenizer = tiny_clip()
    model.train()
    model.visual.eval()
    run(suite, ["cola"])
    assert model.training and not model.visual.training
    model.eval()


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes_module, "SETTLED_S", 0.0)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(0))
    ref = ImageRef(str(path))
    hashes = ContentHashes(tmp_path / "files.json")
    before, digest = hashes(ref), hashes.digest(path)
    hashes.save()

    class Unreadable(ImageRef):
        def read(self):
            raise AssertionError("read again")

    again = ContentHashes(tmp_path / "files.json")
    assert again(Unreadable(ref.path)) == before
    assert again(ImageRef(ref.path, crop=(0, 0, 4, 4))) != before
    # other bytes of the same size, the time of change put back: only inode and ctime tell
    stat = path.stat()
    changed = bytearray(path.read_bytes())
    changed[-3] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    assert again(ref) != before and again.digest(path) != digest


def test_a_hash_of_a_file_just_written_is_not_kept(tmp_path):
    """Within the clock's grain the file may change again and look the same."""
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    hashes = ContentHashes(tmp_path / "files.json")
    hashes(ImageRef(str(tmp_path / "a.jpg")))
    hashes.save()
    assert not (tmp_path / "files.json").exists()


def test_bytes_that_change_before_they_are_decoded_are_not_stored(tmp_path, monkeypatch):
    write_sugarcrepe(tmp_path, {"add_obj": 2}, images=2)
    path = str(tmp_path / "coco" / "val2017" / "000000000001.jpg")
    read, reads = ImageRef.read, []

    def changing(ref):
        reads.append(ref.path)
        return jpeg(77) if ref.path == path and reads.count(path) == 2 else read(ref)

    monkeypatch.setattr(ImageRef, "read", changing)
    found = run(tmp_path, ["sugarcrepe"])
    assert found.results["sugarcrepe"]["subsets"]["add_obj"]["dropped"] == {"image unreadable": 1}


def test_a_name_that_a_tar_repeats_is_two_images(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for seed in (0, 1):
            info = tarfile.TarInfo("same.jpg")
            info.size = len(jpeg(seed))
            tar.addfile(info, io.BytesIO(jpeg(seed)))
    refs = [sample["jpg"] for sample in read_tar_index(tmp_path / "0.tar")]
    hashes = ContentHashes()
    assert hashes(refs[0]) != hashes(refs[1])


def test_shared_hashes_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes_module, "SETTLED_S", 0.0)
    refs = []
    for seed in range(4):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(seed))
        refs.append(ImageRef(str(tmp_path / f"{seed}.jpg")))
    ranks = [ContentHashes(tmp_path / name) for name in ("files.json", "files-1.json")]
    expected = [ContentHashes()(ref) for ref in refs]
    for rank, hashes in enumerate(ranks):
        for ref in refs[rank::2]:
            hashes(ref)
        hashes.save()
    monkeypatch.setattr(ImageRef, "read", None)  # none is read again
    for hashes in (*ranks, ContentHashes(tmp_path / "files.json")):
        hashes.reload()
        assert [hashes(ref) for ref in refs] == expected


def test_embeddings_lost_meanwhile_are_told(tmp_path):
    """As after another process of the run was killed: its share of the captions is in no part."""
    write_sugarcrepe(tmp_path, {"add_obj": 3})
    store = EmbeddingStore(tmp_path / "store", {"weights": "a"})
    model, preprocess, tokenizer = tiny_clip()
    with pytest.raises(DataError, match="captions have no embedding.*Run it again"):
        run_suite(
            lambda: Encoder(model, preprocess, tokenizer),
            [get("sugarcrepe")],
            tmp_path,
            store,
            checkpoint={"name": "half"},
            allow_partial=True,
            share=(0, 2),  # and nobody does the other half
        )


def write_bivlc(root, items):
    import pyarrow as pa
    from pyarrow import parquet

    folder = root / "bivlc" / "data"
    folder.mkdir(parents=True)
    rows = [
        {
            "image": {"bytes": jpeg(200 + i), "path": None},
            "negative_image": {"bytes": jpeg(300 + i), "path": None},
            "caption": f"a cup number {i}",
            "negative_caption": f"a jug number {i}",
            "type": "replace",
        }
        for i in range(items)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "test-0.parquet")


def test_two_processes_share_the_encoding_and_agree_with_one(tmp_path):
    write_sugarcrepe(tmp_path / "data", {"add_obj": 9, "swap_att": 7})
    write_paired_shard(tmp_path / "data" / "tripletdata" / "0.tar", range(5))
    write_bivlc(tmp_path / "data", 3)
    config = write_config(tmp_path)
    torch.save({"state_dict": tiny_clip()[0].state_dict()}, tmp_path / "w.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "run",
        "--model-config",
        str(config),
        "--pretrained",
        f"two={tmp_path}/w.pt",
        "--device",
        "cpu",
        "--benchmarks",
        "sugarcrepe,tripletdata,bivlc",
        "--data-root",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "results"),
        "--allow-partial",
    ]
    base = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    command = [sys.executable, "-m", "open_clip_triplet.evaluation.cli", *arguments]
    ranks = [
        subprocess.Popen(
            command,
            env={**base, "RANK": str(r), "LOCAL_RANK": str(r)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for r in (0, 1)
    ]
    outputs = [process.communicate(timeout=600) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert "SugarCrepe" in outputs[0][0] and outputs[1][0] == ""
    parts = list((tmp_path / "results" / ".embeddings").rglob("images-*.npy"))
    # 9 images of SugarCrepe, 5 new ones of the shard, 6 in Parquet: half of them by each process
    assert sorted(len(np.load(part)) for part in parts) == [2, 3, 3, 3, 4, 5]
    one = run(tmp_path / "data", ["sugarcrepe", "tripletdata", "bivlc"])
    for benchmark, expected in one.results.items():
        written = json.loads((tmp_path / "results" / "two" / f"{benchmark}.json").read_text())
        assert written["subsets"] == expected["subsets"]
