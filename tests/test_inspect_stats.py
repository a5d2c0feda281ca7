"""Numbers of a set, counted by hand on sets made for it."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from conftest import paired_sample, picture
from open_clip_triplet.inspect import cli
from open_clip_triplet.inspect.duplicates import clusters, fingerprint, near_pairs
from open_clip_triplet.inspect.report import Report, Table
from open_clip_triplet.shards import ShardWriter


def brute(a, b, bits, own):
    return [
        [i, j] for i, x in enumerate(a.tolist()) for j, y in enumerate(b.tolist())
        if (x ^ y).bit_count() <= bits and (not own or i < j)
    ]


@pytest.mark.parametrize("bits", [0, 1, 4, 9])
def test_near_pairs_are_all_pairs_within_the_distance(bits):
    rng = np.random.default_rng(bits)
    a = rng.integers(0, 2**64, 60, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, n % 12, replace=False)) for n in range(60)]
    b = a[::-1] ^ np.array(flips, np.uint64)
    a = np.concatenate([a, a[:5], b[:20]])
    assert near_pairs(a, b, bits).tolist() == brute(a, b, bits, False)
    assert near_pairs(a, bits=bits).tolist() == brute(a, a, bits, True)
    assert near_pairs(a[:0], b, bits).shape == near_pairs(a[:0], bits=bits).shape == (0, 2)


def test_clusters_join_chains():
    assert clusters(7, np.array([[0, 3], [3, 5], [1, 2]])) == [[0, 3, 5], [1, 2]]


def noisy(seed: int) -> bytes:
    """A picture with structure of its own, so that no two are near."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize((96, 80), Image.BICUBIC), 95)


def encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def smaller(data: bytes) -> bytes:
    return encoded(Image.open(io.BytesIO(data)).resize((60, 50)), 70)


def test_the_same_picture_smaller_is_near_and_another_is_not():
    one, again, other = (fingerprint(data).phash for data in (noisy(0), smaller(noisy(0)), noisy(1)))
    assert (one ^ again).bit_count() <= 4 < (one ^ other).bit_count()
    assert fingerprint(b"no image").phash is None


@pytest.fixture
def marred(tmp_path):
    """10 samples: 3 repeats image 0, 4 shows it smaller, 5's negative is its own, 6 is undecodable."""
    folder = tmp_path / "set"
    with ShardWriter(folder / "00000.tar") as writer:
        for number in range(10):
            sample = {**paired_sample(number), "jpg": noisy(number), "neg.jpg": noisy(100 + number)}
            sample["json"] = {"category": "count" if number < 4 else "relation"}
            if number in (3, 4):
                sample["jpg"] = noisy(0) if number == 3 else smaller(noisy(0))
            if number == 5:
                sample.update({"neg.jpg": sample["jpg"], "neg.txt": sample["txt"].upper() + "."})
            if number == 6:
                sample["jpg"] = b"broken"
            if number == 7:
                sample["txt"] = paired_sample(0)["txt"]
            writer.write(sample)
    return folder


def tables(path) -> dict:
    rows = csv.DictReader(open(path))
    return {(row["table"], row["row"], row["column"]): row["value"] for row in rows}


def test_counts_by_hand(marred, tmp_path, capsys):
    sets = tmp_path / "eval"
    sets.mkdir()
    (sets / "a.json").write_text(json.dumps({"1": {"caption": "A red, SQUARE number 8", "id": "x y"}}))
    (sets / "b.jpg").write_bytes(noisy(109))  # a negative image of the set
    (sets / "c.jpg").write_bytes(smaller(noisy(2)))
    out = tmp_path / "stats"
    assert cli.main(["stats", str(marred), "--against", f"mine={sets}", "--output", str(out)]) == 0
    assert "edit category" in capsys.readouterr().out
    found = tables(out / "stats.csv")
    assert found["counts", "samples", "number"] == "10"
    assert found["counts", "images that cannot be decoded", "number"] == "1"
    assert found["edit category", "count", "negatives"] == "4"
    assert found["duplicates", "image", "repeated exactly"] == "1"
    assert found["duplicates", "image", "repeated or near (≤ 4 bits)"] == "2"
    assert found["duplicates", "image", "largest group"] == "3"
    assert found["duplicates", "caption", "repeated exactly"] == "1"
    own = "negatives that equal their own positive"
    for what in ("caption", "image, same bytes", "image, near"):
        assert found[own, f"same {what}", "samples"] == "1"
    columns = ("its images", "same image", "near (≤ 4 bits)", "same caption")
    assert [found["overlap with", "mine", column] for column in columns] == ["2", "1", "2", "1"]
    listed = list(csv.DictReader(open(out / "overlap.csv")))
    assert {row["key"] for row in listed} == {f"{n:08d}" for n in (2, 8, 9)}
    assert {row["mark"] for row in listed} == {"bad"}
    assert [row["key"] for row in csv.DictReader(open(out / "duplicates.csv"))] == ["00000003", "00000004"]
    assert json.loads((out / "stats.json").read_text())["tables"]["counts"][0] == {"name": "samples", "number": 10}
    assert (out / "stats.md").read_text().count("![") == len(list(out.glob("*.png"))) == 3
    assert all(Image.open(path).size[0] > 500 for path in out.glob("*.png"))


def test_text_only_reads_no_image(marred, capsys):
    assert cli.main(["stats", str(marred), "--text-only", "--format", "csv"]) == 0
    found = {tuple(row[:3]): row[3] for row in csv.reader(io.StringIO(capsys.readouterr().out))}
    assert found["duplicates", "image", "looked at"] == "0" and found["counts", "samples", "number"] == "10"


def test_against_nothing_is_refused(marred, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty"):
        assert cli.main(["stats", str(marred), "--against", str(path)]) == 2
        assert "--against" in capsys.readouterr().err


@pytest.mark.parametrize(("bits", "status"), [("-1", 2), ("65", 2), ("0", 0), ("64", 0)])
def test_a_distance_is_of_64_bits(bits, status, marred, capsys):
    assert cli.main(["stats", str(marred), "--near", bits]) == status
    assert (f"--near {bits}: a distance" in capsys.readouterr().err) == bool(status)


def test_a_report_says_the_same_in_every_format():
    rows = [["<b>", 1234, 0.5], ["none", None, None], ["small", 0, 1.973e-06]]
    report = Report("x", "A | title", [Table("t|1", ["n", "share"], rows, "A note.")])
    assert "1,234" in report.text() and "A note." in report.text()
    assert "| &lt;b&gt; | 1,234 | 0.500 |" in report.text("md") and "| 0 | 2e-06 |" in report.text("md")
    assert report.text("csv").splitlines()[1:3] == ["t|1,<b>,n,1234", "t|1,<b>,share,0.5"]
    assert json.loads(report.text("json"))["tables"]["t|1"][0]["n"] == 1234


def test_plain_colours_do_not_break_the_search():
    flat = np.full(5000, fingerprint(picture(0)).phash, np.uint64)
    unique = np.unique(flat)
    assert len(unique) == 1 and near_pairs(unique).shape == (0, 2)
