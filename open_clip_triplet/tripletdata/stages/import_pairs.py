"""Ready-made hard pairs: data sets of edited images with a caption of each side, as paired shards.

An image and its caption become the positive, the edited image and its caption the negative. The json of
each sample names the data set, its licence, the instruction of the edit and, where there is one, its
category.

The formats are those of the data sets' cards: parquet or arrow with image bytes, or a csv with paths.
GPT-Image-Edit-1.5M has instructions and no captions: ``--captions`` names a table with one of each image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from open_clip_triplet import files
from open_clip_triplet.errors import ImageError, PipelineError, ShardError
from open_clip_triplet.tripletdata.run import options
from open_clip_triplet.tripletdata.run.card import write_card
from open_clip_triplet.tripletdata.run.command import report, run_as_asked
from open_clip_triplet.tripletdata.run.estimate import print_plan
from open_clip_triplet.tripletdata.run.folder import refuse_foreign
from open_clip_triplet.tripletdata.run.members import NO_TEXT, table_captions, table_cell
from open_clip_triplet.tripletdata.run.plan import plan_tasks
from open_clip_triplet.tripletdata.run.runner import totals
from open_clip_triplet.tripletdata.run.sample import Sample, Stats
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage
from open_clip_triplet.tripletdata.run.tables import Table, iter_columns
from open_clip_triplet.tripletdata.run.task import ShardTask
from open_clip_triplet.tripletdata.stages.pack import fit
from open_clip_triplet.tripletdata.stages.pair_formats import NEEDED, OPTIONAL, Format, as_table, formats

HELP = "import ready-made hard pairs: UltraEdit, HQ-Edit, VisMin, GPT-Image-Edit, or any table of two pairs"
EXAMPLES = """\
examples:
  triplet-shards import --format ultraedit --input UltraEdit_500k/data/ --output ultraedit/
  triplet-shards import --format vismin --input vismin/ --output vismin-shards/
  triplet-shards import --format gpt-image-edit --input training_json/ultraedit_gpt.json --captions captions.parquet \\
      --image-root gpt-edit/ultraedit --output gpt-ultraedit/
  triplet-shards import --columns image=a caption=b neg_image=c neg_caption=d --input t.parquet --output out/

