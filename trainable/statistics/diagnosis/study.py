"""Rules about a study as a whole: its teacher, and what it searches."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from trainable.config import TrialConfig
from trainable.plan import Decomposition, head_stays_alone
from trainable.records import Finding
from trainable.statistics.diagnosis.wording import percent

ERRORS = 2.0
"""Standard errors by which a student must be ahead: of what is nearer, chance has a part (5 %)."""


def teacher_worse_than_student(
    teacher: float, students: Mapping[str, float], pictures: int
) -> Finding | None:
    """The teacher is behind one of the students by more than chance."""
    ahead = {
        name: accuracy
        for name, accuracy in students.items()
        if accuracy - teacher > ERRORS * _standard_error(teacher, accuracy, pictures)
    }
    if not ahead:
        return None
    found = ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in ahead.items())
    return Finding(
        "teacher_worse_than_student",
        "The teacher knows less than a student: it may hold the others back.",
        f"on {pictures:,} pictures the teacher has {percent(teacher)} accuracy, and {found}",
        "give a better teacher.checkpoint, raise teacher.train.epochs, or choose a larger teacher.model",
    )


def search_alpha_without_effect(
    searched: Collection[str], trials: Sequence[TrialConfig]
) -> Finding | None:
    """α or λ is searched, and moves the head alone in every trial."""
    keys = [key for key in ("distill.alpha", "distill.lam") if key in searched]
    if not keys or not trials or not all(map(_has_head_alone, trials)):
        return None
    tried = sorted({trial.distill.decomposition or "" for trial in trials})
    return Finding(
        "search_alpha_without_effect",
        f"{' and '.join(keys)} moves the head alone: all blocks before it learn from features only.",
        f"in all {len(trials)} trial(s) the last group is the head by itself in every stage "
        f"(decomposition {', '.join(tried)})",
        f"take {' and '.join(keys)} out of search, or choose a distill.decomposition that merges the head "
        "with other blocks, such as 2/1, 4/1, 3/2 or 5/3",
    )


def _has_head_alone(trial: TrialConfig) -> bool:
    """Whether the last group is StableKD's head alone in every stage: then α and λ weigh its loss only."""
    text = trial.distill.decomposition
    if trial.distill.method != "stablekd" or text is None:
        return False
    return head_stays_alone(Decomposition.parse(text))


def _standard_error(one: float, other: float, pictures: int) -> float:
    """Of the difference of two accuracies, each measured on so many pictures."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / pictures)
