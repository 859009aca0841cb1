from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.halving import course_of

Script = Callable[[str], Any]
EPOCHS = 20


@pytest.fixture
def trials(script: Script) -> list[Any]:
    """Twelve of a kind, each better than the one before from its first epoch on."""
    pruning = script("pruning")
    course = course_of(pruning.config_of("1/0", EPOCHS))
    return [
        pruning.Recorded(
            number, "1/0", tuple(number / 20 + epoch / 100 for epoch in range(EPOCHS)), 2.0, course
        )
        for number in range(12)
    ]


@pytest.mark.parametrize("places", [1, 4])
def test_without_a_pruner_all_is_spent_and_nothing_lost(
    script: Script, trials: list[Any], places: int
) -> None:
    pruning = script("pruning")
    assert pruning.replay(trials, pruning.Stopped(None), places) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "ascending_costs_all"), [("halving", False), ("asha, grace 2, factor 3", True)]
)
def test_the_best_from_the_start_is_found_for_less(
    script: Script, trials: list[Any], name: str, ascending_costs_all: bool
) -> None:
    """ASHA judges a trial by those before it, and stops none that is better than all of them."""
    pruning = script("pruning")
    made = pruning.pruners(EPOCHS)[name]
    costs = []
    for order in (trials, trials[::-1]):
        cost, regret = pruning.replay(order, made(order), 1)
        assert regret == 0.0
        costs.append(cost)
    assert (costs[0] == 1.0) == ascending_costs_all
    assert costs[1] < 0.6


def test_halving_spends_what_its_points_say(script: Script, trials: list[Any]) -> None:
    """Best first: 2 epochs each, two more of the first half, and so on; of the last three two are whole."""
    pruning = script("pruning")
    best_first = trials[::-1]
    cost, _ = pruning.replay(best_first, pruning.pruners(EPOCHS)["halving"](best_first), 1)
    assert best_first[0].course.points == (2, 4, 8)
    assert cost == pytest.approx((12 * 2 + 6 * 2 + 3 * 4 + 2 * 12) / (12 * EPOCHS))


def test_a_trial_that_a_pruner_misses_is_its_regret(script: Script, trials: list[Any]) -> None:
    pruning = script("pruning")
    late = pruning.replace(trials[0], values=(*([0.0] * (EPOCHS - 1)), 0.95))
    found = pruning.replay([*trials[1:], late], pruning.asha(EPOCHS, 2, 3), 1)
    assert found[1] == pytest.approx(100 * (0.95 - trials[-1].final))


def test_a_comparison_is_kept_by_size(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruning = script("pruning")
    arguments = ["--half", "holdout", "--resamplings", "2", "--output", str(tmp_path)]
    curves = ["--curves", str(pruning.CURVES[-1]), "--sizes"]
    monkeypatch.setattr(sys, "argv", ["pruning.py", *arguments, *curves, "6", "12"])
    pruning.main()
    kept = json.loads((tmp_path / "pruning-holdout.json").read_text())
    assert kept["trials"] == 13
    assert list(kept["sizes"]) == ["6", "12"]
    for found in kept["sizes"].values():
        assert found["pruners"]["none"]["cost"]["mean"] == pytest.approx(1)
        assert 0 < found["pruners"]["halving"]["cost"]["mean"] < 1
        assert found["rival"].startswith("asha, grace ")
    monkeypatch.setattr(sys, "argv", ["pruning.py", *arguments, *curves, "14"])
    with pytest.raises(SystemExit):
        pruning.main()
