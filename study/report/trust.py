"""Whether a study's answer can be trusted: finalists and baselines over seeds, and what their differences mean.

Selection is by validation and stays so. What is computed here is told, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from study.noise import (
    Interval,
    mean_interval,
    other_pictures_margin,
    same_pictures_margin,
    welch_interval,
)
from study.replicates import baselines_of, test_accuracies
from study.report.text import percent
from study.results import State, StudyResults, TrialRow

BASELINES = {
    "": "student without a teacher",
    "none": "student alone at its best",
    "kd": "KD at its best",
}
"""What a person calls a baseline, by `TrialRow.of`."""


_FEWER_ERRORS = 0.5
"""Share of its test errors that a teacher makes on validation pictures at least, unless it has seen them."""


@dataclass(frozen=True)
class Standing:
    """A finalist or a baseline, as often as it was tested."""

    name: str
    row: TrialRow
    """What the search found, or the base values' student."""
    accuracies: tuple[float, ...]
    """On the test split, one a seed."""

    @property
    def in_words(self) -> str:
        """`the student without a teacher`, `KD at its best`, `trial 3`."""
        return in_words(self.name)

    @property
    def mean(self) -> float:
        """Over seeds; there is at least one."""
        return fmean(self.accuracies)

    @property
    def sd(self) -> float | None:
        """Over seeds; None of one, which has no spread."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """Of the mean."""
        return mean_interval(self.accuracies)

    @property
    def text(self) -> str:
        """`98.33 ± 0.21`, in %; of one seed `98.33`."""
        return percent(self.mean) + ("" if self.sd is None else f" ± {percent(self.sd)}")


@dataclass(frozen=True)
class Comparison:
    """The winner beside another: positive where the winner is better."""

    other: Standing
    difference: float
    interval: Interval | None
    """None where there is no spread to judge by."""

    @property
    def text(self) -> str:
        """`+0.56 (0.12 to 1.00)`, in points, with the interval at 95 %."""
        told = f"{100 * self.difference:+.2f}"
        if self.interval is None:
            return told
        return f"{told} ({100 * self.interval.low:.2f} to {100 * self.interval.high:.2f})"


@dataclass(frozen=True)
class Trust:
    """What a study's test accuracies say together."""

    winner: Standing
    finalists: tuple[Comparison, ...]
    """The others, the better by validation first."""
    baselines: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    shrinkage: float | None
    """The winner's best validation accuracy minus its mean test accuracy; None where nothing was validated."""

    @property
    def strongest(self) -> Comparison | None:
        """The baseline with the highest mean: the smallest lead there is."""
        return min(self.baselines, key=lambda one: one.difference, default=None)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All of them."""
        return (*self.finalists, *self.baselines)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """All, the winner first."""
        return (self.winner, *(one.other for one in self.comparisons))

    @property
    def seeds(self) -> int:
        """Of the winner."""
        return len(self.winner.accuracies)


def in_words(name: str) -> str:
    """A baseline's name as a sentence has it: `the student without a teacher`, `KD at its best`."""
    return f"the {name}" if name.startswith("student") else name


def warnings_of(results: StudyResults) -> tuple[str, ...]:
    """What to beware of, also in a study whose winner was not tested."""
    trust = trust_of(results)
    return tuple(_warnings(results)) if trust is None else trust.warnings


def trust_of(results: StudyResults) -> Trust | None:
    """Of a study whose winner was tested; None of another."""
    best = results.winner
    winner = None if best is None else _standing(results, best, f"{best.label}, the best")
    if best is None or winner is None:
        return None
    repeated = {row.of for row in results.rows if row.role == "replicate"}
    rivals = [row for row in results.best_trials[1:] if row.label in repeated]
    finalists = tuple(_comparisons(results, winner, {row.label: row for row in rivals}))
    named = {BASELINES[row.of]: row for row in baselines_of(results)}
    baselines = tuple(_comparisons(results, winner, named))
    return Trust(
        winner=winner,
        finalists=finalists,
        baselines=baselines,
        warnings=(
            *_warnings(results),
            *_budgets(results, winner, baselines),
            *_rivals(results, winner, finalists),
            *_no_gains(winner, baselines),
        ),
        shrinkage=None if best.value is None else best.value - winner.mean,
    )


def _comparisons(
    results: StudyResults, winner: Standing, named: Mapping[str, TrialRow]
) -> Iterator[Comparison]:
    for name, row in named.items():
        other = _standing(results, row, name)
        if other is not None:
            interval = welch_interval(winner.accuracies, other.accuracies)
            # Equal means may differ in their last bits.
            difference = round(winner.mean - other.mean, 9) + 0.0
            yield Comparison(other, difference, interval)


