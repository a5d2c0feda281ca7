"""What takes the place of OpenCLIP's names while the hooks are in. The decorator names the seam.

With :mod:`open_clip_triplet.validation` the only module that touches OpenCLIP's internals. Modules are
``open_clip_train``'s, but ``parallel``, which is ``torch.nn.parallel``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import open_clip
import torch

from open_clip_triplet import command, options, progress, saving, validation
from open_clip_triplet.losses import create_loss, find_method
from open_clip_triplet.losses.teacher import Teacher


@dataclass
class Seam:
    """Decorator: the method below replaces a name of OpenCLIP, see :mod:`open_clip_triplet.hooks`.

    parameters: the leading ones of the function replaced. majors: the versions of OpenCLIP that are meant.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None = None
    majors: tuple[int, ...] = (3, 4)

    def __call__(self, method: Callable) -> Callable:
        self.method = method
        SEAMS.append(self)
        return method


SEAMS: list[Seam] = []

_SCHEDULE = ("optimizer", "base_lr", "warmup_length", "steps")


class Replacements:
    """One installation, and the state of the run in it."""

    def __init__(self, major: int, modules: dict):
        self.major = major
        self.modules = modules
        self.stop = saving.StopRequest()
        self._start_run(None)

    def _start_run(self, args) -> None:
        self.args = args
        self.progress = progress.Progress()
        self.validator: validation.Validator | None = None
        self.teacher: Teacher | None = None
        self.resumed_teacher: dict | None = None
        self.resume_latest = args is not None and args.resume == "latest"
        self.deletes_previous = args is not None and args.delete_previous_checkpoint

    # -- command line ---------------------------------------------------------------------------

    @Seam("main", "parse_args", ("args",))
    def parse_args(self, original, args):
        """Takes the plugin's flags out, hands the rest to OpenCLIP, checks them together."""
        command_line = command.expand_config(args)
        if {"-h", "--help"} & set(command_line):
            print(options.build_parser().format_help(), end="\n\n", flush=True)
        own, rest = options.parse_own(command_line)
        with options.suggesting(rest):
            namespace = original(rest)
        vars(namespace).update(vars(own), command_line=command_line)
        options.check(namespace)
        self._start_run(namespace)
        for path in namespace.model_config:
            open_clip.add_model_config(path)
        return namespace

    # -- loss -----------------------------------------------------------------------------------

    @Seam("main", "create_loss", ("args",), majors=(3,))
    def create_loss(self, original, args):
        """The method's loss."""
        return original(args) if args.loss == "clip" else create_loss(args)

    @Seam("main", "create_task", ("args", "model"), majors=(4,))
    def create_task(self, original, args, model, dist_model=None, naflex_data_config=None):
        """A ``CLIPTask`` around the method's loss."""
        if args.loss == "clip":
            return original(args, model, dist_model, naflex_data_config)
        from open_clip.task import CLIPTask, DistillCLIPTask

        options = {"loss": create_loss(args), "rank": args.rank, "world_size": args.world_size}
        if args.teacher != "none":
            dist_model = self._start_teacher(args, model).model
        return CLIPTask(model, **options) if dist_model is None else DistillCLIPTask(model, dist_model, **options)

    def _start_teacher(self, args, model) -> Teacher:
        """``--teacher``: the model as it starts, or as a checkpoint kept it."""
        if self.teacher is None:
            decay = args.teacher_decay if args.teacher == "ema" else None
            self.teacher = Teacher(validation.unwrap(model), decay)
        return self.teacher

    # -- data -----------------------------------------------------------------------------------

    @Seam("data", "get_dataset_fn", ("data_path", "dataset_type"))
    def get_dataset_fn(self, original, data_path, dataset_type):
        """Paired shards for training; remembers how validation data is preprocessed."""
        return functools.partial(self._dataset, original(data_path, dataset_type))

    def _dataset(self, stock, args, preprocess, is_train, epoch=0, tokenizer=None, **kwargs):
        self.validator = self.validator or validation.Validator(args, tokenizer)
        if not is_train:
            self.validator.preprocess = preprocess
            return stock(args, preprocess, is_train, epoch=epoch, tokenizer=tokenizer, **kwargs)
        command.save_config(args)
        if stock is self.modules["data"].get_wds_dataset and options.uses_paired_pipeline(args):
            from open_clip_triplet.data import get_paired_dataset

            info = get_paired_dataset(
                args, preprocess, is_train, epoch=epoch, tokenizer=tokenizer, method=find_method(args.loss),
                as_dict=self.major >= 4, saved=self.progress.saved.get("stream"), stopping=lambda: bool(self.stop),
            )
            self.stop.listen()
        else:
            info = stock(args, preprocess, is_train, epoch=epoch, tokenizer=tokenizer, **kwargs)
        self._plan_steps(args, info)
        return info

    def _plan_steps(self, args, info) -> None:
        """Lay out the steps, and set ``--epochs`` to what ``--total-steps`` needs."""
        batches = info.dataloader.num_batches
        if batches < args.accum_freq:
            raise options.UsageError(
                f"an epoch has {batches} batches, fewer than --accum-freq {args.accum_freq}; "
                "lower --accum-freq or --batch-size."
            )
        self.progress.plan(args, batches)
        schedule = self.progress.schedule
        if _is_paired(info):
            info.dataloader.num_batches = schedule.reported * args.accum_freq
        if args.rank == 0:
            self.progress.warn_of_changes(args)
            if (images := _rows(info)[0]) > 1:
                logging.info(f"Progress lines count images, {images} for each sample; --batch-size counts samples.")
            if args.total_steps:
                logging.info(f"--total-steps {args.total_steps}: {args.epochs} epochs, "
                             f"at most {schedule.reported} steps each.")

    # -- steps ----------------------------------------------------------------------------------

    @Seam("main", "cosine_lr", _SCHEDULE)
    @Seam("main", "const_lr", _SCHEDULE)
    @Seam("main", "const_lr_cooldown", _SCHEDULE)
    def schedule(self, original, optimizer, base_lr, warmup_length, steps, *args, **kwargs):
        """The learning rate follows the steps made, up to ``--total-steps`` where that is given."""
        steps = self.args.total_steps or steps
        if warmup_length > steps and self.args.rank == 0:
            logging.warning(
                f"--warmup {warmup_length} is longer than the training of {steps} steps: the learning "
                f"rate never reaches --lr {base_lr:g}."
            )
        adjust = original(optimizer, base_lr, warmup_length, steps, *args, **kwargs)
        return lambda step: adjust(step + self.progress.step_offset)

    @Seam("parallel", "DistributedDataParallel")
    def data_parallel(self, original):
        """A CPU model without the device ids that OpenCLIP gives, which torch takes for accelerators alone; and
        nothing exchanged where there are no gradients."""

        class DistributedDataParallel(original):
            def __init__(self, module, device_ids=None, **kwargs):
                on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
                super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

            def forward(self, *inputs, **kwargs):
                # rank 0 validates alone: the broadcast of buffers would be met by another collective of the others
                return super().forward(*inputs, **kwargs) if torch.is_grad_enabled() else self.module(*inputs, **kwargs)

        return DistributedDataParallel

    @Seam(
        "main", "train_one_epoch",
        ("model", "data", "loss", "epoch", "optimizer", "scaler", "scheduler", "dist_model", "args"), majors=(3,),
    )
    def train_one_epoch_3(
        self, original, model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, tb_writer=None
    ):
        """An epoch's stretch of the stream, and what is to be done around it."""

        def checkpoint() -> dict:
            saved = {
                "epoch": epoch, "name": args.name,
                # a compiled model shares its weights with the original, under other names
                "state_dict": getattr(model, "_orig_mod", model).state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            return saved if scaler is None else {**saved, "scaler": scaler.state_dict()}

        # OpenCLIP counts images in its log, and takes --batch-size for their number in the rate
        logged = argparse.Namespace(**{**vars(args), "batch_size": args.batch_size * _rows(data["train"])[0]})
        if args.teacher != "none":
            dist_model, logged.distill = self._start_teacher(args, model).model, True
        with self._epoch(args, data, epoch, optimizer, loss, checkpoint) as cut:
            original(
                model, cut, loss, epoch, optimizer, scaler, scheduler, dist_model, logged, tb_writer=tb_writer
            )
        self._evaluate_alone(model, data, epoch + 1, args, tb_writer)

    @Seam("main", "train_one_epoch", ("state", "data", "args"), majors=(4,))
    def train_one_epoch_4(self, original, state, data, args, tb_writer=None):
        """The same for OpenCLIP's ``TrainState``."""
        task, epoch = state.task, state.epoch

        def checkpoint() -> dict:
            state.global_step = self.progress.optimizer_steps
            return self.modules["main"].save_checkpoint(
                task, state.optimizer, epoch=epoch, scaler=state.scaler, name=args.name,
                global_step=state.global_step, samples_seen=state.samples_seen,
            )

        loss = getattr(task, "loss", None)
        with self._epoch(args, data, epoch, state.optimizer, loss, checkpoint) as cut:
            original(state, cut, args, tb_writer=tb_writer)
        state.global_step = self.progress.optimizer_steps
        self._evaluate_alone(task, data, epoch + 1, args, tb_writer)

    @contextlib.contextmanager
    def _epoch(self, args, data, epoch: int, optimizer, loss, checkpoint: Callable[[], dict]):
        """The data of one epoch, with its train loader cut to the steps that are to be made."""
        info, now = data["train"], self.progress
        wanted, paired = now.start_epoch_steps(args, epoch), _is_paired(info)
        loader = info.dataloader
        if paired:
            loader.stretch = wanted * args.accum_freq
            loader.start()
            # random state of the model's layers, whether or not the run was resumed here
            seed = zlib.crc32(f"{args.seed}/{now.optimizer_steps}/{args.rank}".encode())
            self.modules["main"].random_seed(seed)
        elif args.total_steps:
            loader = progress.CutLoader(loader, wanted * args.accum_freq, now.schedule.reported * args.accum_freq)
        if hasattr(loss, "calls"):
            loss.calls = now.optimizer_steps * args.accum_freq  # so that its errors name the step of the whole training
        if args.decay_all:
            for group in optimizer.param_groups:
                group["weight_decay"] = args.wd
        with self.teacher.following(optimizer, self.resumed_teacher) if self.teacher else contextlib.nullcontext():
            self.resumed_teacher = None
            yield {**data, "train": replace(info, dataloader=loader)}
        if hasattr(loss, "check_finite"):
            loss.check_finite()  # so that no checkpoint keeps a broken model
        steps = getattr(loader, "batches_yielded", loader.num_batches) // args.accum_freq
        stopped = paired and steps < wanted
        stream = loader.report().export(loader.pieces.plan) if paired else None
        now.finish_epoch(args, steps, _rows(info), stopped=stopped, stream=stream)
        if args.rank == 0:
            logging.info(f"After epoch {epoch}, {now.describe()}.")
        if stopped:
            self._save_and_leave(args, epoch, checkpoint)

    # -- checkpoints ----------------------------------------------------------------------------

    def _save_and_leave(self, args, epoch: int, checkpoint: Callable[[], dict]) -> None:
        """Save inside the epoch, on all ranks alike, and end the process with status 0."""
        reason = self.stop.name or "a signal to another rank"
        path = saving.interrupted_path(args, epoch)
        if args.save_logs or getattr(args, "fsdp", False):  # gathering a sharded model takes every rank
            saved = {**checkpoint(), "epoch": epoch, **self._own_state()}
        if args.save_logs and saving.save_or_go_on(saved, path):
            logging.info(f"Stopped by {reason}; saved {path}. Continue with --resume latest.")
        elif args.rank == 0:
            logging.warning(f"Stopped by {reason}; nothing was saved (--logs {args.logs}).")
        if args.distributed:
            torch.distributed.barrier()
        saving.end_remote_sync(args)
        raise SystemExit(0)

    def _own_state(self) -> dict:
        """The plugin's part of a checkpoint."""
        teacher = {TEACHER_KEY: self.teacher.model.state_dict()} if self.teacher else {}
        return {progress.STATE_KEY: self.progress.state, **teacher}

    @Seam("main", "torch")
    def torch_module(self, original):
        """``torch.save`` is whole or not at all, and adds the plugin's state."""
        module = types.ModuleType("torch")
        vars(module).update(__getattr__=functools.partial(getattr, original), save=self.save)
        return module

    def save(self, checkpoint, path) -> None:
        """What OpenCLIP's ``torch.save`` becomes; a full disk does not end the run."""
        if self.progress.state and isinstance(checkpoint, dict):
            checkpoint = {**checkpoint, **self._own_state()}
        saved = saving.save_or_go_on(checkpoint, path)
        # where it was not, the previous one is now the last good checkpoint
        self.args.delete_previous_checkpoint = saved and self.deletes_previous
        if saved:
            saving.remove_interrupted(Path(path).parent)

    @Seam("main", "pt_load", ("file_path", "map_location"), majors=(3,))
    @Seam("file_utils", "pt_load", ("file_path", "map_location"), majors=(4,))
    def pt_load(self, original, file_path, map_location=None):
        """Reads where the checkpoint stands; ``--resume latest`` falls back to the newest sound one."""
        load = functools.partial(original, map_location=map_location)
        checkpoint = saving.load_sound(file_path, load) if self.resume_latest else load(file_path)
        self.progress.resume_from(checkpoint)
        if isinstance(checkpoint, dict):
            self.resumed_teacher = checkpoint.get(TEACHER_KEY)
        if self.major == 3 and self.args.distributed and isinstance(checkpoint, dict):
            _name_for_ranks(checkpoint)
        return checkpoint

    @Seam("main", "save_sharded_checkpoint", ("task", "optimizer", "checkpoint_dir", "epoch"), majors=(4,))
    def save_sharded_checkpoint(self, original, task, optimizer, checkpoint_dir, epoch, *args, **kwargs):
        """The plugin's state lies beside the shards of a checkpoint of ``--fsdp-checkpoint sharded``."""
        original(task, optimizer, checkpoint_dir, epoch, *args, **kwargs)
        if self.args.save_logs:
            saving.save_durably(self.progress.state, os.path.join(checkpoint_dir, _SHARDED_STATE))
            saving.remove_interrupted(Path(checkpoint_dir).parent, "epoch_latest.pt")

    @Seam("main", "load_sharded_checkpoint", ("task", "checkpoint_dir"), majors=(4,))
    def load_sharded_checkpoint(self, original, task, checkpoint_dir, *args, **kwargs):
        """And is read from there."""
        epoch = original(task, checkpoint_dir, *args, **kwargs)
        path = os.path.join(checkpoint_dir, _SHARDED_STATE)
        state = torch.load(path, weights_only=True) if os.path.exists(path) else None
        self.progress.resume_from({"epoch": epoch, progress.STATE_KEY: state})
        return epoch

    # -- validation -----------------------------------------------------------------------------

    @Seam("train", "zero_shot_eval", ("model", "data", "epoch", "args", "tokenizer"), majors=(3,))
    @Seam("train", "zero_shot_eval_all", ("task", "data", "epoch", "args", "tokenizer"), majors=(4,))
    def zero_shot_eval(self, original, model, data, epoch, args, tokenizer=None):
        """Adds compositional scores and benchmarks."""
        metrics = original(model, data, epoch, args, tokenizer=tokenizer)
        if self.validator is None and self.args is not None:  # no training and no --val-data
            self.validator = validation.Validator(args, tokenizer)
        return {**metrics, **self.validator.run(model, epoch)} if self.validator else metrics

    def _evaluate_alone(self, model, data, epoch: int, args, tb_writer) -> None:
        """OpenCLIP evaluates only where it has validation data of its own; benchmarks need none."""
        stock = ("val", "imagenet-val", "imagenet-v2", "audio-zeroshot")
        if self.validator is None or not args.eval_benchmarks or any(name in data for name in stock):
            return
        self.modules["main"].evaluate(
            model, data, epoch, args, tb_writer=tb_writer, tokenizer=self.validator.tokenizer
        )


#: the teacher's weights in a checkpoint
TEACHER_KEY = "triplet_teacher"
#: the plugin's state among the files of a sharded checkpoint
_SHARDED_STATE = "triplet_state.pt"


def _name_for_ranks(checkpoint: dict) -> None:
    """OpenCLIP 3 takes ``module.`` off the names of a checkpoint of several processes, and never puts it on."""
    weights = checkpoint.get("state_dict")
    if isinstance(weights, dict) and not next(iter(weights), "module.").startswith("module."):
        checkpoint["state_dict"] = {f"module.{name}": value for name, value in weights.items()}


def _is_paired(info) -> bool:
    """Whether a ``DataInfo`` comes from the paired pipeline."""
    return hasattr(info.dataloader, "pieces")


def _rows(info) -> tuple[int, int]:
    """Images and captions of a sample in a batch of a ``DataInfo``."""
    if not _is_paired(info):
        return 1, 1
    transform = info.dataloader.pieces.transform
    return transform.image_group, transform.captions.rows
