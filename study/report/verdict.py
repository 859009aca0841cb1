"""What the numbers of a study say, in a sentence or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from study.objectives import objective
from study.report.text import percent
from study.report.trust import Trust, trust_of
from study.results import StudyResults


def verdict(results: StudyResults) -> str:
    """What the numbers say, and how far they can be trusted."""
    winner = results.winner
    if winner is None:
        return _why_no_winner(results)
    if results.of("replicate", winner.label) and (trust := trust_of(results)) is not None:
        return _over_seeds(trust)
    head = f"Best: {winner.label}"
    alone = next((row for row in results.of("baseline") if row.state == "complete"), None)
    if alone is None:
        measured = (("validation", winner.value), ("test", winner.test_accuracy))
        parts = [f"{split} accuracy {percent(v)} %" for split, v in measured if v is not None]
        return f"{', '.join([head, *parts])}."
    if winner.test_accuracy is not None and alone.test_accuracy is not None:
        gain = _gain(winner.test_accuracy, alone.test_accuracy, "test")
        return f"{head}, {gain} One seed each: the difference can be within noise."
    if winner.value is not None and alone.value is not None:
        gain = _gain(winner.value, alone.value, "validation")
        return f"{head}, {gain} One seed each, and the search chose by this number: not proof."
    return f"{head}; there are no accuracies to compare with the student without a teacher."


def _over_seeds(trust: Trust) -> str:
    winner, against = trust.winner, trust.strongest
    seeds = f"{trust.seeds} seeds" if trust.seeds > 1 else "one seed"
    head = f"Best: {winner.row.label}, {winner.text} % of the test split over {seeds}"
    if against is None:
        return f"{head}."
    count = len(trust.baselines)
    who = against.other.in_words + (f", the strongest of {count} baselines" if count > 1 else "")
    level = "" if against.interval is None else " at 95 %"
    return f"{head}; its lead over {who}: {against.text} points{level}."


def _gain(ours: float, theirs: float, split: str) -> str:
    return (
        f"{100 * (ours - theirs):+.2f} points of {split} accuracy over the student without a "
        f"teacher ({percent(ours)} against {percent(theirs)} %)."
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
