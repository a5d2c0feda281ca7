"""What the demo and the reproduction compute and say; `make demo-short` runs them whole."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import open_clip_train.params
import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import demo  # noqa: E402
import reproduce  # noqa: E402
import sweep  # noqa: E402
import world_page  # noqa: E402
import world_runs  # noqa: E402
from open_clip_triplet import options  # noqa: E402
from open_clip_triplet.shards import read_meta, read_samples, rename_members  # noqa: E402
from open_clip_triplet.tripletdata.worlds import shapes  # noqa: E402


def result(label: str, group_correct: str, **more) -> dict:
    share = group_correct.count("1") / len(group_correct)
    return {
        "label": label, "seed": 0, "steps": 300, "command": ["-m", "x", "a & b"], "training_seconds": 60.0,
        "processor_seconds": 50.0,
        "text": share, "image": share, "group": share, "r1": 0.4, "r5": 0.5, "items": len(group_correct),
        "group_correct": group_correct, "categories": {"add_att": [30, 40], "swap_att": [50, 60]},
        "category_correct": {"add_att": group_correct[::2], "swap_att": group_correct}, **more,
    }


def test_difference_is_paired():
    """Four items: a is right where b is wrong once, and wrong where b is right never."""
    lead, low, high = world_runs.difference(result("a", "1110"), result("b", "1100"))
    assert lead == pytest.approx(0.25)
    # the differences 0, 0, 1, 0 have the standard deviation 0.5, and their mean that of 0.25
    assert (low, high) == (pytest.approx(0.25 - 0.49, abs=1e-3), pytest.approx(0.25 + 0.49, abs=1e-3))


def test_recall_counts_ties_as_above():
    similarity = np.array([[0.9, 0.1, 0.1], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert world_runs.recall_at(similarity, 1) == pytest.approx(1 / 3)
    assert world_runs.recall_at(similarity, 2) == pytest.approx(2 / 3)
    assert world_runs.recall_at(similarity, 3) == 1


@pytest.mark.parametrize(
    ("triplet", "clip", "words"),
    [
        ("1" * 90 + "0" * 10, "1" * 50 + "0" * 50, "after 300 steps: triplet leads clip by 40.0 points"),
        ("1" * 50 + "0" * 50, "1" * 90 + "0" * 10, "triplet trails clip by 40.0 points"),
        ("1" * 50 + "0" * 50, "1" * 49 + "0" * 51, "triplet is within the interval of clip"),
    ],
)
def test_a_lead_is_claimed_only_beyond_the_interval(triplet, clip, words):
    assert words in demo.say([result("clip", clip), result("triplet", triplet)], short=False)


def test_the_page_holds_everything_and_escapes_it(tmp_path):
    from open_clip_triplet.shards import ShardWriter
    from open_clip_triplet.tripletdata.worlds.shapes import make_sample

    val = tmp_path / "00000.tar"
    with ShardWriter(val) as writer:
        sample = make_sample(0, world="single", split="val", seed=0, image_size=32)
        writer.write({**sample, "txt": "<b>bold</b>"})
    results = [result(name, "1110" * 20) for name in demo.METHODS]
    figure = demo.plot(results)
    assert figure.startswith(b"\x89PNG")
    page = demo.report(results, figure, val, "a verdict", 3.0)
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page and "a &amp; b" in page
    assert "http" not in page and page.count("data:image/png") == 1
    assert "75.0" in demo.table(results) and all(name in page for name in demo.METHODS)


def test_a_finished_run_is_not_repeated_unless_its_command_changed(tmp_path, monkeypatch):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / "00000.tar").write_bytes(b"")
    run = world_runs.Run("NegCLIP++", 1, 10, ("--loss", "negclip"))
    assert run.name == "negclip-plus-plus-10-steps-seed-1"
    trained = []
    monkeypatch.setattr(world_runs, "_train", lambda run, argv, folder, **_: trained.append(argv) or "x.pt")
    monkeypatch.setattr(world_runs, "_position", lambda checkpoint: {})
    monkeypatch.setattr(world_runs, "score", lambda checkpoint, val: {"group": 0.5})
    first = world_runs.execute(run, tmp_path, ("--batch-size", "128"))
    assert world_runs.execute(run, tmp_path, ("--batch-size", "128")) == first and len(trained) == 1
    world_runs.execute(run, tmp_path, ("--batch-size", "64"))
    assert len(trained) == 2
    record = json.loads(next((tmp_path / "results").glob("*.json")).read_text())
    assert "64" in record["command"] and record["label"] == "NegCLIP++"


def test_a_run_that_was_stopped_is_not_scored(tmp_path, monkeypatch):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / "00000.tar").write_bytes(b"")
    monkeypatch.setattr(world_runs, "_train", lambda *_, **__: "x.pt")
    monkeypatch.setattr(world_runs, "_position", lambda checkpoint: {"optimizer_steps": 7})
    with pytest.raises(SystemExit, match="stopped after 7 steps"):
        world_runs.execute(world_runs.Run("LaCLIP", 1, 10, ("--loss", "clip")), tmp_path, ("--batch-size", "64"))
    assert not (tmp_path / "results").exists()


def test_runs_have_different_names():
    runs = reproduce.plan(150, [0, 1])
    assert len({run.name for run in runs}) == len(runs)


def test_budgets_count_what_is_encoded_and_paired():
    assert reproduce.budget_steps("work", "LaCLIP", 150) == 300
    assert reproduce.budget_steps("work", "NegCLIP", 150) == 120
    assert reproduce.budget_steps("pairs", "NegCLIP++", 150) == 300
    for budget in reproduce.BUDGETS:
        assert reproduce.budget_steps(budget, "TripletCLIP", 150) == 150
    runs = reproduce.plan(150, [0], ["steps", "work"])
    assert sum(run.steps == 150 for run in runs) == len(reproduce.ROWS)
    # rows that encode what TripletCLIP does are not run again
    same = sum(row.encoded == 4 for row in reproduce.ROWS.values())
    assert len(runs) == 2 * len(reproduce.ROWS) - same


def test_rows_are_flags_that_the_plugin_or_openclip_knows():
    for row in reproduce.ROWS.values():
        _, rest = options.parse_own(list(row.flags))
        open_clip_train.params.parse_args(rest)


def shape_results(seeds=(0, 1)) -> list[dict]:
    rates = {"LaCLIP": 5, "NegImage": 6, "NegCLIP++": 4, "TripletCLIP": 8}
    return [
        result(label, "1" * right + "0" * (10 - right), seed=seed, images_seen=100, captions_seen=200)
        for label, right in rates.items()
        for seed in seeds
    ]


def test_the_page_orders_and_pairs():
    groups = world_page.by_label(shape_results())
    assert list(groups) == ["LaCLIP", "NegImage", "NegCLIP++", "TripletCLIP"]
    words = world_page.ordering(groups)
    assert "Here (group score): NegCLIP++ < LaCLIP < NegImage < TripletCLIP: not the same." in words
    lead, low, high = world_page.lead(groups["TripletCLIP"], groups["LaCLIP"])
    # both seeds are alike: the differences are 0 0 0 0 0 1 1 1 0 0, of which ten are drawn again
    assert lead == pytest.approx(0.3) and (low, high) == (pytest.approx(0.0, abs=0.11), pytest.approx(0.6, abs=0.11))
    table = world_page.score_table(groups, None)
    assert "| +30.0 [" in table and "| 80.0 80.0 |" in table
    assert "| TripletCLIP | 75.0 | 83.3 | 79.2 |" in world_page.category_table(groups)


def test_an_interval_covers_seeds_as_well_as_items():
    alike, apart = np.tile([0.0, 1.0], (3, 500)), np.repeat([[0.2], [0.5], [0.8]], 1000, axis=1)
    value, low, high = world_page.mean_interval(alike)
    assert value == 0.5 and 0.46 < low < 0.5 < high < 0.54
    value, low, high = world_page.mean_interval(apart)  # no item differs: all of it is the seeds'
    assert value == pytest.approx(0.5) and low < 0.31 and high > 0.69


def test_a_lead_uses_the_seeds_that_both_have():
    runs = [result("TripletCLIP", "1111", seed=0), result("TripletCLIP", "0000", seed=1)]
    assert world_page.lead(runs, [result("LaCLIP", "1100", seed=0)])[0] == pytest.approx(0.5)


def test_the_page_is_written_from_what_is_done(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    for run in reproduce.plan(300, [0], ["steps"], ["LaCLIP", "TripletCLIP"]):
        done = result(
            run.label, "1110" * 5, images_seen=1, captions_seen=1,
            category_correct={"add_att": "1110" * 2, "swap_att": "1110" * 3},
            categories={"add_att": [7, 8], "swap_att": [9, 12]},
        )
        (tmp_path / "results" / f"{run.name}.json").write_text(json.dumps(done))
    argv = ["--output", str(tmp_path), "--page-only", "--budgets", "steps", "--steps", "300"]
    assert reproduce.main(argv) == 0
    page = (tmp_path / "glyphs.md").read_text()
    assert "46 of 48 runs are not done" in page and "| TripletCLIP | 63.49 |" in page
    assert (tmp_path / "glyphs.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "glyphs.csv").read_text().count("\n") == 3
    again = [*argv, "--results", str(tmp_path / "glyphs.csv"), "--page", str(tmp_path / "again")]
    shutil.rmtree(tmp_path / "results")
    assert reproduce.main(again) == 0
    for name in ("glyphs.md", "glyphs.csv", "glyphs.png"):  # all of the page is in its csv
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_every_table_has_the_same_seeds_for_all_its_rows():
    whole = {label: [result(label, "10", seed=seed) for seed in (0, 1)] for label in ("a", "b")}
    assert reproduce.same_seeds("Steps", whole) == {"Steps, seeds 0, 1": whole}
    assert reproduce.same_seeds("Steps", {}) == {}
    part = whole | {"c": [result("c", "10", seed=0)]}
    tables = reproduce.same_seeds("Steps", part)
    assert list(tables) == ["Steps, seed 0", "Steps, seeds 0, 1"] and tables["Steps, seeds 0, 1"] == whole
    assert [[run["seed"] for run in runs] for runs in tables["Steps, seed 0"].values()] == [[0]] * 3


def test_the_sweep_is_one_change_at_a_time(tmp_path, monkeypatch, capsys):
    trained = []

    def execute(run, output, common, **_):
        trained.append(run)
        made = result(run.label, "1110" * 5, seed=run.seed, images_seen=1, captions_seen=1)
        (tmp_path / "results" / f"{run.name}.json").write_text(json.dumps(made))

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(world_runs, "execute", execute)
    monkeypatch.setattr(world_runs, "last_checkpoint", lambda run, output: Path(f"{run.name}.pt"))
    monkeypatch.setattr(sweep, "build_shards", lambda output: None)
    monkeypatch.setattr(sweep, "prepare", lambda shards, args: None)
    assert sweep.main(["--output", str(tmp_path), "--seeds", "0", "1"]) == 0
    labels = {label for group in sweep.ABLATIONS.values() for label in group}
    runs = [run for run in trained if run.label != sweep.FIRST_STAGE]
    assert len({run.name for run in runs}) == len(runs) == 2 * len(labels)
    for run in runs:  # flags that the plugin or OpenCLIP knows; only the second stage starts from weights
        _, rest = options.parse_own(list(run.flags))
        open_clip_train.params.parse_args(rest)
        assert ("--pretrained" in run.flags) == sweep.ABLATIONS_BY_LABEL[run.label].continues
    assert (tmp_path / "sweep.png").exists() and "4 negative captions" in (tmp_path / "sweep.csv").read_text()
    assert "group 75.0" in capsys.readouterr().out


def test_the_sweeps_shards_are_made_by_the_tools(tmp_path, monkeypatch):
    """Mined, rule-made, spoilt and filtered: read back by what trains on them."""
    shapes.build(tmp_path / "shards", samples=400, val_samples=80, shards=8, world="single", image_size=32,
                 seed=0, workers=1)
    weights = tmp_path / "weights.pt"
    open_clip.add_model_config(world_runs.MODEL_CONFIG)
    torch.save({"state_dict": open_clip.create_model(world_runs.MODEL).state_dict()}, weights)
    monkeypatch.setattr(sweep, "first_stage", lambda seed, args: weights)
    args = argparse.Namespace(output=tmp_path)

    def read(folder):
        for shard in sorted((tmp_path / folder).glob("*.tar")):
            yield from map(rename_members, read_samples(shard))

    for folder in (sweep.MINED, sweep.RULES, f"{sweep.SPOILT}-300"):
        sweep.prepare(folder, args)
    drawn = {sample["__key__"]: sample for sample in read("shards/train")}
    mined = list(itertools.islice(read(sweep.MINED), 20))
    assert len(mined) == 20 and all(
        s["neg_text"] != drawn[read_meta(s)["source_key"]]["neg_text"] for s in mined
    )
    assert 380 <= len(list(read(sweep.RULES))) <= 400  # what the rules cannot parse is left out
    for sample in read(sweep.RULES):  # the drawn image stays where the rules find the very caption of it
        source = drawn[read_meta(sample)["source_key"]]
        assert ("neg_image" in sample) == (sample["neg_text"] == source["neg_text"])
    spoilt = [s["neg_image"] != drawn[s["__key__"]]["neg_image"] for s in read(sweep.SPOILT)]
    assert sum(spoilt) == sweep.wrong_images(tmp_path / sweep.SPOILT) == 96
    assert spoilt[:8] == [False, False, False, True] * 2 and len(list(read(f"{sweep.SPOILT}-300"))) == 300
