"""The losses in one process: against loops over samples, the paper's pseudo-code and closed forms."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss
from torch.utils._python_dispatch import TorchDispatchMode

import loss_reference as reference
from open_clip_triplet import losses
from open_clip_triplet.losses import METHODS
from open_clip_triplet.losses.functional import triplet_clip_loss

GROUPED = [name for name in METHODS if name != "clip"]
SEVERAL = [name for name in GROUPED if METHODS[name].several_neg_captions]
SIGMOID = [name for name in GROUPED if METHODS[name].supports_sigmoid]


def features(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return F.normalize(rows, dim=-1).to(dtype).requires_grad_()


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def grouped_inputs(name, n=5, width=6, k=1, dtype=torch.float64):
    method = METHODS[name]
    images = features(n, 1 + method.reads_neg_images, width, seed=1, dtype=dtype)
    captions = features(n, 1 + k * method.reads_neg_captions, width, seed=2, dtype=dtype)
    return images, captions


def value_and_gradients(loss, *inputs):
    return loss.detach(), torch.autograd.grad(loss, inputs)


def assert_same(ours, theirs, **tolerance):
    torch.testing.assert_close(ours[0], theirs[0], **tolerance)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


def module_case(name, *, k=1, chunk_size=None, bias=None, n=5, neg_scope="batch"):
    images, captions = grouped_inputs(name, k=k, n=n)
    scale = scalar(7.0)
    inputs = [images, captions, scale] + ([] if bias is None else [bias])
    options = {"chunk_size": chunk_size, "sigmoid": bias is not None, "neg_scope": neg_scope}
    module = METHODS[name].loss(neg_captions=k, **options)
    ours = module(images.flatten(0, 1), captions.flatten(0, 1), scale, bias)
    theirs = reference.method(name, images, captions, scale, bias, neg_scope)
    return value_and_gradients(ours, *inputs), value_and_gradients(theirs, *inputs)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("name", GROUPED)
def test_module_equals_loops(name, chunk_size):
    assert_same(*module_case(name, chunk_size=chunk_size))


@pytest.mark.parametrize("name", SEVERAL)
def test_several_negative_captions_equal_loops(name):
    assert_same(*module_case(name, k=3, chunk_size=2))


@pytest.mark.parametrize("neg_scope", ["own", "none"])
@pytest.mark.parametrize(("name", "k"), [("negimage", 1)] + [(name, k) for name in SEVERAL for k in (1, 3)])
def test_scopes_of_negatives_equal_loops(name, k, neg_scope):
    assert_same(*module_case(name, k=k, neg_scope=neg_scope, chunk_size=2))


@pytest.mark.parametrize(("name", "k"), [(name, 1) for name in SIGMOID] + [("negclip", 3), ("triplet", 3)])
def test_sigmoid_equals_loops(name, k):
    assert_same(*module_case(name, k=k, chunk_size=2, bias=scalar(-1.5)))


def pseudo_code(x, y, x2, y2, scale):
    """Appendix B, with the released code's halving."""

    def negclip_loss(images, captions):
        labels = torch.arange(len(images))
        per_image = scale * images @ captions.T
        per_text = scale * captions[: len(images)] @ images.T
        return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2

    return negclip_loss(x, torch.cat([y, y2])) + negclip_loss(x2, torch.cat([y2, y]))


@pytest.mark.parametrize("scale", [1 / 0.07, 100.0])
def test_triplet_equals_the_papers_pseudo_code_in_float32(scale):
    four = [features(64, 32, seed=seed, dtype=torch.float32) for seed in range(4)]
    scale = scalar(scale, torch.float32)
    ours = value_and_gradients(triplet_clip_loss(*four, scale, chunk_size=10), *four, scale)
    theirs = value_and_gradients(pseudo_code(*four, scale), *four, scale)
    assert_same(ours, theirs, rtol=1e-5, atol=1e-5)


