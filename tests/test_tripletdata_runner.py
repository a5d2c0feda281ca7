"""The runner and its engines: resume, refusal, faults, and the same bytes from every engine."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_fixtures import Meeting, Shout, contents, plain_shards
from open_clip_triplet import make_shards
from open_clip_triplet.errors import ImageError, PipelineError
from open_clip_triplet.shards import ShardWriter, read_samples, rename_members
from open_clip_triplet.tripletdata.backends.vllm import Vllm
from open_clip_triplet.tripletdata.run import runner
from open_clip_triplet.tripletdata.run.cluster import Ray, RayWorker
from open_clip_triplet.tripletdata.run.command import report
from open_clip_triplet.tripletdata.run.engines import Local, devices
from open_clip_triplet.tripletdata.run.pictures import refused
from open_clip_triplet.tripletdata.run.plan import known_samples, plan_tasks
from open_clip_triplet.tripletdata.run.pool import Pool, visible_devices
from open_clip_triplet.tripletdata.run.progress import Progress
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.run.sample import Stats
from open_clip_triplet.tripletdata.run.stage import sample_seed
from open_clip_triplet.tripletdata.run.tables import Table
from open_clip_triplet.tripletdata.stages.captions import Captions
from open_clip_triplet.tripletdata.stages.concepts import Positions
from open_clip_triplet.tripletdata.stages.images import resolved_dtype

ROOT = Path(__file__).parents[1]
TEXTS = [["a dog", "drop me", "a cat"], ['a {red} "hat"\nand\ta coat', "b"], ["drop", "drop"], ["x" * 10_000]]
CPU = Local(cpu=True)


@pytest.fixture
def shards(tmp_path):
    return plain_shards(tmp_path / "in", TEXTS)


def shout(shards, output, *, engine=CPU, **options):
    return run_stage(Shout(**options), plan_tasks(shards), output, engine, quiet=True)


def test_samples_get_unique_keys_and_every_loss_is_counted(shards, tmp_path):
    run = shout(shards, tmp_path / "out")
    samples = [s for path in sorted((tmp_path / "out").glob("*.tar")) for s in read_samples(path)]
    keys = [sample["__key__"] for sample in samples]
    assert keys == ["00000_000000", "00000_000002", "00001_000000", "00001_000001", "00003_000000"]
    assert [json.loads(s["json"])["source_key"] for s in samples[:2]] == ["000000000", "000000002"]
    assert samples[2]["neg.txt"].decode() == 'A {RED} "HAT" AND A COAT!'  # a caption is one line
    counts = {"read": 8, "kept": 5, "dropped": {"asked to": 3}, "left_out": {}, "counts": {}}
    assert runner.totals(run.records()) == counts
    assert not (tmp_path / "out/00002.tar").exists()  # nothing kept: a record, no empty shard
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {
        "00000.tar": 2,
        "00001.tar": 2,
        "00003.tar": 1,
    }


def test_a_second_stage_keeps_the_keys_of_the_first(shards, tmp_path):
    shout(shards, tmp_path / "one")
    run = shout(str(tmp_path / "one" / "00000.tar"), tmp_path / "two")
    (first, second) = read_samples(tmp_path / "two/00000.tar")
    assert (first["__key__"], second["__key__"]) == ("00000_000000", "00000_000002")
    assert json.loads(second["json"])["source_key"] == "000000002"
    assert not run.failed


def test_repeated_keys_inside_our_own_shards_are_dropped(tmp_path):
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        for text in ("a", "b"):
            writer.write({"__key__": "00000_000003", "txt": text, "json": {"source_key": "k"}})
            writer.write({"__key__": "zz", "txt": text, "json": {"source_key": "k"}})
    run = shout(str(tmp_path / "in"), tmp_path / "out")
    assert runner.totals(run.records())["dropped"] == {"repeated key": 3}


def test_keys_go_on_beyond_a_million(tmp_path):
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        for number in (999_999, 1_000_000, 1_000_001):
            text = f"drop {number}" if number == 1_000_000 else "a"
            writer.write({"__key__": f"00000_{number:06d}", "txt": text, "json": {"source_key": "k"}})
    run = shout(str(tmp_path / "in"), tmp_path / "out")
    assert runner.totals(run.records())["dropped"] == {"asked to": 1}
    assert [s["__key__"] for s in read_samples(tmp_path / "out/00000.tar")] == ["00000_999999", "00000_1000001"]


def test_unusable_captions_are_dropped_by_reason(tmp_path):
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        for number, text in enumerate([b"\xff\xfe", b"  ", b"fine"]):
            writer.write({"__key__": f"{number}", "txt": text})
        writer.write({"__key__": "9", "jpg": b"x"})
    run = shout(str(tmp_path / "in"), tmp_path / "out")
    reasons = {"caption is not UTF-8": 1, "empty caption": 1, "no caption": 1}
    assert runner.totals(run.records())["dropped"] == reasons


def test_resume_of_a_finished_run_opens_no_model(shards, tmp_path):
    shout(shards, tmp_path / "out")
    before = contents(tmp_path / "out")

    def engine(*_):
        raise AssertionError("there is nothing to do")

    shout(shards, tmp_path / "out", engine=engine)
    assert contents(tmp_path / "out") == before


def test_progress_adds_up_to_all_and_never_to_more(capsys):
    with Progress("shout", 7, 1) as progress:
        for task in range(6):
            for tenth in range(1, 11):
                progress.fraction(task, tenth / 10)
            progress.fraction(task, 0.3)  # its worker died: it is begun again
            assert progress._bar.n == 2 + task
        for task in range(6):
            progress.done(task, {"kept": 1})
        assert progress._bar.n == 7
    assert "7/7 shards, 6 samples" in capsys.readouterr().err


def test_another_configuration_is_refused_by_name(shards, tmp_path):
    shout(shards, tmp_path / "out")
    with pytest.raises(PipelineError, match=r'ending: "!" there, "\?" now') as stop:
        shout(shards, tmp_path / "out", ending="?")
    assert stop.value.status == 2
    shout(shards, tmp_path / "out", poison="never met")  # how, not what: no reason to refuse


def test_a_plan_that_cannot_be_read_renumbers_nothing(shards, tmp_path):
    shout(shards, tmp_path / "out")
    (tmp_path / "out/plan.json").write_text('{"inputs"')
    with pytest.raises(PipelineError, match=r"plan\.json: cannot be read"):
        plan_tasks(shards, output=tmp_path / "out")


def test_another_input_under_the_same_name_is_refused(shards, tmp_path):
    shout(shards, tmp_path / "out")
    plain_shards(tmp_path / "in", [["a", "b", "c", "d", "e", "f", "g"] * 9, *TEXTS[1:]])
    with pytest.raises(PipelineError, match="00000.tar was made from 00000.tar"):
        shout(shards, tmp_path / "out")


def test_another_reading_of_a_table_is_refused(tmp_path):
    (tmp_path / "0.csv").write_text("filepath,title,alt\na.jpg,one,two\n")
    run_stage(Shout(), plan_tasks(str(tmp_path / "0.csv"), Table()), tmp_path / "out", CPU, quiet=True)
    other = plan_tasks(str(tmp_path / "0.csv"), Table(caption_key="alt"))
    with pytest.raises(PipelineError, match=r"caption_key 'title'.*now 0.csv.*caption_key 'alt'"):
        run_stage(Shout(), other, tmp_path / "out", CPU, quiet=True)


def test_what_decides_the_bytes_is_in_the_configuration():
    chosen = [Positions(2, {0: frozenset(numbers)}).config() for numbers in ([1, 2], [2, 1], [1, 3])]
    assert chosen[0] == chosen[1] != chosen[2]
    assert Vllm("m", "{}", max_model_len=64).config() != Vllm("m", "{}", max_model_len=128).config()
    args = argparse.Namespace(dtype="auto", engine="local", ray_address="", ray_gpus=None)
    assert resolved_dtype(args) in ("float16", "float32")
    args.engine, args.ray_address = "ray", "auto"
    assert resolved_dtype(args) == "float16"


def test_input_paths_are_absolute(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.csv").write_text("filepath,title\na.jpg,one\n")
    assert all(os.path.isabs(task.inputs[0]) for task in plan_tasks(["in", "in/{00000..00001}.tar", "0.csv"]))


def test_shards_of_others_are_never_overwritten(shards, tmp_path, capsys):
    before = contents(tmp_path / "in")
    for command in (["pack", "--need"], ["build", "--backend", "rules"], ["filter", "--top-k", "1"]):
        for output in (shards, shards + "/.", str(tmp_path / "foreign")):
            (tmp_path / "foreign").mkdir(exist_ok=True)
            (tmp_path / "foreign/photos.tar").write_bytes(b"mine")
            assert make_shards.main([*command, "--input", shards, "--output", output]) == 2
            assert "Choose another --output" in capsys.readouterr().err
    assert contents(tmp_path / "in") == before and list(contents(tmp_path / "foreign")) == ["photos.tar"]


def test_two_runs_into_one_folder_are_refused(shards, tmp_path):
    def engine(*_):
        shout(shards, tmp_path / "out")
        yield

    with pytest.raises(PipelineError, match="another run is writing"):
        shout(shards, tmp_path / "out", engine=engine)


def test_a_damaged_shard_is_named_and_alone_redone_once_mended(shards, tmp_path):
    good = (tmp_path / "in/00001.tar").read_bytes()
    (tmp_path / "in/00001.tar").write_bytes(good[: len(good) // 2])
    run = shout(shards, tmp_path / "out")
    assert list(run.failed) == [str(tmp_path / "in/00001.tar")] and "damaged" in [*run.failed.values()][0]
    assert report(run) == 3
    assert not (tmp_path / "out/00001.tar").exists() and (tmp_path / "out/00003.tar").exists()
    (tmp_path / "in/00001.tar").write_bytes(good)
    log = tmp_path / "log"
    assert not shout(shards, tmp_path / "out", log=str(log)).failed
    assert log.read_text() == "00001\n"
    shout(shards, tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_shard_that_is_not_there_is_named(shards, tmp_path):
    run = run_stage(Shout(), plan_tasks(f"{shards}/{{00003..00004}}.tar"), tmp_path / "out", CPU, quiet=True)
    assert "no such file" in run.failed[f"{shards}/00004.tar"]


def test_a_full_disk_stops_the_run_and_says_what_to_do(shards, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(PipelineError, match=r"disk full while writing 0000\d.tar.*same command again") as stop:
        shout(shards, tmp_path / "out")
    assert stop.value.status == 4
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_file_system(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let root mount a file system")
    try:
        shards = plain_shards(tmp_path / "in", [["a"], ["b"] * 60])
        assert make_shards.main(["pack", "--input", shards, "--output", str(small / "out"), "--need", "--quiet"]) == 4
        assert (small / "out/00000.record.json").exists() and not (small / "out/00001.record.json").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_stage_that_loses_count_fails_its_shard(shards, tmp_path, capfd):
    class Leaky(Shout):
        def process(self, task, stats):
            yield from list(super().process(task, stats))[1:]

    run = run_stage(Leaky(), plan_tasks(shards), tmp_path / "out", CPU, quiet=True)
    assert "lost count of 1 of 3 samples" in run.failed[f"{shards}/00000.tar"]


def test_processes_write_the_same_bytes_as_one(shards, tmp_path):
    shout(shards, tmp_path / "one")
    shout(shards, tmp_path / "two", engine=Local(workers=2, cpu=True))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_process_is_replaced_and_its_shard_redone_once(shards, tmp_path, capfd):
    once, log = tmp_path / "once", tmp_path / "log"
    run = shout(
        shards,
        tmp_path / "out",
        engine=Local(workers=2, cpu=True),
        poison="a cat",
        once=str(once),
        log=str(log),
    )
    assert not run.failed and once.exists() and "signal 9" in capfd.readouterr().err
    # the killed task ran again; Ray runs a task at least once, so another may have too
    runs = Counter(log.read_text().split())
    assert set(runs) == {"00000", "00001", "00002", "00003"} and runs["00000"] >= 2
    shout(shards, tmp_path / "calm")
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_a_shard_that_always_kills_its_process_fails_alone(shards, tmp_path, capfd):
    run = shout(shards, tmp_path / "out", engine=Local(workers=2, cpu=True), poison="a cat")
    assert "signal 9, twice" in run.failed[f"{shards}/00000.tar"] and len(run.records()) == 3


def test_a_process_killed_between_two_shards_is_replaced(shards, tmp_path, capfd):
    def engine(stage, tasks, output, progress):
        pool = Pool(stage, tasks, output, ["cpu"], progress)
        for number, event in enumerate(pool.events()):
            if not number:  # its first shard is done, and the next is begun or about to be
                for worker in pool.workers.values():
                    worker.process.kill()
                    worker.process.join()
            yield event

    run = shout(shards, tmp_path / "out", engine=engine)
    assert not run.failed and "trying that shard again" in capfd.readouterr().err
    shout(shards, tmp_path / "calm")
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_gpus_are_grouped_for_tensor_parallel_models(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert devices() == [f"cuda:{i}" for i in range(5)] and devices(0, 2) == ["cuda:0,1", "cuda:2,3"]
    assert (
        devices(3, 2) == ["cuda:0,1", "cuda:2,3", "cuda:0,1"] and visible_devices("2,3", "a,b,c,d") == "c,d"
    )
    with pytest.raises(PipelineError, match="8 GPUs; 5 can be seen"):
        devices(0, 8)
    assert Captions(Vllm("m", "{}", tensor_parallel=2)).gpus == 2 and Shout().gpus == 1


def test_a_ray_worker_that_cannot_start_says_why(capfd):
    class Broken(Shout):
        def open(self, device):
            raise ImportError("libcudart.so.12")

    kind, (message, status) = RayWorker(Broken(), "cpu").work(None, "")
    assert kind == "stop" and "shout cannot start: ImportError: libcudart" in message and status == 4


@pytest.fixture(scope="module")
def ray_cluster():
    """A real local cluster of two CPUs."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: install open_clip_triplet with its extra `ray`")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ray.init(
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_workers_write_the_same_bytes_one_killed(shards, tmp_path, ray_cluster):
    once, log = tmp_path / "once", tmp_path / "log"
    run = shout(
        shards,
        tmp_path / "ray",
        engine=Ray(workers=2, cpu=True),
        poison="a cat",
        once=str(once),
        log=str(log),
    )
    assert not run.failed and once.exists()
    # the killed task ran again; Ray runs a task at least once, so another may have too
    runs = Counter(log.read_text().split())
    assert set(runs) == {"00000", "00001", "00002", "00003"} and runs["00000"] >= 2
    shout(shards, tmp_path / "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    run = shout(shards, tmp_path / "bad", engine=Ray(workers=1, cpu=True), poison="a cat")
    assert "died more than once" in run.failed[f"{shards}/00000.tar"] and len(run.records()) == 3


def pack_command(shards, output) -> list[str]:
    program = "import sys; from open_clip_triplet.make_shards import main; sys.exit(main())"
    options = ["--need", "--save-size", "64", "--workers", "2", "--quiet"]
    return [sys.executable, "-c", program, "pack", "--input", shards, "--output", str(output), *options]


def test_killed_anywhere_and_rerun_gives_the_bytes_of_an_undisturbed_run(tmp_path):
    shards = plain_shards(tmp_path / "in", [["a"] * 25] * 10, size=(300, 400))
    run = {"cwd": ROOT, "stderr": subprocess.DEVNULL}
    assert subprocess.run(pack_command(shards, tmp_path / "calm"), **run).returncode == 0
    output, seen = tmp_path / "out", {}
    for finished in (0, 1, 3, 4, 6):
        process = subprocess.Popen(pack_command(shards, output), **run)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            records = list(output.glob("*.record.json"))
            # With none finished yet: as soon as a shard is half written.
            if len(records) > finished or (not finished and list(output.glob(".*.tmp"))):
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, stamp in seen.items():
            assert (output / name).stat().st_mtime_ns == stamp, f"{name} was done again"
        seen = {path.name: path.stat().st_mtime_ns for path in output.glob("*.record.json")}
    assert subprocess.run(pack_command(shards, output), **run).returncode == 0
    for name, stamp in seen.items():
        assert (output / name).stat().st_mtime_ns == stamp
    assert contents(output) == contents(tmp_path / "calm")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables_give_what_the_same_shards_give(kind, tmp_path):
    import pandas

    from conftest import picture

    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    frame = pandas.DataFrame(
        {"filepath": ["0.jpg", "1.jpg", "gone.jpg", "2.jpg"], "title": ["a, {}", 'say "b"', "c", "NA"]}
    )
    table = tmp_path / f"table.{kind}"
    if kind == "parquet":
        frame.to_parquet(table)
    else:
        frame.to_csv(table, sep="," if kind == "csv" else "\t", index=False)
    tasks = plan_tasks(str(table), Table(), samples_per_shard=3)
    assert [task.rows for task in tasks] == [(0, 3), (3, 4)] and known_samples(tasks) == 4
    stats = Stats()
    samples = [sample for task in tasks for sample in task.samples(stats)]
    assert [s.text for s in samples] == ["a, {}", 'say "b"', "NA"]
    assert [s.meta["source_key"] for s in samples] == ["0", "1", "2"]
    assert samples[1].image == picture(1) and stats.dropped == {"image file missing": 1}
    with pytest.raises(PipelineError, match=r"no column 'caption' \(it has: filepath, title\).*--caption-key"):
        plan_tasks(str(table), Table(caption_key="caption"))


def test_caption_cells_are_texts_or_lists_of_texts(tmp_path):
    """A dict, a number or a list of those is no caption, and is counted; a list gives all its texts."""
    import pyarrow
    import pyarrow.parquet

    from conftest import picture

    def read(captions) -> tuple[list, dict]:
        table = pyarrow.table({"image": [picture(0)] * len(captions), "caption": captions})
        pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
        stats = Stats()
        samples = [s for task in plan_tasks(str(tmp_path / "t.parquet")) for s in task.samples(stats)]
        assert stats.read == len(captions)
        return [s.meta["captions"] for s in samples if s.meta["captions"][0] == s.text], stats.dropped

    captions, dropped = read([["a dog", "a brown\n dog"], ["", "a cat"], [], None, ["a", None]])
    assert captions == [["a dog", "a brown dog"], ["a cat"]]
    assert dropped == {"empty caption": 2, "caption is no text": 1}
    assert read(["a dog\r\non grass", ""]) == ([["a dog on grass"]], {"empty caption": 1})
    assert read([{"raw": "a dog"}]) == ([], {"caption is no text": 1})
    assert read([0, 7]) == ([], {"caption is no text": 2})


@pytest.mark.parametrize(("name", "found"), [("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", ",")])
def test_another_separator_is_named(name, found, tmp_path, capsys):
    (tmp_path / name).write_text(f"filepath{found}title\n0.jpg{found}a dog, a cat\n")
    argv = ["pack", "--need", "--input", str(tmp_path / name), "--output", str(tmp_path / "out")]
    assert make_shards.main(argv) == 2 and f"its columns are separated by {found!r}" in capsys.readouterr().err


def test_captions_with_commas_outside_quotes_are_refused(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("filepath,title\n0.jpg,a dog, a cat\n1.jpg,a car\n")
    argv = ["pack", "--need", "--text-only", "--input", str(tmp_path / "t.csv"), "--output", str(tmp_path / "out")]
    assert make_shards.main(argv) == 2 and "more cells than its header" in capsys.readouterr().err


def test_the_suffix_of_a_table_may_be_in_capitals(tmp_path):
    (tmp_path / "T.TSV").write_text("filepath\ttitle\n0.jpg\ta dog, a cat\n")
    argv = ["pack", "--need", "--text-only", "--input", str(tmp_path / "T.TSV"), "--output", str(tmp_path / "out")]
    assert make_shards.main([*argv, "--quiet"]) == 0
    (sample,) = read_samples(tmp_path / "out/00000.tar")
    assert sample["txt"] == b"a dog, a cat"


@pytest.mark.parametrize("columns", ["caption", "filepath,caption", "url,caption"])
def test_captions_alone_need_no_images(columns, tmp_path):
    cells = "gone/5.jpg," if "," in columns else ""
    (tmp_path / "t.csv").write_text(f'{columns}\n{cells}"a dog"\n{cells}""\n')
    argv = ["pack", "--need", "--text-only", "--max-drop", "0.5", "--quiet"]
    assert make_shards.main([*argv, "--input", str(tmp_path / "t.csv"), "--output", str(tmp_path / "out")]) == 0
    (sample,) = read_samples(tmp_path / "out/00000.tar")
    assert sample["txt"] == b"a dog" and "jpg" not in sample
    assert json.loads(sample["json"])["source_key"] == ("5" if columns.startswith("file") else "0")
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"] == {"empty caption": 1}


def test_table_images_of_any_format_come_out_readable(tmp_path):
    from PIL import Image

    from conftest import picture

    image = Image.open(io.BytesIO(picture(0)))
    for name, kind in (
        ("a.bmp", "BMP"),
        ("b.gif", "GIF"),
        ("c", "PNG"),
        ("x.json", "JPEG"),
        ("d.jpg", "WEBP"),
    ):
        image.save(tmp_path / name, kind)
    table = tmp_path / "table.csv"
    table.write_text(
        "filepath,title\n" + "".join(f"{n},one\n" for n in ("a.bmp", "b.gif", "c", "x.json", "d.jpg"))
    )
    shout(str(table), tmp_path / "shout")
    argv = ["pack", "--need", "--input", str(table), "--output", str(tmp_path / "pack"), "--quiet"]
    assert make_shards.main(argv) == 0
    for output in (tmp_path / "shout", tmp_path / "pack"):
        samples = list(read_samples(output / "00000.tar"))
        assert len(samples) == 5 and all("image" in rename_members(sample) for sample in samples)
        assert all(json.loads(sample["json"])["captions"] == ["one"] for sample in samples)
    packed = [next(iter(set(s) & {"jpg", "png", "webp"})) for s in read_samples(tmp_path / "pack/00000.tar")]
    assert packed == ["jpg", "jpg", "png", "jpg", "webp"]


def bomb() -> bytes:
    """A PNG that says it has 20,000 x 20,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_hostile_images_cost_their_samples_alone(tmp_path, capsys):
    from conftest import picture

    with ShardWriter(tmp_path / "in/0.tar") as writer:
        for number, data in enumerate([bomb(), picture(0)[:300], b"", picture(1)]):
            writer.write({"__key__": str(number), "jpg": data, "txt": "a"})
    argv = ["--input", str(tmp_path / "in"), "--quiet"]
    pack = ["pack", *argv, "--need", "--output", str(tmp_path / "out")]
    assert make_shards.main(pack) == 3
    assert "3 of 4 samples dropped (image cannot be decoded 3)" in capsys.readouterr().err
    assert make_shards.main([*pack, "--max-drop", "0.75"]) == 0
    assert "dropped: image cannot be decoded 3" in capsys.readouterr().err
    assert make_shards.main(["validate", *argv, "--need", "pair"]) == 3
    assert "image cannot be decoded: 3, first 0" in capsys.readouterr().out


def test_any_exception_of_a_decoder_means_undecodable():
    for kind in (TypeError, struct.error, RecursionError, MemoryError):
        with pytest.raises(ImageError, match=kind.__name__), refused():
            raise kind("hostile")


def test_lone_surrogates_become_question_marks(tmp_path):
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        writer.write({"__key__": "0", "txt": "é \ud800", "json": b'{"captions": ["\\ud83d", "\\u00e9"]}'})
    run = shout(str(tmp_path / "in"), tmp_path / "out")
    (sample,) = read_samples(tmp_path / "out/00000.tar")
    assert not run.failed and sample["txt"].decode() == "é ?"
    assert json.loads(sample["json"])["captions"] == ["?", "é"] and "é".encode() in sample["json"]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30), st.integers(0, 5))
def test_seeds_fit_31_bits_and_differ_by_attempt(key, attempt):
    seed = sample_seed(0, key, attempt)
    assert 0 <= seed < 2**31 and seed == sample_seed(0, key, attempt) != sample_seed(0, key, attempt + 1)


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("pack", "--save-size=-1", "-1 is not 0 or more"),  # -1 would be a picture of one pixel
        ("captions", "--workers=-1", "-1 is not 0 or more"),
        ("captions", "--llm-batch=0", "0 is not 1 or more"),
        ("images", "--strength=1.5", "1.5 is not between 0 and 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(command, option, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        make_shards.main([command, "--input", "in", "--output", "out", option])
    assert message in capsys.readouterr().err


def test_empty_and_absent_inputs_are_usage_errors(tmp_path, capsys):
    for spec in (str(tmp_path), str(tmp_path / "none.tar"), str(tmp_path / "none.csv")):
        assert make_shards.main(["pack", "--input", spec, "--output", str(tmp_path / "out")]) == 2
        assert spec in capsys.readouterr().err


def test_a_stage_may_work_two_tasks_at_once_in_one_worker(shards, tmp_path):
    (tmp_path / "met").mkdir()
    tasks = plan_tasks(shards)
    assert len(tasks) > 1
    stage = Meeting(folder=str(tmp_path / "met"))

    def engine(stage, tasks, output, progress):
        yield from Pool(stage, tasks, output, ["cpu"], progress).events()

    run = run_stage(stage, tasks, tmp_path / "out", engine, quiet=True)
    assert not run.failed
    run_stage(Shout(), tasks, tmp_path / "plain", CPU, quiet=True)
    mine, theirs = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("*.tar")} for n in ("out", "plain"))
    assert mine == theirs
