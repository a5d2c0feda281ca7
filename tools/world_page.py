"""The reproduction's page: tables and plot from the results of its runs."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable

import numpy as np

from seed_table import Part
from seed_table import mean_interval as mean_of_parts
from world_results import WHERE
from world_runs import SCORES

#: SugarCrepe on CC3M in the paper (Table 3; Tables 4 and 15 for the others, Table 15 at batch 512)
PAPER = {
    "LaCLIP": 54.09, "NegImage": 56.28, "NegCLIP++": 61.69, "TripletCLIP": 63.49, "LaCLIP+HN": 53.92,
    "NegCLIP": 57.18, "CyCLIP": 54.62, "CyCLIP+TripletLoss": 58.64,
}
BASELINE, OURS = "LaCLIP", "TripletCLIP"
#: world -> the kind of hard negative whose group score heads its page; None: all kinds
HEADLINE: dict[str, str | None] = {"glyphs": "swap_att", "single": None}


def by_label(results: list[dict], labels: Iterable[str] = PAPER) -> dict[str, list[dict]]:
    """{label: its runs, in order of seed}, in the order of ``labels``."""
    found = {label: [r for r in results if r["label"] == label] for label in labels}
    return {label: sorted(runs, key=lambda r: r["seed"]) for label, runs in found.items() if runs}


def correct(runs: list[dict], kind: str | None = None) -> np.ndarray:
    """[seeds, items] whether an item's group score is right; of one kind of hard negative, or of all."""
    strings = [run["category_correct"][kind] if kind else run["group_correct"] for run in runs]
    return np.array([[right == "1" for right in string] for string in strings], dtype=float)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of [seeds, items], 95%, over seeds and items."""
    return mean_of_parts(Part(values))


def lead(runs: list[dict], baseline: list[dict], kind: str | None = None) -> tuple[float, float, float]:
    """Lead in group score, paired by seed and item, over the seeds that both have: (lead, low, high)."""
    seeds = {run["seed"] for run in runs} & {run["seed"] for run in baseline}
    a, b = ([run for run in group if run["seed"] in seeds] for group in (runs, baseline))
    return mean_interval(correct(a, kind) - correct(b, kind))


def mean(runs: list[dict], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


def category_rates(runs: list[dict]) -> dict[str, float]:
    """{category: accuracy}, seeds and items pooled."""
    names = sorted({name for run in runs for name in run["categories"]})
    counts = {name: np.sum([run["categories"].get(name, (0, 0)) for run in runs], axis=0) for name in names}
    return {name: float(right / total) for name, (right, total) in counts.items()}


def percent(*values: float) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def score_table(groups: dict[str, list[dict]], kind: str | None) -> str:
    """Markdown: what composition gains and retrieval pays, each seed, and what was encoded."""
    what = f"`{kind}` group" if kind else "group"
    lines = [
        f"| method | paper: SugarCrepe | {what} [95%] | each seed | over LaCLIP [95%] | all kinds: text | image | "
        "group | R@1 | R@5 | steps | encoded | processor seconds |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for label, runs in groups.items():
        values = correct(runs, kind)
        value, low, high = percent(*mean_interval(values))
        over = "–"
        if label != BASELINE and BASELINE in groups:
            gain, gain_low, gain_high = (100 * x for x in lead(runs, groups[BASELINE], kind))
            over = f"{gain:+.1f} [{gain_low:+.1f}, {gain_high:+.1f}]"
        paper = f"{PAPER[label]:.2f}" if label in PAPER else ""
        others = percent(*(mean(runs, name) for name in (*SCORES, "r1", "r5")))
        encoded = mean(runs, "images_seen") + mean(runs, "captions_seen")
        lines.append(
            f"| {label} | {paper} | {value} [{low}, {high}] | {' '.join(percent(*values.mean(1)))} | {over} | "
            f"{' | '.join(others)} | {runs[0]['steps']} | {encoded:,.0f} | "
            f"{mean(runs, 'processor_seconds'):.0f} |"
        )
    return "\n".join(lines)


def category_table(groups: dict[str, list[dict]]) -> str:
    """Markdown: accuracy per kind of hard negative, and the mean over kinds as SugarCrepe's Overall."""
    names = sorted({name for runs in groups.values() for run in runs for name in run["categories"]})
    lines = [f"| method | {' | '.join(names)} | mean |", "|---|" + "--:|" * (len(names) + 1)]
    for label, runs in groups.items():
        rates = category_rates(runs)
        values = percent(*(rates[name] for name in names), statistics.fmean(rates.values()))
        lines.append(f"| {label} | {' | '.join(values)} |")
    return "\n".join(lines)


