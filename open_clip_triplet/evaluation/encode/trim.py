"""Captions encoded at their own length instead of the tokenizer's full one.

A causal text tower that pools at the end-of-text token gives the same embedding without the padding
behind it, at a fifth of the cost for captions of a dozen words. Whether a model is of that kind is not
assumed but tried, on probe captions, once per model.
"""

from __future__ import annotations

from collections.abc import Callable

PROBES = (
    "a dog",
    "a photograph of two dogs in the snow, one of them asleep!",
    "the red, round thing on a tray",
)


def trimmed_text_encoder(model, tokenizer: Callable, device, run: Callable) -> Callable:
    """A function tokens [n, L] -> features [n, D] that leaves trailing padding out where that is exact.

    Args:
        run: calls (function, tokens) the way real batches are run (inference mode, autocast); the
            result's precision sets the tolerance.
    """
    import torch

    probes = tokenizer(list(PROBES)).to(device)
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = 0 if pad is None else pad
    if trim(probes, pad).shape == probes.shape:
        return model.encode_text  # so short a context that the probes fill it: nothing can be tried
    full = run(model.encode_text, probes)
    tolerance = 1e-5 if full.dtype == torch.float32 else 4e-3
    full = torch.nn.functional.normalize(full.float(), dim=-1)
    for encode in (model.encode_text, _sliced(model)):
        if encode is None:
            continue
        try:
            short = run(encode, trim(probes, pad)).float()
        except Exception:  # whatever a model raises on a shape it does not take, it is not of that kind
            continue
        if torch.allclose(torch.nn.functional.normalize(short, dim=-1), full, rtol=0, atol=tolerance):
            return lambda tokens, encode=encode: encode(trim(tokens, pad))
    return model.encode_text


def trim(tokens, pad: int):
    """[n, L] tokens without the last columns that are padding in every row."""
    used = (tokens != pad).any(dim=0).nonzero()
    return tokens[:, : int(used[-1]) + 1] if len(used) else tokens


def _sliced(model) -> Callable | None:
    """``encode_text`` of an OpenCLIP ``CLIP``, whose positions and mask are of full length, at any length."""
    import torch

    positions, mask = getattr(model, "positional_embedding", None), getattr(model, "attn_mask", None)
    if not isinstance(model, torch.nn.Module) or positions is None or mask is None:
        return None

    class TextTower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.clip = model

        def forward(self, tokens):
            return self.clip.encode_text(tokens)

    tower = TextTower()
    tower.training = False

    def encode(tokens):
        length = tokens.shape[1]
        parts = {"clip.positional_embedding": positions[:length], "clip.attn_mask": mask[:length, :length]}
        return torch.func.functional_call(tower, parts, (tokens,))

    return encode
