"""Test accuracies over seeds as strips: a dot a seed, their mean, and its interval, all on one scale."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from study.report.svg import Scale, scale_of, tag, tick_names
from study.report.trust import Standing, trust_of
from study.results import StudyResults


@dataclass(frozen=True)
class Strips:
    """The pictures of a table's rows, and of its heading."""

    axis: Markup
    rows: tuple[tuple[Standing, Markup, str], ...]
    """What was tested, its strip, and the winner's lead."""


def strips(results: StudyResults) -> Strips | None:
    """The winner first; None where it was not tested."""
    trust = trust_of(results)
    if trust is None:
        return None
    ends = [end for one in trust.standings for end in _ends(one) or ()]
    scale = scale_of([*ends, *(a for one in trust.standings for a in one.accuracies)])
    if scale is None:
        return None
    leads = ["", *(one.text for one in trust.comparisons)]
    rows = zip(trust.standings, leads, strict=True)
    return Strips(_axis(scale), tuple((one, _strip(one, scale), lead) for one, lead in rows))


def _ends(one: Standing) -> tuple[float, float] | None:
    """Of the mean's interval, as far as there are accuracies."""
    interval = one.interval
    return None if interval is None else (max(0.0, interval.low), min(1.0, interval.high))


def _axis(scale: Scale) -> Markup:
    ticks = scale.ticks()
    names = zip(ticks, tick_names(ticks, percent=True), strict=True)
    texts = [tag("text", {"x": _at(scale, value), "y": "70%"}, name) for value, name in names]
    return tag("svg", {"class": "strip", "aria-hidden": "true"}, *texts)


def _strip(one: Standing, scale: Scale) -> Markup:
    parts = [_upright(scale, tick, "grid", 0, 100) for tick in scale.ticks()]
    if (ends := _ends(one)) is not None:
        reach = {"x1": _at(scale, ends[0]), "x2": _at(scale, ends[1])}
        parts.append(tag("line", {"class": "interval", "y1": "50%", "y2": "50%", **reach}))
    kind = "trial" if one.row.role == "trial" else "baseline"
    for accuracy in one.accuracies:
        place = {"cx": _at(scale, accuracy), "cy": "50%", "r": 4.6}
        parts.append(tag("circle", {"class": f"seed {kind}", **place}))
    parts.append(_upright(scale, one.mean, "mean", 18, 82))
    described = f"{one.name}: {one.text} % over {len(one.accuracies)} seed(s)"
    return tag("svg", {"class": "strip", "role": "img", "aria-label": described}, *parts)


def _upright(scale: Scale, value: float, style: str, top: int, bottom: int) -> Markup:
    x = _at(scale, value)
    return tag("line", {"class": style, "x1": x, "x2": x, "y1": f"{top}%", "y2": f"{bottom}%"})


def _at(scale: Scale, value: float) -> str:
    return f"{scale.at(value):.2f}%"
