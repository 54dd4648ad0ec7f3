"""Charts as inline SVG: text that can be read and searched, and no more bytes than there is to see.

They are drawn for a width of 360 pixels, that of a telephone, and grow with the page. Colours are
those of Okabe and Ito (2008), which differ without colour vision; dashes and marks differ as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from maskcls.evaluation.reliability import Bin

WIDTH = 360
LEFT, RIGHT, TOP = 42, 10, 10  # pixels around the plot
INK, FAINT, GRID = "#222", "#595959", "#ddd"
STYLES = (
    ("#0072b2", "", "circle"),
    ("#d55e00", "7 4", "square"),
    ("#007a5e", "2 3", "diamond"),
    ("#8a4b78", "10 3 2 3", "circle"),
    ("#222222", "4 4", "square"),
)
"""Colour, dashes and mark of the first, second, … line."""

Point = tuple[float, float]


def line_chart(
    title: str, series: Mapping[str, Sequence[Point]], x_name: str, chosen: float | None = None
) -> str:
    """Lines over a shared axis, such as epochs; `chosen` is marked by an upright line. Points that
    are no numbers are left out."""
    lines = {
        name: [point for point in points if all(map(math.isfinite, point))]
        for name, points in series.items()
    }
    points = [point for line in lines.values() for point in line] or [(0.0, 0.0)]
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), 6, whole=True)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 5)
    # Whole numbers at the edges, so that a single epoch still has a width to stand in.
    x_low, x_high = min(x for x, _ in points) - 0.5, max(x for x, _ in points) + 0.5
    y_low, y_high = y_ticks[0], y_ticks[-1]
    bottom = 200

    def at(x: float, y: float) -> Point:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            bottom - (y - y_low) / (y_high - y_low) * (bottom - TOP),
        )

    parts = []
    for y in y_ticks:
        _, height = at(x_low, y)
        parts.append(_line(LEFT, height, WIDTH - RIGHT, height, GRID))
        parts.append(_text(LEFT - 5, height + 4, f"{y:g}", "end"))
    parts += [
        _text(at(x, y_low)[0], bottom + 16, f"{x:g}") for x in x_ticks if x_low <= x <= x_high
    ]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 32, x_name))
    if chosen is not None:
        across, _ = at(chosen, y_low)
        parts.append(_line(across, TOP, across, bottom, FAINT, dashes="1 3"))
    for (colour, dashes, mark), line in zip(_styles(len(lines)), lines.values(), strict=True):
        placed = [at(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"'
            f' stroke-dasharray="{dashes or "none"}"/>'
        )
        if len(placed) <= 40:  # more would be a band
            parts += [_mark(x, y, colour, mark) for x, y in placed]
    for number, (name, style) in enumerate(zip(lines, _styles(len(lines)), strict=True)):
        x, y = LEFT + number % 2 * 155, bottom + 54 + number // 2 * 18
        parts.append(_line(x, y - 4, x + 26, y - 4, style[0], dashes=style[1], width=2))
        parts.append(_mark(x + 13, y - 4, style[0], style[2]))
        parts.append(_text(x + 32, y, name, "start"))
    rows = math.ceil(len(lines) / 2)
    return _svg(title, bottom + 42 + 18 * rows, parts)


def reliability_chart(title: str, bins: Sequence[Bin]) -> str:
    """The share of right answers over their confidence, a dashed line where both are equal, and
    below how many pictures each bar stands for."""
    side = WIDTH - LEFT - RIGHT
    bottom, strip = TOP + 240, 44

    def across(value: float) -> float:
        return LEFT + value * side

    def height(value: float) -> float:
        return bottom - value * (bottom - TOP)

    parts = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(LEFT, height(value), WIDTH - RIGHT, height(value), GRID))
        parts.append(_text(LEFT - 5, height(value) + 4, f"{value:.0%}", "end"))
    most = max((each.count for each in bins), default=0) or 1
    base = bottom + 10 + strip
    for each in bins:
        x, width = across(each.low) + 1, side * (each.high - each.low) - 2
        if each.count:
            told = (
                f"confidence {each.low:.0%} to {each.high:.0%}: {each.accuracy:.0%} right, "
                f"mean confidence {each.confidence:.0%}, {each.count} pictures"
            )
            parts.append(_bar(x, height(each.accuracy), width, bottom, STYLES[0][0], told))
            tall = max(1.0, strip * each.count / most)
            parts.append(_bar(x, base - tall, width, base, "#8c8c8c", f"{each.count} pictures"))
    parts.append(
        _line(across(0), height(0), across(1), height(1), STYLES[1][0], dashes="6 4", width=2)
    )
    parts.append(_line(LEFT, base, WIDTH - RIGHT, base, FAINT))
    parts.append(_text(LEFT - 5, base - strip + 10, f"{most}", "end"))
    parts.append(_text(LEFT - 5, base, "0", "end"))
    parts += [_text(across(v), base + 16, f"{v:.0%}") for v in (0, 0.25, 0.5, 0.75)]
    parts.append(_text(across(1), base + 16, "100%", "end"))
    parts.append(_text(across(0.5), base + 32, "confidence; below it, pictures"))
    return _svg(title, base + 40, parts)


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them."""
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):  # steps are told to 12 digits
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _styles(count: int) -> list[tuple[str, str, str]]:
    return [STYLES[number % len(STYLES)] for number in range(count)]


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    # In HTML an inline SVG needs no name space.
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "", width: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        f' stroke-width="{width}" stroke-dasharray="{dashes or "none"}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'
    )


def _bar(x: float, top: float, width: float, bottom: float, colour: str, told: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}"'
        f' fill="{colour}"><title>{escape(told)}</title></rect>'
    )


def _mark(x: float, y: float, colour: str, kind: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind == "diamond" else ""
    return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="{colour}"{turn}/>'
