"""SVG by hand: scales, and a plot that fills any width while its text keeps its size.

Places are per cent of the plotting area, so that a page needs no script to fit a phone or paper: lines lie in a
nested picture that is stretched without their strokes, text and marks beside it are not stretched. Colours and
line styles are the page's classes (page.css).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]

MOST_POINTS = 100
"""Of a drawn line; more are thinned to their extremes."""
_FEWEST_TICKS = 3
_STRETCHED = 1000
"""Units of the stretched picture in each direction."""


def tag(name: str, attributes: Mapping[str, object], *children: str) -> Markup:
    """One element; what is not Markup already is escaped."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key, value)
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


@dataclass(frozen=True)
class Scale:
    """Numbers → 0 … 100 per cent, evenly or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; beyond the ends outside of 0 … 100."""
        low, high, value = map(self._even, (self.low, self.high, value))
        return 100 * (value - low) / (high - low)

    def shows(self, value: float) -> bool:
        """Whether the value can be drawn at all."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self) -> list[float]:
        """A few round numbers between the ends."""
        return _log_ticks(self.low, self.high) if self.log else _even_ticks(self.low, self.high)

    def _even(self, value: float) -> float:
        return math.log10(value) if self.log else value


def scale_of(values: Iterable[float], *, log: bool = False, margin: float = 0.04) -> Scale | None:
    """From the least to the greatest value with a margin at both ends; None without a value to draw."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not known:
        return None
    low, high = min(known), max(known)
    if log:
        if high / low < 1.2:
            low, high = low / 1.5, high * 1.5
        spread = (high / low) ** margin
        return Scale(low / spread, high * spread, log=True)
    spread = (high - low) or max(abs(high), 1.0) * 0.1
    return Scale(low - margin * spread, high + margin * spread)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * (len(points) - 2) / (most - 2))
    kept = [points[0]]
    for start in range(1, len(points) - 1, size):
        stretch = points[start : min(start + size, len(points) - 1)]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


class Plot:
    """A plotting area with axes, filled piece by piece."""

    def __init__(self, x: Scale, y: Scale, *, x_name: str, percent: bool = False) -> None:
        """`percent` writes the y axis of shares as percentages."""
        self._x, self._y = x, y
        self._percent = percent
        self._back = [*self._grid(), _text(50, 100, x_name, "name", dy="2.6em")]
        self._lines: list[Markup] = []
        self._front: list[Markup] = []

    def line(self, points: Sequence[Point], style: str, trial: str | None = None) -> None:
        """A line through the points; `style` names classes, `trial` what a pointed-at row lights up."""
        seen = [(x, y) for x, y in points if self._y.shows(y)]
        if not seen:
            return
        unit = _STRETCHED / 100
        places = " ".join(
            f"{self._x.at(x) * unit:.0f},{_STRETCHED - self._y.at(y) * unit:.0f}"
            for x, y in thinned(seen if len(seen) > 1 else seen * 2)
        )
        attributes = {"class": f"line {style}", "points": places, "data-trial": trial}
        self._lines.append(tag("polyline", attributes))

    def mark(
        self, point: Point, shape: str, style: str = "", title: str = "", trial: str | None = None
    ) -> None:
        """One of the page's shapes (`complete`, `pruned`, …) at a point, with words on hovering."""
        x, y = point
        if not (self._x.shows(x) and self._y.shows(y)):
            return
        attributes = {
            "href": f"#mark-{shape}",
            "x": f"{self._x.at(x):.2f}%",
            "y": f"{100 - self._y.at(y):.2f}%",
            "class": f"mark {shape} {style}".strip(),
            "data-trial": trial,
        }
        self._front.append(tag("use", attributes, *([tag("title", {}, title)] if title else [])))

    def rule(self, x: float, name: str) -> None:
        """A vertical rule with its name, if any, on top."""
        at = self._x.at(x)
        self._back.append(_segment((at, 0), (at, 100), "rule"))
        if name:
            self._back.append(_text(at, 0, name, "x", dy="-.5em"))

    def labels(self, named: Iterable[tuple[float, str, str]], height_em: float) -> None:
        """Names at the right-hand end of lines, (y, name, style) each, moved apart where they would touch."""
        apart = 100 * 1.25 / height_em
        below = -math.inf
        for place, name, style in sorted(
            (100 - self._y.at(y), name, style) for y, name, style in named if self._y.shows(y)
        ):
            below = max(place, below + apart)
            self._front.append(_text(100, below, name, f"label {style}", dx="8", dy=".35em"))

    def names(self, named: Iterable[tuple[Point, str]], apart: Point) -> None:
        """Names above points; none within `apart`, per cent of width and height, of one that stands there already."""
        taken: list[Point] = []
        for (x, y), name in named:
            place = self._x.at(x), 100 - self._y.at(y)
            if any(
                abs(place[0] - left) < apart[0] and abs(place[1] - top) < apart[1]
                for left, top in taken
            ):
                continue
            taken.append(place)
            self._front.append(_text(*place, name, "label front", dy="-.7em"))

    def svg(self, described: str, size: str = "") -> Markup:
        """The picture; `described` is read in its place, `size` a class for its height."""
        stretched = {
            "viewBox": f"0 0 {_STRETCHED} {_STRETCHED}",
            "preserveAspectRatio": "none",
            "width": "100%",
            "height": "100%",
        }
        attributes = {"class": f"plot {size}".strip(), "role": "img", "aria-label": described}
        lines = tag("svg", stretched, *self._lines)
        return tag("svg", attributes, *self._back, lines, *self._front)

    def _grid(self) -> list[Markup]:
        parts = [_segment((0, 100), (100, 100), "axis")]
        ticks = self._y.ticks()
        for value, name in zip(ticks, tick_names(ticks, percent=self._percent), strict=True):
            at = 100 - self._y.at(value)
            parts.append(_segment((0, at), (100, at), "grid"))
            parts.append(_text(0, at, name, "tick y", dx="-8", dy=".35em"))
        ticks = self._x.ticks()
        for value, name in zip(ticks, tick_names(ticks), strict=True):
            parts.append(_text(self._x.at(value), 100, name, "tick x", dy="1.3em"))
        return parts


