"""Charts of a page: SVG in the colours of the page, whose script shows the values under the pointer.

Without script each curve still has its name as a tooltip. Nothing here needs matplotlib.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dctps.analysis import style as look

# Of a chart, in its own units; on a wide screen a unit is a pixel.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480.0, 300.0, 50.0, 10.0, 12.0, 44.0
_ROW = 24.0  # height of a line of `dots`
_LETTER = 9.0  # width of one on a phone, where letters are larger beside the chart
_FEW = 30  # points of a curve that are marked
# Variables of the page's style, since a dark page needs other shades.
COLORS = {
    look.BLACK: "ink", "#404040": "ink", "#808080": "grey", look.ORANGE: "orange", look.SKY: "sky",
    look.GREEN: "green", look.BLUE: "blue", look.RED: "red", look.PURPLE: "purple",
}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A value at a place, in the units of the axes; `spread` is one standard deviation, `tip` its words."""

    x: float
    y: float
    tip: str
    spread: float = 0.0


Ticks = Sequence[tuple[float, str]]


def lines(
    curves: Mapping[str, Sequence[Mark]],
    levels: Mapping[str, Mark],
    *,
    x_label: str,
    y_label: str,
    ticks: Ticks,
    log: bool,
    description: str,
) -> str:
    """Curves, by the names of methods; `levels` are drawn all through.

    Args:
        curves: each from left to right, with at least one mark.
        levels: as of the dense network, which has no density; their x is not used.
        x_label: below the axis.
        y_label: above the other.
        ticks: places on the x axis with their words, of which those with room are shown.
        log: whether x is logarithmic.
        description: of the whole, for who cannot see it.
    """
    warp: Callable[[float], float] = math.log10 if log else float
    places = [warp(mark.x) for marks in curves.values() for mark in marks] + [warp(at) for at, _ in ticks]
    low, high = (min(places), max(places)) if places else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    everything = [*levels.values(), *(mark for marks in curves.values() for mark in marks)]
    values = [value for mark in everything for value in (mark.y - mark.spread, mark.y + mark.spread)]
    heights = _round_ticks(min(values), max(values))
    bottom, top = heights[0], heights[-1]

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (warp(x) - low + margin) / (high - low + 2 * margin)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (y - bottom) / (top - bottom)

    parts = [_line(_LEFT, up(y), _WIDTH - _RIGHT, up(y), "grid") for y in heights]
    parts += [_text(_LEFT - 6, up(y) + 4, f"{y:g}", "end") for y in heights]
    free = -math.inf
    for at, word in sorted(ticks):
        half = _LETTER * len(word) / 2
        parts.append(_line(across(at), _HEIGHT - _BOTTOM, across(at), _HEIGHT - _BOTTOM + 4, "axis"))
        if across(at) - half >= free:
            middle = min(across(at), _WIDTH - half)  # the last one stays within
            parts.append(_text(middle, _HEIGHT - _BOTTOM + 18, word, "middle"))
            free = middle + half + 4
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, x_label, "middle"))
    for name, mark in levels.items():
        ends = [(_LEFT, up(mark.y)), (_WIDTH - _RIGHT, up(mark.y))]
        third = ((_LEFT + _WIDTH - _RIGHT) / 2, up(mark.y))
        parts.append(_curve(name, [ends[0], third, ends[1]], [mark.tip] * 3, marked=False))
    for name, marks in curves.items():
        points = [(across(mark.x), up(mark.y)) for mark in marks]
        bars = [_line(*p, *q, "bar") for mark in marks if mark.spread for p, q in [_bar(mark, across, up)]]
        parts.append(_curve(name, points, [mark.tip for mark in marks], len(points) <= _FEW, "".join(bars)))
    return _figure(parts, _HEIGHT, y_label, description, [*levels, *curves])


