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
    pair_similarities,
    paired_bootstrap,
    rank_answers,
    retrieval_ranks,
    wilson_interval,
)
from open_clip_triplet.evaluation.tasks.base import class_mean


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
    i2t, t2i = retrieval_ranks(images, texts, [0, 0, 1])
    assert i2t.ranks.tolist() == [0, 0, 3]
    # caption 0: .8 .6 .96 -> rank 1; caption 1: 1 0 .6 -> rank 0; caption 2: .6 .8 1 -> rank 1
    assert t2i.ranks.tolist() == [1, 0, 1]
    assert i2t.ties == t2i.ties == 0
    assert i2t.right.tolist() == pytest.approx([1, 0.8, -math.inf]) and i2t.best_wrong.tolist() == [2, 0, 2]
    assert t2i.right.tolist() == pytest.approx([0.8, 1, 0.8]) and t2i.wrong.tolist() == pytest.approx([0.96, 0.6, 1])


def test_retrieval_ties_are_wrong_and_counted():
    images = np.array([[1, 0], [1, 0]], dtype=np.float32)
    texts = np.array([[1, 0], [0, 1]], dtype=np.float32)
    i2t, t2i = retrieval_ranks(images, texts, [0, 1])
    # image 0: own 1, other 0 -> 0; image 1: own 0, other 1 -> 1; both captions score both images alike
    assert i2t.ranks.tolist() == [0, 1]
    assert t2i.ranks.tolist() == [1, 1]
    assert i2t.ties == 0 and t2i.ties == 2


def test_equal_captions_are_right_for_one_another():
    # captions 0 (of image 0) and 1 (of image 1) are the same words, so their rows are the same too
    images = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    texts = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    i2t, t2i = retrieval_ranks(images, texts, [0, 1, 2], caption_ids=[7, 7, 8])
    assert i2t.ranks.tolist() == [0, 0, 0] and i2t.ties == 0
    assert t2i.ranks.tolist() == [0, 0, 0]  # image 0 is right for caption 1 too
    told_apart = retrieval_ranks(images, texts, [0, 1, 2])
    assert told_apart[0].ranks.tolist() == [1, 1, 0] and told_apart[1].ranks.tolist() == [0, 1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused(bad):
    """Comparisons with NaN are all false: counting what scores higher would call every answer right."""
    sound = np.eye(3, dtype=np.float32)
    broken = sound.copy()
    broken[1, 2] = bad
    for arguments in ((broken, sound), (sound, broken)):
        with pytest.raises(ValueError, match="1 of 3 rows are NaN or infinite"):
            retrieval_ranks(*arguments, [0, 1, 2])
        with pytest.raises(ValueError, match="1 of 3 rows are NaN or infinite"):
            class_ranks(*arguments, [0, 1, 2])
    with pytest.raises(ValueError, match="y1: 1 of 3 rows"):
        pair_similarities(sound, sound, sound, broken)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9))
def test_retrieval_in_blocks_equals_retrieval_at_once(count, captions, block):
    rng = np.random.default_rng(count * 10 + captions)
    images = unit(rng.standard_normal((count, 8)))
    owner = np.repeat(np.arange(count), captions)
    texts = unit(images[owner] + rng.standard_normal((len(owner), 8)))
    scores = (images.astype(np.float64) @ texts.T.astype(np.float64)).T
    by_loop = [int((row > row[o]).sum()) for row, o in zip(scores, owner)]
    queries, answers = (np.arange(len(owner)), owner), (np.arange(count), np.arange(count))
    assert rank_answers(texts, images, queries, answers, block).ranks.tolist() == by_loop
    assert retrieval_ranks(images, texts, owner)[1].ranks.tolist() == by_loop


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
    of_image, of_text = (ranking.ranks for ranking in retrieval_ranks(images, texts, owner))
    for k in (1, 5, 10):
        assert ((of_text < k) == (retrieval.recall_at_k(scores, positive, k) > 0).numpy()).all()
        assert ((of_image < k) == (retrieval.recall_at_k(scores.T, positive.T, k) > 0).numpy()).all()
    assert 0.1 < (of_text < 5).mean() < 0.95


def test_classes_by_hand_with_one_absent():
    classifier = np.eye(3, dtype=np.float32)
    features = unit([[3, 2, 1], [1, 3, 2], [2, 3, 1], [1, 1, 0]])
    labels = [0, 1, 0, 0]  # class 2 has no image; image 3 ties between classes 0 and 1
    found = class_ranks(features, classifier, labels)
    ranks = found.ranks
    assert ranks.tolist() == [0, 0, 1, 1]
    assert found.best_wrong.tolist() == [1, 2, 1, 1]
    assert found.ties == 1
    # classes 0 and 1 have one name: each is right for the other
    assert class_ranks(features, classifier, labels, class_ids=[5, 5, 6]).ranks.tolist() == [0, 0, 0, 0]
    assert class_mean(ranks < 1, labels)["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(class_mean(np.zeros(0, bool), [])["value"])


def test_classification_equals_torch_and_sklearn():
    """clip_benchmark's own ``accuracy`` fails under numpy 2.4; these are the calls it is made of."""
    import torch
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(1)
    classifier = unit(rng.standard_normal((7, 12)))
    labels = rng.integers(0, 7, 200)
    features = unit(classifier[labels] + rng.standard_normal((200, 12)))
    ranks = class_ranks(features, classifier, labels).ranks
    predicted = (features @ classifier.T).argmax(axis=1)
    best = torch.from_numpy(features @ classifier.T).topk(5, 1).indices.numpy() == labels[:, None]
    assert ((ranks < 1) == best[:, 0]).all() and ((ranks < 5) == best.any(axis=1)).all()
    assert class_mean(ranks < 1, labels)["value"] == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_wilson_known_values():
    assert wilson_interval(0, 0) == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert wilson_interval(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)  # (.5 ± ...)/(1 + z²/n)
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(0.72247, abs=1e-5) and high == 1
    for n in range(1, 60):  # exact, not 1e-17
        assert wilson_interval(0, n)[0] == 0 and wilson_interval(n, n)[1] == 1


def test_bootstrap_matches_the_normal_interval_and_is_repeatable():
    low, high = bootstrap_interval([(800, 1000)], lambda drawn: drawn[0])
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.003) and high == pytest.approx(0.8 + half, abs=0.003)
    assert (low, high) == bootstrap_interval([(800, 1000)], lambda drawn: drawn[0])
    for few in ((0, 0), (1, 9)):
        assert math.isnan(bootstrap_interval([(10, 20), few], lambda drawn: drawn.mean(axis=0))[0])
    assert bootstrap_interval([(10, 20), (1, 10)], lambda drawn: drawn.mean(axis=0))[0] > 0


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
    few = paired_bootstrap([np.zeros(50), -np.ones(1)], lambda drawn: drawn.mean(axis=0))
    assert few["difference"] == -0.5 and math.isnan(few["p"]) and math.isnan(few["low"])


def test_histogram_puts_what_lies_outside_into_the_end_bins():
    edges, counts = histogram([-3, -1, 0.0, 0.99, 1.0, 7])
    assert edges[:2] == [-1, -0.98] and edges[50] == 0 and edges[-1] == 1 and sum(counts) == 6
    assert counts[0] == 2 and counts[50] == 1 and counts[-1] == 3
