"""Metrics on matrices small enough to work by hand, and against clip_benchmark's on random ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_clip_triplet.evaluation.metrics import (
    bootstrap_interval,
    class_ranks,
    composition_correct,
    composition_ties,
    histogram,
    mcnemar,
    mean_per_class,
    paired_bootstrap,
    retrieval_ranks,
    wilson_interval,
)


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_composition_by_hand():
    #      right  text only  image only  wrong  tie between captions
    s00 = [0.9, 0.6, 0.5, 0.1, 0.5]
    s01 = [0.1, 0.5, 0.6, 0.9, 0.5]
    s10 = [0.2, 0.7, 0.1, 0.8, 0.1]
    s11 = [0.8, 0.8, 0.9, 0.2, 0.9]
    correct = composition_correct(s00, s01, s10, s11)
    assert correct["text"].tolist() == [True, True, False, False, False]
    assert correct["image"].tolist() == [True, False, True, False, True]
    assert correct["group"].tolist() == [True, False, False, False, False]
    assert composition_ties(s00, s01, s10, s11) == 1


@given(st.lists(st.tuples(*[st.integers(-3, 3)] * 4), min_size=1, max_size=20))
def test_group_is_both_and_swapping_modalities_swaps_scores(rows):
    s00, s01, s10, s11 = np.array(rows).T
    a, b = composition_correct(s00, s01, s10, s11), composition_correct(s00, s10, s01, s11)
    assert (a["group"] == (a["text"] & a["image"])).all()
    assert (a["text"] == b["image"]).all() and (a["image"] == b["text"]).all()


def test_retrieval_by_hand_with_several_captions_and_a_tie():
    # image 0 has captions 0 and 1, image 1 has caption 2, image 2 has none
    images = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    texts = np.array([[0.8, 0.6], [1, 0], [0.6, 0.8]], dtype=np.float32)
    # scores      c0    c1   c2
    #   image 0   .8    1    .6    best own 1    -> rank 0
    #   image 1   .6    0    .8    own .8        -> rank 0
    #   image 2   .96   .6   1     no caption    -> never found
    of_image, of_text, ties = retrieval_ranks(images, texts, [0, 0, 1])
    assert of_image.tolist() == [0, 0, 3]
    # caption 0: .8 .6 .96 -> rank 1; caption 1: 1 0 .6 -> rank 0; caption 2: .6 .8 1 -> rank 1
    assert of_text.tolist() == [1, 0, 1]
    assert ties == 0


def test_retrieval_ties_are_wrong_and_counted():
    images = np.array([[1, 0], [1, 0]], dtype=np.float32)
    texts = np.array([[1, 0], [0, 1]], dtype=np.float32)
    of_image, of_text, ties = retrieval_ranks(images, texts, [0, 1])
    # image 0: own 1, other 0 -> 0; image 1: own 0, other 1 -> 1; both captions score both images alike
    assert of_image.tolist() == [0, 1]
    assert of_text.tolist() == [1, 1]
    assert ties == 2


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9))
def test_retrieval_in_blocks_equals_retrieval_at_once(count, captions, block):
    rng = np.random.default_rng(count * 10 + captions)
    images = unit(rng.standard_normal((count, 8)))
    owner = np.repeat(np.arange(count), captions)
    texts = unit(images[owner] + rng.standard_normal((len(owner), 8)))
    scores = (images.astype(np.float64) @ texts.T.astype(np.float64)).T
    by_loop = [int((row > row[o]).sum()) for row, o in zip(scores, owner)]
    assert retrieval_ranks(images, texts, owner, block=block)[1].tolist() == by_loop


def test_recall_equals_clip_benchmark():
    retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    import torch

    rng = np.random.default_rng(0)
    images = unit(rng.standard_normal((60, 16)))
    owner = np.repeat(np.arange(60), 5)
    texts = unit(images[owner] + 1.5 * rng.standard_normal((300, 16)))
    scores = torch.from_numpy(texts) @ torch.from_numpy(images).T
    positive = torch.zeros_like(scores, dtype=bool)
    positive[torch.arange(300), torch.from_numpy(owner)] = True
    of_image, of_text, _ = retrieval_ranks(images, texts, owner)
    for k in (1, 5, 10):
        assert ((of_text < k) == (retrieval.recall_at_k(scores, positive, k) > 0).numpy()).all()
        assert ((of_image < k) == (retrieval.recall_at_k(scores.T, positive.T, k) > 0).numpy()).all()
    assert 0.1 < (of_text < 5).mean() < 0.95


def test_classes_by_hand_with_one_absent():
    classifier = np.eye(3, dtype=np.float32)
    features = unit([[3, 2, 1], [1, 3, 2], [2, 3, 1], [1, 1, 0]])
    labels = [0, 1, 0, 0]  # class 2 has no image; image 3 ties between classes 0 and 1
    ranks, predicted, ties = class_ranks(features, classifier, labels)
    assert ranks.tolist() == [0, 0, 1, 1]
    assert predicted.tolist() == [0, 1, 1, 0]
    assert ties == 1
    assert mean_per_class(ranks < 1, labels, 3) == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(mean_per_class([], np.array([], int), 3))


def test_classification_equals_torch_and_sklearn():
    """clip_benchmark's own ``accuracy`` fails under numpy 2.4; these are the calls it is made of."""
    import torch
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(1)
    classifier = unit(rng.standard_normal((7, 12)))
    labels = rng.integers(0, 7, 200)
    features = unit(classifier[labels] + rng.standard_normal((200, 12)))
    ranks, predicted, _ = class_ranks(features, classifier, labels, block=33)
    best = torch.from_numpy(features @ classifier.T).topk(5, 1).indices.numpy() == labels[:, None]
    assert ((ranks < 1) == best[:, 0]).all() and ((ranks < 5) == best.any(axis=1)).all()
    assert mean_per_class(ranks < 1, labels, 7) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_wilson_known_values():
    assert wilson_interval(0, 0) == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert wilson_interval(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)  # (.5 ± ...)/(1 + z²/n)
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(0.72247, abs=1e-5) and high == pytest.approx(1.0)


def test_bootstrap_matches_the_normal_interval_and_is_repeatable():
    low, high = bootstrap_interval([(800, 1000)], lambda drawn: drawn[0])
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.003) and high == pytest.approx(0.8 + half, abs=0.003)
    assert (low, high) == bootstrap_interval([(800, 1000)], lambda drawn: drawn[0])
    assert math.isnan(bootstrap_interval([(1, 2), (0, 0)], lambda drawn: drawn.mean(axis=0))[0])


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    # 1 against 9: 2 (C(10,0) + C(10,1)) / 2^10
    assert mcnemar(1, 9) == mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(10_000, 12_000) < 1e-30


def test_paired_bootstrap_sees_pairs():
    rng = np.random.default_rng(0)
    a = rng.random(2000) < 0.60
    better = a | (rng.random(2000) < 0.05)  # never worse: a small but certain gain
    found = paired_bootstrap([better.astype(float) - a], lambda drawn: drawn[0])
    assert 0 < found["low"] <= found["difference"] <= found["high"]
    assert found["p"] <= 0.001
    none = paired_bootstrap([np.zeros(50)], lambda drawn: drawn[0])
    assert none["difference"] == 0 and none["p"] == 1.0


def test_histogram_puts_what_lies_outside_into_the_end_bins():
    edges, counts = histogram([-3, -1, 0.0, 0.99, 1.0, 7], bins=4)
    assert edges == [-1, -0.5, 0, 0.5, 1] and counts == [2, 0, 1, 3]
