"""What the numbers of a study say, in a sentence or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from study.objectives import objective
from study.replicates import baselines_of
from study.report.text import percent
from study.report.trust import BASELINES, Trust, in_words, trust_of
from study.results import StudyResults, TrialRow


def verdict(results: StudyResults) -> str:
    """What the numbers say, and how far they can be trusted."""
    winner = results.winner
    if winner is None:
        return _why_no_winner(results)
    trust = trust_of(results)
    if trust is not None and results.of("replicate", winner.label):
        return _over_seeds(trust)
    return f"Best: {winner.label}{_of_one_seed(results, winner, trust)}"


def _over_seeds(trust: Trust) -> str:
    winner, against = trust.winner, trust.strongest
    seeds = f"{trust.seeds} seeds" if trust.seeds > 1 else "one seed"
    head = f"Best: {winner.row.label}, {winner.text} % of the test split over {seeds}"
    if against is None:
        return f"{head}."
    who = _strongest(against.other.name, len(trust.baselines))
    level = "" if against.interval is None else " at 95 %"
    return f"{head}; its lead over {who}: {against.text} points{level}."


def _of_one_seed(results: StudyResults, winner: TrialRow, trust: Trust | None) -> str:
    """What follows the winner's name where nothing was trained again: its gain over the strongest baseline."""
    if trust is not None and (against := trust.strongest) is not None:
        who = _strongest(against.other.name, len(trust.baselines))
        gain = _gain(trust.winner.mean, against.other.mean, "test", who)
        return f", {gain} One seed each: the difference can be within noise."
    baselines = [row for row in baselines_of(results) if row.state == "complete"]
    if not baselines:
        measured = (("validation", winner.value), ("test", winner.test_accuracy))
        parts = [f", {split} accuracy {percent(v)} %" for split, v in measured if v is not None]
        return f"{''.join(parts)}."
    found = {BASELINES[row.of]: row.value for row in baselines if row.value is not None}
    if winner.value is None or not found:
        return "; there are no accuracies to compare with a baseline's."
    name, theirs = max(found.items(), key=lambda one: one[1])
    gain = _gain(winner.value, theirs, "validation", _strongest(name, len(found)))
    return f", {gain} One seed each, and the search chose by this number: not proof."


def _strongest(name: str, count: int) -> str:
    """A baseline, of so many that it was compared with."""
    return in_words(name) + (f", the strongest of {count} baselines" if count > 1 else "")


def _gain(ours: float, theirs: float, split: str, who: str) -> str:
    return (
        f"{100 * (ours - theirs):+.2f} points of {split} accuracy over {who} "
        f"({percent(ours)} against {percent(theirs)} %)."
    )


def _what_became_of(results: StudyResults) -> Iterator[str]:
    """`3 break latency <= 2`, the constraint that most break first, and how the others ended."""
    rows = results.of("trial")
    for name, count in Counter(name for row in rows for name in row.violates).most_common():
        sign = ">=" if objective(name).seeks_most else "<="
        yield f"{count} {'break' if count > 1 else 'breaks'} {name} {sign} {results.constraints[name]:g}"
    others = Counter(row.state for row in rows if not row.violates)
    yield from (f"{count} {state}" for state, count in others.items())


def _why_no_winner(results: StudyResults) -> str:
    rows = results.of("trial")
    counts = Counter(row.state for row in rows)
    if not rows:
        return "No usable trial: none was started."
    if not all(row.has_ended for row in rows):
        return "No usable trial yet: none has run to its end."
    if any(row.violates for row in rows):
        return f"No usable trial: {', '.join(_what_became_of(results))}."
    if counts["failed"] == len(rows):
        return f"No usable trial: all {len(rows)} failed, for the reasons above."
    return (
        f"No usable trial: none ran to its end ({counts['pruned']} pruned, "
        f"{counts['failed']} failed)."
    )
