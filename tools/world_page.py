"""The reproduction's page: tables, csv and plot from ``results/*.json``."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

from world_runs import SCORES

#: SugarCrepe on CC3M in the paper (Table 3; Tables 4 and 15 for the others, Table 15 at batch 512)
PAPER = {
    "LaCLIP": 54.09, "NegImage": 56.28, "NegCLIP++": 61.69, "TripletCLIP": 63.49, "LaCLIP+HN": 53.92,
    "NegCLIP": 57.18, "CyCLIP": 54.62, "CyCLIP+TripletLoss": 58.64,
}
BASELINE, OURS = "LaCLIP", "TripletCLIP"
Z = 1.959963984540054


def by_label(results: list[dict]) -> dict[str, list[dict]]:
    """{label: its runs, in order of seed}, in the order of the paper's table."""
    found = {label: [r for r in results if r["label"] == label] for label in PAPER}
    return {label: sorted(runs, key=lambda r: r["seed"]) for label, runs in found.items() if runs}


def item_means(runs: list[dict]) -> np.ndarray:
    """[items] share of the seeds that get an item's group score right."""
    return np.mean([[int(right) for right in run["group_correct"]] for run in runs], axis=0)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) over items, 95%, normal approximation."""
    half = Z * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def lead(runs: list[dict], baseline: list[dict]) -> tuple[float, float, float]:
    """Lead in group score, paired by item, over the seeds that both have: (lead, low, high)."""
    seeds = {run["seed"] for run in runs} & {run["seed"] for run in baseline}
    a, b = ([run for run in group if run["seed"] in seeds] for group in (runs, baseline))
    return mean_interval(item_means(a) - item_means(b))


def mean(runs: list[dict], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


def category_rates(runs: list[dict]) -> dict[str, float]:
    """{category: accuracy}, seeds and items pooled."""
    names = sorted({name for run in runs for name in run["categories"]})
    counts = {name: np.sum([run["categories"].get(name, (0, 0)) for run in runs], axis=0) for name in names}
    return {name: float(right / total) for name, (right, total) in counts.items()}


def percent(*values: float) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def score_table(groups: dict[str, list[dict]]) -> str:
    """Markdown: scores, intervals, each seed, the lead over the baseline, and what was encoded."""
    lines = [
        "| method | paper: SugarCrepe | text | image | group [95%] | each seed | over LaCLIP [95%] | R@5 | "
        "steps | encoded |",
        "|---|--:|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for label, runs in groups.items():
        value, low, high = percent(*mean_interval(item_means(runs)))
        over = "–"
        if label != BASELINE and BASELINE in groups:
            gain, gain_low, gain_high = (100 * x for x in lead(runs, groups[BASELINE]))
            over = f"{gain:+.1f} [{gain_low:+.1f}, {gain_high:+.1f}]"
        text, image = percent(mean(runs, "text"), mean(runs, "image"))
        seeds = " ".join(percent(*(run["group"] for run in runs)))
        encoded = mean(runs, "images_seen") + mean(runs, "captions_seen")
        lines.append(
            f"| {label} | {PAPER[label]:.2f} | {text} | {image} | {value} [{low}, {high}] | {seeds} | {over} | "
            f"{100 * mean(runs, 'r5'):.1f} | {runs[0]['steps']} | {encoded:,.0f} |"
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


def page(results: list[dict], budgets: dict[str, list[dict]], command: str, notes: str) -> str:
    """The whole page as Markdown. ``budgets``: heading -> the results of its table."""
    seconds = sum(run["training_seconds"] for run in results)
    parts = [
        "# Shape world: every method that needs no pretrained tower",
        f"`{command}`  \n{_where()}; training took {seconds / 60:.0f} minutes in all, "
        "scoring aside.",
        "A tiny CLIP (timm `test_resnet` at 32 pixels, a two-layer text transformer) is trained on 20,000 "
        "samples and scored on 2,000 held-out ones, which all show a combination of colour and shape that "
        "no method saw. Group score: both images prefer their own caption, and both captions their own "
        "image; ties are wrong. Intervals are 95%, over the held-out items with the seeds averaged (so "
        "they say nothing about further seeds; each seed is printed). TripletCLIP++ is not here: it filters "
        "generated images by CLIP score, and rendered ones need no filter.",
        "![Group score by method](shapes.png)",
    ]
    for heading, chosen in budgets.items():
        groups = by_label(chosen)
        if groups:
            parts += [f"## {heading}", ordering(groups), score_table(groups)]
            parts += ["Caption preferred to its hard negative, by what was changed:", category_table(groups)]
    return "\n\n".join([*parts, notes.strip()]).rstrip() + "\n"


def _where() -> str:
    """Commit, machine, versions and date."""
    import open_clip
    import torch

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        return found.stdout.strip()

    changed = " with local changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    names = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return (
        f"Commit {git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}; {os.cpu_count()} cores, {cpu}; "
        f"open_clip {open_clip.__version__}, torch {torch.__version__}; {time.strftime('%Y-%m-%d')}"
    )


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""


def table_csv(results: list[dict]) -> str:
    """One line per run."""
    names = sorted({name for run in results for name in run["categories"]})
    fields = ["label", "seed", "steps", *SCORES, "r5", "items", "images_seen", "captions_seen",
              "training_seconds"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*fields, *names])
    for run in results:
        rates = [run["categories"][name][0] / run["categories"][name][1] for name in names]
        writer.writerow([run.get(name, "") for name in fields] + [f"{rate:.4f}" for rate in rates])
    return file.getvalue()


def figure(panels_by_heading: dict[str, dict[str, list[dict]]]) -> bytes:
    """Group score with intervals and every seed's dot: {heading of a panel: {label: runs}}, as a PNG.

    Two panels in a row.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {heading: groups for heading, groups in panels_by_heading.items() if groups}
    columns, rows_of_panels = min(2, len(shown)), math.ceil(len(shown) / 2)
    plot, panels = plt.subplots(
        rows_of_panels, columns, figsize=(6.2 * columns, 3.6 * rows_of_panels), squeeze=False, sharex=True
    )
    for axis in panels.flat[len(shown) :]:
        axis.remove()
    for axis, (heading, groups) in zip(panels.flat, shown.items()):
        rows = sorted(groups, key=lambda label: mean(groups[label], "group"))
        for y, label in enumerate(rows):
            value, low, high = (100 * x for x in mean_interval(item_means(groups[label])))
            colour = {OURS: "#2a6f97", BASELINE: "#5c6b78"}.get(label, "#a9b7c3")
            axis.barh(y, value, color=colour, height=0.68)
            axis.plot([low, high], [y, y], color="black", linewidth=1.2)
            axis.plot([100 * run["group"] for run in groups[label]], [y] * len(groups[label]), "o",
                      color="white", markeredgecolor="black", markersize=4)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(heading, fontsize=10)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("group score on held-out combinations, percent")
        axis.spines[["top", "right"]].set_visible(False)
    plot.tight_layout()
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=130)
    plt.close(plot)
    return buffer.getvalue()
