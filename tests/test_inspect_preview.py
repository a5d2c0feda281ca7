"""The gallery of a build that is running."""

import json
import time
from pathlib import Path

import pytest

from build_fixtures import plain_shards
from conftest import paired_sample, write_shards
from open_clip_triplet.inspect.preview import Preview
from open_clip_triplet.make_shards import main
from open_clip_triplet.shards import ShardWriter


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def entries(html: Path) -> list[dict]:
    return json.loads(html.read_text().split('id="data">')[1].split("</script>")[0])["samples"]


def side(number: int) -> dict:
    """As a caption stage writes it: no image."""
    sample = paired_sample(number)
    return {**{name: sample[name] for name in ("txt", "neg.txt", "json")}, "__key__": f"00000_{number:06d}"}


def test_samples_show_up_while_their_shard_is_being_written(tmp_path):
    source = write_shards(folder(tmp_path, "source"), [30]).replace("{00000..00000}", "00000")
    work = tmp_path / "build" / ".work" / "captions"
    page = tmp_path / "preview.html"
    preview = Preview(tmp_path / "build", page, {"00000": source})
    assert preview.refresh() == 0 and not page.exists()  # nothing there yet
    with ShardWriter(work / "00000.tar") as writer:
        for number in range(28):
            writer.write(side(number))
        writer._tar.fileobj.flush()
        assert preview.refresh() == 24
        found = entries(page)  # a sample is whole once the one after it has begun
        assert found[0]["key"] == "00000_000026" and found[0]["shard"] == "00000.tar"
        assert found[0]["images"][0] == [48, 40]  # the source's
        assert found[0]["facets"]["stage"] == "captions"
        assert 'http-equiv="refresh"' in page.read_text()
        assert preview.refresh() == 0  # nothing new
    assert preview.refresh(final=True) == 24 and 'http-equiv="refresh"' not in page.read_text()


def test_thread_writes_by_itself_and_a_broken_folder_stops_nothing(tmp_path, caplog):
    write_shards(folder(tmp_path, "build"), [3])
    page = tmp_path / "preview.html"
    with Preview(tmp_path / "build", page, every=0.05):
        end = time.monotonic() + 10
        while not page.exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert page.exists()
    assert [entry["facets"]["stage"] for entry in entries(page)] == ["pack"] * 3
    (tmp_path / "build" / "00000.tar").write_bytes(b"x" * 2000)
    with Preview(tmp_path / "build", tmp_path / "no" / "\0", every=0.05):
        time.sleep(0.2)


def test_build_keeps_a_preview(tmp_path):
    pytest.importorskip("spacy")
    texts = ["A brown dog runs on the green grass.", "Two men ride a red bicycle.", "A small boy eats an apple."]
    source = plain_shards(folder(tmp_path, "source"), [texts])
    argv = ["build", "--input", source, "--output", str(tmp_path / "out"), "--backend", "rules", "--no-images"]
    assert main([*argv, "--preview"]) == 0
    found = entries(tmp_path / "out" / "preview.html")
    assert {"".join(entry["captions"][0]) for entry in found} <= set(texts) and found
    assert all(entry["negatives"] and entry["images"][0] for entry in found)
    assert main([*argv, "--preview", str(tmp_path / "again.html")]) == 0  # nothing left to do: the same samples
    assert len(entries(tmp_path / "again.html")) == len(found)
