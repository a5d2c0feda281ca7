"""Plots as SVG by matplotlib, in the colours of the page around them.

Every colour is a CSS variable of the page (``--ink``, ``--soft``, ``--line``, ``--s0`` ... ``--s7``), so that
a plot follows its light or dark theme. matplotlib knows no CSS, so it draws in stand-in colours, which are
replaced in the text that it writes. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

SERIES = 8
#: stand-in colour -> CSS variable
_INK, _SOFT, _LINE = "#00fe10", "#00fe11", "#00fe12"
_VARIABLES = {_INK: "ink", _SOFT: "soft", _LINE: "line"} | {f"#00fe0{i}": f"s{i}" for i in range(SERIES)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read, searched and copied
    "svg.hashsalt": "open_clip_triplet",  # the same page for the same results
    "text.parse_math": False,  # a checkpoint may be called $x$
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 8,
    "lines.linewidth": 1.8,
}
_numbers = count()


def colour(index: int) -> str:
    """The stand-in colour of a series."""
    return f"#00fe0{index % SERIES}"


def _draw(size: tuple[float, float], draw, columns: int = 1, **axes_options: Any) -> str:
    """An SVG element of a figure that ``draw(axes)`` draws on; sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size)
        axes = figure.subplots(1, columns, squeeze=False, subplot_kw=axes_options or None)[0]
        draw(*axes)
        figure.subplots_adjust(wspace=0.3)
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.04,
            transparent=True,
            metadata={"Date": None},
        )
    return _themed(stream.getvalue())


def _themed(svg: str) -> str:
    """The SVG element alone, in CSS variables, with ids that no other plot of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    own = f"p{next(_numbers)}-"
    svg = re.sub(r'\b(id=")|(xlink:href="#|url\(#)', lambda found: found[0] + own, svg)
    svg = svg.replace("xlink:href", "href")
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg


def bars(
    categories: Sequence[str],
    series: Sequence[Sequence[tuple | None]],
    chance: float | None = None,
) -> str:
    """Horizontal bars with intervals, one group per category and one bar per series.

    Args:
        series: per series, per category (value, low, high) in 0..100, or None.
        chance: where to draw the line of guessing, or None.
    """
    step = len(series) + 0.8
    height = 0.165 * step * len(categories) + 0.35

    def draw(axes) -> None:
        for s, values in enumerate(series):
            for c, numbers in enumerate(values):
                if numbers is not None:
                    _bar(axes, c * step + s, numbers, colour(s))
        if chance is not None:
            axes.axvline(chance, color=_SOFT, linestyle=(0, (4, 3)), linewidth=1, zorder=0.9)
        axes.set_yticks([c * step + (len(series) - 1) / 2 for c in range(len(categories))], categories)
        axes.tick_params(length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 100)
        axes.set_ylim(len(categories) * step - 1, -0.8)
        axes.spines["bottom"].set_visible(False)

    return _draw((5.2, height), draw)


def _bar(axes, y: float, numbers: tuple, shade: str) -> None:
    """A bar, its interval, and its value to the right of both."""
    value, low, high = numbers
    axes.barh(y, max(value, 0.2), height=0.86, color=shade)
    if high > low:
        axes.hlines(y, low, high, color=_INK, linewidth=1.2)
    axes.annotate(
        f"{value:.1f}",
        (max(value, high), y),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=_SOFT,
        annotation_clip=False,
    )


def radar(axes_names: Sequence[str], series: Sequence[Sequence[float | None]]) -> str:
    """One polygon per series over at least three axes, each axis 0..100 from the centre."""
    angles = [2 * math.pi * i / len(axes_names) for i in range(len(axes_names))]

    def draw(axes) -> None:
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for s, values in enumerate(series):
            known = [(angle, value) for angle, value in zip(angles, values) if value is not None]
            if known:
                closed = [*known, known[0]]
                axes.plot(*zip(*closed), color=colour(s), marker="o", markersize=3)
                axes.fill(*zip(*known), color=colour(s), alpha=0.2 / len(series), linewidth=0)
        axes.set_xticks(angles, axes_names)
        axes.set_ylim(0, 100)
        axes.set_yticks([25, 50, 75, 100], ["", "50", "", "100"], fontsize=7)
        axes.yaxis.set_tick_params(labelcolor=_SOFT)
        axes.xaxis.set_tick_params(labelcolor=_INK, pad=6)
        for label, angle in zip(axes.get_xticklabels(), angles):
            side = math.sin(angle)
            label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
        axes.spines["polar"].set_color(_LINE)

    return _draw((3.5, 3.5), draw, projection="polar")


def histograms(edges: Sequence[float], series: Sequence[Sequence[int]]) -> str:
    """Step histograms as shares of each series' own total; empty ends are cut off."""
    shares = [[100 * number / max(sum(numbers), 1) for number in numbers] for numbers in series]
    used = [i for i in range(len(edges) - 1) if any(share[i] for share in shares)] or [0]
    first, last = max(0, used[0] - 1), min(len(edges) - 2, used[-1] + 1)

    def draw(axes) -> None:
        for s, share in enumerate(shares):
            if any(share):
                part, ends = share[first : last + 1], edges[first : last + 2]
                axes.stairs(part, ends, color=colour(s), linewidth=1.5)
                axes.stairs(part, ends, color=colour(s), fill=True, alpha=0.15)
        axes.set_xlabel("cosine similarity")
        axes.set_ylabel("share of samples, %")
        axes.set_xlim(edges[first], edges[last + 1])
        axes.set_ylim(0)

    return _draw((5, 2.2), draw)


