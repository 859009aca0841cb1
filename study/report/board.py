"""The leaderboard as a page shows it: trials and what they are compared with, in one table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from study.report.front import sought_columns
from study.report.table import COMPARED, MEASURES, measured, ranked
from study.report.text import counted, percent, short_names, value_text
from study.results import StudyResults, TrialRow, Value

_FIGURE_SPACE = "\N{FIGURE SPACE}"
_POINT_SPACE = "\N{PUNCTUATION SPACE}"


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    row: TrialRow
    name: str
    rank: int | None
    """None for what has not run to its end, or is only compared with."""
    shares: tuple[str, ...]
    sought: tuple[str, ...]
    params: tuple[str, ...]


@dataclass(frozen=True)
class Board:
    """The table."""

    measures: tuple[str, ...]
    sought: tuple[str, ...]
    """Headings of what is sought or bounded besides accuracy."""
    params: dict[str, str]
    """Dotted path → heading."""
    compared: tuple[Line, ...]
    trials: tuple[Line, ...]
    beside: dict[str, tuple[Line, ...]]
    """Heading → trials of baselines' own searches, and replicates."""


def board_of(results: StudyResults) -> Board:
    """Trials in the order of the terminal's leaderboard, all hyperparameters in columns of their own."""
    trials = ranked(results)
    others = {name: row for role, name in COMPARED.items() for row in results.of(role)}
    beside = _beside(results)
    rows = [*trials, *others.values(), *(row for group in beside.values() for row in group)]
    names = short_names(rows)
    measures, sought = measured(rows, "val %", "test %"), sought_columns(results, trials)
    columns = {path: aligned([row.params.get(path) for row in rows]) for path in names}

    def line(at: int, row: TrialRow, name: str, rank: int | None) -> Line:
        shares = tuple(_share(row, heading) for heading in measures)
        told = tuple(text(row) if row.role == "trial" else "" for text in sought.values())
        params = tuple(column[at] for column in columns.values())
        return Line(row, name, rank, shares, told, params)

    return Board(
        measures=tuple(heading.replace("\n", " ") for heading in measures),
        sought=tuple(sought),
        params=names,
        compared=tuple(
            line(len(trials) + at, row, name, None) for at, (name, row) in enumerate(others.items())
        ),
        trials=tuple(
            line(at, row, row.label, at + 1 if row.is_usable else None)
            for at, row in enumerate(trials)
        ),
        beside={
            heading: tuple(line(rows.index(row), row, row.label, None) for row in group)
            for heading, group in beside.items()
        },
    )


def _beside(results: StudyResults) -> dict[str, list[TrialRow]]:
    """What is no trial of the study's own search, by what it is."""
    groups: dict[str, list[TrialRow]] = {}
    searched = Counter(row.of for row in results.rows if row.role == "baseline")
    for row in results.rows:
        if row.role == "replicate":
            groups.setdefault(f"Replicates of {row.of}", []).append(row)
        elif row.role == "baseline" and row.of:
            heading = (
                f"Baseline {row.of}, a search of its own: {counted(searched[row.of], 'trial')}"
            )
            groups.setdefault(heading, []).append(row)
    return groups


def aligned(values: Sequence[Value | None]) -> list[str]:
    """Values as text, numbers padded on the right so that their decimal points stand below each other."""
    texts = ["" if value is None else number_text(value) for value in values]
    if any(isinstance(value, str) for value in values):
        return texts
    longest = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [text + _padding(text, longest) for text in texts]


def number_text(value: Value) -> str:
    """A value; a float to three significant digits without an exponent, unless it would be very long."""
    if not isinstance(value, float) or not math.isfinite(value) or not value:
        return value_text(value)
    if not 1e-7 < abs(value) < 1e7:
        return value_text(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _padding(text: str, longest: int) -> str:
    decimals = len(text.partition(".")[2])
    point = _POINT_SPACE if longest and "." not in text and text else ""
    return point + _FIGURE_SPACE * (longest - decimals) if text else ""


def _share(row: TrialRow, heading: str) -> str:
    share = MEASURES[heading](row)
    return "" if share is None else percent(share)