def test_closed_forms_at_equal_features():
    same = F.normalize(torch.ones(1024, 4), dim=1)
    scale = torch.tensor(100.0)
    assert losses.clip_loss(same, same, scale).item() == pytest.approx(6.931472, abs=1e-5)
    assert losses.negclip_loss(same, same, same, scale).item() == pytest.approx(7.278045, abs=1e-5)
    assert losses.negimage_loss(same, same, same, scale).item() == pytest.approx(7.278045, abs=1e-5)
    assert losses.triplet_clip_loss(same, same, same, same, scale).item() == pytest.approx(
        14.556091, abs=1e-5
    )
    assert losses.cyclip_loss(same, same, scale).item() == pytest.approx(6.931472, abs=1e-5)
    four = same.repeat_interleave(4, 0)
    expected = (math.log(5 * 1024) + math.log(1024)) / 2
    assert losses.negclip_loss(same, same, four, scale).item() == pytest.approx(expected, abs=1e-5)


def test_swapping_positives_and_negatives_changes_nothing():
    x, y, x2, y2 = (features(6, 5, seed=seed) for seed in range(4))
    ours = value_and_gradients(triplet_clip_loss(x, y, x2, y2, 9.0), x, y, x2, y2)
    swapped = value_and_gradients(triplet_clip_loss(x2, y2, x, y, 9.0), x, y, x2, y2)
    assert_same(ours, swapped)


def test_swapping_modalities_turns_negclip_into_negimage():
    x, y, extra = (features(6, 5, seed=seed) for seed in range(3))
    assert torch.equal(losses.negclip_loss(x, y, extra, 9.0), losses.negimage_loss(y, x, extra, 9.0))


@pytest.mark.parametrize("all_images", [False, True])
def test_weight_and_denominator_ablation_equal_loops(all_images):
    x, y, x2 = (features(5, 6, seed=seed) for seed in range(3))
    y2, scale = features(5, 2, 6, seed=3), scalar(6.0)
    inputs = x, y, x2, y2, scale
    ours = triplet_clip_loss(
        x,
        y,
        x2,
        y2.flatten(0, 1),
        scale,
        neg_weight=0.3,
        neg_images_in_text_denominator=all_images,
        chunk_size=2,
    )
    theirs = reference.triplet(x, y, x2, y2, scale, 0.3, all_images)
    assert_same(value_and_gradients(ours, *inputs), value_and_gradients(theirs, *inputs))


def test_gradcheck():
    x, y, x2, y2 = (features(3, 4, seed=seed) for seed in range(4))
    scale = scalar(3.0)
    assert torch.autograd.gradcheck(triplet_clip_loss, (x, y, x2, y2, scale))
    assert torch.autograd.gradcheck(losses.negclip_loss, (x, y, torch.cat([x2, y2]), scale))
    own = functools.partial(triplet_clip_loss, neg_scope="own", neg_weight=0.5)
    assert torch.autograd.gradcheck(own, (x, y, x2, features(6, 4, seed=4), scale))
    assert torch.autograd.gradcheck(losses.negimage_loss, (x, y, x2, scale))
    assert torch.autograd.gradcheck(losses.cyclip_loss, (x, y, scale))


def test_consistency_terms_equal_loops_and_do_not_cancel():
    x, y = features(7, 5, seed=0), features(7, 5, seed=1)
    ours = value_and_gradients(losses.cyclic_consistency(x, y, 0.3, 0.1), x, y)
    assert_same(ours, value_and_gradients(reference.cyclic(x, y, 0.3, 0.1), x, y))
    near = F.normalize(x.detach() + 1e-4 * y.detach(), dim=1)
    halves = x.bfloat16(), y.bfloat16()
    exact = losses.cyclic_consistency(*[rows.float() for rows in halves])
    assert losses.cyclic_consistency(*halves).item() == pytest.approx(exact.item(), rel=1e-6)
    exact = reference.cyclic(x, near)
    assert losses.cyclic_consistency(x.float(), near.float()).item() == pytest.approx(exact.item(), rel=1e-3)


