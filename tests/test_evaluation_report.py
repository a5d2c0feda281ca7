"""Reports: tables, gains and tests right, partial runs apart, html safe and self-contained."""

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation_fixtures import SUGARCREPE_SUBSETS
from open_clip_triplet.evaluation.benchmarks import get
from open_clip_triplet.evaluation.images import ImageRef
from open_clip_triplet.evaluation.report.paper import table, tables
from open_clip_triplet.evaluation.report.render import _plain, render
from open_clip_triplet.evaluation.report.sources import Results
from open_clip_triplet.evaluation.result_files import read_results, write_result
from open_clip_triplet.evaluation.results import build_result, flat_metrics
from open_clip_triplet.evaluation.tasks import Choice, ChoiceTask, Pair, PairTask

HOSTILE = '<script>alert(1)</script>|=cmd"&_$'


def sugarcrepe(name, right, sizes=None, weights="0" * 64):
    """A result whose items are right by ``right(subset, i)``, built from embeddings as a run would."""
    benchmark = get("sugarcrepe")
    tasks, outcomes = {}, {}
    for subset, expected in benchmark.expected.items():
        count = (sizes or benchmark.expected).get(subset, expected)
        image = ImageRef("x.jpg")
        task = ChoiceTask(
            [Choice(str(i), image, (f"+{i}",), (f"-{i}",)) for i in range(count)], expected=expected
        )

        def texts(captions, subset=subset):
            good = [(c[0] == "+") == bool(right(subset, int(c[1:]))) for c in captions]
            return np.stack([np.array([1.0, 0]) if g else np.array([0.0, 1]) for g in good])

        tasks[subset] = task
        outcomes[subset] = task.score(lambda refs: np.tile([1.0, 0], (len(refs), 1)), texts)
    checkpoint = {"name": name, "weights": weights, "precision": "fp32"}
    return build_result(benchmark, tasks, outcomes, checkpoint=checkpoint, remarks={"unique": 1})


def tripletdata(name, seed):
    rng = np.random.default_rng(seed)
    items = [Pair(str(i), (ImageRef(f"{i}a"), ImageRef(f"{i}b")), (f"{i}c", f"{i}d")) for i in range(40)]
    vectors = {}

    def rows(keys):
        for key in map(str, keys):
            vectors.setdefault(key, rng.standard_normal(4) / 2)
        return np.stack([vectors[str(key)] for key in keys])

    task = PairTask(items, expected=40)
    return build_result(
        get("tripletdata"),
        {"tripletdata": task},
        {"tripletdata": task.score(rows, rows)},
        checkpoint={"name": name, "weights": "0" * 64},
        remarks={"unique": 80},
    )


@pytest.fixture(scope="module")
def results():
    return [
        sugarcrepe("clip", lambda subset, i: i % 2),
        sugarcrepe("triplet", lambda subset, i: i % 4),
        sugarcrepe(HOSTILE, lambda subset, i: i % 3, sizes={"add_obj": 7}),
        tripletdata("clip", 0),
        tripletdata("triplet", 1),
    ]


def rows_of(results, **options):
    return list(csv.DictReader(io.StringIO(render(results, "csv", **options))))


def value(rows, table, row, column, kind="measured"):
    found = [r for r in rows if (r["table"], r["row"], r["column"], r["kind"]) == (table, row, column, kind)]
    assert len(found) == 1, (table, row, column, len(found))
    return found[0]


@pytest.mark.parametrize("entry", tables(), ids=lambda entry: entry.number)
def test_paper_tables_are_consistent_once_corrected(entry):
    for (group, method), row in entry.rows().items():
        assert len(row) == len(entry.columns), (group, method)
        if entry.columns[-1].name == "Avg." and len(row) > 1:
            assert row[-1] == pytest.approx(sum(row[:-1]) / (len(row) - 1), abs=0.011), (group, method)
    for heading in (h for remark in entry.remarks for h in remark.values):
        assert heading in [column.heading for column in entry.columns]
    for group, base in entry.baselines.items():
        assert (group, base) in entry.rows() and (group, "TripletCLIP") in entry.rows()


def test_every_table_with_checkpoints_is_there():
    numbers = " ".join(entry.number for entry in tables()).replace(",", "").replace("and", "").split()
    assert sorted(map(int, numbers)) == [1, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16]


