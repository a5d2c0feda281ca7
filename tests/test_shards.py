"""The shard format: what is written comes back, the bytes are fixed, damage is told."""

import gzip
import io
import json
import os
import tarfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_clip_triplet import shards
from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.evaluation.benchmarks.tripletdata import paired_samples
from open_clip_triplet.evaluation.images import read_tar_index

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
            assert shards.read_meta(shards.rename_members(back)) == sample["json"]
    assert write(folder / "b.tar", samples).read_bytes() == path.read_bytes()


def samples_until_error(path, read=shards.read_samples):
    """What comes before the ShardError that must come."""
    found = []
    with pytest.raises(ShardError, match=path.name):
        for sample in read(path):
            found.append({name: value for name, value in sample.items() if name != "__url__"})
    return found


def paired_samples_raising(path):
    """As evaluation reads them: damage is counted there, not raised."""
    dropped = Counter()
    yield from paired_samples([str(path)], dropped)
    if dropped:
        raise ShardError(f"{path}: {dropped}")


def test_a_shard_cut_anywhere_gives_whole_samples_and_then_an_error(tmp_path):
    members = ("jpg", "neg.jpg", "neg.txt", "txt")
    samples = [
        {"__key__": str(n), **{suffix: bytes([n]) * (300 * n) for suffix in members}} for n in range(1, 4)
    ]
    whole = write(tmp_path / "whole.tar", samples).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        members = tar.getmembers()
        end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    cut = tmp_path / "cut.tar"
    for size in range(0, end + 1, 100):  # in headers, in members and in the padding of both
        cut.write_bytes(whole[:size])
        found = samples_until_error(cut)
        # the last of them is told whole by the header that follows it
        assert len(found) == sum(1 for member in members[4::4] if member.offset + 512 <= size)
        assert found == samples[: len(found)]
        assert len(samples_until_error(cut, paired_samples_raising)) == len(found)
        with pytest.raises(ShardError):
            read_tar_index(cut)
    cut.write_bytes(whole[: end + 512])
    assert len(list(shards.read_samples(cut))) == len(read_tar_index(cut)) == 3


def test_a_garbled_header_is_an_error_wherever_it_lies(tmp_path):
    samples = [{"__key__": str(n), "jpg": b"x" * 600, "txt": "a dog"} for n in range(3)]
    path = write(tmp_path / "a.tar", samples)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for number, header in enumerate(headers):
        path.write_bytes(whole[: header + 3] + b"#" + whole[header + 4 :])
        assert len(samples_until_error(path)) == max(number - 1, 0) // 2


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "size",
    [b"-0000001000\0", b"0000000-512\0", b"+1\0", b"0o17\0", b"1_0\0", b"zzz\0", b"77777777777\0",
     b"\x80" + b"\x7f" * 11, b"\x80" + bytes(6) + b"\x7f" * 5, b"\xff" * 12],
)  # fmt: skip
def test_a_size_that_cannot_be_is_an_error(tmp_path, size, compressed):
    path = write(tmp_path / "a.tar", [{"__key__": str(n), "txt": "x"} for n in range(3)])
    data = bytearray(path.read_bytes())
    header = data[2048:2560]  # of sample 2
    header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[2048:2560] = header
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert [sample["__key__"] for sample in samples_until_error(path)] in (["0"], ["0", "1"])


@pytest.mark.parametrize("size", ["abc", "-512", "9" * 30, "9" * 5000, "99999999999"])
def test_a_pax_size_that_cannot_be_is_an_error(tmp_path, size):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.txt")
        info.pax_headers = {"size": size}
        tar.addfile(info)
    assert samples_until_error(path) == []


def test_damage_within_gzip_is_an_error(tmp_path):
    path = write(tmp_path / "a.tar", [{"__key__": str(n), "jpg": os.urandom(5000)} for n in range(8)])
    data = bytearray(gzip.compress(path.read_bytes()))
    for damaged in (data[: len(data) // 2], data[:20000] + b"\xff" * 40 + data[20040:]):
        path.write_bytes(damaged)
        assert len(samples_until_error(path)) < 8


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
    roles = shards.rename_members(raw)
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


def test_a_brace_that_is_not_closed_is_one_error():
    with pytest.raises(UsageError, match="Unbalanced braces"):
        shards.expand_shards("s/{000..002.tar")


def test_sizes_come_from_the_folder_of_each_shard(tmp_path):
    shards.write_sizes(tmp_path / "a", {"0.tar": 3})
    assert shards.read_sizes([f"{tmp_path}/a/0.tar"]) == [3]
    assert shards.read_sizes([f"{tmp_path}/a/0.tar", f"{tmp_path}/a/1.tar"]) is None
    assert shards.read_sizes([f"{tmp_path}/b/0.tar"]) is None
    assert json.loads((tmp_path / "a" / "sizes.json").read_text()) == {"0.tar": 3}


def test_sizes_beside_remote_shards(caplog):
    caplog.set_level("INFO")
    shards.write_sizes("memory://bucket/a", {"0.tar": 3, "1.tar": "4"})
    assert shards.read_sizes(["memory://bucket/a/0.tar"]) == [3]
    assert shards.read_sizes(["memory://bucket/a/1.tar"]) is None
    unknown = []
    assert shards.read_sizes(["memory://bucket/b/0.tar", "memory://bucket/a/0.tar"], unknown) is None
    assert unknown == ["memory://bucket/b/0.tar"]
    assert caplog.text.count("No sizes.json beside the shards") == 1
    assert shards.read_sizes(["pipe:cat /bucket/a/0.tar"]) is None


@pytest.mark.parametrize(
    ("names", "spelled"),
    [
        (["08.tar", "09.tar", "10.tar"], "{08..10}.tar"),
        (["train-0.tar", "train-2.tar"], None),  # a list, which ends as OpenCLIP knows shards
        (["one.tar"], "one.tar"),
    ],
)
def test_a_folder_is_spelled_as_openclip_takes_it(tmp_path, names, spelled):
    for name in names:
        (tmp_path / name).touch()
    found = shards.normalise_ranges(str(tmp_path))
    assert found == f"{tmp_path}/{spelled}" if spelled else found.endswith(".tar")
    assert shards.expand_shards(found) == [f"{tmp_path}/{name}" for name in names]
