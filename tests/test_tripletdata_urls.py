"""Building to and from urls: memory://, an S3 server of one's own (moto), pipes; parquet with image bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from build_fixtures import Shout, contents, plain_shards
from conftest import picture, train, train_argv
from open_clip_triplet import files, make_shards
from open_clip_triplet.errors import UsageError
from open_clip_triplet.shards import read_samples
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import run_stage

CAPTIONS = [["A red car behind a small bus.", "A big dog on a table."], ["A small cat on a red sofa."]]


def upload(folder: str, url: str) -> None:
    fs, path = files.filesystem(url)
    for file in sorted(Path(folder).iterdir()):
        fs.makedirs(path, exist_ok=True)
        fs.put_file(str(file), f"{path}/{file.name}")


def download(url: str, folder: Path) -> dict[str, bytes]:
    fs, path = files.filesystem(url)
    fs.get(path, str(folder), recursive=True)
    return contents(folder)


@pytest.fixture
def memory():
    import fsspec

    fs = fsspec.filesystem("memory")
    yield "memory://set"
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def s3():
    """A bucket on a local S3 server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    import fsspec

    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket/set"
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


def build_argv(source: str, output: str, *more: str) -> list[str]:
    argv = ["build", "--input", source, "--output", output, "--backend", "rules", "--no-images"]
    return [*argv, "--save-size", "32", "--title", "T", "--quiet", *more]


@pytest.mark.parametrize("store", ["memory", "s3"])
def test_a_build_from_url_to_url_has_the_bytes_of_a_local_one(store, tmp_path, request, monkeypatch):
    pytest.importorskip("spacy")
    url = request.getfixturevalue(store)
    folder = plain_shards(tmp_path / "in", CAPTIONS)
    monkeypatch.chdir(tmp_path)
    upload(folder, f"{url}-{store}/in")
    argv = build_argv(f"{url}-{store}/in", f"{url}-{store}/out")
    assert make_shards.main(argv) == 0
    assert make_shards.main(build_argv(folder, str(tmp_path / "local"))) == 0
    found = download(f"{url}-{store}/out", tmp_path / "down")
    assert found == contents(tmp_path / "local")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["down", "in", "local"]  # no folder "s3:"
    fs, path = files.filesystem(f"{url}-{store}/out")
    for name in ("summary.json", "00001.record.json", ".work/captions/00001.tar"):
        fs.rm_file(f"{path}/{name}")  # as if it had been killed there
    assert make_shards.main(argv) == 0
    shutil.rmtree(tmp_path / "down")
    assert download(f"{url}-{store}/out", tmp_path / "down") == found
    assert make_shards.main(["validate", "--need", "text", "--quiet", "--input", f"{url}-{store}/out"]) == 0


def test_an_epoch_is_trained_from_a_bucket(s3, tiny_config, tmp_path):
    folder = plain_shards(tmp_path / "in", [["a", "b"], ["c", "d"]])
    run_stage(Shout(), plan_tasks(folder), f"{s3}-train", Local(cpu=True), quiet=True)
    flags = {"loss": "negclip", "train-data": f"{s3}-train/{{00000..00001}}.tar", "dataset-type": "webdataset"}
    train(train_argv(tiny_config, tmp_path, "run", **flags, **{"batch-size": 2}))
    assert (tmp_path / "run/checkpoints/epoch_1.pt").exists()


def test_a_pipe_is_read_and_its_command_is_kept_out_of_every_file(tmp_path):
    folder = plain_shards(tmp_path / "in", CAPTIONS[:1])
    command = f"pipe:cat {folder}/00000.tar # secret=hunter2"
    run = run_stage(Shout(), plan_tasks(command), tmp_path / "out", Local(cpu=True), quiet=True)
    assert not run.failed and len(list(read_samples(tmp_path / "out/00000.tar"))) == 2
    assert not any(b"hunter2" in data for data in contents(tmp_path / "out").values())
    assert not run_stage(Shout(), plan_tasks(command), tmp_path / "out", None, quiet=True).failed


def test_a_scheme_that_nothing_knows_is_refused_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = plain_shards(tmp_path / "in", CAPTIONS[:1])
    assert make_shards.main(["pack", "--input", folder, "--output", "nowhere://b/o", "--need"]) == 2
    assert "nowhere://b/o: cannot be opened" in capsys.readouterr().err
    assert make_shards.main(["pack", "--input", "nowhere://b/{0..9}.tar", "--output", "out", "--need"]) == 2
    assert make_shards.main(["pack", "--input", folder, "--output", "pipe:cat", "--need"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(UsageError, match=r"(?i)install.*gcsfs"):
        monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
        files.require_scheme("gs://b/o")


def hugging_face(folder: Path, suffix: str) -> Path:
    """A table of image bytes as `datasets` writes them."""
    import pyarrow
    import pyarrow.parquet

    rows = {
        "image": [{"bytes": picture(n), "path": f"{n}.jpg"} for n in range(3)],
        "caption": [["A red bus.", "A bus."], ["A dog."], ["A cat."]],
    }
    table, path = pyarrow.table(rows), folder / "data" / f"train-00000-of-00001.{suffix}"
    path.parent.mkdir(parents=True)
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return folder


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_hugging_face_tables_with_image_bytes(suffix, tmp_path):
    folder = hugging_face(tmp_path / "in", suffix)
    argv = ["pack", "--input", str(folder), "--output", str(tmp_path / "out"), "--need", "--quiet"]
    assert make_shards.main([*argv, "--samples-per-shard", "2"]) == 0
    samples = [s for n in (0, 1) for s in read_samples(tmp_path / f"out/0000{n}.tar")]
    assert [s["txt"] for s in samples] == [b"A red bus.", b"A dog.", b"A cat."]
    assert [s["jpg"] for s in samples] == [picture(n) for n in range(3)]
    assert json.loads(samples[0]["json"])["source_key"] == "0"


def test_a_table_of_urls_is_sent_to_img2dataset(tmp_path, capsys):
    import pandas

    pandas.DataFrame({"URL": ["http://x/y.jpg"], "TEXT": ["A dog."]}).to_parquet(tmp_path / "laion.parquet")
    argv = ["pack", "--input", str(tmp_path / "laion.parquet"), "--output", str(tmp_path / "out")]
    assert make_shards.main(argv) == 2
    text = capsys.readouterr().err
    assert "img2dataset --url_list" in text and "--url_col URL --caption_col TEXT" in text


def test_a_folder_of_files_as_img2dataset_writes_it(tmp_path):
    for number in range(2):
        folder = tmp_path / f"in/0000{number}"
        folder.mkdir(parents=True)
        (folder / "000000000.jpg").write_bytes(picture(number))
        (folder / "000000000.txt").write_text(f"caption {number}")
    argv = ["pack", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--need", "--quiet"]
    assert make_shards.main(argv) == 0
    for number in range(2):
        (sample,) = read_samples(tmp_path / f"out/0000{number}.tar")
        assert sample["jpg"] == picture(number) and sample["txt"].decode() == f"caption {number}"
