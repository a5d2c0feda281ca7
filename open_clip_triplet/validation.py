"""Validation during training: compositional scores on paired shards, and benchmarks.

Runs inside OpenCLIP's own evaluation, so its metrics land beside OpenCLIP's in the log,
``results.jsonl``, tensorboard and wandb.
"""

from __future__ import annotations

import functools
import logging
import os

import torch

from open_clip_triplet.errors import ShardError
from open_clip_triplet.files import is_remote
from open_clip_triplet.options import is_webdataset
from open_clip_triplet.shards import expand_shards, read_samples, rename_members


class Validator:
    """What the plugin adds to one run's validations."""

    def __init__(self, args, tokenizer):
        self.args = args
        self.tokenizer = tokenizer
        self.preprocess = None  # set with the validation data; without it, made from the model

    @functools.cached_property
    def paired_shards(self) -> list[str]:
        """The ``--val-data`` shards, where they are paired; empty otherwise."""
        args = self.args
        if not args.val_data or not is_webdataset(args.val_data, args):
            return []
        shards, first = [], None
        for shard in expand_shards(args.val_data):
            if not is_remote(shard) and not os.path.exists(shard):
                continue  # warned of before training
            try:
                first = first or next(map(rename_members, read_samples(shard)), None)
                shards.append(shard)
            except (OSError, ShardError) as error:
                logging.warning(f"Compositional validation leaves out a shard: {error}")
        if not {"image", "text", "neg_image", "neg_text"} <= set(first or ()):
            logging.info("--val-data has no hard negatives: no compositional scores.")
            return []
        return shards

    def run(self, model, epoch: int) -> dict[str, float]:
        """Flat metrics of one validation; ``{}`` where none is due."""
        frequency = self.args.val_frequency
        due = frequency and (epoch % frequency == 0 or epoch == self.args.epochs)
        if not due or not (self.paired_shards or self.args.eval_benchmarks):
            return {}
        if getattr(self.args, "fsdp", False):
            logging.warning("No compositional validation under --fsdp; evaluate the checkpoint instead.")
            return {}
        from open_clip import get_input_dtype
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from open_clip_train.precision import get_autocast

        model = unwrap(model)
        was_training = model.training
        model.eval()
        if self.preprocess is None:
            self.preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        precision, device = self.args.precision, self.args.device
        how = {
            "preprocess": self.preprocess, "tokenizer": self.tokenizer, "device": device,
            "autocast": get_autocast(precision, device_type=torch.device(device).type),
            "input_dtype": get_input_dtype(precision),
        }
        metrics: dict[str, float] = {}
        try:
            for score in (self._composition, self._benchmarks):
                try:
                    metrics.update(score(model, how))
                except (ValueError, OSError) as error:  # data that has gone bad must not end the training
                    logging.error(f"Validation goes on without {score.__name__.strip('_')} scores: {error}")
            self._log_pairs(model, how, epoch)
        finally:
            model.train(was_training)
        return metrics

    def _log_pairs(self, model, how: dict, epoch: int) -> None:
        """A few pairs with their similarities, as an image in tensorboard and wandb; rank 0 keeps the logs."""
        if not self.paired_shards or self.args.rank:
            return
        from open_clip_triplet.evaluation.encode import Encoder
        from open_clip_triplet.inspect.training import log_pairs

        log_pairs(self.args, Encoder(model, **how), self.paired_shards, epoch)

    def _composition(self, model, how: dict) -> dict[str, float]:
        if not self.paired_shards:
            return {}
        from open_clip_triplet.evaluation import composition_scores

        scores = composition_scores(
            model, self.paired_shards, batch_size=self.args.batch_size, max_samples=self.args.val_num_samples, **how
        )
        if scores.get("dropped"):
            logging.warning(f"Compositional validation skipped samples, by reason: {scores['dropped']}")
        return {
            **{name: scores[name] for name in ("text_score", "image_score", "group_score")},
            "paired_samples": scores["items"],
        }

    def _benchmarks(self, model, how: dict) -> dict[str, float]:
        if not self.args.eval_benchmarks:
            return {}
        from open_clip_triplet.evaluation import evaluate

        return evaluate(
            model, benchmarks=self.args.eval_benchmarks.split(","), data_root=self.args.eval_data_root,
            batch_size=self.args.batch_size, allow_partial=self.args.eval_allow_partial, **how,
        )


def unwrap(model):
    """The bare model inside OpenCLIP's task, DistributedDataParallel and torch.compile."""
    for _ in range(4):
        for name in ("trainable_module", "module", "_orig_mod"):
            model = getattr(model, name, model)
    return model
