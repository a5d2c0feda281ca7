"""The terms added to a loss, and losses of the user's own: loops, sources' formulas, gradcheck."""

from __future__ import annotations

import sys
import types
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import loss_reference as reference
from open_clip_triplet.errors import UsageError
from open_clip_triplet.losses import METHODS, TripletClipLoss, create_loss, find_method
from open_clip_triplet.losses.grouped import GroupedLoss
from open_clip_triplet.losses.terms import (
    comparisons,
    distillation_loss,
    margin_loss,
    own_classification_loss,
    paraphrase_loss,
)


def features(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1).requires_grad_()


def grouped(name, n=5, k=1, more=0, width=6):
    method = METHODS[name]
    return (
        features(n, 1 + method.reads_neg_images, width, seed=1),
        features(n, 1 + k * method.reads_neg_captions + more, width, seed=2),
    )


OPTIONS = {
    "fixed": {"margin": "fixed", "margin_weight": 0.3},
    "adaptive": {"margin": "adaptive", "margin_weight": 0.3},
    "own": {"hard_negative_weight": 0.5},
    "FSC-CLIP": {"neg_scope": "none", "hard_negative_weight": 0.5, "label_smoothing": 0.1},
    "cross-entropy": {"hard_negative_weight": 0.5, "focal_gamma": 0.0, "label_smoothing": 0.0},
    "units": {"units": 2, "unit_weight": 0.5},
    "paraphrase": {"paraphrase_weight": 0.5},
    "plain": {"plain_every": 1, "margin": "fixed", "paraphrase_weight": 0.5},
    "plain of own": {"plain_every": 1, "neg_scope": "own"},
    "all": {"neg_scope": "own", "margin": "adaptive", "margin_weight": 0.1, "hard_negative_weight": 0.2,
            "paraphrase_weight": 0.3, "units": 1, "unit_weight": 0.4},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("name", "k"), [("negclip", 1), ("negclip", 3), ("negimage", 1), ("triplet", 3)])
def test_terms_equal_loops(name, k, options):
    images, captions = grouped(name, k=k, more=("paraphrase_weight" in options) + 2 * options.get("units", 0))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    inputs = images, captions, scale
    module = METHODS[name].loss(neg_captions=k, chunk_size=2, **options)
    ours = module(images.flatten(0, 1), captions.flatten(0, 1), scale)
    theirs = reference.with_options(name, *inputs, **options)
    torch.testing.assert_close(ours, theirs)
    gradients = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


def test_comparisons_are_winogrounds_four():
    x, y, x2, y2 = (features(4, 3, seed=seed) for seed in range(4))
    kinds = comparisons(torch.stack([x, x2]), torch.stack([y, y2]))
    expected = [(x * y - x * y2), (x2 * y2 - x2 * y), (y * x - y * x2), (y2 * x2 - y2 * x)]
    for kind, products in zip(kinds, expected, strict=True):
        torch.testing.assert_close(kind, products.sum(1)[None])


def test_adaptive_margin_ignores_pairs_taken_for_wrong():
    d = torch.tensor([[-3.0, -2.0, -1.0, 0.5, 2.0]], requires_grad=True)
    loss = margin_loss([d], torch.tensor(1.0), "adaptive") * 5
    # beta: margin (1 + 4) * 0.5 = 2.5, hinge 4.5; -1: margin (1 + 4 * 0.6) * 0.5 = 1.7, hinge 2.7
    assert loss.item() == pytest.approx(4.5 + 2.7, rel=1e-6)
    loss.backward()
    assert d.grad.tolist() == [[0, -1, -1, 0, 0]]


def test_own_classification_without_focus_is_cross_entropy():
    x, y = features(6, 5, seed=1), features(6, 4, 5, seed=2)
    logits = 9 * torch.einsum("nd,nkd->nk", x, y)
    loss = own_classification_loss(
        comparisons(x[None], y.transpose(0, 1)), torch.tensor(9.0, dtype=torch.float64), 0.0, 0.0
    )
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)))


def test_gradcheck_of_terms():
    x, y, x2, y2, z = (features(3, 4, seed=seed) for seed in range(5))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def terms(x, y, x2, y2, scale):
        gains = comparisons(torch.stack([x, x2]), torch.stack([y, y2]))
        return margin_loss(gains, scale, "fixed") + own_classification_loss(gains, scale, 1.5, 0.1)

    assert torch.autograd.gradcheck(terms, (x, y, x2, y2, scale))
    assert torch.autograd.gradcheck(paraphrase_loss, (y, z, scale))
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x[None], y[None]), (x,))


