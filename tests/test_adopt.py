"""The blocks of docs/adopt.md, run as they are printed: each trains, and the loops give the same weights."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from conftest import train_argv
from evaluation_fixtures import tiny_clip

PAGE = (Path(__file__).parents[1] / "docs" / "adopt.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- block: (\w+) -->\n```python\n(.*?)```", PAGE, flags=re.S))
N = 6


def batches() -> list[tuple[torch.Tensor, ...]]:
    g = torch.Generator().manual_seed(0)
    images = [torch.randn(N, 3, 32, 32, generator=g) for _ in range(4)]
    texts = [torch.randint(1, 49000, (N, 77), generator=g) for _ in range(4)]
    return [(images[i], texts[i], images[i + 1], texts[i + 1]) for i in (0, 2)]


def run(block: str, **more) -> dict[str, torch.Tensor]:
    """A loop's block on two batches from the same start, by plain SGD; returns the weights."""
    model = copy.deepcopy(tiny_clip()[0]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"torch": torch, "model": model, "optimizer": optimizer, "batches": batches(), **more}
    exec(compile(BLOCKS[block], f"docs/adopt.md, {block}", "exec"), names)
    return model.state_dict()


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    start = tiny_clip()[0].state_dict()
    trained = run("pytorch")
    assert not torch.equal(trained["visual.proj"], start["visual.proj"])
    return trained


def assert_equal(found, expected):
    assert all(torch.allclose(found[name], x, atol=1e-5) for name, x in expected.items())


def test_gradcache_gives_the_whole_batchs_step(expected):
    assert_equal(run("gradcache", chunk=4), expected)


def test_accelerate(expected):
    pytest.importorskip("accelerate")
    assert_equal(run("accelerate", cpu=True), expected)


def test_lightning(expected):
    lightning = pytest.importorskip("lightning")
    names = {"torch": torch, "lightning": lightning}
    exec(compile(BLOCKS["lightning"], "docs/adopt.md, lightning", "exec"), names)
    model = copy.deepcopy(tiny_clip()[0]).train()
    module = names["TripletCLIP"](model)
    module.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    assert_equal(model.state_dict(), expected)


def test_hooks(paired_shards, tiny_config, tmp_path):
    argv = train_argv(tiny_config, tmp_path, "adopted", loss="triplet", **{"train-data": paired_shards})
    exec(compile(BLOCKS["hooks"], "docs/adopt.md, hooks", "exec"), {"argv": argv})
    assert (tmp_path / "adopted" / "checkpoints" / "epoch_1.pt").is_file()


def test_every_block_is_run():
    assert BLOCKS.keys() == {"hooks", "pytorch", "gradcache", "lightning", "accelerate"}
