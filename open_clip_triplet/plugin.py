"""What takes the place of OpenCLIP's names while the hooks are in; ``hooks.SEAMS`` lists which.

State of a run lives in a ``Plugin``: its place among epochs and steps (``steps.StepControl``) and what
validation needs (``validation.Validator``).
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from open_clip_triplet import options, steps, validation
from open_clip_triplet.losses import METHODS, create_loss


class _SavingTorch:
    """``torch`` as ``open_clip_train.main`` sees it: ``save`` is durable and adds the plugin's entry."""

    def __init__(self, plugin: Plugin):
        self._plugin = plugin

    def __getattr__(self, name):
        return getattr(torch, name)

    def save(self, checkpoint, path, *args, **kwargs) -> None:
        progress = self._plugin.control.progress
        if progress and isinstance(checkpoint, dict):
            # an epoch cut by --total-steps is not over: it continues if a later run wants more steps
            checkpoint = {**checkpoint, "epoch": progress["epoch"], steps.ENTRY: progress}
        steps.save_durably(checkpoint, path)


class Plugin:
    """One installation: each method takes an original of OpenCLIP and returns what replaces it."""

    def __init__(self, major: int, modules: dict):
        self.major = major
        self.modules = modules
        self._start_run()

    def _start_run(self, total_steps: int | None = None) -> None:
        self.control = steps.StepControl(total_steps)
        self.validator: validation.Validator | None = None
        self.paired = False  # whether training data comes through our pipeline

    # -- command line ---------------------------------------------------------------------------

    def parse_args(self, original):
        @functools.wraps(original)
        def parse_args(args):
            own, rest = options.parse_own(list(args))
            self._start_run(own.total_steps)
            namespace = original(rest)
            vars(namespace).update(vars(own))
            options.check(namespace)
            validation.register_model_configs(namespace.model_config)
            return namespace

        return parse_args

    # -- loss -----------------------------------------------------------------------------------

    def create_loss(self, original):
        @functools.wraps(original)
        def hooked(args):
            return original(args) if args.loss == "clip" else create_loss(args)

        return hooked

    def create_task(self, original):
        @functools.wraps(original)
        def hooked(args, model, dist_model=None, naflex_data_config=None):
            if args.loss == "clip":
                return original(args, model, dist_model, naflex_data_config)
            from open_clip.task import CLIPTask

            return CLIPTask(model, loss=create_loss(args), rank=args.rank, world_size=args.world_size)

        return hooked

    # -- data -----------------------------------------------------------------------------------

    def get_dataset_fn(self, original):
        @functools.wraps(original)
        def hooked(data_path, dataset_type):
            return functools.partial(self._dataset, original(data_path, dataset_type))

        return hooked

    def _dataset(self, stock, args, preprocess, is_train, epoch=0, tokenizer=None, **kwargs):
        self.validator = self.validator or validation.Validator(args, tokenizer)
        if not is_train:
            self.validator.preprocess = preprocess
            return stock(args, preprocess, is_train, epoch=epoch, tokenizer=tokenizer, **kwargs)
        self.paired = stock is self.modules["data"].get_wds_dataset and options.uses_paired_pipeline(args)
        if self.paired:
            from open_clip_triplet.data import get_paired_dataset

            info = get_paired_dataset(
                args, preprocess, is_train, epoch=epoch, tokenizer=tokenizer,
                method=METHODS[args.loss], as_dict=self.major >= 4,
            )
        else:
            info = stock(args, preprocess, is_train, epoch=epoch, tokenizer=tokenizer, **kwargs)
        self._plan_steps(args, info.dataloader.num_batches)
        return info

    def _plan_steps(self, args, batches_per_epoch: int) -> None:
        """Check a resume inside an epoch, and set ``--epochs`` to what ``--total-steps`` needs."""
        control = self.control
        if control.first_batch(epoch=control.start_epoch) and not self.paired:
            raise options.UsageError(
                "the checkpoint stands inside an epoch, which OpenCLIP's own data loaders cannot continue. "
                "Repeat the flags it was saved with (--save-every-n-steps among them), or --resume an epoch_N.pt."
            )
        try:
            control.check_same_plan(steps.data_plan(args, batches_per_epoch))
        except ValueError as error:
            raise options.UsageError(str(error)) from error
        if not args.total_steps:
            return
        steps_per_epoch = batches_per_epoch // args.accum_freq
        if steps_per_epoch == 0:
            raise options.UsageError(
                f"an epoch has {batches_per_epoch} batches, fewer than --accum-freq {args.accum_freq}; "
                "lower --accum-freq or --batch-size."
            )
        args.epochs = control.epochs_needed(steps_per_epoch)
        if args.rank == 0:
            logging.info(
                f"--total-steps {args.total_steps}: {steps_per_epoch} steps an epoch, {args.epochs} epochs."
            )

    # -- steps ----------------------------------------------------------------------------------

    def schedule(self, original):
        @functools.wraps(original)
        def hooked(optimizer, base_lr, warmup_length, total, *args, **kwargs):
            total = self.control.total_steps or total
            return original(optimizer, base_lr, warmup_length, total, *args, **kwargs)

        return hooked

    def pt_load(self, original):
        @functools.wraps(original)
        def hooked(file_path, map_location=None):
            checkpoint = original(file_path, map_location=map_location)
            self.control.resume_from(checkpoint)
            return checkpoint

        return hooked

    def torch_module(self, original):
        return _SavingTorch(self)

    def enumerate(self, original):
        def from_first_batch(iterable, start=0):
            return builtins.enumerate(iterable, start or getattr(iterable, "first_batch", 0))

        return from_first_batch

    def data_parallel(self, original):
        class DistributedDataParallel(original):
            """OpenCLIP names a device whatever it is; torch takes device ids for accelerators alone."""

            def __init__(self, module, device_ids=None, **kwargs):
                on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
                super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

        return DistributedDataParallel

    def train_one_epoch_3(self, original):
        @functools.wraps(original)
        def hooked(model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=None):
            def checkpoint() -> dict:
                saved = {
                    "epoch": epoch, "name": args.name,
                    # a compiled model shares its weights with the original, under other names
                    "state_dict": getattr(model, "_orig_mod", model).state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                return saved if scaler is None else {**saved, "scaler": scaler.state_dict()}

            with self._epoch(args, data, epoch, optimizer, loss, checkpoint) as cut:
                original(
                    model, cut, loss, epoch, optimizer, scaler, scheduler, dist_model, args,
                    tb_writer=tb_writer,
                )
            self._evaluate_alone(model, data, epoch + 1, args, tb_writer)

        return hooked

    def train_one_epoch_4(self, original):
        @functools.wraps(original)
        def hooked(state, data, args, tb_writer=None):
            epoch = state.epoch

            def checkpoint() -> dict:
                return self.modules["main"].save_checkpoint(
                    state.task, state.optimizer, epoch=epoch, scaler=state.scaler, name=args.name,
                    global_step=state.global_step, samples_seen=state.samples_seen,
                )

            loss = getattr(state.task, "loss", None)
            with self._epoch(args, data, epoch, state.optimizer, loss, checkpoint) as cut:
                original(state, cut, args, tb_writer=tb_writer)
            self._evaluate_alone(state.task, data, epoch + 1, args, tb_writer)

        return hooked

    @contextlib.contextmanager
    def _epoch(self, args, data, epoch: int, optimizer, loss, checkpoint: Callable[[], dict]):
        """The data of one epoch with its train loader cut to the steps that are to be trained."""
        info = data["train"]
        loader = info.dataloader
        control, method = self.control, METHODS[args.loss]
        steps_per_epoch = loader.num_batches // args.accum_freq
        made = control.made(steps_per_epoch)
        plan = steps.data_plan(args, loader.num_batches)
        first = control.first_batch(epoch)
        last = control.last_batch(first, loader.num_batches, args.accum_freq)
        if self.paired:
            loader.first_batch = first
        if hasattr(loss, "calls"):
            loss.calls = made * args.accum_freq  # so that its errors name the step of the whole training
        if args.decay_all:
            for group in optimizer.param_groups:
                group["weight_decay"] = args.wd

        def entry(batch: int, *, with_rng: bool) -> dict:
            """Where training stands after ``batch`` batches of this epoch."""
            over = batch // args.accum_freq >= steps_per_epoch or not self.paired
            at = (epoch + 1, 0) if over else (epoch, batch)
            count = made + (batch - first) // args.accum_freq
            return control.entry(args, method, *at, count, plan=plan, with_rng=with_rng)

        def check_finite() -> None:
            """Wait for the losses so far to be judged, so that no checkpoint keeps a broken model."""
            if hasattr(loss, "check_finite"):
                loss.check_finite()

        def after_batch(batch: int) -> None:
            step = made + (batch - first) // args.accum_freq
            if not args.save_every_n_steps or batch % args.accum_freq or step % args.save_every_n_steps:
                return
            if batch // args.accum_freq >= steps_per_epoch and _saves_epoch(args, epoch + 1):
                return  # OpenCLIP is about to
            check_finite()
            position = entry(batch, with_rng=True)  # every rank: it gathers
            if args.save_logs or getattr(args, "fsdp", False):
                saved = {**checkpoint(), "epoch": position["epoch"], steps.ENTRY: position}
            if args.save_logs:
                _save_step(args, saved, epoch, step)

        def before_first() -> None:
            control.start_rng(args, epoch, seeded=self.paired)

        batches = steps.Batches(loader, first, last, after_batch, before_first)
        yield {**data, "train": replace(info, dataloader=batches)}
        check_finite()
        trained = loader.num_batches if last is None else last
        control.finish_epoch(entry(trained, with_rng=False))
        if args.rank == 0:
            logging.info(f"After epoch {epoch}, {steps.describe_progress(control.progress)}.")

    # -- validation -----------------------------------------------------------------------------

    def zero_shot_eval(self, original):
        @functools.wraps(original)
        def hooked(model, data, epoch, args, tokenizer=None):
            metrics = original(model, data, epoch, args, tokenizer=tokenizer)
            if self.validator is not None:
                metrics = {**metrics, **self.validator.run(model, epoch)}
            return metrics

        return hooked

    def _evaluate_alone(self, model, data, epoch: int, args, tb_writer) -> None:
        """OpenCLIP evaluates only where it has validation data of its own; benchmarks need none."""
        stock = ("val", "imagenet-val", "imagenet-v2", "audio-zeroshot")
        if self.validator is None or not args.eval_benchmarks or any(name in data for name in stock):
            return
        self.modules["main"].evaluate(
            model, data, epoch, args, tb_writer=tb_writer, tokenizer=self.validator.tokenizer
        )


def _saves_epoch(args, completed: int) -> bool:
    """Whether OpenCLIP saves a checkpoint after this many epochs."""
    every = args.save_frequency
    return completed == args.epochs or args.save_most_recent or (every > 0 and completed % every == 0)


def _save_step(args, checkpoint: dict, epoch: int, step: int) -> None:
    """Save a mid-epoch checkpoint; a full disk is reported and training goes on."""
    path = steps.step_checkpoint_path(args, epoch, step)
    try:
        steps.save_durably(checkpoint, path)
    except OSError as error:
        logging.error(f"Could not save {path} ({error}); training goes on, older checkpoints are kept.")
        return
    steps.remove_other_step_checkpoints(path)
    logging.info(f"Saved {path.name} after {steps.describe_progress(checkpoint[steps.ENTRY])}.")
