from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from trainable.engine.step import Step

Script = Callable[[str], Any]
USUAL = {
    "channels_last": 30.0,
    "student alone": 17.0,
    "teacher alone": 12.0,
    "kd": 28.5,
    "kd, observes nothing": 28.0,
    "kd, observes always": 30.0,
    "stablekd": 29.7,
}
"""Milliseconds of an update."""


def test_usual_times_are_fine(script: Script) -> None:
    check = script("check")
    assert set(USUAL) == set(check.MEASURED)
    assert check.too_high(check.medians([USUAL])) == []


@pytest.mark.parametrize(
    ("forms", "found"),
    [
        (
            ["kd", "kd, observes nothing", "kd, observes always", "stablekd"],
            ["KD ÷ the loop of torch alone", "KD ÷ (student alone + teacher alone)"],
        ),
        (["stablekd"], ["StableKD ÷ KD"]),
        (["kd, observes always"], ["observing always ÷ never"]),
    ],
)
def test_thirty_per_cent_more_are_found(script: Script, forms: list[str], found: list[str]) -> None:
    check = script("check")
    slower = {name: ms * (1.3 if name in forms else 1) for name, ms in USUAL.items()}
    assert check.too_high(check.medians([slower])) == found


def test_a_few_disturbed_rounds_are_no_alarm(script: Script) -> None:
    check = script("check")
    disturbed = {**USUAL, "kd": 300.0, "stablekd": 3000.0}
    assert check.too_high(check.medians([USUAL] * 6 + [disturbed] * 5)) == []


def test_only_what_is_too_high_in_every_attempt_is_an_alarm(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = script("check")
    slow_stage, slow = {**USUAL, "stablekd": 50.0}, {**USUAL, "stablekd": 50.0, "kd": 50.0}
    for attempts, expected, count in (
        ([USUAL], [], 1),
        ([slow, USUAL], [], 2),
        ([slow_stage, slow, USUAL], [], 2),
        ([slow_stage] * 3, ["StableKD ÷ KD"], 3),
    ):
        left = list(attempts)
        monkeypatch.setattr(check, "measured", lambda _, left=left: [left.pop(0)])
        assert check.check() == expected
        assert len(attempts) - len(left) == count
    assert capsys.readouterr().out.count("TOO HIGH") == 2 + 1 + 3


def test_a_step_with_thirty_per_cent_more_work_is_found(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = script("check")
    usual = check.measured(7)
    kd_s = sorted(each["kd"] for each in usual)[3]
    apply = Step.apply

    def with_more_work(step: Step) -> None:
        until = time.process_time() + 0.3 * kd_s
        while time.process_time() < until:
            pass
        apply(step)

    monkeypatch.setattr(Step, "apply", with_more_work)
    alarms = check.too_high(check.medians(check.measured(7)))
    assert set(alarms) >= {"KD ÷ the loop of torch alone", "KD ÷ (student alone + teacher alone)"}
