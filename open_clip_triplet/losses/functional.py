"""The paper's losses as functions of features. N samples, D width, unit rows, results in nats.

``logit_scale`` is a scalar, already exponentiated. ``chunk_size`` bounds the rows of the similarity
matrix that exist at a time (None: automatic); it changes memory and time, not the result.
Gradients are exact; second derivatives are not available.

Reference: Patel et al., NeurIPS 2024, arXiv:2411.02545, Eqs. 1-4.
"""

from __future__ import annotations

import torch

from open_clip_triplet.losses.contrast import softmax_contrast
from open_clip_triplet.losses.cyclic import cyclic_consistency


def clip_loss(image_features, text_features, logit_scale, *, chunk_size: int | None = None) -> torch.Tensor:
    """CLIP: each image classified over the captions and each caption over the images, halved (Eq. 1).

    Equal features give ln N.

    Args:
        image_features: [N, D].
        text_features: [N, D]; row i belongs with image i.

    Raises:
        ValueError: the two shapes differ.
    """
    _require_same_shape(image_features=image_features, text_features=text_features)
    return softmax_contrast(
        image_features[None], text_features[None], _scalar(logit_scale, image_features), chunk_size=chunk_size
    )


def negclip_loss(
    image_features, text_features, neg_text_features, logit_scale, *, chunk_size: int | None = None
) -> torch.Tensor:
    """NegCLIP: CLIP whose images are also classified over every hard negative caption (Eq. 3, halved).

    Equal features give (ln (1 + K)N + ln N) / 2.

    Args:
        image_features: [N, D].
        text_features: [N, D]; row i belongs with image i.
        neg_text_features: [N * K, D]; rows i * K to i * K + K - 1 belong to sample i.

    Raises:
        ValueError: the shapes do not fit; they are printed.
    """
    _require_same_shape(image_features=image_features, text_features=text_features)
    captions = torch.cat([text_features[None], _sides(neg_text_features, text_features, "neg_text_features")])
    scale = _scalar(logit_scale, image_features)
    return softmax_contrast(image_features[None], captions, scale, chunk_size=chunk_size)


def negimage_loss(
    image_features, text_features, neg_image_features, logit_scale, *, chunk_size: int | None = None
) -> torch.Tensor:
    """NegImage: NegCLIP with the modalities exchanged, each caption classified over 2N images.

    Args:
        image_features: [N, D].
        text_features: [N, D]; row i belongs with image i.
        neg_image_features: [N, D].

    Raises:
        ValueError: the shapes do not fit; they are printed.
    """
    return negclip_loss(text_features, image_features, neg_image_features, logit_scale, chunk_size=chunk_size)


def triplet_clip_loss(
    image_features,
    text_features,
    neg_image_features,
    neg_text_features,
    logit_scale,
    *,
    neg_weight: float = 1.0,
    neg_images_in_text_denominator: bool = False,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """TripletCLIP: NegCLIP on the positive pairs plus NegCLIP on the negative pairs (Eq. 4).

    Each of the 2N images is classified over all captions, each caption over the N images of its own
    side. Each NegCLIP term is halved, as in the released code, so equal features give
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
    images = torch.stack([image_features, neg_image_features])
    captions = torch.cat([text_features[None], _sides(neg_text_features, text_features, "neg_text_features")])
    return softmax_contrast(
        images,
        captions,
        _scalar(logit_scale, image_features),
        weights=(1.0, check_neg_weight(neg_weight)),
        own_side=not neg_images_in_text_denominator,
        chunk_size=chunk_size,
    )


def cyclip_loss(
    image_features,
    text_features,
    logit_scale,
    *,
    in_modal_weight: float = 0.25,
    cross_modal_weight: float = 0.25,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """CyCLIP: CLIP plus its two consistency terms, see ``cyclic_consistency``.

    Args:
        image_features: [N, D].
        text_features: [N, D]; row i belongs with image i.

    Raises:
        ValueError: the two shapes differ.
    """
    contrast = clip_loss(image_features, text_features, logit_scale, chunk_size=chunk_size)
    return contrast + cyclic_consistency(image_features, text_features, in_modal_weight, cross_modal_weight)


def check_neg_weight(weight: float) -> float:
    """The weight of the negative pairs, if it is above 0."""
    if not weight > 0:
        raise ValueError(f"neg_weight must be above 0, not {weight}; for no second term use negclip")
    return float(weight)


def _scalar(logit_scale, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(logit_scale, device=like.device).reshape(())


def _sides(negatives: torch.Tensor, positives: torch.Tensor, name: str) -> torch.Tensor:
    """[N * K, D] -> [K, N, D]."""
    n, width = positives.shape
    if negatives.ndim != 2 or negatives.shape[1] != width or not len(negatives) or len(negatives) % n:
        raise ValueError(
            f"{name} must be [N * K, D] with N, D = {n}, {width} as the positives; "
            f"it is {tuple(negatives.shape)}"
        )
    return negatives.view(n, -1, width).transpose(0, 1)


def _require_same_shape(**features: torch.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in features.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"features must all be [N, D] with the same N and D: {listed}")
