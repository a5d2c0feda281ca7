"""Similarities and what a checkpoint gets wrong: real libraries on tiny weights, held against numbers by hand."""

import csv
import io
import json

import numpy as np
import pytest

from conftest import TINY_MODEL, paired_sample
from evaluation_fixtures import picture
from open_clip_triplet.errors import CheckpointError, UsageError
from open_clip_triplet.evaluation.benchmarks.tripletdata import composition_scores
from open_clip_triplet.inspect import cli
from open_clip_triplet.inspect.encoders import PairEncoder, make_encoder
from open_clip_triplet.inspect.model import Judged, gallery_samples, make_report
from open_clip_triplet.inspect.pairs import similarities
from open_clip_triplet.inspect.samples import find_shards, read_view_samples
from open_clip_triplet.inspect.similarity import overlap
from open_clip_triplet.shards import ShardWriter


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """24 samples; 3 has no negative image, 5 an image that cannot be decoded, 7 no negative at all."""
    folder = tmp_path_factory.mktemp("set")
    with ShardWriter(folder / "00000.tar") as writer:
        for number in range(24):
            sample = paired_sample(number)
            sample["json"]["category"] = ["count", "relation"][number % 2]
            if number == 3:
                del sample["neg.jpg"]
            if number == 5:
                sample["jpg"] = b"broken"
            if number == 7:
                del sample["neg.jpg"], sample["neg.txt"]
                sample["json"] = {}
            writer.write(sample)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """(config, two checkpoints) of one tiny CLIP."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("checkpoints")
    config = folder / "tiny-inspect.json"
    config.write_text(json.dumps(TINY_MODEL))
    open_clip.add_model_config(config)
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(open_clip.create_model("tiny-inspect").state_dict(), folder / f"seed{seed}.pt")
    return config, folder / "seed0.pt", folder / "seed1.pt"


def rows_of(path) -> dict:
    return {(r["table"], r["row"], r["column"]): r["value"] for r in csv.DictReader(open(path))}


def by_hand(checkpoints, shards):
    """[n, 4] similarities of the samples that are whole, one at a time through OpenCLIP alone."""
    import open_clip
    import torch
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms("tiny-inspect", pretrained=str(checkpoints[1]))
    tokenizer, rows = open_clip.get_tokenizer("tiny-inspect"), []
    for number in set(range(24)) - {3, 5, 7}:
        sample = paired_sample(number)
        with torch.no_grad():
            x = [model.eval().encode_image(preprocess(Image.open(io.BytesIO(sample[m])).convert("RGB"))[None], True)
                 for m in ("jpg", "neg.jpg")]
            y = [model.encode_text(tokenizer([sample[m]]), True) for m in ("txt", "neg.txt")]
        rows.append([float(a @ b.T) for a in x for b in y])
    return np.array(rows)


def test_model_agrees_with_openclip_sample_by_sample(checkpoints, shards, tmp_path, capsys):
    config, first, _ = checkpoints
    argv = ["model", str(first), str(shards), "--model-config", str(config), "--device", "cpu",
            "--output", str(tmp_path), "--html", str(tmp_path / "wrong.html"), "--batch-size", "5"]
    assert cli.main(argv) == 0
    assert "seed0" in capsys.readouterr().out
    found = rows_of(tmp_path / "model.csv")
    s00, s01, s10, s11 = by_hand(checkpoints, shards).T
    right = (s00 > s01) & (s11 > s10) & (s00 > s10) & (s11 > s01)
    assert found["seed0", "all", "samples"] == "21"
    encoder = make_encoder(f"openclip:tiny-inspect:{first}", "cpu", str(config))
    _, values = similarities(read_view_samples(find_shards(str(shards))), encoder, 7)
    assert float(found["seed0", "all", "right, %"]) == pytest.approx(100 * right.sum() / 21)
    assert np.allclose(values[~np.isnan(values[:, :4]).any(1), :4], [*zip(s00, s01, s10, s11)], atol=1e-5)
    page = (tmp_path / "wrong.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    wrong = data["samples"]
    assert len(wrong) == 21 - right.sum() and all(s["facets"]["outcome"] != "right" for s in wrong)
    margins = [s["scores"]["margin"] for s in wrong]
    assert margins == sorted(margins) and max(margins) <= 0


def test_two_checkpoints_table_and_gallery(checkpoints, shards, tmp_path):
    config, first, second = checkpoints
    argv = ["model", f"a={first}", str(shards), "--against", f"b={second}", "--model-config", str(config),
            "--output", str(tmp_path), "--html", str(tmp_path / "d.html"), "--single-file"]
    assert cli.main(argv) == 0
    found = rows_of(tmp_path / "model.csv")
    counts = {c: int(found["right where", "all", c]) for c in ("both right", "only a", "only b", "both wrong")}
    assert sum(counts.values()) == 21
    samples = json.loads((tmp_path / "d.html").read_text().split('id="data">')[1].split("</script>")[0])["samples"]
    outcomes = [sample["facets"]["outcome"] for sample in samples]
    for label in ("a", "b"):
        assert outcomes.count(f"only {label} right") == counts[f"only {label}"]
    assert outcomes.count("both wrong") == counts["both wrong"]
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome == "both wrong")
    assert {"a margin", "b margin"} <= set(samples[0]["scores"])
    assert set(samples[0]["similarities"]) == {"a", "b"}


def values_of(*rows) -> np.ndarray:
    return np.array([[*row, 0.5, 0.5, 0, 0] for row in rows], float)


def test_outcomes_by_hand():
    judged = Judged("x", values_of(
        (0.9, 0.1, 0.2, 0.8),  # right
        (0.5, 0.5, 0.1, 0.9),  # a tie of captions
        (0.5, 0.4, 0.6, 0.7),  # the negative image is nearer to the positive caption
        (0.1, 0.9, 0.8, 0.2),  # everything wrong
        (0.6, 0.5, np.nan, np.nan),  # no negative image: right
        (0.4, 0.5, np.nan, np.nan),  # and wrong
        (np.nan,) * 4,
    ))
    assert judged.right.tolist() == [True, False, False, False, True, False, False]
    assert judged.known.tolist() == [True] * 6 + [False]
    outcomes = [judged.outcome(n) for n in range(6)]
    assert outcomes == ["right", "wrong caption", "wrong image", "both wrong", "right", "wrong caption"]
    table = make_report([judged], ["a", "a", "b", "b", "b", "", "a"], "t").tables[0]
    rows = {row[0]: row[1:] for row in table.rows}
    assert set(rows) == {"all", "a", "b"} and rows["all"][:4] == [6, 50.0, 50.0, pytest.approx(100 / 3)]
    assert rows["b"][0] == 3 and rows["b"][1] == pytest.approx(200 / 3) and rows["b"][2] == 0


def test_gallery_starts_with_what_only_one_gets_right(paired_shards):
    shards = find_shards(paired_shards)[:1]
    right, wrong, worse = (0.9, 0.1, 0.2, 0.8), (0.4, 0.5, 0.1, 0.9), (0.1, 0.9, 0.8, 0.2)
    first = Judged("a", values_of(*[right] * 13, worse, right, wrong))
    second = Judged("b", values_of(*[right] * 13, worse, wrong, right))
    found = list(gallery_samples(shards, [first, second], 2))
    assert [sample.key for sample in found] == ["00000014", "00000015"]
    assert [sample.facets["outcome"] for sample in found] == ["only a right", "only b right"]


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A sentence-transformers model of random static embeddings."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "a", "square", "number", "red", "green", "blue", "yellow", *map(str, range(30))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("sentence") / "model"
    weights = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(folder))
    return folder, dict(zip(words, weights))


def test_similarity_of_three_kinds_of_encoder(checkpoints, shards, sentence_model, tmp_path, capsys):
    timm = pytest.importorskip("timm")
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    config, first, _ = checkpoints
    folder, vectors = sentence_model
    argv = ["similarity", str(shards), "--model-config", str(config), "--output", str(tmp_path / "out"),
            "--device", "cpu", "--encoder", f"clip=openclip:tiny-inspect:{first}",
            f"vit=timm:test_vit:{tmp_path / 'vit.pth'}", f"static=sentence:{folder}"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "vit: 3 samples have no image pair" in out and "static: 1 samples have no text pair" in out
    found = rows_of(tmp_path / "out" / "similarity.csv")
    images, captions = (f"cosine of positive and negative {what}" for what in ("images", "captions"))
    assert [found[images, label, "pairs"] for label in ("clip", "vit")] == ["21", "21"]
    assert (images, "static", "pairs") not in found and (captions, "vit", "pairs") not in found
    cosines = []
    for number in set(range(24)) - {7}:
        a, b = (sum(vectors[word] for word in paired_sample(number)[m].split()) for m in ("txt", "neg.txt"))
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert float(found[captions, "static", "mean"]) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert float(found["difficulty", "clip", "samples"]) == 21
    assert ("overlap of encoders, images", "clip and vit", "overlap") in found
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_another_sample_is_never_the_sample_itself(paired_shards):
    encoder = PairEncoder("ones", texts=lambda texts: np.ones((len(texts), 2), np.float32) / np.sqrt(2))
    samples = read_view_samples(find_shards(paired_shards), first=5)
    _, values = similarities(samples, encoder, 2)
    assert np.isnan(values[:, :5]).all() and np.allclose(values[:, 5], 1)
    assert np.isnan(values[4, 7]) and np.allclose(values[:4, 7], 1)  # the last batch has one sample


def test_overlap_of_distributions():
    assert overlap(np.array([0.1, 0.2]), np.array([0.1, 0.2])) == 1
    assert overlap(np.array([0.1, 0.2]), np.array([0.5])) == 0
    assert np.isnan(overlap(np.array([]), np.array([0.5])))


@pytest.mark.parametrize("name, error", [
    ("ViT-B-32", UsageError), ("openclip:ViT-B-32", UsageError), ("dino:x", UsageError),
    ("timm:no_such_model", CheckpointError), ("sentence:/nowhere/at/all", CheckpointError),
])
def test_encoders_that_are_none(name, error):
    with pytest.raises(error):
        make_encoder(name, "cpu")


def test_weights_of_another_model_are_refused(tmp_path):
    pytest.importorskip("timm")
    import torch

    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="lacks"):
        make_encoder(f"timm:test_vit:{tmp_path / 'w.pth'}", "cpu")


def test_samples_and_scores_are_those_of_the_benchmark(checkpoints, tmp_path, capsys):
    """Faults of every kind, and a turned photograph, whose stored pixels the benchmark takes."""
    import open_clip

    faults = [{"neg.txt": ""}, {"neg.txt": b"\xff\xfe"}, {"txt": " "}, {"neg.jpg": None}, {"jpg": b"broken"},
              {"neg.jpg": b"broken"}, {"neg.txt": None, "json": {"neg_captions": ["another thing"]}}, {"jpg": turned()}]
    with ShardWriter(tmp_path / "0.tar") as writer:
        for number in range(20):
            sample = {**paired_sample(number), **(faults[number] if number < len(faults) else {})}
            writer.write({name: value for name, value in sample.items() if value is not None})
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-inspect", pretrained=str(checkpoints[1]))
    expected = composition_scores(model, str(tmp_path / "0.tar"), preprocess, open_clip.get_tokenizer("tiny-inspect"))
    argv = ["model", str(checkpoints[1]), str(tmp_path), "--model-config", str(checkpoints[0])]
    assert cli.main([*argv, "--output", str(tmp_path)]) == 0
    found = rows_of(tmp_path / "model.csv")
    assert int(found["seed0", "all", "samples"]) == expected["items"] == 14
    for column, score in (("right, %", "group"), ("text score, %", "text"), ("image score, %", "image")):
        assert float(found["seed0", "all", column]) == pytest.approx(100 * expected[f"{score}_score"])
    told = capsys.readouterr().out
    assert all(f"{count} {reason}" in told for reason, count in expected["dropped"].items())
    assert "Right is the group score" in told


def turned() -> bytes:
    """A picture that asks to be turned by its EXIF."""
    from PIL import Image

    exif, stream = Image.Exif(), io.BytesIO()
    exif[274] = 6
    picture(9, size=(64, 40)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def test_a_set_of_captions_only_has_the_text_score(checkpoints, tmp_path, capsys):
    with ShardWriter(tmp_path / "0.tar") as writer:
        for number in range(12):
            sample = {k: v for k, v in paired_sample(number).items() if k != "neg.jpg"}
            writer.write({**sample, "jpg": b"broken"} if number == 5 else sample)
    argv = ["model", str(checkpoints[1]), str(tmp_path), "--model-config", str(checkpoints[0])]
    assert cli.main([*argv, "--output", str(tmp_path)]) == 0
    found, told = rows_of(tmp_path / "model.csv"), capsys.readouterr().out
    assert found["seed0", "all", "samples"] == "11" and found["seed0", "all", "image score, %"] == ""
    assert found["seed0", "all", "right, %"] == found["seed0", "all", "text score, %"]
    assert "Right is the text score, as there are no negative images" in told and "left out: 1 image damaged" in told


def test_the_runs_model_is_the_default(checkpoints, shards, tmp_path, capsys):
    path = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoints[1].read_bytes())
    params = f"model: tiny-inspect\nmodel_config: {[str(checkpoints[0])]}\n"
    (tmp_path / "run" / "params.txt").write_text(params)
    assert cli.main(["model", str(path), str(shards)]) == 0
    assert "run-epoch_1 on" in capsys.readouterr().out


def test_set_without_negatives_is_refused(checkpoints, tmp_path, capsys):
    with ShardWriter(tmp_path / "0.tar") as writer:
        writer.write({k: v for k, v in paired_sample(0).items() if k in ("__key__", "jpg", "txt")})
    assert cli.main(["model", str(checkpoints[1]), str(tmp_path), "--model-config", str(checkpoints[0])]) == 2
    assert "no sample has an image, a caption and a negative caption" in capsys.readouterr().err
    encoder = f"openclip:tiny-inspect:{checkpoints[1]}"
    assert cli.main(["similarity", str(tmp_path), "--encoder", encoder, "--model-config", str(checkpoints[0])]) == 2
    assert "nothing to compare (seed0: 1 samples have no image pair; " in capsys.readouterr().err
