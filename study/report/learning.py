"""Learning curves: validation accuracy by epoch of every trial, the winner and the baseline on top."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from study.report.evidence import Evidence, Series
from study.report.svg import Plot, Scale, scale_of
from study.report.text import percent
from study.results import TrialRow
from trainable.records import TRAIN_STAGE, VAL_ACCURACY

PLOT_EM = 22.0
"""The plot's height, as page.css has it."""
_CLOSER = 0.5
"""A share of the trials that the closer look must show."""
_WORTHWHILE = 3.0
"""How many times larger the closer look must be."""


@dataclass(frozen=True)
class _Curve:
    row: TrialRow
    points: Series
    style: str
    name: str | None = None
    """Written at its end."""


def learning_curves(evidence: Evidence) -> list[tuple[str, Markup]]:
    """(caption, plot) of all epochs, and of the best accuracies closer; empty where nothing was validated."""
    curves = list(_curves(evidence))
    values = [value for curve in curves for _, value in curve.points]
    whole = scale_of(values)
    if whole is None:
        return []
    epochs = Scale(1, max(2, *(epoch for curve in curves for epoch, _ in curve.points)))
    pictures = [("All epochs", _plot(evidence, curves, epochs, whole))]
    closer = _closer(curves, whole)
    if closer is not None:
        pictures.append(("The best, closer", _plot(evidence, curves, epochs, closer)))
    return pictures


def _curves(evidence: Evidence) -> Iterator[_Curve]:
    """The others first, so that what matters is drawn over them."""
    results = evidence.results
    winner = results.winner
    for row in results.of("trial"):
        if row != winner:
            yield _Curve(row, evidence.series(row, VAL_ACCURACY), f"other {row.state}")
    for row in results.of("baseline"):
        points = evidence.series(row, VAL_ACCURACY)
        yield _Curve(row, points, "baseline", "no teacher")
    if winner is not None:
        yield _Curve(winner, evidence.series(winner, VAL_ACCURACY), "winner", winner.label)


def _closer(curves: list[_Curve], whole: Scale) -> Scale | None:
    """From the median of the trials' best accuracies up; None where that would show little more."""
    best = sorted(max(value for _, value in curve.points) for curve in curves if curve.points)
    low = best[int(len(best) * (1 - _CLOSER))]
    named = [max(v for _, v in curve.points) for curve in curves if curve.name and curve.points]
    closer = scale_of([min([low, *named]), best[-1]], margin=0.15)
    if closer is None or whole.high - whole.low < _WORTHWHILE * (closer.high - closer.low):
        return None
    return closer


def _plot(evidence: Evidence, curves: list[_Curve], epochs: Scale, accuracy: Scale) -> Markup:
    plot = Plot(epochs, accuracy, x_name="epoch", percent=True)
    winner, ends = evidence.results.winner, list[tuple[float, str, str]]()
    if winner is not None:
        for epoch, stage in stage_changes(evidence, winner):
            plot.rule(epoch, f"stage {stage:g}")
    for teacher in evidence.results.of("teacher"):
        if teacher.value is not None and accuracy.low <= teacher.value <= accuracy.high:
            plot.line([(epochs.low, teacher.value), (epochs.high, teacher.value)], "teacher")
            ends.append((teacher.value, "teacher", "teacher"))
    for curve in curves:
        plot.line(curve.points, curve.style, curve.row.label)
        if not curve.points:
            continue
        epoch, value = curve.points[-1]
        inside = accuracy.low <= value <= accuracy.high
        if curve.row.state in ("pruned", "failed") and inside:
            title = (
                f"{curve.row.label}, {curve.row.state} after epoch {epoch:g} at {percent(value)} %"
            )
            plot.mark((epoch, value), curve.row.state, "end", title, curve.row.label)
        if curve.name is not None and inside:
            ends.append((value, curve.name, curve.style))
    plot.labels(ends, PLOT_EM)
    return plot.svg(_described(evidence))


def stage_changes(evidence: Evidence, row: TrialRow) -> list[tuple[float, float]]:
    """(first epoch, stage) of every stage but the first."""
    stages = evidence.series(row, TRAIN_STAGE)
    return [(now[0], now[1]) for before, now in pairwise(stages) if now[1] != before[1]]


def _described(evidence: Evidence) -> str:
    winner = evidence.results.winner
    best = "" if winner is None else f"; {winner.label} is best with {percent(winner.value)} %"
    count = len(evidence.results.of("trial"))
    return f"Validation accuracy by epoch of {count} trial(s){best}."
