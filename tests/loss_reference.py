"""The paper's equations as loops over samples, differentiable, for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def classified(anchors, candidates, scale):
    """CL: mean over i of -log softmax of anchor i over the candidates, of which number i is right."""
    total = 0
    for i, anchor in enumerate(anchors):
        logits = torch.stack([scale * (anchor @ candidate) for candidate in candidates])
        total = total + torch.logsumexp(logits, 0) - logits[i]
    return total / len(anchors)


def clip(x, y, scale):
    return (classified(x, y, scale) + classified(y, x, scale)) / 2


def negclip(x, y, extra, scale):
    return (classified(y, x, scale) + classified(x, torch.cat([y, extra]), scale)) / 2


def own_classified(anchors, candidates, own, scale):
    """CL whose denominator also holds the anchor's own rows of ``own`` [N, K, D], and nobody else's."""
    total = 0
    for i, anchor in enumerate(anchors):
        logits = torch.stack([scale * (anchor @ candidate) for candidate in [*candidates, *own[i]]])
        total = total + torch.logsumexp(logits, 0) - logits[i]
    return total / len(anchors)


def own_negclip(x, y, own, scale):
    return (classified(y, x, scale) + own_classified(x, y, own, scale)) / 2


def triplet(x, y, x2, y2, scale, neg_weight=1.0, all_images=False, own=False):
    """``y2`` is [N, K, D]; the first of each sample belongs with ``x2``, the others fill denominators."""
    first, others = y2[:, 0], y2[:, 1:].flatten(0, 1)
    if own:
        negative = own_negclip(x2, first, torch.cat([y[:, None], y2[:, 1:]], 1), scale)
        return own_negclip(x, y, y2, scale) + neg_weight * negative
    if not all_images:
        positive = negclip(x, y, torch.cat([first, others]), scale)
        return positive + neg_weight * negclip(x2, first, torch.cat([y, others]), scale)
    images = torch.cat([x, x2]), torch.cat([x2, x])
    positive = classified(x, torch.cat([y, first, others]), scale) + classified(y, images[0], scale)
    negative = classified(x2, torch.cat([first, y, others]), scale) + classified(first, images[1], scale)
    return (positive + neg_weight * negative) / 2


def cyclic(x, y, in_modal=0.25, cross_modal=0.25):
    total = 0
    for j in range(len(x)):
        for k in range(len(x)):
            total = total + in_modal * (x[j] @ x[k] - y[j] @ y[k]) ** 2
            total = total + cross_modal * (x[j] @ y[k] - x[k] @ y[j]) ** 2
    return total / len(x)


def siglip(x, candidates, scale, bias):
    total = 0
    for i, image in enumerate(x):
        for j, caption in enumerate(candidates):
            sign = 1 if i == j else -1
            total = total - F.logsigmoid(sign * (scale * (image @ caption) + bias))
    return total / len(x)


def method(name, images, captions, scale, bias=None, own=False):
    """The loss of a method from images [N, image_group, D] and captions [N, text_group, D].

    With ``bias``, its sigmoid variant; with ``own``, a row meets only its own sample's hard negatives.
    """
    x, y = images[:, 0], captions[:, 0]
    x2, y2 = images[:, 1:], captions[:, 1:]
    if name == "clip-hn":
        x, y = images.flatten(0, 1), captions.flatten(0, 1)
        return clip(x, y, scale) if bias is None else siglip(x, y, scale, bias)
    if name == "negclip":
        extra = y2.flatten(0, 1)
        if bias is not None:
            return siglip(x, torch.cat([y, extra]), scale, bias)
        return own_negclip(x, y, y2, scale) if own else negclip(x, y, extra, scale)
    if name == "negimage":
        extra = x2.flatten(0, 1)
        if bias is not None:
            return siglip(y, torch.cat([x, extra]), scale, bias)
        return own_negclip(y, x, x2, scale) if own else negclip(y, x, extra, scale)
    if name == "cyclip":
        return clip(x, y, scale) + cyclic(x, y)
    x2 = x2[:, 0]
    if bias is not None:
        others = y2[:, 1:].flatten(0, 1)
        positive = siglip(x, torch.cat([y, y2[:, 0], others]), scale, bias)
        return positive + siglip(x2, torch.cat([y2[:, 0], y, others]), scale, bias)
    value = triplet(x, y, x2, y2, scale, own=own)
    if name == "cyclip-triplet":
        value = value + cyclic(x, y) + cyclic(x2, y2[:, 0])
    return value
