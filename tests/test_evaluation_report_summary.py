"""The report's summary: retention, leaderboard, known models, Figure 3, the authors' numbers."""

import csv
import io
import re
import sys

import numpy as np
import pytest

from open_clip_triplet.errors import DataError, UsageError
from open_clip_triplet.evaluation.benchmarks import get, names, suite
from open_clip_triplet.evaluation.report.coverage import Run, coverage_series, read_coverage
from open_clip_triplet.evaluation.report.figures import shown_names
from open_clip_triplet.evaluation.report.package_data import load_toml
from open_clip_triplet.evaluation.report.reference import composition_block, known_models, published
from open_clip_triplet.evaluation.report.render import render
from open_clip_triplet.evaluation.report.retention import (
    COLUMNS,
    COMPOSITION,
    RETENTION,
    leaderboard,
    retention_block,
)
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.report.tables import Cell, Row, mark_best
from report_fixtures import made, model, share


@pytest.fixture(scope="module")
def results():
    return [*model("clip", 0.55, 0.6), *model("triplet", 0.8, 0.5), *model("worse", 0.5, 0.4)]


def row(block, label, kind="measured"):
    return next(r for r in block.rows if r.label == label and r.kind == kind)


def test_sugarcrepe_is_printed_both_ways():
    right = {name: {"accuracy": 0} for name in get("sugarcrepe").expected}
    right["add_obj"] = {"accuracy": 2062}  # one subset of seven, 2,062 items of 7,511
    cells = row(retention_block(Results([made("sugarcrepe", "x", right)])), "x").cells
    assert cells[0].value == pytest.approx(100 / 7) and cells[1].value == pytest.approx(100 * 2062 / 7511)


def test_retention_stands_beside_composition_with_the_papers_rows(results):
    block = retention_block(Results(results, "clip"))
    assert [heading for _, heading in block.columns] == [
        "mean of 7",
        "over items",
        "R@1",
        "R@5",
        "R@1",
        "R@5",
        "top-1",
    ]
    gain = row(block, "triplet − clip", "gain").cells
    assert gain[0].value == pytest.approx(25, abs=0.1) and gain[6].value == pytest.approx(-10, abs=0.1)
    finetuned = next(r for r in block.rows if (r.group, r.label) == ("Finetuned", "TripletCLIP")).cells
    assert [finetuned[i].value for i in (0, 3, 5, 6)] == [82.46, 55.6, 53.32, 45.92]  # Tables 7 and 16
    assert finetuned[1].value is None  # the paper does not print it over items
    assert {r.group for r in block.rows if r.kind == "paper"} == {"CC3M", "CC12M", "Finetuned"}
    assert retention_block(Results([share("retrieval", "x", {"i2t_r5": 0.5})])) is None


def test_leaderboard_by_hand(results):
    board = leaderboard(Results(results))
    assert [s.name for s in board.standings] == ["triplet", "clip", "worse"]
    assert [s.front for s in board.standings] == [True, True, False]
    assert board.standings[0].composition == pytest.approx(80, abs=0.2)
    assert board.standings[0].retention == pytest.approx(50, abs=0.2)
    assert "VALSE" not in board.composition and "ImageNet top-1" in board.retention
    lonely = [*results, share("sugarcrepe", "half", {"accuracy": 0.9})]
    assert leaderboard(Results(lonely)).left_out == ("half",)
    assert leaderboard(Results(results[:5])) is None  # one checkpoint is no board


def test_best_and_second_best_are_marked():
    def rows(*values, kind="measured", group=""):
        return [Row(kind, group, str(i), (Cell(value),)) for i, value in enumerate(values)]

    def ranks(marked):
        return [r.cells[0].rank for r in marked]

    assert ranks(mark_best(rows(1.0, 3.0, 2.0, None))) == [0, 1, 2, 0]
    assert ranks(mark_best(rows(3.0, 3.001, 2.0, 1.0))) == [1, 1, 2, 0]  # equal as printed
    assert ranks(mark_best(rows(5.0))) == [0] and ranks(mark_best(rows(5.0, 5.0))) == [0, 0]
    assert ranks(mark_best(rows(1.0, 2.0))) == [0, 1]
    mixed = [*rows(1.0, 2.0), *rows(9.0, 8.0, kind="paper", group="CC3M"), *rows(7.0, kind="gain")]
    assert ranks(mark_best(mixed)) == [0, 1, 1, 0, 0]


