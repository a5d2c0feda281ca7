"""Plots of a set's statistics: each function returns one that draws on matplotlib's axes."""

from __future__ import annotations

import numpy as np

from open_clip_triplet.inspect.measure import Looked


def draw_categories(rows: list):
    """Bars of [category, negatives, share] rows."""

    def draw(axes) -> None:
        names, counts, _ = zip(*reversed(rows))
        axes.barh([name.replace("_", " ") for name in names], counts)
        axes.set_xlabel("negative captions")

    return draw


def draw_lengths(looked: Looked):
    """Histograms of the words of captions and of negatives."""

    def draw(axes) -> None:
        top = max((max(v) for v in looked.words.values() if v), default=1)
        for name, values in looked.words.items():
            if values:
                bins = np.arange(0, min(top, 80) + 2) - 0.5
                axes.hist(np.clip(values, 0, 80), bins, density=True, histtype="step", linewidth=1.6, label=name)
        axes.set_xlabel("words")
        axes.set_ylabel("share of samples")
        axes.legend(frameon=False)

    return draw


def draw_resolution(sizes: list):
    """Width and height of each image."""

    def draw(axes) -> None:
        width, height = np.array(sizes).T
        axes.scatter(width, height, s=9, alpha=0.35, linewidths=0)
        axes.set_xlabel("image width, pixels")
        axes.set_ylabel("height")
        axes.set_xlim(0)
        axes.set_ylim(0)

    return draw
