"""Storage that fails: every test ends with counts that add up to what the shard truly holds."""

import functools
import gzip
import http.server
import io
import logging
import os
import signal
import tarfile
import threading
import time
from collections import Counter

import pytest
from torch.utils.data import get_worker_info

from open_clip_triplet.data import get_paired_dataset, reading
from open_clip_triplet.data import loader as loader_module
from open_clip_triplet.data.checks import known_sizes
from open_clip_triplet.data.counts import dropped_samples
from open_clip_triplet.data.reading import ShardWatch
from open_clip_triplet.data.stream import ShardSlice
from open_clip_triplet.errors import ShardError, UsageError
from open_clip_triplet.evaluation.images import read_tar_index
from open_clip_triplet.files import opened
from open_clip_triplet.shards import ShardWriter, write_sizes
from open_clip_triplet.tar import TarMembers, open_tar
from paired_shards import arguments, method, numbers, sample, tokenize, write_shards
from test_data import TRANSFORM, dataset, epoch_of, seen


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(reading, "BACK_OFF", 0.01)


def add_up(info, total):
    """A pass that is over has seen or dropped each of its samples."""
    named = info.dataloader.state.counts.totals(0)
    assert named["seen"] + dropped_samples(named).total() == total
    return named


def read_slice(part, fields=("text",)):
    return list(reading.read_slice(part, lambda index: True, pass_index=0, watch=ShardWatch(1, 1), fields=fields))


def failing_pipe(folder, shard, failures, command="head -c 9000"):
    """A pipe that gives part of the shard and fails, so many times, and all of it from then on."""
    state = folder / "attempts"
    state.write_text("")
    return (
        f"pipe:printf x >> {state}; if [ $(wc -c < {state}) -le {failures} ]; "
        f"then {command} {shard}; exit 3; else cat {shard}; fi"
    )


def test_pipe_failing_twice_then_succeeding_gives_every_sample_once(tmp_path, caplog):
    write_shards(tmp_path, [12])
    url = failing_pipe(tmp_path, tmp_path / "00000.tar", failures=2)
    found = read_slice(ShardSlice(url, 0, 0, 12, 12))
    assert [item["text"] for _, item in found] == [b"%d" % n for n in range(12)]
    assert len(caplog.records) == 2


def test_pipe_that_fails_at_first_can_be_trained_on(tmp_path, caplog):
    write_shards(tmp_path, [12])
    url = failing_pipe(tmp_path, tmp_path / "00000.tar", failures=2)
    info = dataset(arguments(url, train_num_samples=12), "triplet")
    assert len(epoch_of(info, 4)) == 4
    assert add_up(info, 12)["seen"] == 12


def test_pipe_that_never_succeeds_is_given_up_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "RETRIES", 2)
    write_shards(tmp_path, [12])
    url = failing_pipe(tmp_path, tmp_path / "00000.tar", failures=99)
    found = read_slice(ShardSlice(url, 0, 0, 12, 12), ("image", "text"))
    assert [index for index, _ in found] == list(range(12))
    good = [item for _, item in found if isinstance(item, dict)]
    assert 0 < len(good) < 12
    assert {item for _, item in found if not isinstance(item, dict)} == {"damaged shard"}


def test_command_that_fails_without_output_or_at_the_very_end(tmp_path):
    write_shards(tmp_path, [3])
    shard = tmp_path / "00000.tar"
    for command in ("true", "cat"):
        url = failing_pipe(tmp_path, shard, failures=2, command=command)
        found = read_slice(ShardSlice(url, 0, 0, 3, 3))
        assert [item["text"] for _, item in found] == [b"0", b"1", b"2"]


def test_part_of_a_pipe_is_read_without_waiting_for_its_end(tmp_path):
    write_shards(tmp_path, [9])
    url = f"pipe:cat {tmp_path}/00000.tar; sleep 60"
    start = time.monotonic()
    found = read_slice(ShardSlice(url, 0, 2, 5, 9))
    assert [item["text"] for _, item in found] == [b"2", b"3", b"4"]
    assert time.monotonic() - start < 30


def test_corrupt_jpeg_in_the_middle_of_a_sample(tmp_path):
    data = sample(3)["neg.jpg"]
    spec = write_shards(tmp_path, [8], changes={3: {"neg.jpg": data[:60] + b"\0" * 40 + data[100:200]}})
    info = dataset(arguments(spec, batch_size=8), "triplet")
    assert set(seen(epoch_of(info))[::2]) == set(range(8)) - {3}
    assert add_up(info, 8)["corrupt image"] == 1