def test_plain_pairs_agree_with_openclip():
    x, y = (features(12, 8, seed=seed, dtype=torch.float32) for seed in range(2))
    scale, bias = scalar(20.0, torch.float32), scalar(-3.0, torch.float32)
    inputs = x, y, scale
    stock = value_and_gradients(ClipLoss()(x, y, scale), *inputs)
    assert_same(value_and_gradients(losses.clip_loss(x, y, scale), *inputs), stock)
    assert_same(value_and_gradients(losses.ClipHnLoss()(x, y, scale), *inputs), stock)
    stock = value_and_gradients(SigLipLoss()(x, y, scale, bias), *inputs, bias)
    ours = losses.ClipHnLoss(sigmoid=True)(x, y, scale, bias)
    assert_same(value_and_gradients(ours, *inputs, bias), stock)


def test_bfloat16_features_and_autocast():
    four = [features(96, 32, seed=seed, dtype=torch.float32) for seed in range(4)]
    scale = scalar(100.0, torch.float32)
    exact = value_and_gradients(triplet_clip_loss(*four, scale), *four, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(value_and_gradients(triplet_clip_loss(*four, scale), *four, scale), exact)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in four]
    value, gradients = value_and_gradients(triplet_clip_loss(*halves, scale), *halves, scale)
    assert {gradient.dtype for gradient in gradients[:4]} == {torch.bfloat16}
    assert value.item() == pytest.approx(exact[0].item(), rel=2e-2)
    for gradient, other in zip(gradients, exact[1]):
        cosine = F.cosine_similarity(gradient.float().flatten(), other.flatten(), dim=0)
        assert cosine > 0.98


