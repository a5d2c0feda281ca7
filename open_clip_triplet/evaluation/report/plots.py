"""Plots as SVG text, drawn by hand: no library to import, no script, sharp at any size.

Colours are CSS variables ``--s0`` ... ``--s7`` of the page, so that a plot follows its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

SERIES = 8


def colour(index: int) -> str:
    """The CSS colour of a series."""
    return f"var(--s{index % SERIES})"


def legend(names: Sequence[str]) -> str:
    """A legend as HTML, one entry per series."""
    marks = (
        f'<span class="key"><i style="background:{colour(i)}"></i>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(marks)}</p>'


def _svg(width: float, height: float, label: str, body: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def bars(
    categories: Sequence[str],
    series: Sequence[Sequence[tuple | None]],
    names: Sequence[str],
    label: str,
    chance: float | None = None,
) -> str:
    """Horizontal bars with intervals, one group per category and one bar per series.

    Args:
        series: per series, per category (value, low, high) in 0..100, or None.
        chance: where to draw the line of guessing, or None.
    """
    left, width, bar, gap = 158, 550, 13, 12
    group = bar * len(series) + gap
    height = group * len(categories) + 30
    scale = (width - left - 60) / 100
    body = [_line(left + v * scale, 4, left + v * scale, height - 24, "grid") for v in range(0, 101, 20)]
    body += [_text(left + v * scale, height - 8, f"{v}", "middle", "tick") for v in range(0, 101, 20)]
    if chance is not None:
        body.append(_line(left + chance * scale, 4, left + chance * scale, height - 24, "chance"))
    for c, category in enumerate(categories):
        top = 6 + c * group
        body.append(_text(left - 8, top + bar * len(series) / 2 + 4, category, "end"))
        for s, values in enumerate(series):
            if values[c] is None:
                continue
            value, low, high = values[c]
            y = top + s * bar
            title = f"{names[s]}, {category}: {value:.2f} [{low:.2f}, {high:.2f}]"
            body.append(
                f'<g><title>{escape(title)}</title><rect x="{left}" y="{y:.1f}" rx="1.5" '
                f'width="{max(value, 0.2) * scale:.1f}" height="{bar - 2}" fill="{colour(s)}"/>'
            )
            middle = y + (bar - 2) / 2
            body.append(_line(left + low * scale, middle, left + high * scale, middle, "whisker") + "</g>")
            body.append(
                _text(left + max(high, value) * scale + 5, y + bar - 4, f"{value:.1f}", "start", "value")
            )
    return _svg(width, height, label, body)


def radar(
    axes: Sequence[str], series: Sequence[Sequence[float | None]], names: Sequence[str], label: str
) -> str:
    """One polygon per series over at least three axes, each axis 0..100 from the centre."""
    width, height, radius = 550, 370, 128
    cx, cy = width / 2, height / 2

    def point(axis: int, value: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / len(axes) - math.pi / 2
        return cx + radius * value / 100 * math.cos(angle), cy + radius * value / 100 * math.sin(angle)

    def ring(value: float) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (point(a, value) for a in range(len(axes))))

    body = [f'<polygon points="{ring(v)}" class="ring"/>' for v in (25, 50, 75, 100)]
    for a, axis in enumerate(axes):
        body.append(_line(cx, cy, *point(a, 100), "grid"))
        x, y = point(a, 112)
        anchor = "middle" if abs(x - cx) < 20 else ("start" if x > cx else "end")
        body.append(_text(x, y + 4, axis, anchor))
    body += [_text(cx + 4, cy - radius * v / 100 + 4, str(v), "start", "tick") for v in (50, 100)]
    for s, values in enumerate(series):
        known = [point(a, v) for a, v in enumerate(values) if v is not None]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in known)
        body.append(
            f'<polygon points="{points}" fill="{colour(s)}" fill-opacity=".12" stroke="{colour(s)}" '
            f'stroke-width="2"><title>{escape(names[s])}</title></polygon>'
        )
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour(s)}"/>' for x, y in known]
    return _svg(width, height, label, body)


def histograms(
    edges: Sequence[float], series: Sequence[Sequence[int]], names: Sequence[str], label: str
) -> str:
    """Step histograms as shares of each series' own total; empty ends are cut off."""
    shares = [[count / max(sum(counts), 1) for count in counts] for counts in series]
    used = [i for i in range(len(edges) - 1) if any(share[i] for share in shares)] or [0]
    first, last = max(0, used[0] - 1), min(len(edges) - 2, used[-1] + 1)
    width, height, left, bottom = 550, 240, 44, 36
    top = max(share[i] for share in shares for i in range(first, last + 1)) or 1
    span = edges[last + 1] - edges[first]

    def x(value: float) -> float:
        return left + (value - edges[first]) / span * (width - left - 22)

    def y(share: float) -> float:
        return height - bottom - share / top * (height - bottom - 14)

    body = [_line(left, y(0), width - 22, y(0), "axis")]
    step = max(1, (last + 1 - first) // 6)
    body += [
        _text(x(edges[i]), height - bottom + 16, f"{edges[i]:.2f}", "middle", "tick")
        for i in range(first, last + 2, step)
    ]
    body += [
        _text(left - 6, y(top) + 4, f"{100 * top:.0f}%", "end", "tick"),
        _text(left - 6, y(0), "0", "end", "tick"),
    ]
    body.append(_text((left + width) / 2, height - 4, "cosine similarity", "middle", "tick"))
    for s, share in enumerate(shares):
        corners = [(x(edges[first]), y(0))]
        for i in range(first, last + 1):
            corners += [(x(edges[i]), y(share[i])), (x(edges[i + 1]), y(share[i]))]
        corners.append((x(edges[last + 1]), y(0)))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
        body.append(
            f'<polygon points="{points}" fill="{colour(s)}" fill-opacity=".18" stroke="{colour(s)}" '
            f'stroke-width="1.5"><title>{escape(names[s])}</title></polygon>'
        )
    return _svg(width, height, label, body)
