"""``triplet-inspect``: look at paired shards, at the embeddings of their samples, and at what a model gets wrong."""

from __future__ import annotations

import argparse
import importlib
import sys

from open_clip_triplet.command import add_arguments as add_common_arguments
from open_clip_triplet.command import command_line
from open_clip_triplet.errors import TripletError

#: subcommand -> (module, its line in the overview); a module is imported when its subcommand is used
COMMANDS: dict[str, tuple[str, str]] = {
    "gallery": ("gallery", "a page to look through samples, filter, sort and mark them"),
    "stats": ("stats", "sizes, lengths, edit categories, duplicates, overlap with evaluation sets, concepts"),
    "similarity": ("similarity", "how alike positives and negatives are to one or several encoders"),
    "faithfulness": ("faithfulness", "whether negative images show what their captions say, by questions and answers"),
    "model": ("model", "what a checkpoint gets wrong, or where two checkpoints differ"),
}
EXAMPLES = """examples:
  triplet-inspect gallery triplets/ --html gallery.html
  triplet-inspect stats triplets/ --against sugarcrepe=data/sugar-crepe --output stats
  triplet-inspect similarity triplets/ --encoder timm:vit_small_patch14_dinov2.lvd142m
  triplet-inspect model logs/run/checkpoints/epoch_9.pt triplets/val --model ViT-B-32 --html wrong.html
"""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line. Only ``command``'s own options are added; with None, every command's."""
    parser = argparse.ArgumentParser(
        prog="triplet-inspect",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser, parser.prog)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, line) in COMMANDS.items():
        own = commands.add_parser(name, help=line, formatter_class=argparse.RawDescriptionHelpFormatter)
        if command in (None, name):
            module = importlib.import_module(f"open_clip_triplet.inspect.{module_name}")
            own.description, own.epilog = module.__doc__, getattr(module, "EXAMPLES", None)
            module.add_arguments(own)
            own.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = command_line("triplet-inspect", argv, subcommand=True)
    args = build_parser(next((word for word in argv if word in COMMANDS), "")).parse_args(argv)
    try:
        return args.run(args) or 0
    except (TripletError, OSError) as error:
        print(f"triplet-inspect {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
