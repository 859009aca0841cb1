"""BatchNorm whose running statistics are lost, as people have met it, trained anew: is it found, and cured?

Channels die under Adam with a large learning rate, their running variances fall towards 0, and the accuracy
falls with running statistics while that with the batches' own stays: with every picture once an epoch, and with
rare classes drawn more often.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.trainable.recorded_runs import SICK, trained
from trainable import records
from trainable.config import TrialConfig
from trainable.records import EpochRecord
from trainable.statistics.diagnosis import diagnose

CASES = ("dying-channels", "dying-channels-balanced")


def column(found: Sequence[EpochRecord], name: str) -> list[float]:
    return [record.metrics[name] for record in found]


def names(config: TrialConfig, found: Sequence[EpochRecord]) -> set[str]:
    return {finding.name for finding in diagnose(config, found)}


@pytest.mark.parametrize(
    "case", [CASES[0], pytest.param(CASES[1], marks=pytest.mark.slow)], ids=CASES
)
def test_the_illness_is_found_and_named(case: str, tmp_path: Path) -> None:
    config = SICK[case].config
    found = trained(config, tmp_path)
    variances = column(found, records.BN_MIN_VAR)
    assert variances[0] > 1e-2
    assert variances[-1] <= 1e-12  # what is constant in every batch decays by momentum alone
    dead = column(found, records.BN_DEAD_CHANNELS)
    assert dead[-1] > dead[0]
    accuracy = column(found, records.VAL_ACCURACY)
    by_batch = column(found, records.VAL_ACCURACY_BATCH_STATS)
    assert max(batch - own for batch, own in zip(by_batch, accuracy, strict=True)) > 0.4
    assert names(config, found) >= {"batchnorm_drift", "dead_channels"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_remedy_cures_it(case: str, tmp_path: Path) -> None:
    """Recalibrated statistics describe the batches, of a balanced trial too; channels die as before."""
    sick = SICK[case].config
    norm = sick.train.batchnorm.model_copy(update={"recalibrate": 50})
    config = sick.model_copy(update={"train": sick.train.model_copy(update={"batchnorm": norm})})
    found = trained(config, tmp_path)
    accuracy = column(found, records.VAL_ACCURACY)
    by_batch = column(found, records.VAL_ACCURACY_BATCH_STATS)
    assert max(abs(batch - own) for batch, own in zip(by_batch, accuracy, strict=True)) < 0.1
    assert "batchnorm_drift" not in names(config, found)
    assert "dead_channels" in names(config, found)
