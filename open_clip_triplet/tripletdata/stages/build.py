"""The whole way: rewrite? -> negative captions -> negative images? -> filter? -> pack -> data card.

Side shards of the stages are kept under ``--output``/.work until you delete them; the paired shards,
``sizes.json``, ``summary.json`` and ``README.md`` are in ``--output``. The same command continues
after a crash, and does nothing when all is done, with or without ``.work``.
"""

from __future__ import annotations

import contextlib

from open_clip_triplet import files
from open_clip_triplet.errors import PipelineError, UsageError
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.folder import refuse_foreign
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages import captions, images, rewrite
from open_clip_triplet.tripletdata.stages import filter as quality
from open_clip_triplet.tripletdata.stages.chain import Build

HELP = "build paired shards from image-caption shards or tables, all stages in one command"
EXAMPLES = """\
examples:
  triplet-shards build --input cc3m/ --output triplets/ --workers 8
  triplet-shards build --input 'cc3m/{00000..00331}.tar' --output triplets/ --rewrite --top-k 1000000
  triplet-shards build --input table.parquet --image-root photos/ --output negclip/ --backend rules --no-images

"""


def add_arguments(parser) -> None:
    options.add_common(parser)
    group = parser.add_argument_group("stages")
    group.add_argument(
        "--rewrite", action="store_true", help="rewrite captions with the language model first"
    )
    group.add_argument("--rewrite-prompt", metavar="FILE", help="prompt of the rewrites")
    group.add_argument("--no-images", action="store_true", help="negative captions only (NegCLIP's data)")
    captions.add_caption_arguments(parser)
    images.add_image_arguments(parser)
    rewrite.add_laclip_arguments(parser)
    quality.add_filter_arguments(parser)
    group.add_argument(
        "--finish",
        action="store_true",
        help="after the parts of --part: pack what is left, write sizes, summary and card; no model is run",
    )
    group.add_argument(
        "--preview",
        nargs="?",
        const="",
        metavar="FILE",
        help="while the build runs, keep a gallery of its newest samples here (default OUTPUT/preview.html)",
    )
    group.add_argument("--title", help="heading of the data card (default the output folder's name)")


def run(args) -> int:
    check_arguments(args)
    tasks = options.tasks(args)
    stages = list(model_stages(args))
    if args.dry_run:
        return print_plan(args, tasks, stages)
    refuse_foreign(args.output, tasks)  # now, and not after days of other stages
    with _preview(args, tasks):
        return Build(args, tasks).run(stages)


def _preview(args, tasks: list[ShardTask]):
    """The gallery of ``--preview`` as a context, or one that does nothing. The command line knows how one is
    opened (``args.open_preview``): stages know nothing of what looks at their shards.

    Raises:
        PipelineError: the output folder is not local, or a package is missing.
    """
    if args.preview is None:
        return contextlib.nullcontext()
    if files.is_remote(args.output):
        raise PipelineError(f"--preview looks into a local folder; --output is {args.output}", 2)
    sources = {task.name: task.inputs[0] for task in tasks if not task.rows}
    try:
        return args.open_preview(args.output, args.preview or files.join(args.output, "preview.html"), sources)
    except UsageError as error:
        raise PipelineError(f"--preview: {error}") from error


def check_arguments(args) -> None:
    if args.finish and args.part:
        raise PipelineError("--finish comes after the parts: leave out --part", 2)
    if args.top_k is None and args.threshold is None:
        return
    quality.check_arguments(args)
    if args.no_images or args.text_only:
        raise PipelineError(
            "the filter scores both images; leave out --no-images, --text-only, or --top-k and --threshold", 2
        )


def model_stages(args):
    """The stages before packing, in order, without models loaded."""
    if args.rewrite or args.laclip_original:
        if args.backend == "rules" and not args.laclip_original:
            raise PipelineError("--rewrite needs a language model: choose another --backend", 2)
        yield rewrite.make_stage(type(args)(**{**vars(args), "prompt": args.rewrite_prompt}), images=False)
    yield captions.make_stage(args, images=False)
    if not args.no_images:
        yield images.make_stage(args, images=False)
        if args.top_k is not None or args.threshold is not None:
            yield quality.make_stage(args)