def test_best_is_marked_in_every_format(results):
    assert "| clip |" in render(results, "md") and "**80" in render(results, "md")
    assert r"\textbf{80" in render(results, "latex") and r"\underline{" in render(results, "latex")
    page = render([results[0], results[5]], "html")
    assert 'class="rank1"' in page and 'class="rank2"' in page


def test_known_models_are_whole_and_of_these_benchmarks():
    models = known_models("all")
    assert len(models) == 202 and len({m.label for m in models}) >= 201
    for source in models[0].values:
        benchmark, place, *metric = source.split(":")
        described = get(benchmark)
        if metric and described.expected:
            assert place in described.expected, source
        assert all(0 <= m.values[source] <= 100 for m in models)
    assert {m.family for m in known_models()} >= {"StructuredCLIP", "OpenCLIP"}
    assert [m.label for m in known_models("NegCLIP")] == ["NegCLIP coco-ft"]
    with pytest.raises(ValueError, match="no known model contains 'nonsense'; there are 202"):
        known_models("nonsense")


def test_known_models_values_are_counts_of_this_suites_items():
    """Published accuracies times our item counts are whole: the same items are scored."""
    for source in (
        s
        for s in known_models("all")[0].values
        if s.split(":")[0] in ("sugarcrepe", "valse", "whatsup", "colorswap")
    ):
        benchmark, subset, _ = source.split(":")
        size = get(benchmark).expected[subset]
        for m in known_models("all"):
            count = m.values[source] * size / 100
            assert abs(count - round(count)) <= 0.005 * size / 100 + 1e-6, (m.label, source)


def test_openai_vit_b32_agrees_with_the_paper():
    """The paper's Table 7 has the same model as its CLIP row, from its own run."""
    (known,) = [m for m in known_models("ViT-B-32 openai") if m.model == "ViT-B-32"]
    assert known.value("sugarcrepe:overall") == pytest.approx(73.06, abs=0.1)
    assert known.value("sugarcrepe:item_weighted") == pytest.approx(76.8, abs=0.3)
    assert known.value("retrieval:mscoco:i2t_r5") == pytest.approx(74.9, abs=0.2)
    assert known.value("winoground:winoground:group") == 8.75 and known.value("cola:cola:group") is None


def test_reference_stands_below_ours_with_source_and_twofold_metrics(results):
    block = composition_block(Results(results), "NegCLIP")
    assert [(r.kind, r.label) for r in block.rows][:4] == [
        ("measured", "clip"),
        ("measured", "triplet"),
        ("measured", "worse"),
        ("reference", "NegCLIP coco-ft"),
    ]
    notes = " ".join(block.notes)
    assert (
        "arXiv:2406.09388" in notes and "mean of its 7 subsets or the accuracy over its 7,511 items" in notes
    )
    alone = composition_block(Results(results))
    assert len(alone.columns) < len(block.columns) and all(r.kind == "measured" for r in alone.rows)
    page = render(results, "html", reference="")
    assert "SugarCrepe against ImageNet top-1, among 202 published models (grey)" in page
    rows = list(csv.DictReader(io.StringIO(render(results, "csv", reference="all"))))
    assert sum(r["kind"] == "reference" and r["column"] == "Winoground group" for r in rows) == 202


def test_sources_of_every_summary_column_exist():
    columns = [sources for *_, sources in load_toml("reference.toml")["columns"]]
    sources = [s for many in columns for s in many]
    sources += [*COMPOSITION.values(), *RETENTION.values(), *(s for *_, many in COLUMNS for s in many)]
    for source in sources:
        benchmark, place, *metric = source.split(":")
        described = get(benchmark)
        if metric and described.expected and place not in ("flickr8k", "cifar10"):
            assert place in described.expected, source
        elif not metric:
            averages = (*described.averages, *described.flat_averages, *described.pooled)
            assert place in dict(averages), source
    listed = {s.partition(":")[0] for s in sources}
    assert listed >= set(suite("composition"))  # every benchmark of composition has a headline in the summary


