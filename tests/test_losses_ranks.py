"""The losses under DDP and OpenCLIP's accumulation, against one process on the joined batch.

Each case trains one step of tiny linear towers with OpenCLIP's own ``train_one_epoch`` and reads the
gradients that it leaves; the expected ones come from loops over samples in one process.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import socket
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import loss_reference as reference
from open_clip_triplet.losses import METHODS, Ranks, TripletClipLoss, create_loss, triplet_clip_loss

SAMPLES, WIDTH = 8, 6
FLAGS = {"neither": (False, False), "gather": (False, True), "local+gather": (True, True)}


@dataclass(frozen=True)
class Case:
    """One step of training: a method, OpenCLIP's flags, a precision."""

    loss: str
    flags: str = "neither"
    accum_freq: int = 1
    siglip: bool = False
    neg_captions: int = 1
    precision: str = "fp32"
    stock: bool = False
    fsdp: bool = False
    log_scale: float = 2.0
    neg_scope: str = "batch"
    margin: str = "none"
    margin_weight: float = 0.01
    hard_negative_weight: float = 0.0
    paraphrase_weight: float = 0.0
    units: int = 0
    unit_weight: float = 0.5
    plain_every: int = 0
    distill: bool = False
    distill_weight: float = 1.28

    @property
    def options(self) -> dict:
        """Those of the added terms."""
        names = "neg_scope margin margin_weight hard_negative_weight paraphrase_weight units unit_weight plain_every"
        return {name: getattr(self, name) for name in names.split()}

    def __str__(self) -> str:
        parts = [self.loss, self.flags, f"accum{self.accum_freq}", f"K{self.neg_captions}", self.precision]
        parts += [f"scale{self.log_scale:g}"] * (self.log_scale != 2)
        changed = [name for name, value in self.options.items() if value != getattr(Case, name)]
        parts += [f"{name}_{getattr(self, name)}" for name in changed] + ["distill"] * self.distill
        return "-".join(parts + ["siglip"] * self.siglip + ["stock"] * self.stock + ["fsdp"] * self.fsdp)


GROUPED = [name for name in METHODS if name != "clip"]
EXACT = [
    *(Case(name, flags, accum) for name in GROUPED for flags in FLAGS for accum in (1, 2)),
    *(Case("triplet", flags, accum, siglip=True) for flags in FLAGS for accum in (1, 2)),
    Case("negclip", siglip=True, neg_captions=3),
    Case("triplet", neg_captions=3, accum_freq=2),
    Case("negclip", neg_captions=3, neg_scope="own"),
    Case("triplet", accum_freq=2, neg_scope="own"),
    Case("negclip", neg_scope="none", hard_negative_weight=0.5, neg_captions=3),
    Case("triplet", accum_freq=2, margin="adaptive", margin_weight=0.3, hard_negative_weight=0.5),
    Case("negimage", "local+gather", margin="fixed", margin_weight=0.3),
    Case("triplet", accum_freq=2, paraphrase_weight=0.5, units=2),
    Case("cyclip", paraphrase_weight=0.5),
    Case("triplet", accum_freq=2, plain_every=1),
    Case("triplet", distill=True),
]
BF16 = [replace(case, precision="amp_bf16") for case in EXACT]
FSDP = [Case("triplet", "local+gather", fsdp=True), Case("triplet", siglip=True, fsdp=True)]
FAR = [Case("triplet", log_scale=7.0), Case("negclip", "local+gather", neg_captions=3, log_scale=7.0)]
OPENCLIPS = [Case("clip", flags, accum, stock=True) for flags in (*FLAGS, "local") for accum in (1, 2)]


