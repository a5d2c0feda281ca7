"""The paper's losses as functions of features. N samples, D width, unit rows, results in nats.

``logit_scale`` is a scalar, already exponentiated. ``options`` are the keywords of ``negclip_terms``:

* ``neg_scope``: whose hard negatives a row is classified over, "batch" (the paper), "own" or "none".
* ``chunk_size``: rows of the similarity matrix that exist at a time (None: automatic); it changes
  memory and time, not the result.
* ``ranks``: ``Ranks.from_process_group()`` makes the loss that of all ranks' samples, each rank giving
  its own n rows. The default is the rows given, alone.

Gradients are exact; second derivatives are not available.

Reference: Patel et al., NeurIPS 2024, arXiv:2411.02545, Eqs. 1-4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from open_clip_triplet.losses.contrast import scaled, softmax_contrast
from open_clip_triplet.losses.ranks import SINGLE_PROCESS, Ranks
from open_clip_triplet.losses.terms import all_but, cyclic_consistency, similarity_gain

Scale = Tensor | float
NEG_SCOPES = ("batch", "own", "none")


def negclip_terms(
    images: Tensor, captions: Tensor, logit_scale: Scale, *, neg_scope: str = "batch", same_polarity: bool = True,
    chunk_size: int | None = None, ranks: Ranks = SINGLE_PROCESS,
) -> Tensor:
    """NegCLIP of the positive and of the negative pairs, the terms that every loss here is made of.

    Each image is classified over the captions of *all* polarities, each caption over the images of its
    *own* polarity only (Eq. 3, halved): with A = B = 2, the sum of the two terms is Eq. 4.

    Args:
        images: [A, n, D], the pairs' images: positives, then negatives.
        captions: [B, n, D], B >= A; polarities A and up belong with no image and only fill denominators.
        neg_scope: "batch": images meet the captions of other polarities of every sample. "own": of
            their own sample only, beside the N captions of their own polarity (CS-CLIP's
            ``negclip_hard``, arXiv:2602.23906, github.com/kargibora/CS-CLIP). "none": of nobody, which
            is CLIP of each polarity, for use with the terms on a sample's own negatives.
        same_polarity: False is an ablation; captions are classified over the images of all polarities.

    Returns:
        [A], one term for each polarity of pairs.
    """
    if neg_scope not in NEG_SCOPES:
        raise ValueError(f"neg_scope must be one of {', '.join(NEG_SCOPES)}, not {neg_scope!r}")
    # the polarities whose pairs are classified among each other
    together = [slice(None)] if neg_scope == "batch" else [slice(a, a + 1) for a in range(len(images))]
    contrasts = [
        softmax_contrast(
            images[a], captions[a], logit_scale, same_polarity=same_polarity, chunk_size=chunk_size, ranks=ranks
        )
        for a in together
    ]
    by_image, by_caption = (torch.cat(losses) for losses in zip(*contrasts))
    if neg_scope == "own" and len(captions) > 1:
        gains = [similarity_gain(images[a], all_but(a, captions), captions[a]) for a in range(len(images))]
        by_image = torch.logaddexp(by_image, scaled(torch.stack(gains), logit_scale).logsumexp(1))
    return ranks.mean(by_image + by_caption) / 2


def clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Scale, **options: Any) -> Tensor:
    """CLIP: each image classified over the captions and each caption over the images, halved (Eq. 1).

    Equal features give ln N.

    Args:
        image_features, text_features: [N, D]; row i of one belongs with row i of the other.

    Raises:
        ValueError: the two shapes differ.
    """
    _require_same_shape(image_features=image_features, text_features=text_features)
    return negclip_terms(image_features[None], text_features[None], logit_scale, **options)[0]


def negclip_loss(
    image_features: Tensor, text_features: Tensor, neg_text_features: Tensor, logit_scale: Scale, **options: Any
) -> Tensor:
    """NegCLIP: CLIP whose images are also classified over every hard negative caption (Eq. 3, halved).

    Equal features give (ln (1 + K)N + ln N) / 2.

    Args:
        image_features, text_features: [N, D]; row i of one belongs with row i of the other.
        neg_text_features: [N * K, D]; rows i * K to i * K + K - 1 belong to sample i.

    Raises:
        ValueError: the shapes do not fit; they are printed.
    """
    _require_same_shape(image_features=image_features, text_features=text_features)
    captions = _polarities(text_features, neg_text_features)
    return negclip_terms(image_features[None], captions, logit_scale, **options)[0]


def negimage_loss(
    image_features: Tensor, text_features: Tensor, neg_image_features: Tensor, logit_scale: Scale, **options: Any
) -> Tensor:
    """NegImage: ``negclip_loss`` with the modalities exchanged, each caption classified over 2N images.

    Args:
        image_features, text_features, neg_image_features: [N, D].
    """
    return negclip_loss(text_features, image_features, neg_image_features, logit_scale, **options)


def triplet_clip_loss(
    image_features: Tensor, text_features: Tensor, neg_image_features: Tensor, neg_text_features: Tensor,
    logit_scale: Scale, *, neg_weight: float = 1.0, neg_images_in_text_denominator: bool = False, **options: Any,
) -> Tensor:
    """TripletCLIP: NegCLIP on the positive pairs plus NegCLIP on the negative pairs (Eq. 4).

    Each of the 2N images is classified over all captions, each caption over the N images of its own
    polarity. Each NegCLIP term is halved, as in the released code, so equal features give
    ln 2 + 2 ln N. With K > 1 negative captions the first belongs with the negative image; the
    others only fill the images' denominators.

    Args:
        image_features, text_features: [N, D] positive pairs.
        neg_image_features: [N, D].
        neg_text_features: [N * K, D]; rows i * K to i * K + K - 1 belong to sample i.
        neg_weight: weight of the second term, above 0.
        neg_images_in_text_denominator: ablation; captions are classified over all 2N images.

    Raises:
        ValueError: the shapes do not fit; they are printed. Or ``neg_weight`` is not above 0.
    """
    _require_same_shape(
        image_features=image_features, text_features=text_features, neg_image_features=neg_image_features
    )
    if not neg_weight > 0:
        raise ValueError(f"neg_weight must be above 0, not {neg_weight}; for no second term use negclip_loss")
    images = torch.stack([image_features, neg_image_features])
    captions = _polarities(text_features, neg_text_features)
    same_polarity = not neg_images_in_text_denominator
    terms = negclip_terms(images, captions, logit_scale, same_polarity=same_polarity, **options)
    return terms[0] + neg_weight * terms[1]


def cyclip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Scale, *, in_modal_weight: float = 0.25,
    cross_modal_weight: float = 0.25, ranks: Ranks = SINGLE_PROCESS, **options: Any,
) -> Tensor:
    """CyCLIP: ``clip_loss`` plus its two consistency terms, see ``cyclic_consistency``."""
    contrast = clip_loss(image_features, text_features, logit_scale, ranks=ranks, **options)
    weights = in_modal_weight, cross_modal_weight
    return contrast + cyclic_consistency(image_features, text_features, *weights, ranks=ranks)


def _polarities(positives: Tensor, negatives: Tensor) -> Tensor:
    """[N, D] and [N * K, D] -> [1 + K, N, D]."""
    n, width = positives.shape
    if negatives.ndim != 2 or negatives.shape[1] != width or not len(negatives) or len(negatives) % n:
        raise ValueError(
            f"hard negatives must be [N * K, D] with N, D = {n}, {width} as the positives; "
            f"they are {tuple(negatives.shape)}"
        )
    return torch.cat([positives[None], negatives.view(n, -1, width).transpose(0, 1)])


def _require_same_shape(**features: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in features.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"features must all be [N, D] with the same N and D: {listed}")