def test_coverage_by_hand(results, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "\ufeffcheckpoint,method,concepts\ntriplet,TripletCLIP,40000\nclip,LaCLIP,50000\nworse,LaCLIP,30000\n"
    )
    runs = read_coverage(path)
    assert runs[0] == Run("triplet", "TripletCLIP", 40000)
    panels = coverage_series(Results(results), runs)
    assert [title for title, _ in panels] == ["SugarCrepe Avg.", "Retrieval mean R@5", "ImageNet1k top-1"]
    assert [x for x, _ in panels[0][1]["LaCLIP"]] == [30000, 50000]
    assert panels[2][1]["TripletCLIP"][0][1] == pytest.approx(50, abs=0.1)
    page = render(results, "html", coverage=runs)
    assert "Scores by concept coverage (Figure 3)" in page and ">unique concepts<" in page
    assert "30,000" in render(results, "md", coverage=runs)
    with pytest.raises(DataError, match="no results of nobody; there are: clip"):
        render(results, "md", coverage=[Run("nobody", "x", 1)])


@pytest.mark.parametrize(
    "text, message",
    [
        ("checkpoint,concepts\na,1\n", "lacks the column"),
        ("checkpoint,method,concepts\na,b,many\n", "line 2: needs"),
        ("checkpoint,method,concepts\na,b,-1\n", "line 2: needs"),
        ("checkpoint,method,concepts\n,b,1\n", "line 2: needs"),
        ("checkpoint,method,concepts\na,b,inf\n", "line 2: needs"),
    ],
)
def test_bad_coverage_files_are_told_in_one_line(text, message, tmp_path):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_coverage(tmp_path / "runs.csv")
    assert "\n" not in str(caught.value)


def test_authors_numbers_have_a_table(results):
    page = render(results, "md")
    assert "SugarCrepe: its authors' numbers" in page.replace("\\", "")
    partial = [{**r, "complete": False} if r["benchmark"] == "sugarcrepe" else r for r in results]
    rows = [
        r for r in csv.DictReader(io.StringIO(render(partial, "csv"))) if r["table"] == "headlines sugarcrepe"
    ]
    assert rows and all(r["text"] == "partial" and not r["value"] for r in rows)


def test_published_values_are_of_headlines_that_exist():
    for name in names():
        labels = {headline.label for headline in get(name).headlines}
        for entry in published(name):
            assert set(entry["values"]) <= labels and entry["source"], (name, entry["model"])
    spec = next(iter(published("spec")))["values"]
    for label, percent in spec.items():  # the authors' two decimals are whole numbers of our item counts
        items = get("spec").expected[label.replace(" ", "_")]
        assert round(100 * round(percent * items / 100) / items, 2) == percent, label
    ours = share("spec", "x", {"accuracy": 0.5})
    page = render([ours], "md", reference="")
    assert (
        "published CLIP ViT-B-32 openai" in page and "57.00" in page and "57.00" not in render([ours], "md")
    )


def test_a_missing_package_is_told_with_its_extra(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="needs matplotlib; install open_clip_triplet with its extra `eval`"):
        render(results, "html")
    assert render(results, "md")  # which needs neither


def test_a_near_zero_radar_becomes_bars(results):
    """A radar has its axes' names at angles and no bars; near zero it would be a dot."""
    low = model("low", 0.03, 0.02)
    pages = [render(results, "html"), render(low, "html")]
    suites = [re.search(r"<h4>The suite</h4>(.*?)</figure>", page, re.DOTALL).group(1) for page in pages]
    assert [len(re.findall(r">\d+\.\d<", suite)) > 5 for suite in suites] == [False, True]