class Towers(nn.Module):
    """Two linear towers with CLIP's outputs."""

    def __init__(self, siglip: bool, log_scale: float):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.image = nn.Parameter(torch.randn(WIDTH, 5, generator=generator))
        self.text = nn.Parameter(torch.randn(WIDTH, 5, generator=generator))
        self.logit_scale = nn.Parameter(torch.tensor(log_scale))
        if siglip:
            self.logit_bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, image, text):
        out = {
            "image_features": F.normalize(image @ self.image, dim=-1),
            "text_features": F.normalize(text @ self.text, dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }
        return {**out, "logit_bias": self.logit_bias} if hasattr(self, "logit_bias") else out


def joined_batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [SAMPLES, image_group, WIDTH] and captions [SAMPLES, text_group, WIDTH]."""
    method, k = METHODS[case.loss], case.neg_captions
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(SAMPLES, 1 + method.reads_neg_images, WIDTH, generator=generator)
    text_rows = 1 + k * method.reads_neg_captions + (case.paraphrase_weight > 0) + 2 * case.units
    return images, torch.randn(SAMPLES, text_rows, WIDTH, generator=generator)


def teacher() -> nn.Module:
    """Towers unlike the student's."""
    towers = Towers(siglip=False, log_scale=1.0)
    with torch.no_grad():
        towers.image.add_(towers.text), towers.text.mul_(towers.image)
    return towers


def expected_gradients(case: Case) -> dict[str, torch.Tensor]:
    """Of one process on the joined batch, by loops over samples in float64."""
    model = Towers(case.siglip, case.log_scale).double()
    images, captions = joined_batch(case)
    out = model(images.double(), captions.double())
    rows = out["image_features"], out["text_features"], out["logit_scale"]
    if case.loss == "clip":
        loss = reference.clip(rows[0].flatten(0, 1), rows[1].flatten(0, 1), rows[2])
    else:
        loss = reference.with_options(case.loss, *rows, out.get("logit_bias"), **case.options)
    if case.distill:
        theirs = teacher().double()(images.double(), captions.double())
        distance = reference.distillation(*rows[:2], theirs["image_features"], theirs["text_features"])
        loss = loss + case.distill_weight * distance
    loss.backward()
    return {name: parameter.grad.float() for name, parameter in model.named_parameters()}


class Loader:
    """What OpenCLIP's loop asks of a dataloader: this rank's micro-batches of grouped rows."""

    def __init__(self, case: Case, rank: int, world_size: int):
        images, captions = (rows.chunk(world_size)[rank] for rows in joined_batch(case))
        self.batches = [
            (image.flatten(0, 1), caption.flatten(0, 1))
            for image, caption in zip(images.chunk(case.accum_freq), captions.chunk(case.accum_freq))
        ]
        self.num_batches, self.num_samples, self.dataloader = len(self.batches), SAMPLES, self

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        return iter(self.batches)


def measured_gradients(case: Case, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
    """Of one step of OpenCLIP's training loop with this package's loss, or OpenCLIP's own."""
    from open_clip_train.train import train_one_epoch

    local_loss, gather_with_grad = FLAGS.get(case.flags, (True, False))
    args = Namespace(
        **{**asdict(case), "loss": "clip" if case.stock else case.loss},
        local_loss=local_loss,
        gather_with_grad=gather_with_grad,
        rank=rank,
        world_size=world_size,
        horovod=False,
        device="cpu",
        teacher="frozen" if case.distill else "none",
        model="tiny",
        skip_scheduler=True,
        grad_clip_norm=None,
        log_every_n_steps=1,
        wandb=False,
        batch_size=1,
    )
    model = trained = Towers(case.siglip, case.log_scale)
    if world_size > 1:
        trained = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = {"train": Loader(case, rank, world_size)}
    dist_model = teacher() if case.distill else None
    train_one_epoch(trained, data, create_loss(args), 0, optimizer, None, None, dist_model, args)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def fsdp_gradients(case: Case, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Of one step with the towers sharded as OpenCLIP 4.x does it: scalars as [1], then FSDP2."""
    from torch.distributed.fsdp import fully_shard

    model = Towers(case.siglip, case.log_scale)
    for name in ("logit_scale", "logit_bias"):
        if hasattr(model, name):
            setattr(model, name, nn.Parameter(getattr(model, name).detach()[None]))
    fully_shard(model)
    images, captions = (rows.chunk(world_size)[rank] for rows in joined_batch(case))
    args = Namespace(**asdict(case), rank=rank, world_size=world_size)
    loss = create_loss(args)
    losses = loss(**model(images.flatten(0, 1), captions.flatten(0, 1)), output_dict=True)
    sum(losses.values()).backward()
    return {name: parameter.grad.full_tensor().squeeze() for name, parameter in model.named_parameters()}


def gradients_without_arguments(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Of ``TripletClipLoss()`` in a distributed loop, and of the function with the group's ranks."""
    case = Case("triplet")
    model = Towers(case.siglip, case.log_scale)
    trained = DistributedDataParallel(model)
    images, captions = (rows.chunk(world_size)[rank] for rows in joined_batch(case))
    out = trained(images.flatten(0, 1), captions.flatten(0, 1))
    loss = TripletClipLoss()(**out)
    rows = (out["image_features"][0::2], out["text_features"][0::2])
    negatives = (out["image_features"][1::2], out["text_features"][1::2])
    ranks = Ranks.from_process_group()
    torch.testing.assert_close(triplet_clip_loss(*rows, *negatives, out["logit_scale"], ranks=ranks), loss)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def uneven_rows_message(rank: int) -> str:
    rows = torch.ones(2 * (1 + (rank == 0)), 4)
    try:
        TripletClipLoss()(rows, rows, torch.tensor(1.0))
    except ValueError as error:
        return str(error)
    return "no error"


def run_rank(rank: int, world_size: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    cases = [case for case in EXACT + BF16 + FAR + OPENCLIPS if case.accum_freq * world_size <= SAMPLES]
    results = {str(case): measured_gradients(case, rank, world_size) for case in cases}
    results |= {str(case): fsdp_gradients(case, rank, world_size) for case in FSDP}
    results |= {"alone": gradients_without_arguments(rank, world_size), "uneven": uneven_rows_message(rank)}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Gradients of every case by world size, each world started once.

    The ranks come from a server that has imported everything once, before any of them runs.
    """
    worlds = {}
    path = os.pathsep.join(filter(None, sys.path))
    multiprocessing.set_forkserver_preload(["open_clip_train.train", __name__])

    def world(world_size: int) -> list[dict]:
        if world_size not in worlds:
            patch.setenv("PYTHONPATH", path)
            folder = tmp_path_factory.mktemp(f"ranks{world_size}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            arguments = world_size, port, str(folder)
            mp.start_processes(run_rank, arguments, nprocs=world_size, start_method="forkserver")
            files = [folder / f"{rank}.pt" for rank in range(world_size)]
            worlds[world_size] = [torch.load(file, weights_only=True) for file in files]
        return worlds[world_size]

    with pytest.MonkeyPatch.context() as patch:
        yield world


@pytest.fixture(autouse=True)
def released_openclip():
    from open_clip_train.train import train_one_epoch

    if "model" not in inspect.signature(train_one_epoch).parameters:
        pytest.skip("this OpenCLIP's train_one_epoch takes a task; these tests drive the 3.x loop")


def assert_gradients(measured, expected, tolerance):
    assert measured.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (measured[name] - gradient).abs().max().item()
        assert difference <= tolerance * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", EXACT + FSDP, ids=str)
def test_ranks_equal_one_process(case, world_size, gradients):
    for rank in gradients(world_size):
        assert_gradients(rank[str(case)], expected_gradients(case), 1e-5)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", FAR, ids=str)
def test_ranks_equal_one_process_where_exponentials_underflow(case, world_size, gradients):
    for rank in gradients(world_size):
        assert_gradients(rank[str(case)], expected_gradients(case), 1e-3)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", BF16, ids=str)
def test_ranks_equal_one_process_in_bfloat16(case, world_size, gradients):
    expected = expected_gradients(case)
    for rank in gradients(world_size):
        for name, gradient in rank[str(case)].items():
            assert torch.linalg.norm(gradient - expected[name]) < 0.03 * torch.linalg.norm(expected[name])


@pytest.mark.parametrize("case", [case for case in EXACT if case.flags == "neither"], ids=str)
def test_accumulation_equals_one_batch(case):
    assert_gradients(measured_gradients(case), expected_gradients(case), 1e-5)


def test_rank_and_world_size_come_from_torch_distributed(gradients):
    for rank in gradients(2):
        assert_gradients(rank["alone"], expected_gradients(Case("triplet")), 1e-5)


def test_uneven_rows_are_one_clear_error_on_every_rank(gradients):
    for number, rank in enumerate(gradients(2)):
        rows = 4 - 2 * number
        assert f"different numbers of rows to the loss: 2 to 4, rank {number} has {rows}" in rank["uneven"]


def cosine(one: dict, other: dict) -> float:
    flat = [
        torch.cat([gradients["image"].flatten(), gradients["text"].flatten()]) for gradients in (one, other)
    ]
    return F.cosine_similarity(*flat, dim=0).item()


def test_what_openclips_own_loss_gets_wrong(gradients):
    """The defects that ours must not inherit, in the same harness."""
    two = gradients(2)[0]
    expected = expected_gradients(Case("clip"))

    accumulated = two[str(Case("clip", "local+gather", 2, stock=True))]
    assert_gradients({"image": accumulated["image"]}, {"image": expected["image"]}, 1e-5)
    torch.testing.assert_close(accumulated["logit_scale"], 2 * expected["logit_scale"])

    neither = two[str(Case("clip", "neither", stock=True))]
    torch.testing.assert_close(2 * neither["image"], expected["image"])
    torch.testing.assert_close(neither["logit_scale"], expected["logit_scale"])

    local = two[str(Case("clip", "local", stock=True))]
    assert cosine(local, expected) < 0.995


def test_loss_is_stock_for_clip():
    args = Namespace(loss="clip", local_loss=False, gather_with_grad=False, rank=0, world_size=1)
    args = Namespace(**vars(args), horovod=False, distill=False, model="tiny", siglip=False)
    assert type(create_loss(args)) is ClipLoss
