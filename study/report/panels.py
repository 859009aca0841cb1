"""What a trial's gradients and BatchNorm did, epoch by epoch: for the winner and for the sick trials."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from study.report.evidence import Evidence
from study.report.health import sick
from study.report.learning import stage_changes
from study.report.svg import Plot, Scale, scale_of
from study.results import TrialRow
from trainable.records import (
    BN_DRIFT,
    BN_MIN_VAR,
    GRAD_CLIP_RATE,
    GRAD_NORM,
    UPDATE_DISTANCE,
    VAL_ACCURACY,
    VAL_ACCURACY_BATCH_STATS,
)

MOST_SICK = 8
"""Sick trials whose panels are drawn."""
_SMALL_EM = 11.0


@dataclass(frozen=True)
class _Measure:
    metrics: tuple[str, ...]
    """Drawn in one panel: the first solid, the second dashed."""
    unit: str
    log: bool = False
    percent: bool = False
    names: tuple[str, ...] = ()
    """At the lines' ends, where there is more than one."""


_MEASURES = (
    _Measure((GRAD_NORM,), "2-norm before clipping, log", log=True),
    _Measure((GRAD_CLIP_RATE,), "% of updates clipped", percent=True),
    _Measure((UPDATE_DISTANCE,), "step length ‖Δθ‖, log", log=True),
    _Measure((BN_DRIFT,), "running mean off, in std, log", log=True),
    _Measure((BN_MIN_VAR,), "smallest running variance, log", log=True),
    _Measure(
        (VAL_ACCURACY, VAL_ACCURACY_BATCH_STATS),
        "%; dashed: batch statistics",
        percent=True,
        names=("running", "batch"),
    ),
)


@dataclass(frozen=True)
class Panel:
    """One measure of one trial."""

    metric: str
    unit: str
    picture: Markup | None
    """None where it was not measured."""


@dataclass(frozen=True)
class Health:
    """The panels of one trial."""

    row: TrialRow
    panels: tuple[Panel, ...]


def health_panels(evidence: Evidence) -> list[Health]:
    """The winner's, then the sick trials' with the most findings; every measure on one scale throughout."""
    winner = evidence.results.winner
    rows = [] if winner is None else [winner]
    others = [row for row in sick(evidence.results.rows) if row != winner]
    rows += sorted(others, key=lambda row: -len(row.findings or ()))[:MOST_SICK]
    if not any(evidence.curve(row) for row in rows):
        return []
    epochs = Scale(1, max(2, *(record.epoch for row in rows for record in evidence.curve(row))))
    scales = [_scale(evidence, rows, measure) for measure in _MEASURES]
    return [
        Health(
            row,
            tuple(
                _panel(evidence, row, measure, epochs, scale)
                for measure, scale in zip(_MEASURES, scales, strict=True)
            ),
        )
        for row in rows
    ]


def _scale(evidence: Evidence, rows: list[TrialRow], measure: _Measure) -> Scale | None:
    values = [
        value
        for row in rows
        for metric in measure.metrics
        for _, value in evidence.series(row, metric)
    ]
    return scale_of(values, log=measure.log)


def _panel(
    evidence: Evidence, row: TrialRow, measure: _Measure, epochs: Scale, scale: Scale | None
) -> Panel:
    title = measure.metrics[0]
    lines = [evidence.series(row, metric) for metric in measure.metrics]
    if scale is None or not any(lines):
        return Panel(title, measure.unit, None)
    plot = Plot(epochs, scale, x_name="epoch", percent=measure.percent)
    for epoch, _ in stage_changes(evidence, row):
        plot.rule(epoch, "")
    ends: list[tuple[float, str, str]] = []
    winner = evidence.results.winner
    if winner is not None and row != winner:
        plot.line(evidence.series(winner, title), "other")
    for number, points in enumerate(lines):
        plot.line(points, "winner" if number == 0 else "second")
        if points and number < len(measure.names):
            ends.append((points[-1][1], measure.names[number], "second" if number else "winner"))
    plot.labels(ends, _SMALL_EM)
    described = f"{title} of {row.label} by epoch."
    return Panel(title, measure.unit, plot.svg(described, "small"))
