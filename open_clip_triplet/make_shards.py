"""``triplet-shards``: one subcommand per stage.

A stage's module offers ``HELP``, ``add_arguments(parser)`` and ``make_stage(args, images=...)``, which
``run.command`` runs; a command of several stages offers ``run(args)`` instead.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys

from open_clip_triplet.command import add_arguments as add_common_arguments
from open_clip_triplet.command import command_line
from open_clip_triplet.errors import PipelineError, TripletError
from open_clip_triplet.tripletdata.run.command import run_command

#: subcommand -> module under open_clip_triplet.tripletdata; imported only when its subcommand is used
STAGES: dict[str, str] = {
    "build": "stages.build",
    "rewrite": "stages.rewrite",
    "captions": "stages.captions",
    "images": "stages.images",
    "filter": "stages.filter",
    "verify": "stages.verify",
    "concepts": "stages.concepts",
    "import": "stages.import_pairs",
    "pack": "stages.pack",
    "validate": "stages.validate",
    "shapes": "worlds.shapes",
    "mine": "stages.mine",
}


STATUSES = """\
exit status:
  0  done                      3  some shards failed or have faults, or nothing was kept; the rest is done
  2  wrong options or folders  4  nothing can go on: a model, server, package or disk space is missing
  130  interrupted             After 3, 4 and 130 the same command continues where it ended.
"""

EXAMPLES = """\
examples:
  triplet-shards build --input cc3m/ --output triplets/ --dry-run
  triplet-shards captions --input table.csv --caption-key caption --output negatives/ --backend rules
  triplet-shards filter --input triplets/ --output best/ --top-k 100000
  triplet-shards validate --input best/

"""


def open_preview(output: str, html: str, sources: dict[str, str]):
    """The gallery of ``build --preview``, as a context: see ``inspect.preview.Preview``."""
    from open_clip_triplet.inspect.preview import Preview

    return Preview(output, html, sources)


def main(argv: list[str] | None = None) -> int:
    argv = command_line("triplet-shards", argv, subcommand=True)
    parser = argparse.ArgumentParser(
        prog="triplet-shards",
        description="Build paired shards for open_clip_triplet.",
        epilog=EXAMPLES + STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser, parser.prog)
    parser.set_defaults(open_preview=open_preview)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name in STAGES.items():
        module = importlib.import_module(f"open_clip_triplet.tripletdata.{module_name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=getattr(module, "EXAMPLES", "") + STATUSES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=getattr(module, "run", None) or functools.partial(run_command, module))
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except PipelineError as stop:
        print(f"{parser.prog} {args.command}: {stop}", file=sys.stderr)
        return stop.status
    except TripletError as error:
        print(f"{parser.prog} {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no room, no permission, a store that does not answer: no place for a trace
        where = f"{error.filename}: " if error.filename else ""
        print(f"{parser.prog} {args.command}: {where}{error.strerror or error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