@pytest.mark.parametrize("neg_scope", ["batch", "own"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scale_may_be_a_number_or_a_tensor_of_one_of_any_type(dtype, neg_scope):
    four = [features(6, 8, seed=seed, dtype=dtype) for seed in range(4)]
    exact = triplet_clip_loss(*four, scalar(7.3, dtype), neg_scope=neg_scope)
    for scale in (7.3, torch.tensor([7.3], dtype=torch.float64), torch.tensor(7.3), torch.tensor([7.3])):
        loss = triplet_clip_loss(*four, scale, neg_scope=neg_scope)
        assert loss.shape == () and loss.dtype == dtype
        torch.testing.assert_close(loss, exact, rtol=1e-6, atol=1e-6)
    number = triplet_clip_loss(*four, 7.3, neg_scope=neg_scope)
    torch.testing.assert_close(number, exact, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)


def test_large_bfloat16_batch_at_scale_100_stays_finite():
    four = [features(2048, 8, seed=seed, dtype=torch.bfloat16) for seed in range(4)]
    scale = scalar(100.0, torch.bfloat16)
    value, gradients = value_and_gradients(triplet_clip_loss(*four, scale), *four, scale)
    assert all(torch.isfinite(tensor).all() for tensor in (value, *gradients))


def test_columns_that_every_image_rejects_are_exact():
    """Logits 200 apart: a softmax over captions underflows where the one over images must not."""
    x = F.normalize(torch.eye(4, 5) + torch.tensor([0.0, 0, 0, 0, 0.1]), dim=1)
    y = x.clone()
    y[2] = -x.mean(0) / x.mean(0).norm()
    inputs = [tensor.requires_grad_() for tensor in (x, y, x.detach().flip(1), y.detach().flip(1))]
    scale = scalar(100.0, torch.float32)
    ours = value_and_gradients(triplet_clip_loss(*inputs, scale), *inputs, scale)
    wide = [tensor.detach().double().requires_grad_() for tensor in (*inputs, scale)]
    exact = value_and_gradients(pseudo_code(*wide), *wide)
    assert_same(ours, (exact[0].float(), [gradient.float() for gradient in exact[1]]), rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    scale=st.sampled_from([0.01, 14.3, 60.0, 100.0, 500.0, 3000.0]),
    norm=st.floats(0.1, 30),
    seed=st.integers(0, 1000),
    chunk=st.integers(1, 9),
)
def test_logits_of_any_size_equal_float64(scale, norm, seed, chunk):
    four = [features(8, 4, seed=seed + i, dtype=torch.float32) for i in range(4)]
    with torch.no_grad():
        four[0][0] *= norm  # one row that is not of unit length
    scale = scalar(scale, torch.float32)
    ours = value_and_gradients(triplet_clip_loss(*four, scale, chunk_size=chunk), *four, scale)
    wide = [tensor.detach().double().requires_grad_() for tensor in (*four, scale)]
    exact = value_and_gradients(pseudo_code(*wide), *wide)
    exact = exact[0].float(), [gradient.float() for gradient in exact[1]]
    assert_same(ours, exact, rtol=1e-3, atol=2e-6 * max(1.0, scale.item()) * max(1.0, norm))


def errors(loss, inputs, scale):
    """Largest errors of a float32 loss's gradients against the pseudo-code's in float64."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    gradients = torch.autograd.grad(loss(*leaves, scale), leaves)
    exact = torch.autograd.grad(pseudo_code(*wide, scale), wide)
    return [(ours.double() - theirs).abs().max().item() for ours, theirs in zip(gradients, exact)]


@pytest.mark.parametrize("case", ["aligned", "unnormalised", "both", "misaligned"])
def test_gradients_are_no_coarser_than_the_plain_forms(case):
    x, y, x2, y2 = (features(64, 16, seed=seed, dtype=torch.float32).detach() for seed in range(4))
    if case in ("aligned", "both"):
        y, y2 = x.clone(), x2.clone()
    if case == "misaligned":
        y, y2 = -x, -x2
    if case in ("unnormalised", "both"):
        x, y = 7 * x, 5 * y
    ours, plain = (errors(loss, (x, y, x2, y2), 100.0) for loss in (triplet_clip_loss, pseudo_code))
    assert all(mine <= 2 * theirs + 1e-9 for mine, theirs in zip(ours, plain)), (ours, plain)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(GROUPED),
    n=st.integers(1, 9),
    k=st.integers(1, 3),
    chunk_size=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_order_of_samples_and_chunks_do_not_matter(name, n, k, chunk_size, seed):
    k = k if name in SEVERAL else 1
    images, captions = grouped_inputs(name, n=n, k=k)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    scale = scalar(10.0)
    whole, chunked = (METHODS[name].loss(neg_captions=k, chunk_size=size) for size in (None, chunk_size))
    once = whole(images.flatten(0, 1), captions.flatten(0, 1), scale)
    again = chunked(images[order].flatten(0, 1), captions[order].flatten(0, 1), scale)
    inputs = images, captions, scale
    assert_same(value_and_gradients(once, *inputs), value_and_gradients(again, *inputs))


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers any operation returned in one tensor."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("sigmoid", [False, True])
def test_no_tensor_is_larger_than_a_block(sigmoid):
    n, width, chunk = 256, 8, 16
    images, captions = (features(2 * n, width, seed=seed, dtype=torch.float32) for seed in range(2))
    module = losses.TripletClipLoss(chunk_size=chunk, sigmoid=sigmoid)
    with LargestTensor() as largest:
        module(images, captions, torch.tensor(10.0), torch.tensor(-1.0)).backward()
    assert largest.numel <= chunk * 2 * n


def test_frozen_towers():
    images, captions = grouped_inputs("triplet")
    scale = scalar(5.0)
    module = losses.TripletClipLoss()
    rows = images.flatten(0, 1), captions.flatten(0, 1)
    every = torch.autograd.grad(module(*rows, scale), (images, captions, scale))
    for frozen in ((0,), (1,), (0, 1), (2,), (0, 2)):
        inputs = [row.detach() if i in frozen else row for i, row in enumerate((*rows, scale))]
        wanted = [i for i in range(3) if i not in frozen]
        leaves = [(images, captions, scale)[i] for i in wanted]
        gradients = torch.autograd.grad(module(*inputs), leaves)
        assert all(torch.allclose(gradient, every[i]) for gradient, i in zip(gradients, wanted))
    with torch.no_grad():
        assert not module(*rows, scale).requires_grad


@pytest.mark.parametrize("name", ["triplet", "cyclip-triplet"])
def test_torch_compile(name):
    images, captions = grouped_inputs(name, dtype=torch.float32)
    scale = scalar(8.0, torch.float32)
    module = METHODS[name].loss()

    def step(images, captions, scale):
        out = module(F.normalize(images, dim=1), F.normalize(captions, dim=1), scale, output_dict=True)
        return sum(out.values()) * 2

    inputs = images.flatten(0, 1), captions.flatten(0, 1), scale
    eager = value_and_gradients(step(*inputs), images, captions, scale)
    compiled = torch.compile(step, backend="aot_eager")
    assert_same(value_and_gradients(compiled(*inputs), images, captions, scale), eager)


def test_output_dict_holds_addends_named_loss():
    images, captions = grouped_inputs("cyclip-triplet")
    module = losses.CyClipTripletLoss()
    rows = images.flatten(0, 1), captions.flatten(0, 1), scalar(5.0)
    addends = module(*rows, output_dict=True)
    assert [name for name in addends if name.endswith("_loss")] == [
        "positive_loss", "negative_loss", "cyclic_loss",
    ]  # fmt: skip
    summed = sum(addends.values()), sum(v for k, v in addends.items() if k.endswith("_loss"))  # 3.x, 4.x
    assert summed[0] == summed[1] == module(*rows)


def test_bias_without_sigmoid_changes_nothing_but_has_a_gradient():
    images, captions = grouped_inputs("triplet")
    rows, bias = (images.flatten(0, 1), captions.flatten(0, 1), scalar(5.0)), scalar(-10.0)
    module = losses.TripletClipLoss()
    assert torch.equal(module(*rows), module(*rows, bias))
    assert torch.autograd.grad(module(*rows, bias), bias)[0] == 0


def test_mismatched_shapes_are_named():
    x, y = features(4, 3), features(5, 3)
    with pytest.raises(ValueError, match=r"image_features \(4, 3\), text_features \(5, 3\)"):
        losses.clip_loss(x, y, 1.0)
    with pytest.raises(ValueError, match=r"hard negatives must be \[N \* K, D\].*\(5, 3\)"):
        losses.negclip_loss(x, x, y, 1.0)
    with pytest.raises(ValueError, match="do not divide into samples of 2 rows"):
        losses.TripletClipLoss()(y, y, 1.0)
    with pytest.raises(ValueError, match="not the same samples"):
        losses.TripletClipLoss(neg_captions=2)(x, features(9, 3), 1.0)
    with pytest.raises(ValueError, match="neg_weight must be above 0"):
        losses.triplet_clip_loss(x, x, x, x, 1.0, neg_weight=0)
    with pytest.raises(ValueError, match="neg_scope must be one of batch, own, none, not 'mine'"):
        losses.triplet_clip_loss(x, x, x, x, 1.0, neg_scope="mine")
    with pytest.raises(ValueError, match="logit_bias"):
        losses.TripletClipLoss(sigmoid=True)(x, x, scalar(1.0))


def test_functions_cost_torch_alone():
    code = """
import sys
from open_clip_triplet.losses import Ranks, triplet_clip_loss
heavy = {"open_clip", "open_clip_train", "transformers", "timm", "torchvision", "webdataset", "PIL"}
print(sorted(heavy & set(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