"""

class PairTable(Table):
    advice = "Name the columns with --columns."


@dataclass
class ImportPairs(Stage):
    """Stage: paired samples of the rows of a table."""

    name: ClassVar[str] = "import"
    source: str = ""
    licence: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    original: str = ""
    row_key: str = ""
    save_size: int = 256
    quality: int = 95
    root: str = ""
    tables: tuple[tuple[str, int], ...] = field(default=(), metadata=RUNTIME_ONLY)
    _originals: dict[str, tuple] = field(default_factory=dict, metadata=RUNTIME_ONLY, repr=False)

    def open(self, device: str) -> None:
        """Where edits name their original: (table, row) of each original, images left where they are."""
        if not self.original:
            return
        self._originals = {}
        for table, count in self.tables:
            columns = [self.row_key, self.original]
            for number, (key, original) in enumerate(iter_columns(table, columns, 0, count)):
                if not original:
                    self._originals[str(key)] = (table, number)

    def process(self, task: ShardTask, stats: Stats) -> Iterator[Sample]:
        start, stop = task.rows or (0, 0)
        names = [*self.columns.values(), *filter(None, (self.original, self.row_key))]
        for number, values in enumerate(iter_columns(task.inputs[0], names, start, stop), start):
            row = dict(zip(names, values))
            if self.original and not row[self.original]:
                continue  # an original alone: it comes with each of its edits
            key = f"{task.name}_{number - start:06d}"
            if key in task.skip:
                continue
            stats.read += 1
            made = self._sample(task, key, number, row)
            if isinstance(made, str):
                stats.drop(made, key)
            else:
                yield made
            stats.report((number - start + 1) / (stop - start))

    def _sample(self, task: ShardTask, key: str, number: int, row: dict) -> Sample | str:
        """A row as a paired sample, or why it is none."""
        fields = {name: row[column] for name, column in self.columns.items()}
        if self.original:
            found = self._original(str(row[self.original]))
            if found is None:
                return "its original is not there"
            fields = {
                "image": found[0], "caption": found[1], "neg_image": fields["image"],
                "neg_caption": fields["caption"], "category": fields.get("category"),
            }
        captions, neg_captions = table_captions(fields["caption"]), table_captions(fields["neg_caption"])
        if captions is None or neg_captions is None:
            return NO_TEXT
        if not captions or not neg_captions:
            return "no caption"
        text, neg_text = captions[0], neg_captions[0]
        if text == neg_text:
            return "both captions are the same"
        try:
            image, suffix = self._image(task.inputs[0], fields["image"])
            neg_image, neg_suffix = self._image(task.inputs[0], fields["neg_image"])
        except OSError:
            return "image file missing"
        except ImageError:
            return "image cannot be decoded"
        meta = {
            "captions": captions, "neg_captions": neg_captions, "source": self.source, "licence": self.licence,
            "source_key": str(row.get(self.row_key) or number), "t2i": self.source,
            **{name: str(fields[name]) for name in OPTIONAL if fields.get(name)},
        }
        return Sample(key, text, image, suffix, neg_text, neg_image, neg_suffix, meta)

    def _original(self, key: str) -> tuple | None:
        """(image, caption) of an original row."""
        if key not in self._originals:
            return None
        table, number = self._originals[key]
        columns = [self.columns["image"], self.columns["caption"]]
        return next(iter_columns(table, columns, number, number + 1), None)

    def _image(self, table: str, value: Any) -> tuple[bytes, str]:
        data, name = table_cell(value)
        if data is None:
            try:
                data = files.read_bytes(files.join(self.root or os.path.dirname(table), name))
            except ValueError as error:
                raise OSError(str(error)) from error
        return fit(data, self.save_size, self.quality)


def add_arguments(parser) -> None:
    group = parser.add_argument_group("input and output")
    group.add_argument("--input", nargs="+", required=True, help="parquet, arrow or csv files, or their folder")
    group.add_argument("--output", required=True, help="folder of the paired shards; rerun to continue")
    group.add_argument("--format", choices=sorted(formats()), help="a data set whose columns are known")
    group.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=COLUMN",
        help=f"columns of another table: {', '.join(NEEDED)}, and {' and '.join(OPTIONAL)} where there are any",
    )
    group.add_argument(
        "--captions", metavar="TABLE", help="gpt-image-edit: a caption of each image (columns image, caption)"
    )
    group.add_argument("--source", default="", help="with --columns: name of the data set, for json and card")
    group.add_argument("--licence", default="", help="licence to write down (default the format's)")
    group.add_argument("--image-root", default="", help="folder of relative image paths (default the table's)")
    group.add_argument(
        "--samples-per-shard", type=options.positive, default=10_000, help="shard size (default 10000)"
    )
    group.add_argument(
        "--save-size", type=options.natural, default=256, help="shorter side kept, pixels (default 256; 0: all)"
    )
    group.add_argument("--quality", type=options.quality, default=95, help="JPEG quality (default 95)")
    options.add_faults(parser)
    options.add_engine(parser)


def make_format(args) -> Format:
    """The format of ``--format`` or ``--columns``.

    Raises:
        PipelineError: neither or both are given, or a field is missing.
    """
    if bool(args.format) == bool(args.columns):
        raise PipelineError("give one of --format and --columns", 2)
    if args.format:
        return formats()[args.format]
    columns = dict(item.partition("=")[::2] for item in args.columns)
    wrong = [name for name in columns if name not in (*NEEDED, *OPTIONAL)]
    missing = [name for name in NEEDED if not columns.get(name)]
    if wrong or missing:
        raise PipelineError(f"--columns needs {', '.join(f'{n}=COLUMN' for n in wrong or missing)}"
                            if missing else f"--columns knows no field {', '.join(wrong)}", 2)
    return Format(args.source or "imported", args.licence, columns)


def _inputs(args, chosen: Format) -> tuple[list[str], str]:
    """Tables to read, and the folder of their relative image paths ("": the table's own).

    Raises:
        PipelineError: captions are needed and not given, or the other way round.
    """
    if not chosen.conversations:
        if args.captions:
            raise PipelineError(f"--captions is for data sets without captions; {chosen.source} has its own", 2)
        return args.input, args.image_root
    if not args.captions:
        raise PipelineError(
            f"{chosen.source} holds instructions and no captions. Caption its images and give --captions TABLE, "
            "csv or parquet, with columns image (as in the json) and caption", 2
        )
    if wrong := [path for path in args.input if not path.endswith(".json")]:
        raise PipelineError(f"{wrong[0]}: --input takes the json files of training_json/", 2)
    folder = files.join(args.output, ".work", "tables")
    tables = [as_table(path, args.captions, folder) for path in args.input]
    return tables, args.image_root or os.path.dirname(os.path.abspath(args.input[0]))


def run(args) -> int:
    chosen = make_format(args)
    columns = chosen.columns
    inputs, root = _inputs(args, chosen)
    table = PairTable(columns["image"], columns["caption"], root and os.path.abspath(root))
    planned = plan_tasks(
        inputs, table, args.samples_per_shard, output=args.output, policy=options.policy(args)
    )
    if not all(task.rows for task in planned):
        raise PipelineError(f"{args.input[0]}: import reads tables; shards need no import", 2)
    tasks = options.of_part(args, planned)
    refuse_foreign(args.output, tasks)
    ends: dict[str, int] = {}
    for task in tasks:
        ends[task.inputs[0]] = max(ends.get(task.inputs[0], 0), (task.rows or (0, 0))[1])
    stage = ImportPairs(
        chosen.source, args.licence or chosen.licence, columns, chosen.original, chosen.row_key,
        args.save_size, args.quality, table.root, tuple(ends.items()),
    )
    if args.dry_run:
        return print_plan(args, tasks, [stage])
    try:
        imported = run_as_asked(stage, tasks, args.output, args)
    except ShardError as error:
        raise PipelineError(str(error), 2) from error
    status = report(imported, skip_unreadable=args.skip_unreadable)
    if not args.part or all(map(imported.record, tasks)):
        total = totals(imported.records())
        summary = {
            **total, "shards": sum(1 for record in imported.records() if record["kept"]),
            "stages": {"import": {"config": stage.config(), **total}},
            "failed": {os.path.basename(shard): error for shard, error in sorted(imported.failed.items())},
        }
        print(f"data card {write_card(args.output, chosen.source, summary)}", file=sys.stderr)
    return status