def pareto(
    points: Sequence[tuple[str, float, float, bool, int | None]],
    up_name: str = "composition",
    right_name: str = "retention",
) -> str:
    """Composition (up) against retention (right); the front is joined by a line.

    Args:
        points: (name, composition, retention, on the front, index of its colour), values in percent. Without
            a colour a point is small and grey, and named on the front alone.
        up_name, right_name: what the axes show.
    """

    def draw(axes) -> None:
        front = sorted((p[2], p[1]) for p in points if p[3])
        if front:
            axes.plot(*zip(*front), color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for _, up, right, _, index in points:
            shade, size = (_SOFT, 4) if index is None else (colour(index), 7)
            alpha = 0.45 if index is None else 1
            axes.plot([right], [up], "o", color=shade, markersize=size, alpha=alpha, markeredgewidth=0, zorder=2)
        axes.margins(0.16, 0.16)
        _label_points(axes, [point for point in points if point[3] or point[4] is not None])
        axes.set_xlabel(f"{right_name}, %")
        axes.set_ylabel(f"{up_name}, %")

    return _draw((5, 3.4), draw)


def _label_points(axes, points: Sequence[tuple]) -> None:
    """Names right of their points, pushed up where they would stand on a name that is there."""
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    line, letter = (high - low) * 0.055, (right - left) * 0.0155
    placed: list[tuple[float, float, float]] = []
    for name, up, across, *_ in sorted(points, key=lambda p: p[1]):
        text = name if len(name) <= 40 else f"{name[:39]}…"
        end, y = across + letter * (len(text) + 2), up
        for other_y, start, stop in sorted(placed):
            if abs(y - other_y) < line and across < stop and start < end:
                y = other_y + line
        placed.append((y, across, end))
        axes.annotate(
            text,
            (across, y),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )


def lines(panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]]) -> str:
    """One panel per score, one line per method: Figure 3.

    Args:
        panels: (title, method -> [(number of concepts, value in percent), ...]).
    """
    methods = list(dict.fromkeys(method for _, series in panels for method in series))

    def draw(*axes) -> None:
        for panel, (title, series) in zip(axes, panels):
            for method, points in series.items():
                s = methods.index(method)
                panel.plot(*zip(*points), color=colour(s), marker="os^Dvp*X"[s % SERIES], markersize=5)
            panel.set_title(title, fontsize=9, color=_INK)
            panel.set_xlabel("unique concepts")
            panel.xaxis.set_major_formatter(
                lambda value, _: f"{value:g}" if value < 1e4 else f"{value / 1e3:g}k"
            )

    return _draw((3.1 * len(panels), 2.5), draw, columns=len(panels))
