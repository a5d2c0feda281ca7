"""What only a CUDA device can show; ``tools/gpu_report.sh`` runs these. Without one they skip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from conftest import checkpoint, train, train_argv
from open_clip_triplet import losses
from open_clip_triplet.losses import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
N, D = 96, 64
FUNCTIONS = {
    "clip": (losses.clip_loss, 2), "negclip": (losses.negclip_loss, 3), "negimage": (losses.negimage_loss, 3),
    "triplet": (losses.triplet_clip_loss, 4), "cyclip": (losses.cyclip_loss, 2),
}


def features(count: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=1) for _ in range(count)]
    return [row.to(device, dtype).requires_grad_() for row in rows]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_bfloat16_on_the_device_is_float64_on_the_host(name, scale):
    loss, count = FUNCTIONS[name]
    host, device = features(count, torch.float64, "cpu"), features(count, torch.bfloat16, "cuda")
    exact, found = loss(*host, torch.tensor(scale, dtype=torch.float64)), loss(*device, torch.tensor(scale).cuda())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().cpu(), exact, rtol=0.01, atol=0.02 * scale)
    for ours, theirs in zip(torch.autograd.grad(found, device), torch.autograd.grad(exact, host)):
        cosine = F.cosine_similarity(ours.double().cpu().flatten(), theirs.flatten(), dim=0)
        assert cosine > 0.995, (name, scale, float(cosine))


@pytest.mark.parametrize("chunk_size", [7, 96])
def test_blocks_change_nothing(chunk_size):
    rows = features(4, torch.float32, "cuda")
    scale = torch.tensor(14.3, device="cuda")
    torch.testing.assert_close(
        losses.triplet_clip_loss(*rows, scale, chunk_size=chunk_size), losses.triplet_clip_loss(*rows, scale)
    )


def device_run(tiny_config, logs, name, shards, **flags) -> None:
    train(train_argv(
        tiny_config, logs, name,
        **{"device": None, "train-data": shards, "precision": "amp_bf16", "workers": 2, "epochs": 2,
           "image-decoder": "fast", "save-frequency": 1, "grad-clip-norm": 1, **flags},
    ))


def assert_same_weights(one: dict, other: dict) -> None:
    """Equal up to what kernels on a GPU sum in another order."""
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(weight, other["state_dict"][name], rtol=0.05, atol=2e-3, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_resumes(method, paired_shards, tiny_config, tmp_path):
    """Two epochs at once, and the second continued from the first one's checkpoint."""
    device_run(tiny_config, tmp_path, "whole", paired_shards, loss=method)
    device_run(tiny_config, tmp_path, "continued", paired_shards, loss=method,
               resume=tmp_path / "whole" / "checkpoints" / "epoch_1.pt")
    assert_same_weights(*(checkpoint(tmp_path, name, "epoch_2.pt") for name in ("whole", "continued")))


def test_pinned_batches_are_the_batches(paired_shards, tiny_config, tmp_path):
    """uint8 rows that are pinned, copied while a step runs and normalised on the device train the model that
    rows made in this process train."""
    device_run(tiny_config, tmp_path, "pinned", paired_shards, loss="triplet", **{"data-streams": 2})
    device_run(tiny_config, tmp_path, "here", paired_shards, loss="triplet", workers=0, **{"data-streams": 2})
    assert_same_weights(*(checkpoint(tmp_path, name, "epoch_2.pt") for name in ("pinned", "here")))
