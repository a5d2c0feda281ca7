"""What the four commands share: ``--version``, and ``--config run.yaml``, a file of their flags.

A config is a flat mapping of flags, as on the command line without the dashes; what is given on the command
line wins::

    loss: triplet
    train-data: shards/{00000..00999}.tar
    model: ViT-B-32
    batch-size: 1024
    gather-with-grad: true        # a flag without a value; false and null leave it out
    data-stage: [clean:lower, clean:short]   # a flag that may be repeated
    aug-cfg: {scale: "(0.4, 1.0)", color_jitter_prob: 0.8}   # key=value pairs; a list is several values
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from open_clip_triplet import __version__
from open_clip_triplet.errors import UsageError
from open_clip_triplet.files import write_text_durably

#: flags that may be given more than once, each time with one value
REPEATED = ("data-stage", "model-config")


def version_text(program: str) -> str:
    """One line: this package, and the libraries that decide what it does."""
    parts = [f"Python {platform.python_version()}"]
    for package in ("open_clip_torch", "torch"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{program} {__version__} ({', '.join(parts)})"


def add_arguments(parser: argparse._ActionsContainer, program: str) -> None:
    """``--version`` and ``--config`` for the help; ``expand_config`` takes ``--config`` out before parsing."""
    parser.add_argument(
        "--version", action="version", version=version_text(program),
        help="print the versions of this package and of the libraries that decide what it does",
    )
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS,
        help="yaml file of flags; those on the command line win",
    )


def command_line(program: str, argv: Sequence[str] | None, *, subcommand: bool = False) -> list[str]:
    """The process's command line, or ``argv``, with ``--config`` expanded; a wrong file ends it with one line."""
    try:
        return expand_config(sys.argv[1:] if argv is None else argv, subcommand=subcommand)
    except UsageError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def expand_config(argv: Sequence[str], *, subcommand: bool = False) -> list[str]:
    """The command line with ``--config FILE`` replaced by the file's flags.

    Args:
        subcommand: the first argument names a subcommand, which the file may name as ``command``.

    Raises:
        UsageError: the file cannot be read, or is no flat mapping of flags.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        own, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError("--config needs a yaml file of flags") from error
    content: dict = {}
    for file in own.config:
        content.update(_read(file))
    command = content.pop("command", None) if subcommand else None
    flags = [part for name, value in content.items() if not _given(name, rest) for part in _flag(name, value)]
    if command and (not rest or rest[0].startswith("-")):
        rest = [str(command), *rest]
    return rest + flags  # in this order: a flag with a list of values would take a positional argument for one


def _read(file: str) -> dict:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {file}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"--config {file}: expected a mapping of flags, such as `loss: triplet`")
    flags = {name.removeprefix("--").replace("_", "-"): value for name, value in content.items()}
    if "config" in flags:
        raise UsageError(f"--config {file}: a config inside a config is not read; give --config several times")
    return flags


def _given(name: str, argv: list[str]) -> bool:
    return any(argument == f"--{name}" or argument.startswith(f"--{name}=") for argument in argv)


def _flag(name: str, value) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    if isinstance(value, dict):
        return [f"--{name}", *(f"{key}={item}" for key, item in value.items())]
    if isinstance(value, list):
        if any(isinstance(item, (dict, list)) for item in value):
            raise UsageError(f"--config: {name}: a list inside a list is no flag")
        if name in REPEATED:
            return [part for item in value for part in (f"--{name}", str(item))]
        return [f"--{name}", *map(str, value)]
    text = str(value)
    # so that a value such as -1 or --x is not taken for a flag
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def flags_as_yaml(argv: Sequence[str]) -> str:
    """A config that repeats a command line: ``--config`` of it gives the same flags."""
    content: dict = {}
    name = None
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            kept = content.get(name, []) if name in REPEATED else []
            content[name] = [*kept, value] if equals else kept
        elif name is not None:
            content[name].append(argument)
    flat = {name: True if not v else v[0] if len(v) == 1 else v for name, v in content.items()}
    return yaml.safe_dump(flat, sort_keys=False, allow_unicode=True)


def save_config(args) -> None:
    """Keep a training run's flags as ``LOGS/NAME/run.yaml``: ``triplet-train --config`` of it repeats the run.

    Args:
        args: OpenCLIP's namespace, with ``command_line``, the flags it was parsed from.
    """
    if args.rank == 0 and args.logs and args.logs.lower() != "none":
        write_text_durably(Path(args.logs) / args.name / "run.yaml", flags_as_yaml(args.command_line))