def tick_names(ticks: Sequence[float], *, percent: bool = False) -> list[str]:
    """The ticks as they are written, with as many decimals as tell them apart."""
    if percent:
        ticks = [100 * value for value in ticks]
    sizes = [abs(value) for value in ticks if value]
    if sizes and (min(sizes) < 1e-3 or max(sizes) >= 1e5):
        return _with_powers(ticks)
    if sizes and max(sizes) / min(sizes) > 100:
        return [f"{value:g}" for value in ticks]
    decimals = next((n for n in range(6) if all(_is_whole(v * 10**n) for v in ticks)), 6)
    if len({round(value, decimals) for value in ticks}) == len(ticks) and decimals < 4:
        return [f"{value:.{decimals}f}" for value in ticks]
    return [f"{value:g}" for value in ticks]


def _with_powers(ticks: Sequence[float]) -> list[str]:
    """`1e-4`, with as many decimals as tell the ticks apart."""
    names: list[str] = []
    for decimals in range(4):
        written = (f"{value:.{decimals}e}".partition("e") for value in ticks)
        names = [f"{digits}e{int(power)}" for digits, _, power in written]
        if len(set(names)) == len(names):
            break
    return [
        f"{value:g}" if value == 0 or 0.01 <= abs(value) < 1000 else name
        for name, value in zip(names, ticks, strict=True)
    ]


def _is_whole(value: float) -> bool:
    return math.isclose(value, round(value), abs_tol=1e-6)


def _even_ticks(low: float, high: float) -> list[float]:
    """At the widest of the steps 1, 2, 5, 10, … that gives three."""
    unit = 10.0 ** (math.floor(math.log10(high - low)) + 1)
    ticks: list[float] = []
    for step in (unit / 2, unit / 5, unit / 10, unit / 20, unit / 50):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = [round(number * step, 12) for number in range(first, last + 1)]
        if len(ticks) >= _FEWEST_TICKS:
            break
    return ticks


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    apart = math.ceil(len(decades) / 6)
    for times in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        ticks = [digit * 10.0**decade for decade in decades[::apart] for digit in times]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= _FEWEST_TICKS:
            return inside
    return _even_ticks(low, high)


def _segment(start: Point, end: Point, style: str) -> Markup:
    (x1, y1), (x2, y2) = start, end
    ends = {"x1": f"{x1:.2f}%", "y1": f"{y1:.2f}%", "x2": f"{x2:.2f}%", "y2": f"{y2:.2f}%"}
    return tag("line", {"class": style, **ends})


def _text(x: float, y: float, words: str, style: str, **moved: str) -> Markup:
    return tag("text", {"class": style, "x": f"{x:.2f}%", "y": f"{y:.2f}%", **moved}, words)