def _standing(results: StudyResults, row: TrialRow, name: str) -> Standing | None:
    """None of one that was never tested."""
    accuracies = test_accuracies(results, row)
    return Standing(name, row, accuracies) if accuracies else None


def _warnings(results: StudyResults) -> Iterator[str]:
    """What needs no test of the winner to be said."""
    yield from _leaks(results)
    yield from _failures(results)


def _leaks(results: StudyResults) -> Iterator[str]:
    """A teacher that was trained on the validation pictures: its students inherit what it knows of them."""
    val_pictures, test_pictures = results.val_pictures, results.test_pictures
    for teacher in results.of("teacher"):
        seen, unseen = teacher.value, teacher.test_accuracy
        if seen is None or unseen is None or not val_pictures or not test_pictures:
            continue
        margin = other_pictures_margin((seen, val_pictures), (unseen, test_pictures))
        if seen - unseen > margin and 1 - seen < _FEWER_ERRORS * (1 - unseen):
            yield (
                f"The teacher has {percent(seen)} % on the validation pictures and {percent(unseen)} % on the "
                "test split: it seems to have been trained on the former. Its students inherit what it knows of "
                "them, and validation accuracies choose little: give a teacher that was trained without them."
            )


def _failures(results: StudyResults) -> Iterator[str]:
    """Also of what stands nowhere, since all of its replicates failed."""
    states: dict[str, list[State]] = {}
    for one in results.rows:
        if one.role == "replicate":
            states.setdefault(one.of, []).append(one.state)
    for row in (*results.best_trials, *baselines_of(results)):
        trained = states.get(row.label, [])
        failed = trained.count("failed")
        if failed and failed == len(trained):
            yield f"None of the replicates of {row.label} ended ({failed} failed): it is not compared."
        elif failed:
            yield f"{failed} of {len(trained)} replicates of {row.label} failed, and count in no figure."


def _budgets(
    results: StudyResults, winner: Standing, baselines: Sequence[Comparison]
) -> Iterator[str]:
    """Searches of unequal length: the best of more trials is the better for it."""
    trials = _ended(results.of("trial"))
    for one in baselines:
        own = _ended(results.of("baseline", one.other.row.of))
        if one.other.row.of and own != trials:
            yield (
                f"{winner.row.label} is the best of {trials} trials, and {one.other.in_words} of {own}: "
                "they were not searched for with the same budget."
            )


def _ended(rows: Sequence[TrialRow]) -> int:
    return sum(row.state != "running" for row in rows)


def _rivals(
    results: StudyResults, winner: Standing, finalists: Sequence[Comparison]
) -> Iterator[str]:
    """What the other finalists, or the runner-up of the search, make of the winner."""
    for one in finalists:
        label = one.other.row.label
        if one.difference < 0:
            yield (
                f"{label} has the higher mean on the test split ({one.other.text} against {winner.text} %). "
                f"{winner.row.label} stays the best: validation chose it, and a figure that has chosen tells too much."
            )
        if one.interval is None:
            yield f"{winner.row.label} and {label} cannot be told apart: {_why_no_interval(winner, one.other)}."
        elif one.interval.holds_zero:
            yield f"{winner.row.label} and {label} are within noise of each other: {one.text} points."
    second = next(iter(results.best_trials[1:]), None)
    if second is not None and all(one.other.row != second for one in finalists):
        yield from _same_pictures(results, winner.row, second)


def _same_pictures(results: StudyResults, winner: TrialRow, second: TrialRow) -> Iterator[str]:
    if winner.value is None or second.value is None or not results.val_pictures:
        return
    ahead = winner.value - second.value
    margin = same_pictures_margin(winner.value, second.value, results.val_pictures)
    if ahead <= margin:
        yield (
            f"{winner.label} is {100 * ahead:.2f} points of validation accuracy ahead of {second.label}: within noise, "
            f"since the choice of the {results.val_pictures:,} pictures alone can make up to {100 * margin:.2f}."
        )


def _no_gains(winner: Standing, baselines: Sequence[Comparison]) -> Iterator[str]:
    for one in baselines:
        ahead = "behind" if one.difference < 0 else "ahead of"
        place = f"{winner.row.label} is {ahead} {one.other.in_words} ({one.text} points)"
        if one.interval is None:
            yield f"{place}, which says little: {_why_no_interval(winner, one.other)}."
        elif one.interval.holds_zero:
            yield f"{place}, which is within noise."
        elif one.difference < 0:
            yield f"{place}: that baseline is better."


def _why_no_interval(*standings: Standing) -> str:
    if any(len(one.accuracies) == 1 for one in standings):
        return "one seed has no spread to judge by"
    return "neither shows any spread over its seeds"
