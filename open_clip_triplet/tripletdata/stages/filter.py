"""Filter by CLIP score, as TripletCLIP++: the mean of s(image, caption) and s(neg image, neg caption).

Two passes: every shard is scored (side shards under ``.work/scores``, and the scores beside their
records); then one exact cut-off for the whole set decides which samples are written. Scores are
cosine similarities, -1 to 1, rounded to 6 decimals so that equal is equal; ties at the cut-off are
kept in shard order.

Reference: Patel et al., NeurIPS 2024, arXiv:2411.02545, section on data filtering.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

from open_clip_triplet.errors import ImageError, PipelineError
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.pictures import decode, refused
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import Run, refuse_foreign, report, run_stage
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.pack import Pack

HELP = "keep the best samples by CLIP score"


@dataclass
class Scores(Stage):
    """Stage: side shards whose json has ``scores`` (``positive``, ``negative``, ``mean``)."""

    name: ClassVar[str] = "scores"
    model: str = "ViT-L-14"
    pretrained: str = "openai"
    batch_size: int = field(default=128, metadata=RUNTIME_ONLY)

    def open(self, device: str) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise PipelineError("filter needs OpenCLIP: pip install open_clip_torch") from error
        try:
            self._model, _, self._preprocess = open_clip.create_model_and_transforms(
                self.model,
                pretrained=self.pretrained or None,
                device=device,
                precision="fp16" if device == "cuda" else "fp32",
            )
            self._tokenizer = open_clip.get_tokenizer(self.model)
        except (OSError, RuntimeError, ValueError) as error:
            raise PipelineError(
                f"cannot load {self.model!r} with {self.pretrained!r}: {error}. "
                "See open_clip.list_pretrained(), or give a checkpoint's path to --clip-pretrained."
            ) from error
        self._model.eval()
        self._device = device

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        values = stats.values["scores"] = []
        samples = task.samples(stats)
        while batch := list(islice(samples, self.batch_size)):
            batch = list(self._decoded(batch, stats))
            for (sample, *_), scores in zip(batch, self._scores(batch) if batch else [], strict=True):
                values.append(scores["mean"])
                sample.meta = {
                    **sample.meta,
                    "scores": {**scores, "model": f"{self.model}/{self.pretrained}"},
                }
                yield dataclasses.replace(sample, image=None, neg_image=None)

    def _decoded(self, batch: list[Sample], stats: Stats) -> Iterator[tuple]:
        """(sample, image tensor, negative image tensor), both [3, H, W]."""
        for sample in batch:
            if not (sample.image and sample.neg_image and sample.neg_text):
                stats.drop("no pair to score")
                continue
            try:
                with refused():
                    images = [self._preprocess(decode(data).rgb) for data in (sample.image, sample.neg_image)]
            except ImageError:
                stats.drop("image cannot be decoded")
                continue
            yield sample, *images

    def _scores(self, batch: list[tuple]) -> list[dict]:
        import torch

        samples, images, neg_images = zip(*batch)
        texts = [s.text for s in samples] + [s.neg_text for s in samples]
        with torch.inference_mode():
            pixels = torch.stack([*images, *neg_images]).to(
                self._device, next(self._model.parameters()).dtype
            )
            seen = self._model.encode_image(pixels, normalize=True)
            said = self._model.encode_text(self._tokenizer(texts).to(self._device), normalize=True)
            positive, negative = (seen * said).sum(-1).float().cpu().double().chunk(2)
        rows = zip(positive.tolist(), negative.tolist(), ((positive + negative) / 2).tolist())
        return [
            {"positive": round(p, 6), "negative": round(n, 6), "mean": round(mean, 6)} for p, n, mean in rows
        ]


@dataclass
class Selection:
    """Which scored samples stay: all above ``cutoff``, and of those equal to it the first ``ties`` of a task.

    ``ties`` maps task number to how many; a task that is not in it keeps none of its ties.
    ``ties`` None keeps every tie (a threshold).
    """

    reason = "below the cut-off"
    cutoff: float
    ties: dict[int, int] | None = None

    def config(self) -> dict:
        ties = None if self.ties is None else {str(task): number for task, number in self.ties.items()}
        return {"cutoff": self.cutoff, "ties": ties}

    def keeper(self, task: ShardTask):
        """A function of a sample's json: whether it stays. To be asked once per sample, in order."""
        left = float("inf") if self.ties is None else self.ties.get(task.index, 0)

        def keep(meta: dict) -> bool:
            nonlocal left
            score = meta["scores"]["mean"]
            if score != self.cutoff:
                return score > self.cutoff
            left -= 1
            return left >= 0

        return keep


