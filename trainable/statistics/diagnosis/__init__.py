"""From numbers to plain words: what is wrong with a trial or a study, and what to do about it.

To add a rule: write a function of `History` that returns `Told` or None in the file of its kind, give it a
line in `RULES`, a paragraph in docs/diagnosis.md, and a recorded run that it finds (tests/trainable/recorded).
What a rule needs and does not find in the metrics keeps it silent, and so does too short a history.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from trainable.config import TrialConfig
from trainable.records import EpochRecord, Finding
from trainable.statistics.diagnosis import batchnorm, gradients, learning, overflow, pictures, study
from trainable.statistics.diagnosis.history import Check, History

RULES: Mapping[str, Check] = MappingProxyType(
    {
        "non_finite": overflow.non_finite,
        "scale_collapse": overflow.scale_collapse,
        "exploding_gradients": gradients.exploding_gradients,
        "lr_too_high": learning.lr_too_high,
        "vanishing_gradients": gradients.vanishing_gradients,
        "lr_too_low": learning.lr_too_low,
        "always_clipped": gradients.always_clipped,
        "batchnorm_drift": batchnorm.batchnorm_drift,
        "dead_channels": batchnorm.dead_channels,
        "data_bound": pictures.data_bound,
        "never_clipped": gradients.never_clipped,
    }
)
"""The rules about a trial by name, the gravest first."""


def diagnose(config: TrialConfig, records: Sequence[EpochRecord]) -> tuple[Finding, ...]:
    """What is wrong with a trial, the gravest first; nothing of a healthy one.

    `records` are those of its epochs so far, in order; the config is one in which `rules.problems` finds none.
    """
    history = History(config, tuple(records))
    told = ((name, check(history)) for name, check in RULES.items())
    return tuple(Finding(name, *found) for name, found in told if found is not None)


def diagnose_study(
    searched: Collection[str],
    trials: Sequence[TrialConfig],
    *,
    teacher: float | None,
    students: Mapping[str, float],
    pictures: int,
) -> tuple[Finding, ...]:
    """What is wrong with a study as a whole.

    Args:
        searched: Dotted paths that it searches, e.g. `distill.alpha`.
        trials: The configs of its trials.
        teacher: The teacher's accuracy in [0, 1]; None without a teacher.
        students: Accuracy by what a person calls the student (`trial 9`, `student without a teacher`), on the
            same pictures as the teacher's.
        pictures: How many those are, at least 1.
    """
    found = [study.search_alpha_without_effect(searched, trials)]
    if teacher is not None:
        found.append(study.teacher_worse_than_student(teacher, students, pictures))
    return tuple(finding for finding in found if finding is not None)