def ordering(groups: dict[str, list[dict]]) -> str:
    """Table 3's four rows in the order measured here, beside the paper's."""
    rows = [label for label in ("LaCLIP", "NegImage", "NegCLIP++", "TripletCLIP") if label in groups]
    here = sorted(rows, key=lambda label: mean(groups[label], "group"))
    paper = sorted(rows, key=PAPER.get)
    verdict = "the same" if here == paper else "not the same"
    return f"Paper (SugarCrepe): {' < '.join(paper)}. Here (group score): {' < '.join(here)}: {verdict}."


_WORLD = {
    "glyphs": "A picture of the world shows four coloured signs; its caption names them in any order. A fifth of all "
    "pairs of signs never meet in training, and every one of the 2,000 held-out pictures shows such a pair. "
    "`swap_att`: two signs have exchanged their colours, so that both captions have the same words. ",
    "single": "A picture of the world shows one shape on a wall. All 2,000 held-out ones show a combination of "
    "colour and shape that no method saw. ",
}


def page(
    world: str, results: list[dict], groups: dict[str, dict[str, list[dict]]], command: str, notes: str
) -> str:
    """The whole page as Markdown. ``groups``: heading -> label -> the runs of its table."""
    seconds = sum(run["training_seconds"] for run in results)
    parts = [
        f"# The world `{world}`: every method that needs no pretrained tower",
        f"`{command}`  \nCommit {where(results)}; training took {seconds / 60:.0f} minutes of wall time in all, "
        "scoring aside.",
        _WORLD[world] + "A tiny CLIP (timm `test_resnet` at 32 pixels, a two-layer text transformer) is trained on "
        "the same samples by every method. Group score: both images prefer their own caption, and both captions "
        "their own image; ties are wrong. R@k: mean of image-to-text and text-to-image recall among all held-out "
        "pairs. Intervals are 95%, drawn over seeds and items (over items alone where there is one seed). "
        "TripletCLIP++ is not here: it filters generated images by CLIP score, and drawn ones need no filter. "
        "LaCLIP+HN is trained on mined real pairs, as in the paper; the drawn pairs as ordinary pairs have a row of "
        "their own.",
        f"![Group score by method]({world}.png)",
    ]
    for heading, by_method in groups.items():
        if by_method:
            parts += [f"## {heading}", ordering(by_method), score_table(by_method, HEADLINE[world])]
            parts += ["Caption preferred to its hard negative, by what was changed:", category_table(by_method)]
    return "\n\n".join([*parts, notes.strip()]).rstrip() + "\n"


def where(results: list[dict]) -> str:
    """Commit, machine, versions and date of the runs: once where all have the same."""
    return "; ".join(", ".join(dict.fromkeys(run.get(name) or "unknown" for run in results)) for name in WHERE)


def figure(panels_by_heading: dict[str, dict[str, list[dict]]], kind: str | None = None) -> bytes:
    """Group score with intervals and every seed's dot: {heading of a panel: {label: runs}}, as a PNG.

    Two panels in a row.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {heading: groups for heading, groups in panels_by_heading.items() if groups}
    columns, rows_of_panels = min(2, len(shown)), math.ceil(len(shown) / 2)
    most = max(map(len, shown.values()))
    plot, panels = plt.subplots(
        rows_of_panels, columns, figsize=(6.2 * columns, 1.1 + 0.27 * most * rows_of_panels), squeeze=False, sharex=True
    )
    for axis in panels.flat[len(shown) :]:
        axis.remove()
    for axis, (heading, groups) in zip(panels.flat, shown.items()):
        right = {label: correct(runs, kind) for label, runs in groups.items()}
        rows = sorted(groups, key=lambda label: right[label].mean())
        for y, label in enumerate(rows):
            value, low, high = (100 * x for x in mean_interval(right[label]))
            colour = {OURS: "#2a6f97", BASELINE: "#5c6b78"}.get(label, "#a9b7c3")
            axis.barh(y, value, color=colour, height=0.68)
            axis.plot([low, high], [y, y], color="black", linewidth=1.2)
            axis.plot(100 * right[label].mean(1), [y] * len(right[label]), "o", color="white",
                      markeredgecolor="black", markersize=4)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(heading, fontsize=10)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(f"group score{f' on {kind}' if kind else ''}, held-out pictures, percent")
        axis.spines[["top", "right"]].set_visible(False)
    plot.tight_layout()
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=130)
    plt.close(plot)
    return buffer.getvalue()
