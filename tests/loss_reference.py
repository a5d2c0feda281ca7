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


def scoped_negclip(x, y, own, scale, scope):
    if scope == "none":
        return clip(x, y, scale)
    return own_negclip(x, y, own, scale) if scope == "own" else negclip(x, y, own.flatten(0, 1), scale)


def triplet(x, y, x2, y2, scale, neg_weight=1.0, all_images=False, scope="batch"):
    """``y2`` is [N, K, D]; the first of each sample belongs with ``x2``, the others fill denominators."""
    first, others = y2[:, 0], y2[:, 1:].flatten(0, 1)
    if scope == "none":
        return clip(x, y, scale) + neg_weight * clip(x2, first, scale)
    if scope == "own":
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


def method(name, images, captions, scale, bias=None, scope="batch"):
    """The loss of a method from images [N, image_group, D] and captions [N, text_group, D].

    With ``bias``, its sigmoid variant; ``scope`` says whose hard negatives a row is classified over.
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
        return scoped_negclip(x, y, y2, scale, scope)
    if name == "negimage":
        extra = x2.flatten(0, 1)
        if bias is not None:
            return siglip(y, torch.cat([x, extra]), scale, bias)
        return scoped_negclip(y, x, x2, scale, scope)
    if name == "cyclip":
        return clip(x, y, scale) + cyclic(x, y)
    x2 = x2[:, 0]
    if bias is not None:
        others = y2[:, 1:].flatten(0, 1)
        positive = siglip(x, torch.cat([y, y2[:, 0], others]), scale, bias)
        return positive + siglip(x2, torch.cat([y2[:, 0], y, others]), scale, bias)
    value = triplet(x, y, x2, y2, scale, scope=scope)
    if name == "cyclip-triplet":
        value = value + cyclic(x, y) + cyclic(x2, y2[:, 0])
    return value


def own_differences(images, captions, scale):
    """Per kind of anchor a list over samples of the differences d to the sample's own hard negatives."""
    kinds = []
    paired = min(images.shape[1], captions.shape[1])
    for anchors, candidates in ((images, captions), (captions, images)):
        for p in range(paired):
            rows = []
            for anchor, candidate in zip(anchors, candidates):
                others = [candidate[o] for o in range(len(candidate)) if o != p]
                rows.append([scale * (anchor[p] @ candidate[p] - anchor[p] @ other) for other in others])
            if rows[0]:
                kinds.append(rows)
    return kinds


def margin(images, captions, scale, kind, m0=0.5, beta=-2.0, gamma=4.0):
    """SPARCL's thresholds, case by case."""
    total = 0
    for rows in own_differences(images, captions, scale):
        for differences in rows:
            for d in differences:
                seen = d.item()
                if kind == "fixed" or seen > m0:
                    threshold = m0
                elif seen < beta:
                    threshold = seen
                else:
                    threshold = ((1 - (seen - beta) / (m0 - beta)) * gamma + 1) * m0
                total = total + torch.relu(threshold - d) / len(differences) / len(rows)
    return total


def own_classification(images, captions, scale, gamma=2.0, smoothing=0.02):
    total = 0
    for rows in own_differences(images, captions, scale):
        for differences in rows:
            p = torch.softmax(torch.stack([torch.zeros_like(differences[0]), *[-d for d in differences]]), 0)
            for c in range(len(p)):
                label = (1 - smoothing) * (c == 0) + smoothing / len(p)
                total = total - label * (1 - p[c]) ** gamma * torch.log(p[c]) / len(rows)
    return total


def paraphrase(captions, paraphrases, scale):
    return classified(paraphrases, captions, scale)


def distillation(images, captions, teacher_images, teacher_captions):
    total = 0
    for own, theirs in ((images, teacher_images), (captions, teacher_captions)):
        for i in range(len(own)):
            for row, other in zip(own[i], theirs[i]):
                total = total + ((row - other) ** 2).sum() / len(own)
    return total


def with_options(name, images, captions, scale, bias=None, **options):
    """The loss of a method with the flags of ``LossOptions``, of step 0."""
    weight = options.get("paraphrase_weight", 0)
    captions, units = captions.split([captions.shape[1] - 2 * options.get("units", 0), 2 * options.get("units", 0)], 1)
    members = captions[:, :-1] if weight else captions
    if options.get("plain_every") == 1:
        total = clip(images[:, 0], members[:, 0], scale)
    else:
        total = method(name, images, members, scale, bias, options.get("neg_scope", "batch"))
        if options.get("margin", "none") != "none":
            total = total + options["margin_weight"] * margin(images, members, scale, options["margin"])
        if options.get("hard_negative_weight"):
            focal = options.get("focal_gamma", 2.0), options.get("label_smoothing", 0.02)
            total = total + options["hard_negative_weight"] * own_classification(images, members, scale, *focal)
        for first in range(0, units.shape[1], 2):
            unit = own_negclip(images[:, 0], units[:, first], units[:, first + 1 : first + 2], scale)
            total = total + options["unit_weight"] * unit / options["units"]
    return total + weight * paraphrase(captions[:, 0], captions[:, -1], scale) if weight else total
