"""Every recipe's command, read by the parsers that will read it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from open_clip_triplet import make_shards, options
from open_clip_triplet.losses import METHODS

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "recipes"
#: not one training command each
OTHERS = ("common.sh", "slurm.sh", "slurm_build.sh", "matched.sh")
RECIPES = sorted(path for path in FOLDER.glob("*.sh") if path.name not in OTHERS)


def dry_run(path: Path, *flags: str, **environment: str) -> list[str]:
    """The command that a recipe would run."""
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **environment}
    found = subprocess.run(["bash", path, *flags], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    return shlex.split(found.stdout)


def parse(argv: list[str]):
    """What OpenCLIP and the plugin make of the flags after the module's name."""
    from open_clip_train.params import parse_args

    own, rest = options.parse_own(argv[argv.index("open_clip_triplet.train") + 1 :])
    namespace = parse_args(rest)
    vars(namespace).update(vars(own))
    made_before = namespace.pretrained.endswith(".pt")  # by the recipe itself
    options.check(argparse.Namespace(**{**vars(namespace), **({"pretrained": ""} if made_before else {})}))
    return namespace


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_costs_and_what_the_paper_got(path):
    head = path.read_text().split("source ")[0]
    assert f"examples/recipes/{path.name}" in head and "Data" in head
    assert "Costs " in head and "Paper" in head
    assert os.access(path, os.X_OK)


