"""What is wrong with a study's trials, and with the study, from what its ledger and its folder tell.

A study must not fail of what is said about it: a diagnosis that fails goes to the log, and says nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import fmean

from study.config import StudyConfig
from study.curves import read_curve
from study.jobs import Job
from study.replicates import test_accuracies
from study.results import StudyResults, TrialRow
from trainable import tasks
from trainable.records import Finding

_LOG = logging.getLogger(__name__)


def diagnosed(config: StudyConfig, job: Job, row: TrialRow) -> tuple[Finding, ...] | None:
    """What is wrong with a trial; None where nothing can be said, or is to be: a screening is short on purpose."""
    curve = read_curve(Path(row.directory))
    if not curve or job.role == "screening":
        return None
    try:
        return tasks.diagnose(job.config(config), curve)
    except Exception:
        _LOG.exception("the diagnosis of %s failed", row.label)
        return None


def diagnosed_study(
    config: StudyConfig, results: StudyResults, test_pictures: int
) -> tuple[Finding, ...]:
    """What is wrong with the study as a whole, whose networks were tested on so many pictures."""
    students = [row for row in (results.winner, *results.of("baseline")) if row is not None]
    accuracies = {row.label: test_accuracies(results, row) for row in students}
    tested = {label: fmean(found) for label, found in accuracies.items() if found}
    teacher = next((row.test_accuracy for row in results.of("teacher")), None)
    trials = [Job.of_row(row, config).config(config) for row in results.of("trial")]
    try:
        return tasks.diagnose_study(
            config.search, trials, teacher=teacher, students=tested, pictures=test_pictures
        )
    except Exception:
        _LOG.exception("the diagnosis of the study failed")
        return ()