#: items of the metrics that are plain accuracies, so that a printed percentage must be a count of them
COUNTS = {
    **{f"sugarcrepe:{name}:accuracy": size for name, size in get("sugarcrepe").expected.items()},
    **{f"cola:cola:{metric}": 210 for metric in ("text", "image", "group")},
    **{f"winoground:winoground:{metric}": 400 for metric in ("text", "image", "group")},
    **{f"retrieval:mscoco:i2t_r{k}": 5000 for k in (1, 5, 10)},
    **{f"retrieval:flickr30k:i2t_r{k}": 1000 for k in (1, 5, 10)},
    **{f"retrieval:flickr30k:t2i_r{k}": 5000 for k in (1, 5, 10)},
}


def test_values_that_are_no_count_of_their_items_have_a_footnote():
    """Every accuracy of the paper, read as a count: the exceptions are exactly the noted ones."""
    odd = set()
    for entry in tables():
        for (group, method), row in entry.rows().items():
            for i, (column, value) in enumerate(zip(entry.columns, row)):
                items = COUNTS.get(column.sources[0]) if len(column.sources) == 1 else None
                if (
                    items
                    and value is not None
                    and abs(round(value * items / 100) / items * 100 - value) > 0.03
                ):
                    odd.add((group, method, column.heading))
                    assert (group, method, i) in entry.remarked(), (group, method, column.heading)
    assert odd == {
        ("CC3M", "LaCLIP+HN", "Cola Image"),
        *(("DataComp", m, "Swap Object") for g, m in table("4").printed if g == "DataComp"),
    }


def test_the_papers_errors_are_as_the_notes_say():
    four, five, eleven, twelve, thirteen = (table(n).rows() for n in ("4", "5", "11", "12", "13"))
    assert table("12").printed["CC3M", "TripletCLIP"][18] == 12.31
    assert twelve["CC3M", "TripletCLIP"][18] == five["CC3M", "TripletCLIP"][4] == 13.92
    swap = four["CC3M", "LaCLIP+HN"][3:5]
    for percent, size in zip(swap, (245, 666)):  # exchanged, they are no counts of their subsets
        assert round(percent * size / 100) / size * 100 == pytest.approx(percent, abs=0.006)
    for method in (m for g, m in four if g == "DataComp"):
        percent = four["DataComp", method][3]
        assert round(percent * 246 / 100) / 246 * 100 == pytest.approx(percent, abs=0.006)
    for method in ("LaCLIP", "NegCLIP", "NegCLIP++", "TripletCLIP"):
        printed, add = table("11").printed["CC12M", method][7], four["CC12M", method][5:7]
        assert printed == pytest.approx(sum(add) / 2, abs=0.011)
        assert eleven["CC12M", method][7] == four["CC12M", method][7]
    for method in ("LaCLIP", "TripletCLIP"):  # Table 13's R@5 columns are Table 5's, in its order
        assert thirteen["CC12M", method][1::3] == five["CC12M", method][:4]
    mistral = table("14").rows()["NegCLIP++ by language model (Table 14)", "Mistral-7b-instruct-v0.2"]
    flickr = thirteen["CC3M", "NegCLIP++"]  # Table 14's retrieval is the mean of Flickr30k's two R@5
    assert mistral[1] == pytest.approx((flickr[4] + flickr[10]) / 2)
    assert [mistral[0], mistral[2]] == [four["CC3M", "NegCLIP++"][7], five["CC3M", "NegCLIP++"][7]]
    laclip = table("3").rows()["CC3M", "LaCLIP"]
    assert laclip[1] == pytest.approx(sum(five["CC3M", "LaCLIP"][:4]) / 4, abs=0.006)


def test_sources_of_every_column_exist():
    for entry in tables():
        for column in entry.columns:
            for source in column.sources:
                benchmark, place, *metric = source.split(":")
                described = get(benchmark)
                if metric and described.expected:
                    assert place in described.expected, source
                elif not metric:
                    assert place in dict(described.averages), source


