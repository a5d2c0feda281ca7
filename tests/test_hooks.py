"""The hooks: everything replaced is put back, other OpenCLIPs are refused, flags pass through."""

import argparse
import inspect
import subprocess
import sys

import open_clip_train.data
import open_clip_train.main
import open_clip_train.train
import pytest
import torch.nn.parallel

from open_clip_triplet import hooks, options
from openclip_flags import HONOURED, IRRELEVANT

MODULES = {
    "main": open_clip_train.main,
    "data": open_clip_train.data,
    "train": open_clip_train.train,
    "parallel": torch.nn.parallel,
}


def names():
    return {name: dict(vars(module)) for name, module in MODULES.items()}


def test_uninstall_leaves_openclip_as_it_was():
    before = names()
    hooks.install()
    during = names()
    hooks.uninstall()
    assert names() == before
    replaced = {
        (module, name)
        for module in MODULES
        for name in during[module]
        if during[module][name] is not before[module].get(name)
    }
    assert replaced == {(seam.module, seam.name) for seam in hooks.seams(3)}


def test_hooks_come_out_when_the_block_raises():
    before = names()
    with pytest.raises(KeyError), hooks.installed():
        raise KeyError
    assert names() == before


def test_installing_twice_is_installing_once():
    before = names()
    hooks.install()
    hooks.install()
    hooks.uninstall()
    assert names() == before


def test_another_openclip_is_refused_before_anything_is_replaced(monkeypatch):
    monkeypatch.setattr(open_clip_train.main, "create_loss", lambda config: None)
    before = names()
    with pytest.raises(
        hooks.HostError, match=r"main\.create_loss\(args\), but its parameters are \(config\)"
    ):
        hooks.install()
    assert names() == before


def test_a_missing_name_is_named(monkeypatch):
    monkeypatch.delattr(open_clip_train.main, "pt_load")
    with pytest.raises(hooks.HostError, match="pt_load.*it is missing.*Tested"):
        hooks.install()


def test_a_newer_openclip_that_fits_runs_and_warns(monkeypatch, caplog):
    import open_clip

    with hooks.installed():
        assert "was not tested" not in caplog.text
    monkeypatch.setattr(open_clip, "__version__", "3.9.0")
    with hooks.installed():
        assert "was not tested with OpenCLIP 3.9.0" in caplog.text


def parse(*argv):
    with hooks.installed():
        return open_clip_train.main.parse_args(list(argv))


def test_openclips_flags_reach_openclip_untouched():
    argv = ["--train-data", "a.tar", "--aug-cfg", "scale=(0.5, 1.0)", "--lr", "0.1", "--accum-freq", "2"]
    stock = open_clip_train.main.parse_args(argv)
    ours = parse(*argv)
    assert {key: getattr(ours, key) for key in vars(stock)} == vars(stock)
    assert ours.loss == "clip" and not options.uses_paired_pipeline(ours)


def test_no_flag_of_ours_is_one_of_openclips():
    own = {flag for action in options.build_parser()._actions for flag in action.option_strings}
    source = inspect.getsource(sys.modules["open_clip_train.params"])
    assert [flag for flag in own if f'"{flag}"' in source] == []


def test_angle_brackets_spell_ranges():
    assert parse("--loss", "triplet", "--train-data", "s/<000..999>.tar").train_data == "s/{000..999}.tar"


def test_a_folder_that_lacks_a_shard_is_shards_all_the_same(tmp_path):
    for name in ("00000.tar", "00002.tar"):
        (tmp_path / name).touch()
    args = parse("--loss", "triplet", "--train-data", str(tmp_path), "--val-data", str(tmp_path))
    assert options.is_webdataset(args.train_data, args) and options.is_webdataset(args.val_data, args)


def test_a_config_is_read_by_every_way_in(tmp_path):
    (tmp_path / "run.yaml").write_text("loss: negclip\nneg-captions: 3\n")
    args = parse("--config", str(tmp_path / "run.yaml"), "--neg-captions", "2")
    assert (args.loss, args.neg_captions) == ("negclip", 2)
    with pytest.raises(options.UsageError, match="none.yaml: cannot be read"):
        parse("--config", "none.yaml")


