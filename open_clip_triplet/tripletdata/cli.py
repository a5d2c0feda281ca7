"""``triplet-shards``: one subcommand per stage. A stage offers ``HELP``, ``add_arguments``, ``run``."""

from __future__ import annotations

import argparse
import importlib
import sys

from open_clip_triplet.errors import PipelineError

#: subcommand -> module under open_clip_triplet.tripletdata; imported only when its subcommand is used
STAGES: dict[str, str] = {
    "build": "stages.build",
    "rewrite": "stages.rewrite",
    "captions": "stages.captions",
    "images": "stages.images",
    "filter": "stages.filter",
    "concepts": "stages.concepts",
    "pack": "stages.pack",
    "validate": "stages.validate",
    "shapes": "worlds.shapes",
    "mine": "stages.mine",
}


STATUSES = """\
exit status:
  0  done                      3  some shards failed or have faults; the rest is done
  2  wrong options or folders  4  nothing can go on: a model, server, package or disk space is missing
  130  interrupted             After 3, 4 and 130 the same command continues where it ended.
"""

EXAMPLES = """\
examples:
  make_shards.py build --input cc3m/ --output triplets/ --dry-run
  make_shards.py captions --input table.csv --caption-key caption --output negatives/ --backend rules
  make_shards.py filter --input triplets/ --output best/ --top-k 100000
  make_shards.py validate --input best/

"""


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="make_shards.py",
        description="Build paired shards for open_clip_triplet.",
        epilog=EXAMPLES + STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except PipelineError as stop:
        print(f"{parser.prog} {args.command}: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
