"""The findings of a study for a person: which trials have them, grouped by what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from study.report.text import one_line
from study.results import StudyResults, TrialRow
from trainable.records import Finding

SHOWN_LABELS = 5
HEALTHY = "healthy"


@dataclass(frozen=True)
class Group:
    """One thing that is wrong, and where."""

    name: str
    found: tuple[tuple[TrialRow, Finding], ...]
    """The trials that have it, in the ledger's order; empty for a finding of the whole study."""
    finding: Finding
    """The first of them, or the study's own."""

    @property
    def title(self) -> str:
        """`exploding gradients`."""
        return title_of(self.name)

    @property
    def where(self) -> str:
        """`trial 3, trial 7 and 4 more`, or `the study`."""
        return labels_text(row for row, _ in self.found) or "the study"


def grouped(results: StudyResults) -> list[Group]:
    """What is wrong, most important first.

    That is what is wrong with the study, then what the winner has, then what most trials have.
    """
    by_name: dict[str, list[tuple[TrialRow, Finding]]] = {}
    for row in results.rows:
        for finding in row.findings or ():
            by_name.setdefault(finding.name, []).append((row, finding))
    winner = results.winner

    def importance(group: Group) -> tuple[bool, int]:
        return all(row != winner for row, _ in group.found), -len(group.found)

    of_study = [Group(finding.name, (), finding) for finding in results.findings]
    of_trials = [Group(name, tuple(found), found[0][1]) for name, found in by_name.items()]
    return of_study + sorted(of_trials, key=importance)


def sick(rows: Iterable[TrialRow]) -> list[TrialRow]:
    """Those with findings."""
    return [row for row in rows if row.findings]


def health_text(row: TrialRow) -> str:
    """`healthy`, `exploding gradients +1`, or nothing for a trial that was not diagnosed."""
    if row.findings is None:
        return ""
    if not row.findings:
        return HEALTHY
    first, *others = row.findings
    return title_of(first.name) + (f" +{len(others)}" if others else "")


def health_summary(results: StudyResults) -> str | None:
    """`3 of 10 trials have findings`; None where none was diagnosed."""
    diagnosed = [row for row in results.of("trial") if row.findings is not None]
    if not diagnosed:
        return None
    found = len(sick(diagnosed))
    if not found:
        return f"nothing found wrong in {len(diagnosed)} trial{'s' * (len(diagnosed) != 1)}"
    return f"{found} of {len(diagnosed)} trials {'has' if found == 1 else 'have'} findings"


def failures(results: StudyResults) -> list[tuple[str, str]]:
    """(which trials, why) of those that failed, one entry a reason."""
    by_reason: dict[str, list[TrialRow]] = {}
    for row in results.rows:
        if row.state == "failed":
            by_reason.setdefault(one_line(row.error), []).append(row)
    return [(labels_text(rows), reason) for reason, rows in by_reason.items()]


def labels_text(rows: Iterable[TrialRow]) -> str:
    """`trial 3, trial 7 and 4 more`."""
    labels = [row.label for row in rows]
    more = len(labels) - SHOWN_LABELS
    return ", ".join(labels[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")


def title_of(name: str) -> str:
    """A rule's name as words."""
    return name.replace("_", " ")
