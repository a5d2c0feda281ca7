"""``triplet-shards``: one subcommand per stage; a stage module offers ``HELP``, ``add_arguments``, ``run``."""

from __future__ import annotations

import argparse
import importlib
import sys

#: subcommand -> module under open_clip_triplet.tripletdata; imported only when its subcommand is used
STAGES: dict[str, str] = {}


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="make_shards.py",
        description="Build paired shards for open_clip_triplet.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name in STAGES.items():
        module = importlib.import_module(f"open_clip_triplet.tripletdata.{module_name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return args.run(args) or 0


if __name__ == "__main__":
    sys.exit(main())