def dots(rows: Mapping[str, Mark], *, x_label: str, description: str) -> str:
    """A line for each method, with its value along it: for runs of a single density. `y` is not used."""
    height = _ROW * len(rows) + _TOP + _BOTTOM
    left = _LETTER * max(len(look.style(name).label) for name in rows) + 16
    values = [value for mark in rows.values() for value in (mark.x - mark.spread, mark.x + mark.spread)]
    ticks = _round_ticks(min(values), max(values))

    def across(x: float) -> float:
        return left + (_WIDTH - left - 2 * _RIGHT) * (x - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [_line(across(x), _TOP, across(x), height - _BOTTOM, "grid") for x in ticks]
    parts += [_text(across(x), height - _BOTTOM + 18, f"{x:g}", "middle") for x in ticks]
    parts.append(_text((left + _WIDTH) / 2, height - 6, x_label, "middle"))
    for index, (name, mark) in enumerate(rows.items()):
        y = _TOP + _ROW * (index + 0.5)
        parts.append(_text(left - 8, y + 4, look.style(name).label, "end"))
        bar = _line(across(mark.x - mark.spread), y, across(mark.x + mark.spread), y, "bar")
        spread = bar if mark.spread else ""
        if not look.style(name).marker:  # a line alone would not be seen
            spread += f'<circle class="mark" cx="{across(mark.x):.1f}" cy="{y:.1f}" r="3.5"/>'
        parts.append(_curve(name, [(across(mark.x), y)], [mark.tip], True, spread))
    return _figure(parts, height, "", description, [])


def _bar(
    mark: Mark, across: Callable[[float], float], up: Callable[[float], float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    return (across(mark.x), up(mark.y - mark.spread)), (across(mark.x), up(mark.y + mark.spread))


def _figure(parts: Sequence[str], height: float, y_label: str, description: str, names: Sequence[str]) -> str:
    above = f"<figcaption>{html.escape(y_label)}</figcaption>" if y_label else ""
    keys = "".join(f"<li>{_key(name)}{html.escape(look.style(name).label)}</li>" for name in names)
    return (
        f'<figure>{above}<svg class="chart" role="img" aria-label="{html.escape(description)}" '
        f'viewBox="0 0 {_WIDTH:g} {height:g}">{"".join(parts)}<circle class="spot" r="6"/></svg>'
        f'<div class="tip" hidden></div>{f"<ul class=keys>{keys}</ul>" if keys else ""}</figure>'
    )


def _key(name: str) -> str:
    """A piece of a curve, for the legend."""
    return (
        f'<svg class="key" viewBox="0 0 32 12" aria-hidden="true"><g {_paint(name)}>'
        f'<polyline points="0,6 32,6"/>{_symbol(name, 16, 6)}</g></svg>'
    )


def _curve(
    name: str, points: Sequence[tuple[float, float]], tips: Sequence[str], marked: bool, bars: str = ""
) -> str:
    label = look.style(name).label
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    said = html.escape(json.dumps([f"{label}: {tip}" for tip in tips], ensure_ascii=False))
    marks = "".join(_symbol(name, x, y) for x, y in points) if marked else ""
    return (
        f'<g class="curve" {_paint(name)} data-tips="{said}"><title>{html.escape(label)}</title>'
        f'{bars}<polyline points="{at}"/>{marks}</g>'
    )


def _paint(name: str) -> str:
    own = look.style(name)
    line = {"-": "", "--": "6 3", "-.": "6 3 1.5 3", ":": "1.5 2.5"}
    dash = line[own.line] if isinstance(own.line, str) else " ".join(f"{part:g}" for part in own.line[1])
    color = COLORS.get(own.color, "ink")
    return f'style="--own: var(--{color})"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _symbol(name: str, x: float, y: float) -> str:
    """The method's marker; those of lines alone are crosses."""
    own = look.style(name)
    sides = {"s": (4, 45), "D": (4, 0), "d": (4, 0), "^": (3, -90), "v": (3, 90), "<": (3, 180), ">": (3, 0)}
    sides |= {"p": (5, -90), "h": (6, 0), "P": (4, 45), "*": (5, -90)}
    kind = "mark" if own.filled else "mark open"
    if own.marker in sides:
        n, turn = sides[own.marker]
        angles = [math.radians(turn + 360 * k / n) for k in range(n)]
        at = " ".join(f"{x + 5 * math.cos(a):.1f},{y + 5 * math.sin(a):.1f}" for a in angles)
        return f'<polygon class="{kind}" points="{at}"/>'
    if own.marker in ("x", "X", "+"):
        a, b = (4, 0) if own.marker == "+" else (3, 3)
        strokes = (f"M{x - u:.1f},{y - v:.1f}L{x + u:.1f},{y + v:.1f}" for u, v in ((a, b), (-b, a)))
        return f'<path class="mark" d="{"".join(strokes)}"/>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' if own.marker else ""


def _line(x: float, y: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, word: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(word)}</text>'


def _round_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers, the first not above `low`, the last not below `high`."""
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]
