"""Mining: the nearest different pair, near-duplicates passed over, nothing lost without a count."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from build_fixtures import contents
from conftest import TINY_MODEL, picture
from open_clip_triplet.make_shards import main
from open_clip_triplet.shards import ShardWriter, read_meta, read_samples, read_sizes, rename_members
from open_clip_triplet.tripletdata.backends import embed, neighbours
from open_clip_triplet.tripletdata.backends.neighbours import (
    Collection,
    exact_search,
    faiss_search,
    nearest_different,
)

CAPTIONS = [
    "a brown dog runs over green grass", "a brown dog sleeps on green grass", "a black dog runs over snow",
    "two men ride horses on a beach", "two men ride bicycles on a beach", "a woman rides horses in snow",
    "a red car parked near a house", "a blue car parked near a house", "a red bus parked near a tree",
    "a cat sleeps on a red sofa", "a cat sits on a blue sofa", "a kitten sleeps on a blue bed",
]


def write(folder: Path, samples: list[dict], name: str = "00000.tar") -> str:
    with ShardWriter(folder / name) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{Path(name).stem}{number:03d}", **sample})
    return str(folder / name)


def pair(number: int, caption: str | None = None, **more) -> dict:
    return {"jpg": picture(number), "txt": caption or CAPTIONS[number], "json": {"id": number}, **more}


def mined(folder: Path) -> dict[str, dict]:
    """Samples by the key they had in the input."""
    found = [sample for tar in sorted(folder.glob("*.tar")) for sample in read_samples(tar)]
    return {read_meta(rename_members(sample))["source_key"]: sample for sample in found}


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "in", [pair(n) for n in range(7)], "a.tar")
    write(tmp_path / "in", [pair(n) for n in range(7, 12)], "b.tar")
    return [str(tmp_path / "in" / name) for name in ("a.tar", "b.tar")]


def run(inputs, output, *more: str) -> dict:
    assert main(["mine", "--input", *inputs, "--output", str(output), "--quiet", *more]) == 0
    return json.loads((output / "summary.json").read_text())


def test_paired_shards_come_out_one_for_each_that_went_in(shards, tmp_path, capsys):
    counts = run(shards, tmp_path / "out")
    assert counts["read"] == counts["kept"] == 12 and counts["dropped"] == {}
    assert read_sizes([str(tmp_path / "out" / f"0000{n}.tar") for n in (0, 1)]) == [7, 5]
    assert "mine: kept 12 of 12 samples" in capsys.readouterr().err
    sources = {s["__key__"]: rename_members(s) for url in shards for s in read_samples(url)}
    for key, sample in mined(tmp_path / "out").items():
        roles, meta = rename_members(sample), read_meta(rename_members(sample))
        other = sources[meta["neg_source_key"]]
        assert meta["neg_source_key"] != key == meta["source_key"]
        assert (roles["image"], roles["text"]) == (sources[key]["image"], sources[key]["text"])
        assert (roles["neg_image"], roles["neg_text"]) == (other["image"], other["text"])
        assert meta["id"] == read_meta(sources[key])["id"] and meta["embedder"] == "captions"
        assert meta["captions"] == [roles["text"].decode()]
        assert meta["neg_captions"] == [roles["neg_text"].decode()] and 0 < meta["similarity"] < 0.95


def test_the_nearest_caption_is_found(shards, tmp_path):
    run(shards, tmp_path / "out")
    samples = [rename_members(sample) for sample in mined(tmp_path / "out").values()]
    nearest = {roles["text"].decode(): roles["neg_text"].decode() for roles in samples}
    assert nearest[CAPTIONS[0]] == CAPTIONS[1]
    assert nearest[CAPTIONS[3]] == CAPTIONS[4]
    assert nearest[CAPTIONS[6]] in CAPTIONS[7:9]


def test_the_same_input_gives_the_same_bytes_and_other_options_are_refused(shards, tmp_path, capsys):
    run(shards, tmp_path / "one")
    run(shards, tmp_path / "two", "--workers", "2")
    run(shards, tmp_path / "two")  # again over itself
    (tmp_path / "two/00001.record.json").unlink()  # as if it had been killed there
    (tmp_path / "two/.work/embed/00000.record.json").unlink()
    run(shards, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    argv = ["mine", "--input", *shards, "--output", str(tmp_path / "one"), "--max-similarity", "0.5"]
    assert main(argv) == 2 and "max_similarity: 0.95 there, 0.5 now" in capsys.readouterr().err
    assert main([*argv[:2], str(tmp_path / "in"), *argv[4:-2]]) == 0  # the folder of the same shards
    assert main([*argv[:3], *argv[4:-2]]) == 2  # every input decides about every negative
    assert "collection" in capsys.readouterr().err


def test_asking_again_for_what_was_dropped_doubles_nothing(shards, tmp_path):
    write(tmp_path / "in", [pair(n) for n in range(7)] + [pair(7, "qqq")], "a.tar")
    counts = run(shards, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert counts["dropped"] and run(shards, tmp_path / "out", "--redo-dropped") == counts
    assert {name: data for name, data in contents(tmp_path / "out").items() if name.endswith(".tar")} == {
        name: data for name, data in before.items() if name.endswith(".tar")
    }


def test_a_part_is_mined_once_all_parts_are_embedded(shards, tmp_path, capsys):
    run(shards, tmp_path / "whole")
    argv = ["mine", "--input", *shards, "--output", str(tmp_path / "out"), "--quiet", "--part"]
    assert main([*argv, "1/2"]) == 0 and not list((tmp_path / "out").glob("*.tar"))
    assert "1 shards of other parts are not embedded yet" in capsys.readouterr().err
    assert main([*argv, "2/2"]) == 0 and main([*argv, "1/2"]) == 0
    for name in ("00000.tar", "00001.tar"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_near_duplicates_are_passed_over(tmp_path):
    """Pair 0 has its image again as 12, its caption again as 13: neither is its negative."""
    samples = [pair(n) for n in range(12)]
    samples += [{"jpg": picture(0), "txt": "a brown dog runs over grass"}]
    samples += [{"jpg": picture(50), "txt": "A brown dog  runs over green grass."}]
    samples += [pair(51, "a dog outside", json={"captions": ["a dog", CAPTIONS[0]]})]
    url = write(tmp_path, samples)
    run([url], tmp_path / "out")
    found = {key: read_meta(rename_members(s))["neg_source_key"] for key, s in mined(tmp_path / "out").items()}
    same = {"00000000", "00000012", "00000013", "00000014"}
    assert found["00000000"] not in same
    assert found["00000013"] not in {"00000000", "00000014"}
    assert found["00000014"] not in {"00000000", "00000013"}


def test_what_is_too_similar_is_passed_over():
    """Of three rows almost alike, none is another's negative; the far row is everyone's."""
    rows = unit([[1, 0, 0], [0.999, 0.04, 0], [0.998, 0, 0.06], [0.6, 0.8, 0]])
    index, cosine = nearest(rows, 0.95)
    assert index.tolist() == [3, 3, 3, 1] and cosine[0] == pytest.approx(0.6, abs=1e-6)
    assert nearest(rows, 1)[0].tolist() == [1, 0, 0, 1]
    twins = unit([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert nearest(twins, 1)[0].tolist() == [1, 0, 0] and nearest(twins, 0.95)[0].tolist() == [2, 2, 0]
    assert nearest(rows[:3], 0.95)[0].tolist() == [-1, -1, -1]


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(rows, max_similarity: float, *, digests=None, captions=None, cut=(), index=None, folder=None):
    """Neighbours of all rows, which lie in several shards cut at ``cut``."""
    count = len(rows)
    features = [part.copy() for part in np.split(rows, cut)]
    digests = np.arange(1, count + 1) if digests is None else np.asarray(digests)
    captions = np.arange(1, count + 1)[:, None] if captions is None else np.asarray(captions)
    collection = Collection(features, digests.astype(np.uint64), captions.astype(np.uint64))
    search = faiss_search(features, index, 99, f"{folder}/i.faiss") if index else exact_search(features)
    return nearest_different(collection, range(count), search, max_similarity)


@pytest.mark.parametrize("index", [None, "Flat", "IVF3,Flat"])
@pytest.mark.parametrize("candidates", [2, 64])
def test_the_search_is_exact(monkeypatch, candidates, index, tmp_path):
    """Against brute force, with many duplicates and a small candidate list, in blocks of three rows."""
    if index:
        pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours, "CANDIDATES", candidates)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 3 * 4 * 30)
    rows = unit(np.random.default_rng(0).normal(size=(60, 4)))
    rows[7] = 0
    digests, captions = np.arange(60) % 5 + 1, np.stack([np.arange(60) + 1, np.arange(60) % 7 + 100], 1)
    neighbour, cosine = nearest(
        rows, 0.98, digests=digests, captions=captions, cut=(10, 41), index=index, folder=tmp_path
    )
    for me in range(60):
        allowed = {
            other: float(rows[me] @ rows[other]) for other in range(60)
            if other % 5 != me % 5 and other % 7 != me % 7 and other != 7 and rows[me] @ rows[other] < 0.98
        }
        if me == 7:
            assert neighbour[me] == -1 and np.isnan(cosine[me])
        else:
            assert neighbour[me] == max(allowed, key=allowed.get)
            assert cosine[me] == pytest.approx(max(allowed.values()), abs=1e-6)


def test_equal_neighbours_go_to_the_lower_index():
    rows = np.array([[0, 1], [1, 0], [1, 0], [1, 0]], np.float32)
    assert nearest(rows, 1.5)[0].tolist() == [1, 2, 1, 1]


def test_an_index_that_faiss_does_not_know_is_named(shards, tmp_path, capsys):
    pytest.importorskip("faiss")
    argv = ["mine", "--input", *shards, "--output", str(tmp_path / "out"), "--index", "Nonsense"]
    assert main(argv) == 2 and "--index Nonsense" in capsys.readouterr().err
    argv = ["mine", "--input", *shards, "--output", str(tmp_path / "many"), "--index", "IVF9999,Flat"]
    assert main(argv) == 2
    assert "fewer pairs (12) than lists (9,999)" in capsys.readouterr().err
    run(shards, tmp_path / "out2", "--index", "IVF2,SQfp16", "--nprobe", "2")
    run(shards, tmp_path / "exact")
    found, exact = (
        {k: read_meta(rename_members(s))["neg_source_key"] for k, s in mined(tmp_path / name).items()}
        for name in ("out2", "exact")
    )
    assert found == exact


def test_what_cannot_be_used_is_counted_by_reason(tmp_path, capsys):
    samples = [pair(n) for n in range(10)]
    samples += [{"txt": "no image"}, {"jpg": picture(1)}, {"jpg": picture(2), "txt": "  "}]
    good = write(tmp_path, samples)
    whole = write(tmp_path, [pair(10), pair(11), pair(9, "a dog on a sofa")], "cut.tar")
    data = Path(whole).read_bytes()
    Path(whole).write_bytes(data[: data.index(b"a dog on")])
    argv = ["mine", "--input", good, whole, "--output", str(tmp_path / "out"), "--quiet"]
    assert main(argv) == 3 and "cut.tar: damaged" in capsys.readouterr().err
    assert main([*argv, "--salvage"]) == 0
    embedded = json.loads((tmp_path / "out/.work/embed/summary.json").read_text())
    assert embedded["dropped"] == {"no image": 1, "no caption": 1, "empty caption": 1}
    assert embedded["counts"] == {"damaged shards cut short": 1} and embedded["kept"] == 12
    assert json.loads((tmp_path / "out/summary.json").read_text())["kept"] == 12


def test_inputs_that_cannot_be_read(tmp_path, shards, capsys):
    argv = ["mine", "--output", str(tmp_path / "out"), "--quiet", "--input"]
    assert main([*argv, str(tmp_path / "nothing.tar")]) == 2
    assert "nothing.tar: no such file" in capsys.readouterr().err
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 200)
    assert main([*argv, *shards, str(tmp_path / "bad.tar")]) == 3
    assert "bad.tar: damaged" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("filepath,title\na.jpg,one\n")
    assert main([*argv, str(tmp_path / "t.csv")]) == 2 and "pack the table first" in capsys.readouterr().err


@pytest.fixture
def tiny_model(tmp_path):
    import open_clip

    (tmp_path / "tiny-mine.json").write_text(json.dumps(TINY_MODEL))
    open_clip.add_model_config(tmp_path / "tiny-mine.json")
    return "tiny-mine"


def test_an_openclip_model_mines_by_image_and_caption(shards, tmp_path, tiny_model):
    import torch

    torch.manual_seed(0)
    weights = tmp_path / "tiny.pt"
    import open_clip

    model = open_clip.create_model(tiny_model)
    torch.save(model.state_dict(), weights)
    options = ("--model", tiny_model, "--pretrained", str(weights), "--max-similarity", "1")
    counts = run(shards, tmp_path / "out", *options)
    assert counts["kept"] == 12
    features = np.load(tmp_path / "out/.work/embed/00001.features.npy")
    assert features.shape == (5, 2 * TINY_MODEL["embed_dim"]) and features.dtype == np.float16
    sample = rename_members(next(iter(mined(tmp_path / "out").values())))
    rows = embed.OpenClipEmbedder(tiny_model, str(weights), "cpu")(
        [[sample["text"].decode()], [sample["neg_text"].decode()]], [sample["image"], sample["neg_image"]]
    )
    assert rows.shape == (2, 2 * TINY_MODEL["embed_dim"])
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert rows[0] @ rows[1] == pytest.approx(read_meta(sample)["similarity"], abs=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "ViT-B-32"], "ViT-B-32 without weights is a random network"),
        (["--model", "ViT-B-32", "--pretrained", "openai"], "use the model ViT-B-32-quickgelu"),
        (["--model", "ViT-B-32-quickgelu", "--pretrained", "laion2b_s34b_b79k"], "its tags: openai"),
        (["--model", "local-dir:clip", "--pretrained", "openai"], "local-dir:clip brings its weights"),
        (["--pretrained", "openai"], "--pretrained goes with --model"),
    ],
)
def test_a_model_is_mined_with_its_own_weights_alone(options, message, shards, tmp_path, capsys):
    assert main(["mine", "--input", *shards, "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_decoded_is_counted_not_mined(tmp_path, tiny_model):
    import open_clip

    url = write(tmp_path, [pair(0), pair(1), {"jpg": b"not a jpeg", "txt": CAPTIONS[2]}, pair(3)])
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(tiny_model).state_dict(), tmp_path / "tiny.pt")
    options = ("--model", tiny_model, "--pretrained", str(tmp_path / "tiny.pt"))
    counts = run([url], tmp_path / "out", *options, "--max-similarity", "1")
    assert counts["kept"] == 3
    assert counts["dropped"] == {"not embeddable (image cannot be decoded or no known word)": 1}
    negatives = {read_meta(rename_members(s))["neg_source_key"] for s in mined(tmp_path / "out").values()}
    assert "00000002" not in negatives


def test_a_local_sentence_model_mines_by_caption(shards, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "sentence"
    folder.mkdir()
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(words) + 5, hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=16)
    transformers.BertModel(config).save_pretrained(folder)
    counts = run(shards, tmp_path / "out", "--embedder", str(folder), "--max-similarity", "1")
    assert counts["kept"] == 12
    rows = embed.SentenceEmbedder(str(folder), "cpu")([[c] for c in CAPTIONS], [])
    assert rows.shape == (12, 16) and np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)


def test_what_is_no_folder_and_no_cosine_is_refused(shards, tmp_path, capsys):
    argv = ["mine", "--input", *shards, "--output", str(tmp_path / "out")]
    assert main([*argv, "--embedder", "nofolder"]) == 2
    assert "--embedder nofolder: no such folder" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "nomodel").mkdir()
    assert main([*argv, "--embedder", str(tmp_path / "nomodel"), "--quiet"]) == 4
    assert "cannot load the model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "--max-similarity", "1.5"])
    assert "--max-similarity: 1.5 is not between -1 and 1" in capsys.readouterr().err


def test_captions_with_nothing_in_common_are_an_error(tmp_path, capsys):
    url = write(tmp_path, [pair(0, "alpha beta"), pair(1, "gamma delta"), pair(2, "epsilon zeta")])
    assert main(["mine", "--input", url, "--output", str(tmp_path / "out")]) == 2
    assert "too little in common" in capsys.readouterr().err


@pytest.mark.skipif(not os.environ.get("TRIPLET_TEST_DATA"), reason="TRIPLET_TEST_DATA is not set")
def test_flickr8k_negatives_are_near_and_different(tmp_path):
    folder = Path(os.environ["TRIPLET_TEST_DATA"]) / "flickr8k"
    counts = run([str(folder / "val-00000.tar")], tmp_path / "out")
    assert counts["read"] == counts["kept"] == 247
    metas = [read_meta(rename_members(sample)) for sample in mined(tmp_path / "out").values()]
    assert len({meta["neg_source_key"] for meta in metas}) > 100
    for meta in metas:
        assert not set(meta["captions"]) & set(meta["neg_captions"]) and meta["similarity"] < 0.95


def test_an_index_built_in_parts_is_the_one_built_at_once(monkeypatch, tmp_path):
    pytest.importorskip("faiss")
    rows = unit(np.random.default_rng(0).normal(size=(90, 8)))
    features = np.split(rows, [20, 50])
    found = []
    for part_rows in (1_000, 30):
        monkeypatch.setattr(neighbours, "PART_ROWS", part_rows)
        found.append(faiss_search(features, "IVF3,SQfp16", 3, str(tmp_path / f"{part_rows}.faiss"))(rows, 5))
    (values, indices), (others, other_indices) = found
    assert (indices == other_indices).all() and (values == others).all()
    assert (indices[:, 0] == np.arange(90)).all()
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("30.faiss*"):
        path.rename(tmp_path / "moved" / path.name)  # its lists are not where the index was built
    again = faiss_search(features, "IVF3,SQfp16", 3, str(tmp_path / "moved/30.faiss"))(rows, 5)
    assert (again[1] == indices).all() and not list(tmp_path.rglob("*.part*"))
