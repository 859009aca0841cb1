"""Where in the search the trials lie: two hyperparameters against each other, and accuracy along each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import quantiles

from markupsafe import Markup

from study.report.svg import Plot, Scale, scale_of
from study.report.text import percent, value_text
from study.results import StudyResults, TrialRow
from study.space import SearchRange

WEIGHTS = ("distill.alpha", "distill.lam")
RATE = "optim.lr"
_SHADES = 4


@dataclass(frozen=True)
class Axis:
    """A searched number."""

    path: str
    name: str
    scale: Scale


def numeric_axes(search: Mapping[str, SearchRange], names: Mapping[str, str]) -> list[Axis]:
    """The searched numbers, in the search's order; categories are no axes."""
    axes: list[Axis] = []
    for path, values in search.items():
        if values.choice is not None:
            continue
        low, high = (float(end) for end in values.candidates)
        scale = scale_of([low, high], log=values.loguniform is not None)
        if scale is not None:
            axes.append(Axis(path, names.get(path, path), scale))
    return axes


def chosen_pair(axes: list[Axis], importance: Mapping[str, float]) -> tuple[Axis, Axis] | None:
    """The learning rate and α or λ where both are searched, else the two numbers that mattered most."""
    by_path = {axis.path: axis for axis in axes}
    weights = [by_path[path] for path in WEIGHTS if path in by_path]
    if RATE in by_path and weights:
        return by_path[RATE], weights[0]
    ordered = sorted(axes, key=lambda axis: -importance.get(axis.path, 0.0))
    return (ordered[0], ordered[1]) if len(ordered) > 1 else None


def scatter(results: StudyResults, x: Axis, y: Axis) -> Markup:
    """Trials by two hyperparameters; the darker the better, in quarters of the trials."""
    rows = [row for row in results.of("trial") if _number(row, x) is not None]
    shade = _shades(rows)
    plot = Plot(x.scale, y.scale, x_name=x.name)
    for row in _winner_last(results, rows):
        place = _number(row, x), _number(row, y)
        if place[0] is None or place[1] is None:
            continue
        style = f"shade-{shade[row.number]}" + (" best" if row == results.winner else "")
        title = f"{_said(row)}, {x.name} {value_text(place[0])}, {y.name} {value_text(place[1])}"
        plot.mark((place[0], place[1]), row.state, style, title, row.label)
    return plot.svg(f"{len(rows)} trial(s) by {x.name} and {y.name}.")


def accuracy_slices(results: StudyResults, axes: list[Axis]) -> list[tuple[str, Markup]]:
    """(name, accuracy along it) of each searched number, on one scale of accuracy.

    The worst trials, which would press the others together, lie on the lower edge.
    """
    rows = [row for row in results.of("trial") if row.value is not None]
    accuracy = _upper_scale(sorted(row.value for row in rows if row.value is not None))
    if accuracy is None:
        return []
    pictures: list[tuple[str, Markup]] = []
    for axis in axes:
        plot = Plot(axis.scale, accuracy, x_name=axis.name, percent=True)
        for row in _winner_last(results, rows):
            place = _number(row, axis)
            if place is None or row.value is None:
                continue
            best = "best" if row == results.winner else ""
            title = f"{_said(row)}, {axis.name} {value_text(place)}"
            plot.mark((place, max(row.value, accuracy.low)), row.state, best, title, row.label)
        picture = plot.svg(f"Validation accuracy of {len(rows)} trial(s) by {axis.name}.", "small")
        pictures.append((axis.name, picture))
    return pictures


def _upper_scale(values: list[float]) -> Scale | None:
    """Of sorted values, all but the lowest that lie far from the rest (as box plots have it)."""
    if len(values) < 4:
        return scale_of(values, margin=0.08)
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    kept = [value for value in values if value >= lower - 1.5 * (upper - lower)]
    return scale_of(kept, margin=0.08)


def _shades(rows: list[TrialRow]) -> dict[int, int]:
    """Trial number → quarter of its accuracy among the trials, from 1 up; 0 without an accuracy."""
    values = [row.value for row in rows if row.value is not None]
    bounds = quantiles(values, n=_SHADES, method="inclusive") if len(values) > 1 else []
    return {
        row.number: 0 if row.value is None else 1 + sum(row.value > bound for bound in bounds)
        for row in rows
    }


def _winner_last(results: StudyResults, rows: list[TrialRow]) -> list[TrialRow]:
    return sorted(rows, key=lambda row: (row == results.winner, row.number))


def _number(row: TrialRow, axis: Axis) -> float | None:
    value = row.params.get(axis.path)
    return None if value is None or isinstance(value, str | bool) else float(value)


def _said(row: TrialRow) -> str:
    return f"{row.label} ({row.state}): {percent(row.value)} %"