def test_teacher_pulls_every_row():
    images, captions = grouped("triplet")
    teacher = features(5, 2, 6, seed=8), features(5, 2, 6, seed=9)
    module = TripletClipLoss(distill_weight=0.4)
    rows = images.flatten(0, 1), captions.flatten(0, 1), torch.tensor(5.0)
    names = ("dist_image_features", "dist_text_features", "dist_logit_scale")
    dist = dict(zip(names, (*(rows.flatten(0, 1) for rows in teacher), torch.tensor(9.0))))
    losses = module(*rows, output_dict=True, **dist)
    expected = 0.4 * reference.distillation(images, captions, *teacher)
    torch.testing.assert_close(losses["distill_loss"], expected)
    gradients = [torch.autograd.grad(loss, images)[0] for loss in (losses["distill_loss"], expected)]
    torch.testing.assert_close(*gradients)
    assert "distill_loss" not in module(*rows, output_dict=True)


def test_every_kth_step_is_plain_under_accumulation_too():
    images, captions = grouped("triplet")
    rows = images.flatten(0, 1), captions.flatten(0, 1), torch.tensor(5.0)
    module = TripletClipLoss(plain_every=3, accum_freq=2)
    names = [next(iter(module(*rows, output_dict=True))) for _ in range(12)]
    assert names == 2 * (["positive_loss"] * 4 + ["plain_loss"] * 2)


def test_metrics_are_those_of_the_batch():
    x, y, x2, y2 = torch.eye(4)[[0, 1]], torch.eye(4)[[0, 1]], torch.eye(4)[[2, 1]], torch.eye(4)[[3, 1]]
    images, captions = torch.stack([x, x2], 1).flatten(0, 1), torch.stack([y, y2], 1).flatten(0, 1)
    shown = TripletClipLoss()(images, captions, torch.tensor(5.0), output_dict=True)
    names = "positive_similarity", "neg_caption_similarity", "neg_image_similarity", "margin", "group_score"
    # sample 0: s(x, y) = 1, all else 0, so its negative pair ties; sample 1: all rows the same
    assert [shown[name].item() for name in names] == [1.0, 0.5, 0.5, 0.0, 0.0]
    assert not any(shown[name].requires_grad for name in names)


OWN_LOSS = '''
import torch
from open_clip_triplet.losses import GroupedLoss

class Cosine(GroupedLoss):
    """Pulls pairs together and pushes the hard negative caption away."""

    reads_neg_captions = True

    def losses(self, images, captions, logit_scale, logit_bias):
        pull = (images[0] * captions[0]).sum(-1)
        push = (images[0] * captions[1]).sum(-1)
        return {"cosine_loss": self.ranks.mean(push - pull)}
'''


def test_a_loss_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    method = find_method("mine:Cosine")
    assert (method.reads_neg_images, method.reads_neg_captions) == (False, True)
    loss = create_loss(Namespace(loss="mine:Cosine", neg_captions=2, hard_negative_weight=0.5))
    assert isinstance(loss, GroupedLoss) and loss.text_group == 3
    x, y = features(4, 3, seed=1), features(4, 3, 3, seed=2)
    addends = loss(x, y.flatten(0, 1), torch.tensor(5.0), output_dict=True)
    torch.testing.assert_close(addends["cosine_loss"], (x * (y[:, 1] - y[:, 0])).sum(1).mean())
    assert "hard_negative_loss" in addends


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("{'cosine': push.mean()}", r"cosine \[\]"), ("{}", "dict"), ("push.mean()", "Tensor"),
        ("{'a_loss': push}", r"a_loss \[4\]"),
    ],
)
def test_a_loss_of_the_users_own_that_gives_no_addends_is_named(given, shown, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", module := types.ModuleType("mine"))
    exec(OWN_LOSS.replace('{"cosine_loss": self.ranks.mean(push - pull)}', given), module.__dict__)
    x, y = features(4, 3, seed=1), features(8, 3, seed=2)
    with pytest.raises(UsageError, match=rf"Cosine.losses\(\) must give .* named \*_loss; it gave {shown}"):
        create_loss(Namespace(loss="mine:Cosine"))(x, y, torch.tensor(5.0))


def test_a_class_without_openclips_arguments_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", module := types.ModuleType("mine"))
    exec("class Plain:\n    def __init__(self): pass", module.__dict__)
    with pytest.raises(UsageError, match="--loss mine:Plain takes the arguments of open_clip.ClipLoss: .*argument"):
        create_loss(Namespace(loss="mine:Plain", local_loss=False))


def test_a_package_offers_a_loss(tmp_path, monkeypatch):
    (tmp_path / "offered.py").write_text(OWN_LOSS)
    metadata = tmp_path / "offered-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[open_clip_triplet.losses]\npull = offered:Cosine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_method("pull").loss is sys.modules["offered"].Cosine
    with pytest.raises(UsageError, match="unknown loss 'push'; choose from clip, .*, pull"):
        find_method("push")


@pytest.mark.parametrize("model", ["CLIP", "CustomTextCLIP"])
def test_openclip_gives_no_image_tokens_without_another_forward(model):
    """Why FSC-CLIP's token-level term is not offered; if this fails, it can be."""
    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "output_tokens": True}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    towers = getattr(open_clip, model)(embed_dim=16, vision_cfg=vision, text_cfg=text)
    with pytest.raises(AttributeError, match="tuple"):
        towers(torch.zeros(2, 3, 32, 32), torch.zeros(2, 8, dtype=torch.long))