def test_missing_shard_is_counted(tmp_path):
    spec = write_shards(tmp_path, [8, 8])
    (tmp_path / "00001.tar").unlink()
    info = dataset(arguments(spec))
    assert set(seen(epoch_of(info, 3))) == set(range(8))
    assert add_up(info, 16)["damaged shard"] == 8


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A real web server over the folder; it knows no ranges."""
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_shards_over_http_with_one_that_is_not_there(tmp_path, server, caplog):
    """sizes.json too; the missing shard is given up at once, with one line a pass."""
    write_shards(tmp_path, [8, 8, 8])
    (tmp_path / "00001.tar").unlink()
    started = time.monotonic()
    info = dataset(arguments(f"{server}/{{00000..00002}}.tar", data_streams=4))
    assert set(seen(epoch_of(info, 12))) == {*range(8), *range(16, 24)}
    assert time.monotonic() - started < 20
    assert add_up(info, 24)["damaged shard"] == 8
    assert len([r for r in caplog.records if "00001.tar" in r.message and "for pass 0" in r.message]) == 1


def test_a_server_out_of_reach_is_no_damaged_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "RETRIES", 1)
    with pytest.raises(ShardError, match="none of the 1 shards.*http://127.0.0.1:9/0.tar") as told:
        dataset(arguments("http://127.0.0.1:9/0.tar", train_num_samples=8))
    assert "damaged" not in str(told.value)


class Busy(Quiet):
    """Answers the third request for a file; before, it is unavailable."""

    asked: Counter = Counter()

    def send_head(self):
        self.asked[self.path] += 1
        return self.send_error(503) if self.asked[self.path] < 3 else super().send_head()


def test_a_server_that_is_busy_is_asked_again(tmp_path, caplog):
    """For the shards, which it does not say are not there, and for sizes.json, which decides the order of samples."""
    write_shards(tmp_path, [8, 8])
    handler = functools.partial(Busy, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        info = dataset(arguments(f"http://127.0.0.1:{httpd.server_port}/{{00000..00001}}.tar"))
        assert info.dataloader.pieces.plan.sizes == (8, 8)
        assert set(seen(epoch_of(info, 4))) == set(range(16))
        httpd.shutdown()
    assert "503" in caplog.text and add_up(info, 16)["seen"] == 16


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (FileNotFoundError("memory://b/o"), FileNotFoundError, "memory://b/o: not there"),
        (PermissionError("denied"), PermissionError, "memory://b/o: denied"),
        (OSError("Forbidden: b/o"), PermissionError, "memory://b/o: Forbidden: b/o"),  # as gcsfs says it
        (KeyError("key"), OSError, "memory://b/o: cannot be read or written (KeyError: 'key')"),
        (TimeoutError(), TimeoutError, "memory://b/o: TimeoutError"),
    ],
)
def test_what_a_store_raises_is_an_os_error_of_its_kind_with_the_url(raised, kind, text):
    with pytest.raises(OSError) as told, opened("memory://b/o"):
        raise raised
    assert type(told.value) is kind and str(told.value) == text


def test_without_a_server_it_is_not_known_whether_there_are_sizes(monkeypatch):
    monkeypatch.setattr(reading, "RETRIES", 1)
    with pytest.raises(ShardError, match="http://127.0.0.1:9/sizes.json: Cannot connect"):
        known_sizes(["http://127.0.0.1:9/0.tar"])


def test_memory_urls_are_read_by_fsspec(tmp_path):
    import fsspec

    write_shards(tmp_path, [6])
    for name in ("00000.tar", "sizes.json"):
        fsspec.filesystem("memory").pipe(f"/set/{name}", (tmp_path / name).read_bytes())
    assert sorted(seen(epoch_of(dataset(arguments("memory://set/00000.tar", batch_size=2))))) == list(range(6))


def test_an_unknown_scheme_is_one_error_at_once():
    with pytest.raises(UsageError, match="nosuch://bucket/0.tar"):
        dataset(arguments("nosuch://bucket/0.tar", train_num_samples=8))


def kill_worker(texts):
    """A tokenizer that ends its worker as the out-of-memory killer does."""
    if get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return tokenize(texts)


def test_killed_worker_is_an_error_that_says_what_to_do(tmp_path):
    args = arguments(write_shards(tmp_path, [8]), workers=1)
    info = get_paired_dataset(args, TRANSFORM, True, tokenizer=kill_worker, method=method("clip"))
    with pytest.raises(
        RuntimeError, match=r"DataLoader worker.*00000\.tar.*fewer --workers.*--resume latest"
    ):
        epoch_of(info)


def test_stalled_source_is_named_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loader_module, "STALL_SECONDS", 0.4)
    write_shards(tmp_path, [4])
    slow = f"pipe:sleep 1.5; cat {tmp_path}/00000.tar"
    info = dataset(arguments(slow, train_num_samples=4, workers=1))
    with caplog.at_level(logging.WARNING):
        assert sorted(seen(epoch_of(info))) == [0, 1, 2, 3]
    assert "No batch for 0.4 s. Being read: stream 0: pipe:sleep 1.5" in caplog.text


def test_long_names_of_either_tar_dialect(tmp_path):
    key = "f" * 60 + "/" + "k" * 120
    for dialect in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        name = f"{key}.txt" if dialect != tarfile.USTAR_FORMAT else f"{'f' * 90}/{'k' * 90}.txt"
        path = tmp_path / "one.tar"
        with tarfile.open(path, "w", format=dialect) as tar:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
            tar.addfile(tarfile.TarInfo("b.txt"), io.BytesIO())
        with open_tar(path) as members:
            assert [(found, members.read()) for found in members] == [(name, b"abc"), ("b.txt", b"")]


def test_what_is_not_a_tar_is_an_error():
    for data in (b"", b"x" * 2000, b"\x1f\x8b" + b"y" * 1000):
        with pytest.raises(ShardError):
            list(TarMembers(io.BytesIO(data), length=len(data)))


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tar"])
def test_gzipped_shard_whatever_its_name(tmp_path, name):
    with ShardWriter(tmp_path / "plain.tar") as writer:
        for n in range(4):
            writer.write(sample(n))
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    write_sizes(tmp_path, {name: 4})
    ((_, texts),) = epoch_of(dataset(arguments(f"{tmp_path}/{name}")))
    assert sorted(numbers(texts)) == [0, 1, 2, 3]
    through_pipe = dataset(arguments(f"pipe:cat {tmp_path}/{name}", train_num_samples=4))
    assert sorted(seen(epoch_of(through_pipe))) == [0, 1, 2, 3]
    with pytest.raises(ShardError, match="unpack it first"):
        read_tar_index(tmp_path / name)