def select_top(scores: dict, count: int) -> Selection:
    """The selection that keeps exactly the ``count`` best of all tasks' scores (all, if there are fewer).

    Args:
        scores: task number -> that task's scores, a list or array of floats.

    >>> select_top({0: [0.1, 0.5], 1: [0.5, 0.9]}, 2)
    Selection(cutoff=0.5, ties={0: 1})
    """
    import numpy as np

    scores = {task: np.asarray(values, dtype=np.float64) for task, values in scores.items()}
    values = np.concatenate([*scores.values(), np.empty(0)])
    if count <= 0 or not len(values):
        return Selection(float("inf"), {})
    count = min(count, len(values))
    cutoff = float(np.partition(values, len(values) - count)[len(values) - count])
    left, ties = count - int((values > cutoff).sum()), {}
    for task in sorted(scores):
        taken = min(left, int((scores[task] == cutoff).sum()))
        if taken:
            ties[task], left = taken, left - taken
    return Selection(cutoff, ties)


def selection(args, scored: Run) -> Selection:
    """The selection that ``--top-k`` or ``--threshold`` asks for, from the scores in the records."""
    if args.threshold is not None:
        return Selection(args.threshold)
    import numpy as np

    scores = {task.index: np.array(scored.read_values(task)["scores"]) for task in kept_tasks(scored)}
    return select_top(scores, args.top_k)


def add_arguments(parser) -> None:
    options.add_common(parser)
    add_filter_arguments(parser)


def add_filter_arguments(parser) -> None:
    group = parser.add_argument_group("filter")
    group.add_argument("--top-k", type=options.positive, help="keep exactly this many samples of the whole set")
    group.add_argument("--threshold", type=float, help="keep samples whose mean score is at least this")
    group.add_argument(
        "--clip", default="ViT-L-14", metavar="MODEL", help="OpenCLIP model (default ViT-L-14)"
    )
    group.add_argument(
        "--clip-pretrained", default="openai", help="its weights: a tag or a file (default openai)"
    )
    group.add_argument("--clip-batch", type=options.positive, default=128, help="samples per batch (default 128)")


def check_arguments(args) -> None:
    if (args.top_k is None) == (args.threshold is None):
        raise PipelineError("give one of --top-k and --threshold", 2)


def make_stage(args) -> Scores:
    return Scores(args.clip, args.clip_pretrained, args.clip_batch)


def run(args) -> int:
    check_arguments(args)
    tasks = plan_tasks(args.input, options.table(args), args.samples_per_shard)
    if args.dry_run:
        return print_plan(args, tasks, [make_stage(args)])
    refuse_foreign(args.output, tasks)
    work = Path(args.output) / ".work" / "scores"
    scored = run_stage(make_stage(args), tasks, work, options.engine(args), quiet=args.quiet)
    if status := report(scored):
        return status  # a cut-off over part of the set would not be the set's
    chain = [ShardTask(u.index, (*u.inputs, str(work / u.shard)), u.rows, u.table) for u in kept_tasks(scored)]
    stage = Pack(save_size=0, selection=selection(args, scored))
    return report(run_stage(stage, chain, args.output, options.engine(args, cpu=True), quiet=args.quiet))


def kept_tasks(run: Run) -> list[ShardTask]:
    """Units of which the run's stage kept anything."""
    return [task for task in run.tasks if (record := run.read_record(task)) and record["kept"]]
