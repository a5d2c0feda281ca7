"""README and docs against the code: every command that they print is read by the parser that will read it."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from open_clip_triplet import make_shards, options
from open_clip_triplet.evaluation import cli as evaluate_cli
from open_clip_triplet.inspect import cli as inspect_cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", ROOT / "patches" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
COMMANDS = {
    "triplet-shards": (make_shards.main, make_shards.STAGES),
    "triplet-evaluate": (evaluate_cli.main, evaluate_cli.COMMANDS),
    "triplet-inspect": (inspect_cli.main, inspect_cli.COMMANDS),
}
#: how a page starts training: the command, its module under torchrun, and OpenCLIP's own under a patch
TRAINING = r"triplet-train|open_clip_triplet\.train|open_clip_train\.main"


class Parsed(Exception):
    """The command line was read; what it would do is not done."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def written(names: str) -> list[tuple[str, list[str]]]:
    """(page, words) of every command in the pages' blocks that begins with one of ``names``, a pattern."""
    found = []
    for page in PAGES:
        for line in "\n".join(blocks(page)).replace("\\\n", " ").replace("$loss", "triplet").splitlines():
            if match := re.search(rf"(?:^|\s)({names})\s.*", line):
                words = shlex.split(match[0], comments=True)
                if words[-1] == "..." and not words[-2].startswith("--"):
                    words.pop()
                found.append((str(page.relative_to(ROOT)), words))
    return found


def readable(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value[:4])


@pytest.mark.parametrize(("page", "words"), written("|".join(COMMANDS)), ids=readable)
def test_tools_read_their_commands(page, words, monkeypatch, capsys):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, argv=None, namespace=None):
        parse(self, argv, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    try:
        COMMANDS[words[0]][0](words[1:])
    except Parsed:
        return
    except SystemExit:
        pytest.fail(f"{page}: {shlex.join(words)}\n{capsys.readouterr().err}")


@pytest.fixture
def modules_of_the_pages(tmp_path, monkeypatch):
    """The Python files that pages tell their reader to write, importable."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name, code in re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", pages, flags=re.S):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(("page", "words"), written(TRAINING), ids=readable)
def test_training_reads_its_commands(page, words, modules_of_the_pages, capsys):
    from open_clip_train.params import parse_args

    try:
        own, rest = options.parse_own(words[1:])
        parse_args(rest)
    except SystemExit:
        pytest.fail(f"{page}: {shlex.join(words)}\n{capsys.readouterr().err}")
    if "--loss" in words:
        assert own.loss == words[words.index("--loss") + 1]


def test_there_are_such_commands():
    """The two tests above see what a reader sees: blocks of README and of every page that shows commands."""
    pages = {page for page, _ in written("|".join(COMMANDS)) + written(TRAINING)}
    assert {"README.md", "docs/quickstart.md", "docs/train.md", "docs/build.md", "docs/evaluate.md"} <= pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_subcommands_in_sentences_exist(page):
    for command, name in re.findall(r"`(triplet-\w+) (\w+)", page.read_text(encoding="utf-8")):
        assert command in COMMANDS and name in COMMANDS[command][1], f"{command} {name}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        used = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.M))
        assert used <= targets, f"{page.name}: {used - targets}"


def test_the_readme_is_short_and_names_the_missing_address_once():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert readme.count("REPOSITORY") == 1
    assert not [page.name for page in PAGES[1:] if "REPOSITORY" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page):
    """`losses/methods.py` and the like, from the page, the repository, the package, or one of its folders."""
    names = re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|sh|toml|yaml|patch))`", page.read_text(encoding="utf-8"))
    missing = [
        name for name in names
        if not (ROOT / name).exists() and not (page.parent / name).exists()
        and not [*(ROOT / "open_clip_triplet").rglob(name)]
        if "NAME" not in name and not name.startswith(("my_package/", "open_clip_train/"))
    ]
    assert not missing


def test_the_tree_of_the_architecture_page_is_the_package():
    tree = re.search(r"```\n(open_clip_triplet/.*?)```", (ROOT / "docs" / "architecture.md").read_text(), flags=re.S)[1]
    entries = re.findall(r"^  (\w.*?)  ", tree, flags=re.M)  # those that are indented once
    listed = {name.strip("/") for entry in entries for name in entry.split(", ")}
    package = ROOT / "open_clip_triplet"
    there = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__.py"} == listed