def test_values_gains_and_paper_rows(results):
    rows = rows_of(results, baseline="clip")
    triplet = value(rows, "4 and 7", "triplet", "Replace Object")
    assert float(triplet["value"]) == pytest.approx(
        100 * sum(bool(i % 4) for i in range(1652)) / 1652, abs=1e-3
    )
    assert float(triplet["low"]) < float(triplet["value"]) < float(triplet["high"])
    overall = value(rows, "4 and 7", "triplet", "Overall Avg.")
    each = [
        float(value(rows, "4 and 7", "triplet", f"{a} {b}")["value"])
        for a, b in [
            ("Replace", "Object"),
            ("Replace", "Attribute"),
            ("Replace", "Relation"),
            ("Swap", "Object"),
            ("Swap", "Attribute"),
            ("Add", "Object"),
            ("Add", "Attribute"),
        ]
    ]
    assert float(overall["value"]) == pytest.approx(sum(each) / 7, abs=1e-3)
    gain = value(rows, "4 and 7", "triplet − clip", "Overall Avg.", "gain")
    base = value(rows, "4 and 7", "clip", "Overall Avg.")
    assert float(gain["value"]) == pytest.approx(float(overall["value"]) - float(base["value"]), abs=1e-3)
    paper = value(rows, "4 and 7", "LaCLIP+HN", "Swap Object", "paper")
    assert float(paper["value"]) == 48.57 and "exchanged" in paper["note"]
    gains = [
        r for r in rows if r["table"] == "4 and 7" and r["kind"] == "paper-gain" and r["group"] == "CC3M"
    ]
    assert {r["column"]: float(r["value"]) for r in gains}["Replace Attribute"] == pytest.approx(15.86)


def test_partial_is_labelled_and_kept_out_of_the_papers_tables(results):
    rows = rows_of(results)
    name = HOSTILE
    cell = value(rows, "4 and 7", name, "Add Object")  # its subset has 7 of 2,062 items
    assert cell["text"] == "partial" and cell["value"] == ""
    assert value(rows, "4 and 7", name, "Overall Avg.")["text"] == "partial"
    assert value(rows, "4 and 7", name, "Add Attribute")["value"]  # that subset is complete
    assert not [r for r in rows if r["kind"] == "gain" and name in r["row"] and r["column"] == "Overall Avg."]
    items = value(rows, "sugarcrepe-partial", "add_obj accuracy", "items")
    assert items["text"] == "7 of 2062" and items["group"] == name
    for form in ("md", "latex", "html"):
        assert "PARTIAL RUN" in render(results, form)
    flat = flat_metrics(results[2])
    assert "sugarcrepe-partial/overall" in flat and not any(key.startswith("sugarcrepe/") for key in flat)
    assert "sugarcrepe/overall" in flat_metrics(results[0])


def test_paired_tests_by_hand(results):
    rows = [r for r in rows_of(results[:2], baseline="clip") if r["table"] == "triplet vs clip"]
    # of four items, clip is right on 1 and 3, triplet on 1, 2 and 3: a quarter is won, none lost
    found = {r["column"]: r for r in rows if r["row"] == "sugarcrepe swap_obj accuracy"}
    won = sum(i % 4 == 2 for i in range(245))
    assert found["only right: triplet"]["text"] == str(won) and found["only right: clip"]["text"] == "0"
    assert float(found["difference"]["value"]) == pytest.approx(100 * won / 245, abs=1e-3)
    assert found["p"]["text"] == "< 0.0001" and 2 * 0.5**won < 1e-4
    overall = {r["column"]: r for r in rows if r["row"] == "sugarcrepe overall"}
    assert float(overall["95% low"]["value"]) < float(overall["difference"]["value"])
    other = [{**results[1], "subsets": {**results[1]["subsets"]}}]
    other[0]["subsets"]["swap_obj"] = {**other[0]["subsets"]["swap_obj"], "items_hash": "content:others"}
    again = [r for r in rows_of([results[0], *other]) if r["table"] == "triplet vs clip"]
    names = {r["row"] for r in again}  # different items are never paired, nor averages over them
    assert "sugarcrepe swap_obj accuracy" not in names and "sugarcrepe overall" not in names
    assert "sugarcrepe add_obj accuracy" in names
    (unpaired,) = [r for r in again if r["row"] == "sugarcrepe swap_obj"]  # and the report says so
    assert unpaired["column"] == "p" and unpaired["text"] == "no test: the items differ"


def test_a_forced_image_size_stands_among_the_runs(results):
    forced = {**results[0], "checkpoint": {**results[0]["checkpoint"], "force_image_size": 64}}
    assert "fp32, images of 64 pixels; " in render([forced], "md")
    assert "pixels" not in render([results[0]], "md")