def test_long_names_are_whole_and_values_beyond_whiskers(results):
    name = "a-checkpoint-with-a-very-long-name_ViT-B-32_cc3m_lr5e-4_bs1024_epoch_30"
    page = render([*results[:2], *model(name, 0.7, 0.45)[:2]], "html")
    assert page.count(name) > 5
    labels = [f"n{i}" for i in range(11)]
    many = [share("sugarcrepe", n, {"accuracy": 0.5 + i / 100}) for i, n in enumerate(labels)]
    page = render(many, "html", baseline="n10")
    assert "Not drawn, for want of colours: n7, n8, n9." in re.sub(r"\s+", " ", page)
    ranked = Results([r for i, n in enumerate(labels) for r in model(n, 0.5 + i / 100, 0.5)], "n0")
    assert shown_names(ranked) == ["n0", "n10", "n9", "n8", "n7", "n6", "n5", "n4"]


def test_value_labels_start_right_of_their_whisker():
    from open_clip_triplet.evaluation.report.plots import bars

    svg = bars(["one", "two"], [[(50.0, 20.0, 90.0), (97.0, 90.0, 99.9)]])
    label = {text: float(x) for x, text in re.findall(r'translate\(([\d.]+) [\d.]+\)">(\d+\.\d)<', svg)} or {
        text: float(x) for x, text in re.findall(r'x="([\d.]+)"[^>]*>(\d+\.\d)<', svg)
    }
    ends = [float(x) for x in re.findall(r"L ([\d.]+) [\d.]+ \n\" [^>]*stroke: var\(--ink\)", svg)]
    assert set(label) == {"50.0", "97.0"} and len(ends) == 2
    assert label["50.0"] > ends[0] and label["97.0"] > ends[1]
    viewbox = [float(x) for x in re.search(r'viewBox="([\d. -]+)"', svg).group(1).split()]
    assert all(x + 16 < viewbox[2] for x in label.values())  # nor is the last one cut off


def test_pages_of_the_same_results_have_the_same_tables(results):
    first, second = (re.sub(r"p\d+-", "", render(results[:2], "html")) for _ in range(2))
    assert first == second


def test_standings_do_not_depend_on_numpy_types(results):
    board = leaderboard(Results(results))
    assert all(
        type(s.composition) is float and not isinstance(s.composition, np.floating) for s in board.standings
    )


def test_a_subset_beyond_the_expected_ones_is_labelled_partial_by_itself():
    """NegBench's synthetic set and a folder of CIFAR-10 are always partial, beside sets that are complete."""
    files = ("coco_mcq", "voc2007_mcq", "synthetic_mcq")
    sets = dict.fromkeys((*get("zeroshot").expected, "cifar10"), {"top1": 400, "top5": 450})
    results = []
    for name in "ab":
        negbench = made("negbench", name, dict.fromkeys(files, {"accuracy": 200}))
        zeroshot = made("zeroshot", name, sets)
        for result, subset in ((negbench, "synthetic_mcq"), (zeroshot, "cifar10")):
            result["subsets"][subset]["complete"] = False
            assert result["complete"]
        results += [negbench, zeroshot, share("retrieval", name, {"i2t_r5": 0.8, "t2i_r5": 0.8})]
    (mean,) = [h for h in zeroshot["headlines"] if h["label"] == "mean top-1 of the 18 sets"]
    assert mean["items"] == zeroshot["items"]  # without CIFAR-10's, which is not among them
    rows = list(csv.DictReader(io.StringIO(render(results, "csv"))))
    texts = {r["row"]: r["text"] for r in rows if r["table"] == "headlines negbench" and r["column"] == "a"}
    assert texts == {"coco_mcq": "", "voc2007_mcq": "", "synthetic_mcq": "partial"}
    tested = {r["row"] for r in rows if r["table"] == "b vs a"}
    assert {"negbench synthetic_mcq accuracy (partial)", "negbench coco_mcq accuracy"} <= tested
    page = render(results, "html")
    assert "NegBench (multiple choice), PARTIAL" in page and "NegBench (multiple choice), synthetic_mcq (500" in page
    assert "CIFAR-10 top-1*" in page and "18 sets top-1*" not in page and "18 sets top-1" in page
