"""The shard format: what is written comes back, the bytes are fixed, damage is told."""

import io
import json
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_clip_triplet import shards

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda key: not key.startswith("__") and len(key.encode()) < 200
)
CAPTIONS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=200)
SAMPLES = st.lists(
    st.fixed_dictionaries(
        {"__key__": KEYS, "jpg": st.binary(max_size=1500), "txt": CAPTIONS},
        optional={
            "neg.jpg": st.binary(max_size=1500),
            "neg.txt": CAPTIONS,
            "json": st.dictionaries(CAPTIONS, CAPTIONS),
        },
    ),
    max_size=6,
    unique_by=lambda sample: sample["__key__"],
)


def write(path, samples):
    with shards.ShardWriter(path) as writer:
        for sample in samples:
            writer.write(sample)
    return path


@settings(deadline=None, max_examples=60)
@given(samples=SAMPLES)
def test_samples_come_back_as_written_and_bytes_are_fixed(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("roundtrip")
    path = write(folder / "a.tar", samples)
    read = list(shards.read_samples(path))
    assert [sample["__key__"] for sample in read] == [sample["__key__"] for sample in samples]
    for back, sample in zip(read, samples):
        assert back["jpg"] == sample["jpg"] and back["txt"].decode() == sample["txt"]
        assert set(back) - {"__url__"} == set(sample)
        if "json" in sample:
            assert shards.read_meta(shards.by_role(back)) == sample["json"]
    assert write(folder / "b.tar", samples).read_bytes() == path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(samples=SAMPLES.filter(lambda s: len(s) > 1), cut=st.floats(0.0, 0.999))
def test_a_truncated_shard_gives_whole_samples_and_then_an_error(tmp_path_factory, samples, cut):
    folder = tmp_path_factory.mktemp("cut")
    whole = write(folder / "a.tar", samples).read_bytes()
    with tarfile.open(folder / "a.tar") as tar:
        end = tar.getmembers()[-1].offset_data
    (folder / "b.tar").write_bytes(whole[: int(end * cut)])
    read = []
    try:
        for sample in shards.read_samples(folder / "b.tar"):
            read.append(sample)
    except shards.ShardError as error:
        assert "b.tar" in str(error)
    else:  # cut exactly between two members: a tar without its end looks whole to any reader
        read = read[:-1]
    for back, sample in zip(read, samples):
        assert set(back) - {"__url__"} == set(sample)
    assert len(read) < len(samples)


@pytest.mark.parametrize("key", ["", "a.b", "__meta", "a/__b", "a/"])
def test_a_key_that_would_not_come_back_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match="sample key"):
        write(tmp_path / "a.tar", [{"__key__": key, "txt": "x"}])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_shard(tmp_path):
    path = write(tmp_path / "a.tar", [{"__key__": "0", "txt": "old"}])
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), shards.ShardWriter(path) as writer:
        writer.write({"__key__": "0", "txt": "new"})
        raise KeyboardInterrupt
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.tar"]


def test_links_and_devices_in_a_tar_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        text = tarfile.TarInfo("../../0.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"x"))
    (sample,) = shards.read_samples(tmp_path / "a.tar")
    assert sample["__key__"] == "../../0" and set(sample) == {"__key__", "__url__", "txt"}


def test_members_of_the_released_data_have_the_same_roles():
    raw = {"__key__": "0", "image": b"i", "caption": b"c", "neg_image": b"n", "neg_caption": b"m"}
    roles = shards.by_role(raw)
    assert {role: roles[role] for role in ("image", "text", "neg_image", "neg_text")} == {
        "image": b"i", "text": b"c", "neg_image": b"n", "neg_text": b"m",
    }  # fmt: skip


@pytest.mark.parametrize("meta", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_json_that_is_no_object_reads_as_empty(meta):
    assert shards.read_meta({"meta": meta}) == {}


@pytest.mark.parametrize(
    ("spec", "urls"),
    [
        ("s/{000..002}.tar", ["s/000.tar", "s/001.tar", "s/002.tar"]),
        ("s/<000..002>.tar", ["s/000.tar", "s/001.tar", "s/002.tar"]),
        ("a.tar::b/<8..10..2>.tar", ["a.tar", "b/8.tar", "b/10.tar"]),
        ("pipe:cat < a.tar", ["pipe:cat < a.tar"]),
        (["a.tar", "b{0..1}.tar"], ["a.tar", "b0.tar", "b1.tar"]),
    ],
)
def test_shard_specs(spec, urls):
    assert shards.expand_shards(spec) == urls


def test_sizes_come_from_the_folder_of_each_shard(tmp_path):
    shards.write_sizes(tmp_path / "a", {"0.tar": 3})
    assert shards.read_sizes([f"{tmp_path}/a/0.tar"]) == [3]
    assert shards.read_sizes([f"{tmp_path}/a/0.tar", f"{tmp_path}/a/1.tar"]) is None
    assert shards.read_sizes([f"{tmp_path}/b/0.tar"]) is None
    assert json.loads((tmp_path / "a" / "sizes.json").read_text()) == {"0.tar": 3}


def test_needed_members_are_checked_on_the_first_sample(tmp_path):
    path = str(write(tmp_path / "a.tar", [{"__key__": "7", "jpg": b"x", "txt": "y", "neg.txt": "z"}]))
    shards.require_roles(path, ["image", "text", "neg_text"], reader="--loss negclip")
    message = r"--loss triplet reads neg\.jpg, which .*a\.tar.*'7', has: jpg, neg\.txt"
    with pytest.raises(shards.ShardError, match=message):
        shards.require_roles(path, ["image", "neg_image", "neg_text"], reader="--loss triplet")
    with pytest.raises(shards.ShardError, match="holds no sample"):
        shards.require_roles(str(write(tmp_path / "b.tar", [])), ["image"], reader="x")
    with pytest.raises(shards.ShardError, match=r"c\.tar: cannot be read"):
        shards.require_roles(str(tmp_path / "c.tar"), ["image"], reader="x")