def test_baseline_and_names_are_checked(results):
    with pytest.raises(ValueError, match="no results of the baseline 'x'; there are: clip, triplet"):
        render(results, "md", baseline="x")
    with pytest.raises(ValueError, match="two different checkpoints are called 'clip'"):
        Results([results[0], sugarcrepe("clip", lambda s, i: 1, weights="1" * 64)])
    with pytest.raises(ValueError, match="unknown format"):
        render(results, "pdf")


def test_results_come_back_from_disk(tmp_path, results):
    for result in results:
        write_result(tmp_path, result)
    (tmp_path / ".embeddings" / "k").mkdir(parents=True)
    (tmp_path / ".embeddings" / "k" / "key.json").write_text("{}")
    (tmp_path / ".embeddings" / "k" / "images-1.json").write_text("{ half")  # never opened
    back = read_results([tmp_path])
    assert sorted(map(json.dumps, back)) == sorted(map(json.dumps, results))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no results in"):
        read_results([tmp_path / "empty"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="broken.json"):
        read_results([tmp_path / "broken.json"])
    newer = {**results[0], "schema": 99}
    (tmp_path / "broken.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="run it again"):
        read_results([tmp_path / "broken.json"])


def test_hostile_names_are_escaped_everywhere(tmp_path, results):
    page = render(results, "html")
    assert page.count("<script") == 1 and "alert(1)" not in page[page.index("<script") :]
    assert "&lt;script&gt;" in page
    tex = render(results, "latex")
    assert r"\$" in tex and r"\_" in tex and "<script>" not in tex
    assert "<script>" not in render(results, "md").replace(r"\<script\>", "")
    first = render([{**results[0], "checkpoint": {"name": "=1+1", "weights": "0"}}], "csv")
    assert ",=1+1" not in first and ",'=1+1" in first
    first = render([{**results[0], "checkpoint": {"name": "-2+cmd|x", "weights": "0"}}], "csv")
    assert ",-2+cmd" not in first and ",'-2+cmd" in first
    assert [_plain(x) for x in ("-1.5", "+2", "", "a-b")] == ["-1.5", "+2", "", "a-b"]
    path = write_result(tmp_path, results[2])
    assert path.parent.parent == tmp_path and re.fullmatch(r"[A-Za-z0-9._-]+", path.parent.name)


class Links(HTMLParser):
    """Everything in a page that a browser would fetch, and unbalanced tags."""

    def __init__(self):
        super().__init__()
        self.fetched, self.stack, self.tags, self.ids, self.links = [], [], [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, content in attributes:
            if name in ("src", "href", "data", "srcset") and not content.startswith("#"):
                self.fetched.append((tag, content))
            elif name == "href":
                self.links.add(content[1:])
            if name == "id":
                self.ids.append(content)
        if tag not in ("meta", "br", "link", "img"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_html_is_well_formed_and_fetches_nothing(results):
    page = render(results, "html", baseline="clip")
    parser = Links()
    parser.feed(page)
    assert parser.fetched == [] and parser.stack == []
    assert not re.search(r"url\((?!#)", page) and "@import" not in page
    assert len(parser.ids) == len(set(parser.ids)) and parser.links <= set(parser.ids)
    figures = parser.tags.count("figure")
    assert figures >= 4  # bars of two benchmarks and a histogram per modality
    for number in re.findall(r'[xy12"]="(-?[\d.]+|nan)"', page):
        assert not math.isnan(float(number))


def chromium():
    found = next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
    )
    return found or pytest.skip("chromium is not installed: the page is not looked at in a browser")


def test_html_in_a_browser(tmp_path, results):
    browser = chromium()
    (tmp_path / "report.html").write_text(render(results, "html", baseline="clip"), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1240,1600",
        "--proxy-server=127.0.0.1:9",  # nothing can be fetched: the page has to do without
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*command, f"--screenshot={shot}", (tmp_path / "report.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=300,
        env=environment,
    )
    from PIL import Image

    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    for series in ((0x0B, 0x63, 0xB5), (0xD9, 0x77, 0x0A)):  # both checkpoints' bars are painted
        assert (np.abs(pixels - series).sum(axis=1) < 12).sum() > 300
    assert (pixels.sum(axis=1) > 740).mean() > 0.5  # and most of the page is paper


def test_every_subset_is_drawn(results):
    page = render(results, "html")
    for subset in SUGARCREPE_SUBSETS:
        assert f">{subset.replace('_', ' ')}</text>" in page