def comment_commands(path: Path) -> list[list[str]]:
    """Words of the ``triplet-shards`` commands that a recipe's opening comment tells its reader to run."""
    text = "\n".join(line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#"))
    return [shlex.split(line) for line in re.findall(r"^ +triplet-shards .*", text.replace("\\\n", " "), flags=re.M)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commands_that_make_a_recipes_data_are_read(path, monkeypatch, capsys):
    def stop(self, argv=None, namespace=None):
        parse_args(self, argv, namespace)
        raise KeyError

    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for words in comment_commands(path):
        with pytest.raises(KeyError):
            make_shards.main(words[1:])


def test_recipes_tell_how_their_data_is_made():
    assert {words[1] for path in RECIPES for words in comment_commands(path)} >= {"build", "filter", "mine", "rewrite"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_table_10s_settings(path):
    args = parse(dry_run(path))
    if path.stem == "finetune":
        assert args.pretrained == "openai" and args.lr == 1e-5
        return
    batch = 512 if path.stem in ("cyclip", "laclip_hn") else 1024
    steps = 200_000 if path.stem == "concept_coverage" else 90_000
    assert (args.batch_size, args.total_steps) == (batch, steps)
    assert (args.lr, args.wd, args.beta1, args.beta2, args.eps) == (5e-4, 0.5, 0.9, 0.999, 1e-8)
    assert (args.lr_scheduler, args.precision) == ("cosine", "amp_bf16")


def test_the_recipes_train_every_method():
    trained = {parse(dry_run(path)).loss for path in RECIPES}
    trained.add(parse(dry_run(FOLDER / "cyclip.sh", WITH_TRIPLET="1")).loss)
    assert trained == set(METHODS)
    assert parse(dry_run(FOLDER / "negclip.sh")).neg_captions == 4


def test_cc12m_has_its_own_steps_and_folder():
    args = parse(dry_run(FOLDER / "tripletclip.sh", DATA="cc12m"))
    assert args.total_steps == 230_000 and args.train_data.startswith("data/cc12m-triplet/")


def test_eight_gpus_and_several_nodes_keep_the_batch():
    argv = dry_run(FOLDER / "tripletclip.sh", GPUS="8")
    assert argv[:3] == ["torchrun", "--nproc_per_node", "8"]
    args = parse(argv)
    assert args.batch_size == 128 and args.local_loss and args.gather_with_grad
    argv = dry_run(FOLDER / "tripletclip.sh", GPUS="8", SLURM_NNODES="2", HEAD_NODE="first", ACCUM="2")
    assert argv[argv.index("--rdzv_endpoint") + 1] == "first:29500"
    args = parse(argv)
    assert args.batch_size * args.accum_freq * 8 * 2 == 1024


def test_slurm_starts_one_torchrun_a_node_with_the_jobs_own_port(tmp_path):
    """With a ``srun`` that runs its task and tells what it was given, and a ``scontrol`` that names two nodes."""
    for name, script in {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": 'echo "cpus $SRUN_CPUS_PER_TASK"; echo "args $*"; shift; exec "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "DRY_RUN": "1", "GPUS": "8", "SLURM_JOB_ID": "123456",
        "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "48",
    }
    command = ["bash", FOLDER / "slurm.sh", FOLDER / "tripletclip.sh", "--lr", "1e-3"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    cpus, arguments, *line = found.stdout.splitlines()
    assert cpus == "cpus 48" and arguments.startswith("args --kill-on-bad-exit bash ")
    argv = shlex.split(line[-1])
    assert argv[argv.index("--rdzv_endpoint") + 1] == "node1:23456"
    assert argv[argv.index("--rdzv_id") + 1] == "123456" and argv[argv.index("--nnodes") + 1] == "2"
    assert parse(argv).lr == 1e-3 and parse(argv).batch_size == 64
    directives = [line for line in (FOLDER / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --output=%x-%j.out" in directives


def test_lit_locks_the_tower_that_is_pretrained():
    for tower, other in (("image", "text"), ("text", "image")):
        args = parse(dry_run(FOLDER / "lit.sh", FROZEN=tower))
        assert getattr(args, f"lock_{tower}") and not getattr(args, f"lock_{other}")
        assert args.pretrained == f"lit-{tower}.pt" and args.model == "ViT-B-32-quickgelu"


def test_flags_given_to_a_recipe_win():
    assert parse(dry_run(FOLDER / "tripletclip.sh", "--lr", "1e-3")).lr == 1e-3


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DRY_RUN": ""}, "no shards in"),
        ({"DATA": "cc4m"}, "cc3m or cc12m"),
        ({"GPUS": "3"}, "cannot be divided over 3 GPUs"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, environment, message):
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "ROOT": str(tmp_path), **environment}
    found = subprocess.run(
        ["bash", FOLDER / "tripletclip.sh"], capture_output=True, text=True, env=environment
    )
    assert found.returncode != 0 and message in found.stderr


def test_shards_are_found_as_one_range(tmp_path):
    (tmp_path / "cc3m-triplet").mkdir()
    for number in range(3):
        (tmp_path / "cc3m-triplet" / f"{number:05d}.tar").touch()
    script = f"ROOT={tmp_path} DATA=cc3m; source {FOLDER}/common.sh; shards cc3m-triplet"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == f"{tmp_path}/cc3m-triplet/<00000..00002>.tar"


def test_lit_towers_are_one_pretrained_and_one_new():
    import sys

    sys.path.insert(0, str(FOLDER))
    from lit_towers import tower

    assert tower("visual.conv1.weight") == "image" and tower("transformer.resblocks.0.ln_1.bias") == "text"
    assert tower("token_embedding.weight") == "text" and tower("logit_scale") is None


def test_the_matched_comparison_changes_nothing_but_the_loss():
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1"}
    command = ["bash", FOLDER / "matched.sh", "--report-to", "none"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    *training, evaluation, report, table = map(shlex.split, found.stdout.splitlines())
    runs = [vars(parse(line)) for line in training]
    assert len(runs) == 12 and {run["seed"] for run in runs} == {0, 1, 2} and "report" in report
    assert table[-2:] == ["--output", "matched.md"] and Path(table[1]).is_file()
    own = {"loss", "seed", "name", "neg_scope", "plain_every", "teacher"}
    own |= {"log_path", "checkpoint_path", "tensorboard_path"}
    shared = [{flag: value for flag, value in run.items() if flag not in own} for run in runs]
    assert all(run == shared[0] for run in shared)
    labels = {f"{row}-{seed}" for row in ("clip", "negclip", "triplet", "triplet-retention") for seed in range(3)}
    assert {word.partition("=")[0] for word in evaluation if "=" in word} == labels | {"start"}


def test_the_matched_comparison_refuses_a_row_it_does_not_have():
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "ROWS": "clip nonsense"}
    found = subprocess.run(["bash", FOLDER / "matched.sh"], capture_output=True, text=True, env=environment)
    assert found.returncode != 0 and "not nonsense" in found.stderr