def test_unknown_method_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        parse("--loss", "tripplet")
    assert "did you mean 'triplet'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train-data", "a.csv"], "paired webdataset shards.*triplet-shards"),
        (["--dataset-type", "synthetic"], "synthetic"),
        (["--train-data", "a.tar", "--model", "coca_ViT-B-32"], "trains CLIP models"),
        (
            ["--train-data", "a.tar", "--teacher", "ema", "--distill-model", "RN50"],
            "two teachers",
        ),
        (["--train-data", "a.tar", "--local-loss"], "--gather-with-grad"),
        (["--train-data", "a.tar", "--eval-benchmarks", "sugarcrepe"], "--eval-data-root"),
        (["--train-data", "a.tar", "--total-steps", "4", "--epochs", "5"], "an epoch needs a step"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(argv, message):
    with pytest.raises(options.UsageError, match=message):
        parse("--loss", "triplet", *argv)


def test_data_flags_are_not_ignored_where_the_data_is_no_shards():
    for data in (["--train-data", "a.csv"], ["--dataset-type", "synthetic"]):
        with pytest.raises(options.UsageError, match="^--same-crop is for paired webdataset shards"):
            parse("--same-crop", *data)


def test_negative_captions_need_a_method_that_reads_them():
    with pytest.raises(options.UsageError, match="reads no negative captions"):
        parse("--loss", "negimage", "--neg-captions", "4", "--train-data", "a.tar")


def test_help_lists_our_flags_and_openclips():
    done = subprocess.run(
        [sys.executable, "-m", "open_clip_triplet.train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--loss" in done.stdout and "--accum-freq" in done.stdout


def test_importing_the_package_loads_no_builder_or_benchmark():
    code = (
        "import sys, open_clip_triplet; "
        "heavy = {'vllm', 'diffusers', 'ray', 'clip_benchmark', 'spacy', 'faiss'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def openclips_flags(monkeypatch) -> dict:
    """Destination and default of each flag of the installed OpenCLIP's parser."""
    found = {}

    def note(parser, *args):
        found.update({action.dest: action.default for action in parser._actions if action.dest != "help"})
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", note)
    with pytest.raises(SystemExit):
        sys.modules["open_clip_train.params"].parse_args([])
    return found


def test_every_flag_of_openclip_is_honoured_irrelevant_or_refused(monkeypatch):
    lists = [*HONOURED, *IRRELEVANT, *options.REFUSED]
    assert len(lists) == len(set(lists))
    assert set(openclips_flags(monkeypatch)) <= set(lists), "a flag that nobody has looked at"


@pytest.mark.parametrize("name", options.REFUSED)
def test_flags_that_the_pipeline_cannot_follow_are_refused_by_name(name):
    args = parse("--loss", "triplet", "--train-data", "a.tar")
    setattr(args, name, 2)
    with pytest.raises(options.UsageError, match=f"--{name.replace('_', '-')} does nothing in the paired pipeline"):
        options.check(args)
    args.loss, args.total_steps = "clip", None
    options.check(args)  # stock OpenCLIP's business


@pytest.mark.parametrize(
    ("flag", "near"),
    [("--total-step", "--total-steps"), ("--neg-caption", "--neg-captions"), ("--same-crp", "--same-crop")],
)
def test_flags_that_are_nearly_ours_are_suggested(flag, near, capsys):
    with pytest.raises(SystemExit):
        parse("--loss", "triplet", flag, "2")
    assert f"{flag}: did you mean {near}?" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["clip", "negclip"])
def test_same_crop_without_negative_images_is_refused(loss):
    with pytest.raises(options.UsageError, match=f"--loss {loss} does not"):
        parse("--loss", loss, "--same-crop", "--train-data", "a.tar")


def test_validation_data_that_is_not_there_is_told_before_training(tmp_path, caplog):
    with pytest.raises(options.UsageError, match="--val-data .*0.tar: there is no .*0.tar"):
        parse("--train-data", "a.tar", "--val-data", str(tmp_path / "0.tar"))
    (tmp_path / "0.tar").touch()
    parse("--train-data", "a.tar", "--val-data", f"{tmp_path}/{{0..2}}.tar")
    assert "2 of 3 shards are missing, and left out" in caplog.text
