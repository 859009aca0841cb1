from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Script = Callable[[str], Any]


def test_the_interval_is_of_paired_differences(script: Script) -> None:
    found = script("samplers").difference([0.90, 0.92, 0.97], [0.89, 0.90, 0.94])
    # 1, 2 and 3 points: mean 2, standard error 1/√3, t of two degrees of freedom 4.3027.
    assert found == pytest.approx({"mean": 2.0, "pairs": 3, "low": -0.4841, "high": 4.4841}, 1e-4)


def test_one_pair_has_no_interval(script: Script) -> None:
    assert script("samplers").difference([0.5], [0.4]) == pytest.approx({"mean": 10.0, "pairs": 1})


def test_seeds_that_only_one_sampler_has_are_left_out(script: Script) -> None:
    runs = {
        "tpe": {"0": {"value": 0.9, "test_accuracy": 0.8}, "1": {"value": 0.1, "test_accuracy": 0}},
        "random": {"0": {"value": 0.7, "test_accuracy": 0.9}},
    }
    found = script("samplers").differences(runs, ["tpe", "random"])["tpe - random"]
    assert found["value"] == pytest.approx({"mean": 20.0, "pairs": 1})
    assert found["test_accuracy"] == pytest.approx({"mean": -10.0, "pairs": 1})
