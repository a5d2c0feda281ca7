"""docs/evaluate.md against the code: every benchmark, every table of the paper, commands and recipes that exist."""

import re
from pathlib import Path

import pytest

from open_clip_triplet.evaluation.benchmarks import get, names
from open_clip_triplet.evaluation.checkpoints.checks import check_tag
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec
from open_clip_triplet.evaluation.report.paper import tables

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evaluate.md"


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    table = re.search(r"(?m)^\|.*\|\n(?:\|.*\|\n)+", text)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_every_benchmark_has_a_row_with_its_items():
    found = {cells[0].strip(" `|"): cells[1] for cells in rows("Benchmarks")}
    assert sorted(found) == sorted(names())
    assert f"on {len(names())} benchmarks" in PAGE.read_text(encoding="utf-8")
    for name, items in found.items():
        expected = sum(get(name).expected.values())
        written = re.match(r"[\d,]+", items)
        if written and expected and name not in ("zeroshot", "retrieval", "mmvp_vlm"):
            assert int(written[0].replace(",", "")) == expected, name


def test_every_table_and_figure_of_the_paper_has_a_command():
    found = rows("Every table and figure of the paper")
    numbered = " ".join(cells[0].strip("| ") for cells in found)
    for kind, last in (("Table", 17), ("Figure", 7)):
        listed = re.findall(rf"{kind}s? ([\d, ]+)", numbered)
        numbers = sorted(int(n) for group in listed for n in re.findall(r"\d+", group))
        assert numbers == list(range(1 if kind == "Table" else 2, last + 1))
    scores = {int(n) for entry in tables() for n in re.findall(r"\d+", entry.number)}
    assert scores == set(range(1, 17)) - {2, 10}  # those that checkpoints have rows in


@pytest.mark.parametrize(
    "recipe", sorted(set(re.findall(r"[\w{},/]+\.sh", PAGE.read_text(encoding="utf-8"))))
)
def test_recipes_exist(recipe):
    many = re.fullmatch(r"(.*)\{(.*)\}(.*)", recipe)
    paths = [many[1] + part + many[3] for part in many[2].split(",")] if many else [recipe]
    for path in paths:
        assert (ROOT / path).is_file() or (ROOT / "examples" / "recipes" / path).is_file(), path


def test_commands_and_flags_exist(capsys):
    from open_clip_triplet.evaluation.cli import build_parser

    page = PAGE.read_text(encoding="utf-8")
    for command in sorted(set(re.findall(r"triplet-evaluate (\w+)", page))):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([command, "--help"])
        assert stop.value.code == 0
    help_text = capsys.readouterr().out
    for flag in ("--suite", "--reference", "--coverage", "--baseline", "--allow-partial", "--download"):
        assert flag in page and flag in help_text


def test_tags_in_examples_have_their_models_activation():
    """OpenAI's weights on a model without QuickGELU are refused; no example may ask for that."""
    import open_clip

    files = [f for part in ("docs", "examples", "open_clip_triplet", "tools") for f in (ROOT / part).rglob("*.*")]
    texts = [f.read_text(encoding="utf-8") for f in [ROOT / "README.md", *files] if f.suffix in (".md", ".py", ".sh")]
    asked = {
        pair
        for text in texts
        for pattern in (r"--model ([\w-]+) --pretrained (\w+)", r"openclip:([\w-]+):(\w+)")
        for pair in re.findall(pattern, text)
    }
    tags = [(model, tag) for model, tag in asked if tag in open_clip.list_pretrained_tags_by_model(model)]
    assert ("ViT-B-32-quickgelu", "openai") in tags and ("ViT-B-32", "laion2b_s34b_b79k") in tags
    for model, tag in tags:
        check_tag(CheckpointSpec(model, tag))
