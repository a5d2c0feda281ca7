"""Shards keep their numbers, and nothing is lost in silence: inputs that come, go or break; drops; parts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from build_fixtures import Shout, contents, plain_shards
from conftest import picture
from open_clip_triplet import make_shards
from open_clip_triplet.errors import PipelineError
from open_clip_triplet.shards import ShardWriter, read_samples
from open_clip_triplet.tripletdata.run.card import shard_pattern
from open_clip_triplet.tripletdata.run.command import report
from open_clip_triplet.tripletdata.run.engines import Local
from open_clip_triplet.tripletdata.run.estimate import calibrate
from open_clip_triplet.tripletdata.run.plan import number_tasks, plan_tasks, read_plan
from open_clip_triplet.tripletdata.run.runner import run_stage
from open_clip_triplet.tripletdata.run.task import Policy, ShardTask

CPU = Local(cpu=True)
FOUR = [["a one", "a two"], ["b one", "b two", "b three"], ["c one"], ["d one", "d two"]]


def lettered(folder: Path) -> Path:
    """Shards a.tar to d.tar, b.tar cut short in its third sample."""
    plain_shards(folder / "numbered", FOUR)
    (folder / "in").mkdir()
    for number, letter in enumerate("abcd"):
        shutil.move(folder / f"numbered/{number:05d}.tar", folder / f"in/{letter}.tar")
    whole = (folder / "in/b.tar").read_bytes()
    (folder / "b-whole.tar").write_bytes(whole)
    (folder / "in/b.tar").write_bytes(whole[: whole.index(b"b three")])
    return folder / "in"


def shout(inputs, output, *, engine=CPU, policy=None, **options):
    tasks = plan_tasks(str(inputs), output=output, policy=policy)
    return run_stage(Shout(**options), tasks, output, engine, quiet=True)


def captions(folder: Path) -> dict[str, list[str]]:
    return {
        path.name: [s["txt"].decode() for s in read_samples(path)] for path in sorted(folder.glob("*.tar"))
    }


@pytest.mark.parametrize("change", ["remove", "fix", "add"])
def test_inputs_that_come_go_or_are_mended_renumber_nothing(change, tmp_path):
    folder, output, log = lettered(tmp_path), tmp_path / "out", tmp_path / "log"
    assert report(shout(folder, output)) == 3
    before = contents(output)
    if change == "remove":
        (folder / "b.tar").unlink()
    elif change == "fix":
        shutil.copy(tmp_path / "b-whole.tar", folder / "b.tar")
    else:
        plain_shards(tmp_path / "more", [["e one"]])
        shutil.copy(tmp_path / "more/00000.tar", folder / "aa.tar")  # between two that have their numbers
    run = shout(folder, output, log=str(log))
    found = captions(output)
    assert report(run) == (3 if change == "add" else 0)
    assert found["00000.tar"] == FOUR[0] and found["00002.tar"] == FOUR[2] and found["00003.tar"] == FOUR[3]
    extra = {"remove": {}, "fix": {"00001.tar": FOUR[1]}, "add": {"00004.tar": ["e one"]}}[change]
    assert found == {**found, **extra} and len(found) == 3 + len(extra)
    done = log.read_text().split() if log.exists() else []
    assert done == {"remove": [], "fix": ["00001"], "add": ["00001", "00004"]}[change]
    assert all(before[name] == data for name, data in contents(output).items() if name.endswith("0.tar"))
    sizes = json.loads((output / "sizes.json").read_text())
    assert sizes == {name: len(texts) for name, texts in found.items()}
    pair = ["validate", "--need", "pair", "--quiet", "--input", str(output)]
    assert make_shards.main(pair) == 0


def test_a_finished_shard_stays_when_its_input_is_no_longer_listed(tmp_path, capsys):
    folder = lettered(tmp_path)
    (folder / "b.tar").unlink()
    shout(folder, tmp_path / "out")
    (folder / "c.tar").unlink()
    run = shout(folder, tmp_path / "out")
    assert report(run) == 0 and "no longer listed: 00001.tar (c.tar)" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out/sizes.json").read_text())) == list(captions(tmp_path / "out"))
    assert len(captions(tmp_path / "out")) == 3


def test_numbers_come_from_names_that_have_them(tmp_path):
    folder = tmp_path / "in"
    plain_shards(folder, FOUR)
    (folder / "00001.tar").unlink()
    assert [task.name for task in plan_tasks(str(folder))] == ["00000", "00002", "00003"]
    shout(folder, tmp_path / "out")
    assert read_plan(tmp_path / "out") == {0: "00000.tar", 2: "00002.tar", 3: "00003.tar"}


def test_a_data_set_may_be_moved_and_two_folders_may_share_names(tmp_path):
    def tasks(*urls):
        return [ShardTask(0, (url,)) for url in urls]

    first = number_tasks(tasks("/x/a.tar", "/x/b.tar"), {})
    plan = {task.index: task.source for task in first}
    assert plan == {0: "a.tar", 1: "b.tar"}
    moved = number_tasks(tasks("/y/b.tar", "/y/c.tar"), plan)
    assert [(t.index, t.inputs[0]) for t in moved] == [(1, "/y/b.tar"), (2, "/y/c.tar")]
    both = number_tasks(tasks("/x/a.tar", "/y/a.tar"), {})
    plan = {task.index: task.source for task in both}
    assert plan[0].endswith("/a.tar") and plan[0] != plan[1]
    assert [t.index for t in number_tasks(tasks("/y/a.tar"), plan)] == [1]


def test_a_table_cut_another_way_is_refused_and_a_longer_one_goes_on(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("filepath,title\n" + "".join(f"{n}.jpg,caption {n}\n" for n in range(4)))
    tasks = plan_tasks(str(table), samples_per_shard=2)
    plan = {task.index: task.source for task in tasks}
    assert plan == {0: "t.csv[0:2]", 1: "t.csv[2:4]"}
    with pytest.raises(PipelineError, match="another size"):
        number_tasks(plan_tasks(str(table), samples_per_shard=3), plan)
    table.write_text(table.read_text() + "4.jpg,caption 4\n")
    longer = number_tasks(plan_tasks(str(table), samples_per_shard=2), plan)
    assert [task.index for task in longer] == [0, 1, 2]


def test_salvage_keeps_what_stands_before_the_damage_until_it_is_mended(tmp_path):
    folder, output = lettered(tmp_path), tmp_path / "out"
    run = shout(folder, output, policy=Policy(salvage=True))
    assert report(run) == 0 and captions(output)["00001.tar"] == FOUR[1][:2]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["counts"] == {"damaged shards cut short": 1}
    shutil.copy(tmp_path / "b-whole.tar", folder / "b.tar")
    assert report(shout(folder, output)) == 0
    shout(folder, tmp_path / "calm")
    assert contents(output) == contents(tmp_path / "calm")


def test_unreadable_shards_are_skipped_when_told(tmp_path, capsys):
    folder, output = lettered(tmp_path), tmp_path / "out"
    argv = ["pack", "--input", str(folder), "--output", str(output), "--need", "--quiet"]
    assert make_shards.main(argv) == 3
    assert make_shards.main([*argv, "--skip-unreadable"]) == 0
    assert "skipped" in capsys.readouterr().err and len(captions(output)) == 3


def test_a_shard_that_drops_too_much_fails_and_keeping_nothing_is_no_success(tmp_path, capsys):
    folder = plain_shards(tmp_path / "in", [["drop 1", "drop 2", "a"], ["b", "drop 3"]])
    run = shout(folder, tmp_path / "out", policy=Policy(max_drop=0.5))
    assert list(run.failed) == [f"{folder}/00000.tar"] and "2 of 3 samples dropped (asked to 2)" in str(run.failed)
    assert report(run) == 3 and list(captions(tmp_path / "out")) == ["00001.tar"]
    assert report(shout(folder, tmp_path / "out", policy=Policy(max_drop=1.0))) == 0
    nothing = plain_shards(tmp_path / "nothing", [["drop"]])
    assert report(shout(nothing, tmp_path / "none")) == 3
    assert "shout kept nothing" in capsys.readouterr().err


class Moody(Shout):
    """Drops captions that name a round it is not in: ``later 2`` is kept the second time it is asked for."""

    def process(self, task, stats):
        for sample in task.samples(stats):
            wanted = int(sample.text.split()[1]) if sample.text.startswith("later") else 0
            if stats.redo_round < wanted:
                stats.drop(f"round {wanted}", sample.key)
                continue
            sample.neg_text = f"{sample.text}!"
            stats.values.setdefault("length", []).append(len(sample.text))
            yield sample


def test_a_reason_that_nothing_was_dropped_for_is_named(tmp_path, capsys):
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        for key, data in (("a", picture(0)), ("b", b"no image")):
            writer.write({"__key__": key, "jpg": data, "txt": "a"})
    argv = ["pack", "--need", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--quiet"]
    bogus = [*argv, "--redo-dropped", "bogus"]
    assert make_shards.main(bogus) == 0  # nothing is finished yet
    capsys.readouterr()
    assert make_shards.main(bogus) == 2
    said = capsys.readouterr().err
    assert "is dropped for 'bogus'" in said and "Reasons there: image cannot be decoded" in said
    assert make_shards.main([*argv, "--redo-dropped", "image cannot be decoded"]) == 0
    assert make_shards.main(bogus) == 0  # which an earlier run may have settled
    assert "is dropped for 'bogus'" in capsys.readouterr().err


def moody(folder, output, redo=None):
    tasks = plan_tasks(str(folder), output=output, policy=Policy(redo=redo))
    return run_stage(Moody(), tasks, output, CPU, quiet=True)


def test_dropped_samples_are_asked_for_again_and_only_they(tmp_path):
    texts = [["a", "later 1", "b b", "later 2"], ["c"]]
    folder, output = plain_shards(tmp_path / "in", texts), tmp_path / "out"
    moody(folder, output)
    assert captions(output)["00000.tar"] == ["a", "b b"]
    untouched = (output / "00001.tar").stat().st_mtime_ns
    run = moody(folder, output, ("round 2",))  # its first repetition: still in a bad mood
    assert run.records()[0]["dropped"] == {"round 1": 1, "round 2": 1}
    run = moody(folder, output, ())
    assert captions(output)["00000.tar"] == ["a", "later 1", "b b", "later 2"]
    keys = [s["__key__"] for s in read_samples(output / "00000.tar")]
    assert keys == [f"00000_{n:06d}" for n in range(4)]
    (record, _) = run.records()
    assert (record["read"], record["kept"], record["dropped"]) == (4, 4, {})
    assert run.read_values(run.tasks[0]) == {"key": keys, "length": [1, 7, 3, 7]}
    assert not (output / "00000.dropped.json").exists()
    assert (output / "00001.tar").stat().st_mtime_ns == untouched
    before = contents(output)
    moody(folder, output, ())  # nothing is left to ask for
    assert contents(output) == before


@pytest.mark.parametrize("lost", [".values.json", ".tar", ".dropped.json"])
def test_asking_again_survives_a_kill_between_any_two_files(lost, tmp_path):
    """After each file of the rewritten ones, in the order of writing, the rest is as it was before."""
    texts = [["a", "later 1", "b b", "later 2"]]
    folder, output = plain_shards(tmp_path / "in", texts), tmp_path / "out"
    moody(folder, output)
    shutil.copytree(output, tmp_path / "before")
    moody(folder, output, ())
    order = [".values.json", ".tar", ".dropped.json", ".record.json"]
    shutil.copytree(tmp_path / "before", tmp_path / "killed")
    for end in order[: order.index(lost) + 1]:
        shutil.copy(output / f"00000{end}", tmp_path / f"killed/00000{end}")
    run = moody(folder, tmp_path / "killed", ())
    assert not run.failed
    assert contents(tmp_path / "killed") == contents(output)


def test_parts_share_a_folder_and_leave_the_bytes_of_one_run(tmp_path):
    folder = plain_shards(tmp_path / "in", FOUR)
    argv = ["pack", "--input", folder, "--need", "--save-size", "32", "--quiet", "--output"]
    assert make_shards.main([*argv, str(tmp_path / "one")]) == 0
    for part in ("2/3", "1/3", "3/3"):
        assert not (tmp_path / "parts/sizes.json").exists()  # the last one writes it, and the summary
        assert make_shards.main([*argv, str(tmp_path / "parts"), "--part", part]) == 0
    assert {n: d for n, d in contents(tmp_path / "parts").items() if not n.startswith(".lock")} == contents(
        tmp_path / "one"
    )


def test_build_in_parts_ends_with_the_card(tmp_path, capsys):
    pytest.importorskip("spacy")
    texts = [["A red car behind a small bus.", "A big dog on a table."], ["A small cat on a red sofa."]] * 2
    folder = plain_shards(tmp_path / "in", texts)
    argv = ["build", "--input", folder, "--backend", "rules", "--no-images", "--save-size", "32", "--quiet"]
    argv += ["--title", "T", "--output"]
    assert make_shards.main([*argv, str(tmp_path / "one")]) == 0
    assert make_shards.main([*argv, str(tmp_path / "parts"), "--part", "1/2"]) == 0
    assert not (tmp_path / "parts/README.md").exists()
    assert make_shards.main([*argv, str(tmp_path / "parts"), "--finish"]) == 3  # the second part is missing
    assert "run its part again" in capsys.readouterr().err
    assert make_shards.main([*argv, str(tmp_path / "parts"), "--part", "2/2"]) == 0  # the last one writes the card
    one = {n: d for n, d in contents(tmp_path / "one").items() if not n.startswith(".work")}
    parts = {n: d for n, d in contents(tmp_path / "parts").items() if not n.startswith((".work", ".lock"))}
    assert parts == one
    assert make_shards.main([*argv, str(tmp_path / "parts"), "--finish"]) == 0


def test_the_slurm_recipe_works_its_part(tmp_path):
    folder = plain_shards(tmp_path / "in", FOUR)
    program = tmp_path / "triplet-shards"
    program.write_text('#!/bin/sh\necho "$@" >> "$LOG"\n')
    program.chmod(0o755)
    recipe = Path(__file__).parents[1] / "examples/recipes/slurm_build.sh"
    array = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    for environment in ({**array, "SLURM_ARRAY_TASK_ID": "4"}, {}):
        command = ["bash", str(recipe), "--input", folder, "--output", "out"]
        settings = {"PATH": os.environ["PATH"], "LOG": str(tmp_path / "log"), "TRIPLET_SHARDS": str(program)}
        subprocess.run(command, env={**settings, **environment}, check=True)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("build --part 2/4 --quiet --input") and second.startswith("build --quiet --input")


def test_build_goes_on_when_inputs_come_and_go_with_or_without_side_shards(tmp_path):
    pytest.importorskip("spacy")
    texts = [["A red car behind a small bus."], ["A big dog on a table."], ["A small cat on a red sofa."]]
    folder = Path(plain_shards(tmp_path / "in", texts))
    argv = ["build", "--input", str(folder), "--backend", "rules", "--no-images", "--save-size", "32"]
    argv += ["--title", "T", "--quiet", "--output", str(tmp_path / "out")]
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[:700])
    assert make_shards.main(argv) == 3
    card = (tmp_path / "out/README.md").read_text()
    assert "'THIS_FOLDER/00000.tar::THIS_FOLDER/00002.tar'" in card
    assert make_shards.main([*argv[:2], str(folder / "0000{0,2}.tar"), *argv[3:]]) == 0  # removed
    shutil.rmtree(tmp_path / "out/.work")
    stamp = (tmp_path / "out/00000.tar").stat().st_mtime_ns
    (folder / "00001.tar").write_bytes(whole)
    assert make_shards.main(argv) == 0  # fixed
    assert (tmp_path / "out/00000.tar").stat().st_mtime_ns == stamp
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["kept"] == 3 and summary["stages"]["captions"]["read"] == 3
    calm = [*argv[:-1], str(tmp_path / "calm")]
    assert make_shards.main(calm) == 0
    kept = {n: d for n, d in contents(tmp_path / "out").items() if not n.startswith(".work")}
    assert kept == {n: d for n, d in contents(tmp_path / "calm").items() if not n.startswith(".work")}


def test_text_only_leaves_the_images_out_of_a_build(tmp_path):
    pytest.importorskip("spacy")
    folder = plain_shards(tmp_path / "in", [["A red car behind a small bus."]])
    argv = ["build", "--input", folder, "--output", str(tmp_path / "out"), "--backend", "rules", "--quiet"]
    assert make_shards.main([*argv, "--no-images", "--text-only"]) == 0
    (sample,) = read_samples(tmp_path / "out/00000.tar")
    assert {"txt", "neg.txt", "json"} <= set(sample) and "jpg" not in sample


@pytest.mark.parametrize(
    "options", [["--samples-per-shard", "0"], ["--negatives", "0"], ["--image-batch", "0"], ["--part", "0/4"]]
)
def test_counts_that_cannot_be_zero_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        make_shards.main(["build", "--input", "x", "--output", "y", *options])
    assert "triplet-shards build: error" in capsys.readouterr().err


def test_a_photograph_held_sideways_comes_out_upright(tmp_path):
    import io

    from PIL import Image

    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        for size in (32, 400):
            buffer = io.BytesIO()
            image.resize((size * 2, size)).save(buffer, "JPEG", exif=exif, quality=95)
            writer.write({"__key__": str(size), "jpg": buffer.getvalue(), "txt": "a"})
    argv = ["pack", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--need", "--quiet"]
    assert make_shards.main([*argv, "--save-size", "64"]) == 0
    for sample, size in zip(read_samples(tmp_path / "out/00000.tar"), (32, 64)):
        found = Image.open(io.BytesIO(sample["jpg"]))
        assert found.size == (size, size * 2) and found.getexif().get(0x0112, 1) == 1
        assert found.getpixel((size // 2, 4))[2] > 200 and found.getpixel((size // 2, size * 2 - 5))[0] > 200


def test_validate_needs_what_it_is_told_and_finds_orphans(tmp_path, capsys):
    from conftest import picture

    with ShardWriter(tmp_path / "0.tar") as writer:
        writer.write({"__key__": "a", "jpg": picture(0), "txt": "one", "neg.txt": "two"})
    argv = ["validate", "--input", str(tmp_path), "--quiet", "--need"]
    assert [make_shards.main([*argv, need]) for need in ("pair", "text", "image", "paired")] == [0, 0, 3, 3]
    (tmp_path / "sizes.json").write_text('{"1.tar": 3}')
    assert make_shards.main([*argv, "text"]) == 3 and "not in sizes.json" in capsys.readouterr().out


def test_nul_bytes_in_a_caption_are_taken_out(tmp_path):
    with ShardWriter(tmp_path / "in/0.tar") as writer:
        writer.write({"__key__": "a", "jpg": b"x", "txt": "a \0dog"})
    shout(tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {"00000.tar": ["a dog"]}


def test_the_cards_shards_are_ranges_without_gaps():
    assert shard_pattern([f"{n:05d}.tar" for n in (0, 1, 2, 5, 7, 8)]) == (
        "<00000..00002>.tar::00005.tar::<00007..00008>.tar"
    )


def test_a_dry_run_sets_given_rates_beside_the_papers(tmp_path, capsys):
    folder = plain_shards(tmp_path / "in", FOUR)
    argv = ["build", "--input", folder, "--output", str(tmp_path / "out"), "--dry-run"]
    assert make_shards.main([*argv, "--rates", "captions=300", "images=35"]) == 0
    plan = capsys.readouterr().out
    assert "at 300/s per GPU (given)" in plan and "(the paper's 6.3/s: 0.0)" in plan
    assert "at 35/s per GPU (given)" in plan and "at the paper's rates" in plan and not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        make_shards.main([*argv, "--rates", "captions=fast"])
    assert "is not STAGE=SAMPLES_PER_SECOND" in capsys.readouterr().err


def test_calibration_measures_the_chain_of_stages(tmp_path):
    class Captions(Shout):
        name = "captions"

    class Images(Shout):
        name = "images"

    folder = plain_shards(tmp_path / "in", [["a"] * 70])
    rates = calibrate(plan_tasks(folder), [Captions(), Images()])
    assert list(rates) == ["captions", "images"] and all(rate > 1 for rate in rates.values())
