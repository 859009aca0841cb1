"""Several objectives: what is told of each trial, and the trials that no other betters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise

from markupsafe import Markup

from study.objectives import objective, pareto_front
from study.report.svg import Plot, Point, Scale, scale_of
from study.report.text import UNKNOWN, percent
from study.results import StudyResults, TrialRow

Columns = dict[str, Callable[[TrialRow], str]]
"""Heading → what it says of a trial."""
ON_FRONT = "●"
_LOG_FROM = 20.0
"""Ratio of the greatest value to the least from which an axis is logarithmic."""
_APART = (9.0, 6.0)
"""Per cent of a picture's width and height within which there is no room for a second name."""


def sought_columns(results: StudyResults, rows: Sequence[TrialRow]) -> Columns:
    """What is sought or bounded besides accuracy, which trials are on the front, and what they break."""
    names = dict.fromkeys([*results.objectives, *results.constraints])
    columns: Columns = {
        objective(name).heading: partial(_told, name) for name in names if name != "accuracy"
    }
    if len(results.objectives) > 1:
        front = {row.number for row in results.front}
        columns["front"] = lambda row: ON_FRONT if row.number in front else ""
    if any(row.violates for row in rows):
        columns["breaks"] = lambda row: ", ".join(row.violates)
    return columns


def value_of(name: str, value: float) -> str:
    """An objective's value, as a column or a picture has it."""
    match name:
        case "accuracy":
            return percent(value)
        case "parameters" if value >= 1e6:
            return f"{value / 1e6:.2f}M"
        case "parameters":
            return f"{value:,.0f}"
        case "training_seconds" if value >= 100:
            return f"{value:.0f}"
        case _:
            return f"{value:#.3g}".rstrip(".")


def _told(name: str, row: TrialRow) -> str:
    value = row.values.get(name)
    if value is not None:
        return value_of(name, value)
    return UNKNOWN if row.role == "trial" and row.state == "complete" else ""


@dataclass(frozen=True)
class Pair:
    """Two objectives against each other."""

    caption: str
    picture: Markup


def front_pictures(results: StudyResults) -> list[Pair]:
    """A picture of every two objectives, with what can be had of both: accuracy upwards, costs to the right."""
    names = sorted(results.objectives, key=lambda name: name == "accuracy")
    pairs = [_pair(results, x, y) for x, y in combinations(names, 2)]
    return [pair for pair in pairs if pair is not None]


def _pair(results: StudyResults, x: str, y: str) -> Pair | None:
    rows = [row for row in results.of("trial") if row.state == "complete"]
    rows = [row for row in rows if {x, y} <= set(row.values)]
    across, up = _scale([row.values[x] for row in rows]), _scale([row.values[y] for row in rows])
    if across is None or up is None:
        return None
    whole = {row.number for row in results.front}
    best = {row.number: row for row in rows if not row.violates}
    found = pareto_front({number: row.values for number, row in best.items()}, (x, y))
    members = sorted((best[number] for number in found), key=lambda row: row.values[x])
    plot = Plot(across, up, x_name=objective(x).words, percent=y == "accuracy")
    plot.line(list(_stairs([(row.values[x], row.values[y]) for row in members])), "front")
    for row in sorted(rows, key=lambda row: row.number in whole):
        style = "broken" if row.violates else "shade-4" if row.number in whole else "shade-2"
        style += " best" if row == results.winner else ""
        title = f"{row.label}: {objective(x).heading} {value_of(x, row.values[x])}, "
        title += f"{objective(y).heading} {value_of(y, row.values[y])}"
        title += f", breaks {', '.join(row.violates)}" if row.violates else ""
        plot.mark((row.values[x], row.values[y]), "complete", style, title, row.label)
    plot.names([((row.values[x], row.values[y]), row.label) for row in members], _APART)
    on_it = ", ".join(row.label for row in members) or "none"
    caption = f"{objective(y).words} against {objective(x).words}"
    return Pair(caption, plot.svg(f"{caption} of {len(rows)} trial(s); on the front: {on_it}."))


def _scale(values: Sequence[float]) -> Scale | None:
    log = bool(values) and min(values) > 0 and max(values) / min(values) >= _LOG_FROM
    return scale_of(values, log=log, margin=0.08)


def _stairs(front: Sequence[Point]) -> Iterator[Point]:
    """Between two points of a front there is what the one to the left has."""
    yield from front[:1]
    for (_, before), (x, y) in pairwise(front):
        yield x, before
        yield x, y
