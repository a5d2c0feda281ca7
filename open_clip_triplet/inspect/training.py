"""A few validation pairs with their similarities, as an image in tensorboard and wandb at each validation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from open_clip_triplet.evaluation.encode import Encoder
from open_clip_triplet.inspect.encoders import PairEncoder
from open_clip_triplet.inspect.pairs import similarities
from open_clip_triplet.inspect.samples import read_view_samples
from open_clip_triplet.inspect.sheet import draw_sheet

#: samples shown, the same at every validation
SHOWN = 6
NAME = "val/pairs"


def pair_sheet(encoder: Encoder, shards: Sequence[str], title: str = ""):
    """The first pairs of ``shards`` with a model's similarities, as a ``PIL.Image``; None where there are none.

    Each sample says how near its image is to its own caption and to the negative one, and whether it is right.
    """
    model = PairEncoder("model", encoder.preprocess, encoder.images, encoder.texts)
    samples, values = similarities(read_view_samples(shards, first=SHOWN), model, SHOWN, keep_images=True)
    for sample, (s00, s01, s10, s11, *_) in zip(samples, values.tolist()):
        right = s00 > max(s01, s10) and s11 > max(s01, s10)
        sample.facets = {"category": "right" if right else "wrong"}
        sample.scores = {"caption": s00, "negative": s01}
    return draw_sheet(samples, title)


def log_pairs(args, encoder: Encoder, shards: Sequence[str], epoch: int) -> None:
    """Write the sheet to the logs that OpenCLIP's ``args`` ask for; rank 0 calls it. Never ends a training."""
    tensorboard = getattr(args, "tensorboard", False) and getattr(args, "tensorboard_path", "")
    if not (tensorboard or getattr(args, "wandb", False)):
        return
    with contextlib.ExitStack() as stack:
        try:
            sheet = pair_sheet(encoder, shards, f"after epoch {epoch}")
            if sheet is None:
                return
            if tensorboard:
                import numpy as np
                from torch.utils.tensorboard import SummaryWriter

                writer = stack.enter_context(SummaryWriter(tensorboard))  # beside OpenCLIP's, of the same run
                writer.add_image(NAME, np.asarray(sheet), epoch, dataformats="HWC")
            if getattr(args, "wandb", False):
                from open_clip_train.train import wandb  # the run that OpenCLIP has begun

                # joins the row that OpenCLIP logs next: a row of its own would take a step of OpenCLIP's
                wandb.log({NAME: wandb.Image(sheet)}, commit=False)
        except (ValueError, OSError, ImportError) as error:
            logging.warning("No validation pairs in the logs: %s", error)
