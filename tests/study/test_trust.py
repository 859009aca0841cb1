"""What a study's test accuracies say together, and what is said where they say little."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from study.report.evidence import gather
from study.report.page import render
from study.report.strips import strips
from study.report.table import print_leaderboard
from study.report.trust import Trust, trust_of
from study.report.verdict import verdict
from study.results import StudyResults, TrialRow
from tests.study.studies import results_of, trial_row


def row(role: str, number: int = 0, of: str = "", **fields: Any) -> TrialRow:
    known = {"role": role, "number": number, "of": of, "state": "complete", "directory": "/d"}
    return TrialRow.model_validate(known | fields)


def replicates(of: str, *accuracies: float | None) -> list[TrialRow]:
    """None is one that failed."""
    return [
        row("replicate", number, of, test_accuracy=accuracy)
        if accuracy is not None
        else row("replicate", number, of, state="failed", error="it broke")
        for number, accuracy in enumerate(accuracies)
    ]


FOUND = [
    row("teacher", value=0.95, test_accuracy=0.94),
    row("baseline", value=0.85),
    trial_row(0, value=0.91),
    trial_row(1, value=0.92),
    row("baseline", 0, "kd", value=0.90),
    row("baseline", 1, "kd", value=0.88),
]


def study(**accuracies: Any) -> StudyResults:
    """Trial 1 won; replicates by `winner`, `second`, `alone` and `kd`."""
    names = {"winner": "trial 1", "second": "trial 0", "alone": "baseline", "kd": "baseline kd 0"}
    again = [one for name, a in accuracies.items() for one in replicates(names[name], *a)]
    return results_of(*FOUND, *again, val_pictures=400, test_pictures=400)


def trust(**accuracies: Any) -> Trust:
    found = trust_of(study(**accuracies))
    assert found is not None
    return found


def told(found: Trust, words: str) -> bool:
    return any(words in warning for warning in found.warnings)


def test_means_deviations_and_leads() -> None:
    found = trust(winner=(0.90, 0.92, 0.94), alone=(0.80, 0.81, 0.82), kd=(0.91, 0.93, 0.92))
    assert [one.name for one in found.standings] == [
        *("trial 1, the best", "student without a teacher", "KD at its best")
    ]
    assert found.winner.text == "92.00 ± 2.00"
    lead, kd = found.baselines
    assert lead.difference == pytest.approx(0.11)
    assert lead.interval is not None
    assert not lead.interval.holds_zero
    assert kd.text.startswith("+0.00 (-")
    assert found.strongest == kd
    assert found.shrinkage == pytest.approx(0.92 - 0.92)
    assert told(found, "trial 1 is ahead of KD at its best (+0.00 (")
    assert told(found, "points), which is within noise")
    assert not told(found, "ahead of the student without a teacher")


def test_a_search_that_was_longer_than_a_baselines_is_said_to_be() -> None:
    again = [*replicates("trial 1", 0.9, 0.91), *replicates("baseline kd 0", 0.8, 0.81)]
    more = [
        trial_row(2, state="pruned"),
        trial_row(3, state="failed"),
        trial_row(4, state="running"),
    ]
    words = "trial 1 is the best of 4 trials, and KD at its best of 2: they were not searched for"
    for rows, is_said in ((more, True), ([more[2]], False)):
        results = results_of(*FOUND, *rows, *again)
        found = trust_of(results)
        assert found is not None
        assert told(found, words) == told(found, "the same budget") == is_said
        assert (words in printed(results)) == is_said


def test_a_winner_that_is_behind_leads_nowhere() -> None:
    found = trust(winner=(0.90, 0.91), alone=(0.95, 0.90))
    assert told(found, "trial 1 is behind the student without a teacher (-2.00 (")
    assert told(found, "points), which is within noise")


def test_a_runner_up_with_the_higher_test_mean_does_not_win() -> None:
    results = study(winner=(0.90, 0.901, 0.902), second=(0.95, 0.951, 0.952))
    found = trust_of(results)
    assert found is not None
    assert found.winner.row.label == "trial 1"
    assert told(found, "trial 0 has the higher mean on the test split (95.10 ± 0.10 against 90.10")
    assert not told(found, "within noise of each other")
    assert "Best: trial 1, 90.10 ± 0.10 % of the test split over 3 seeds" in verdict(results)


def test_finalists_within_noise_are_said_to_be() -> None:
    found = trust(winner=(0.90, 0.92, 0.94), second=(0.91, 0.92, 0.90))
    assert told(found, "trial 1 and trial 0 are within noise of each other: +1.00 (")


def test_a_baseline_that_is_better_is_said_to_be() -> None:
    found = trust(winner=(0.90, 0.901, 0.902), alone=(0.95, 0.951, 0.952))
    assert told(found, "trial 1 is behind the student without a teacher (-5.00 (")
    assert told(found, "points): that baseline is better")


def test_of_one_seed_there_is_no_deviation_and_it_is_said() -> None:
    results = study(winner=(0.92,), second=(0.91,), alone=(0.90,))
    found = trust_of(results)
    assert found is not None
    assert (found.winner.sd, found.winner.interval, found.winner.text) == (None, None, "92.00")
    assert all(one.interval is None for one in found.comparisons)
    assert told(found, "cannot be told apart: one seed has no spread to judge by")
    assert told(found, "says little: one seed has no spread to judge by")
    assert "over one seed" in verdict(results)
    assert "nan" not in printed(results)


def test_equal_seeds_show_no_spread() -> None:
    found = trust(winner=(0.92, 0.92), alone=(0.90, 0.90))
    assert told(found, "says little: neither shows any spread over its seeds")


def test_replicates_that_failed_are_counted_as_missing() -> None:
    found = trust(winner=(0.92, None, 0.90), alone=(0.90, 0.91))
    assert found.seeds == 2
    assert told(found, "1 of 3 replicates of trial 1 failed")


def test_what_has_no_replicate_that_ended_is_said_not_to_be_compared() -> None:
    found = trust(winner=(0.92, 0.90), second=(None, None), alone=(None, None, None), kd=(0.9, 0.9))
    assert [one.name for one in found.standings] == ["trial 1, the best", "KD at its best"]
    assert told(found, "None of the replicates of trial 0 ended (2 failed): it is not compared.")
    assert told(found, "None of the replicates of baseline ended (3 failed): it is not compared.")
    assert not told(found, "of baseline kd 0")


def test_a_winner_none_of_whose_replicates_ended_was_not_tested(tmp_path: Path) -> None:
    results = study(winner=(None, None), second=(0.9, None))
    assert trust_of(results) is None
    html = render(gather(results, tmp_path))
    assert "That is not known: the winner was not tested" in html
    for text in (printed(results), html):
        assert "None of the replicates of trial 1 ended (2 failed): it is not compared." in text
        assert "1 of 2 replicates of trial 0 failed, and count in no figure." in text


def test_the_search_of_a_baseline_is_represented_by_its_best_validation() -> None:
    results = results_of(
        *FOUND, *replicates("trial 1", 0.9), *replicates("baseline kd 1", 0.99), val_pictures=400
    )
    found = trust_of(results)
    assert found is not None
    assert found.baselines == ()  # of kd 0, which is the best by validation, nothing was tested


def test_without_replicates_the_runner_up_is_judged_by_the_pictures_alone() -> None:
    """Of 400 pictures 1 point is within the bound of √((0.17 − 0.0001)/400)·1.96 = 4.04 points."""
    rows = [*FOUND[:3], FOUND[3].model_copy(update={"test_accuracy": 0.9})]
    found = trust_of(results_of(*rows, val_pictures=400))
    assert found is not None
    assert told(found, "1.00 points of validation accuracy ahead of trial 0: within noise")
    assert told(found, "the 400 pictures alone can make up to 4.04")
    many = trust_of(results_of(*rows, val_pictures=40_000))
    assert many is not None
    assert not told(many, "ahead of trial 0")
    unknown = trust_of(results_of(*rows))
    assert unknown is not None
    assert not told(unknown, "ahead of trial 0")


@pytest.mark.parametrize(
    ("validated", "tested", "is_said"),
    [
        (0.9992, 0.784, True),  # as recorded of a teacher that had seen them
        (0.80, 0.784, False),
        (0.95, 0.92, False),  # more than noise, and most of its errors are there all the same
        (0.70, 0.784, False),
    ],
)
def test_a_teacher_that_knows_the_validation_pictures_is_noticed(
    validated: float, tested: float, is_said: bool
) -> None:
    teacher = FOUND[0].model_copy(update={"value": validated, "test_accuracy": tested})
    rows = [teacher, FOUND[3].model_copy(update={"test_accuracy": 0.9})]
    results = results_of(*rows, val_pictures=5000, test_pictures=10_000)
    found, words = trust_of(results), "it seems to have been trained on the former"
    assert found is not None
    assert told(found, words) == is_said
    assert (words in printed(results)) == is_said  # also where nothing was trained again


def test_a_study_that_was_not_tested_has_no_answer() -> None:
    assert trust_of(results_of(*FOUND)) is None
    assert trust_of(results_of()) is None
    assert strips(results_of(*FOUND)) is None


def printed(results: StudyResults) -> str:
    out = io.StringIO()
    print_leaderboard(results, Console(file=out, width=80))
    return " ".join(out.getvalue().split())


def test_the_terminal_has_a_line_for_each_that_was_trained_again() -> None:
    results = study(winner=(0.90, 0.92), second=(0.91, 0.90), alone=(0.80, 0.81), kd=(0.9, 0.91))
    text = printed(results)
    assert "trained again seeds test % best ahead by (95 %)" in text
    assert "trial 1, the best 2 91.00 ± 1.41" in text
    assert "student without a teacher 2 80.50 ± 0.71 +10.50 (" in text
    assert "KD at its best (kd 0) 90.00 —" in text  # its validation, with the others compared
    assert "trial 1 and trial 0 are within noise" in text


def once_tested(**accuracies: float) -> StudyResults:
    """The study without replicates, as far as it was tested."""
    places = {"alone": 1, "winner": 3, "kd": 4}
    rows = list(FOUND)
    for name, accuracy in accuracies.items():
        at = places[name]
        rows[at] = rows[at].model_copy(update={"test_accuracy": accuracy})
    return results_of(*rows, val_pictures=400, test_pictures=400)


def test_without_replicates_the_terminal_has_the_warnings_and_no_means() -> None:
    text = printed(once_tested(winner=0.90, alone=0.85, kd=0.93))
    assert "trained again" not in text
    assert "1.00 points of validation accuracy ahead of trial 0: within noise" in text
    little = "which says little: one seed has no spread to judge by."
    assert f"trial 1 is behind KD at its best (-3.00 points), {little}" in text
    assert f"ahead of the student without a teacher (+5.00 points), {little}" in text


def test_without_replicates_the_winner_is_compared_with_the_strongest_that_was_tested() -> None:
    strongest = "over KD at its best, the strongest of 2 baselines"
    assert verdict(once_tested(winner=0.90, alone=0.85, kd=0.93)) == (
        f"Best: trial 1, -3.00 points of test accuracy {strongest} (90.00 against 93.00 %). "
        "One seed each: the difference can be within noise."
    )
    alone = "over the student without a teacher (90.00 against 85.00 %)."
    assert f"+5.00 points of test accuracy {alone}" in verdict(once_tested(winner=0.90, alone=0.85))


def test_before_any_test_the_winner_is_compared_with_the_strongest_by_validation() -> None:
    assert verdict(results_of(*FOUND)) == (
        "Best: trial 1, +2.00 points of validation accuracy over KD at its best, the strongest of 2 "
        "baselines (92.00 against 90.00 %). One seed each, and the search chose by this number: not proof."
    )


def test_the_terminal_says_of_how_many_trials_each_search_gives_the_best() -> None:
    more = [trial_row(2, value=0.5), trial_row(3, state="pruned", value=0.4)]
    text = printed(results_of(*FOUND, *more))
    assert "compared val % test % epochs sec best of" in text
    assert "trial 1, the best 92.00 — 0 0 4 trials student without a teacher 85.00 — 0 0 KD" in text
    assert "KD at its best (kd 0) 90.00 — 0 0 2 trials teacher 95.00 94.00 0 0" in text
    assert "best of" not in printed(results_of(*FOUND[:4]))


def test_the_checkpoint_is_the_winners_first_replicates() -> None:
    again = replicates("trial 1", None, 0.91, 0.92)
    placed = [one.model_copy(update={"directory": f"/r/{one.number}"}) for one in again]
    assert "/r/1/best.safetensors" in printed(results_of(*FOUND, *placed))


def test_the_page_shows_a_dot_a_seed(tmp_path: Path) -> None:
    results = study(winner=(0.90, 0.92, 0.93), alone=(0.80, 0.81))
    html = render(gather(results, tmp_path))
    assert html.count('class="seed trial"') == 3
    assert html.count('class="seed baseline"') == 2
    assert html.count('class="interval"') == 2
    assert "From validation to test: 92.00 % in the best epoch of the search, 91.67 %" in html
    assert "Replicates of trial 1" in html
    assert "Baseline kd, a search of its own: 2 trials" in html


def test_the_page_of_one_training_each_says_that_a_dot_is_all_there_is(tmp_path: Path) -> None:
    rows = [*FOUND[:3], FOUND[3].model_copy(update={"test_accuracy": 0.9})]
    html = render(gather(results_of(*rows), tmp_path))
    assert "Each row is one training with one seed" in html
    assert html.count('class="seed trial"') == 1
    assert 'class="interval"' not in html


def test_intervals_are_drawn_as_far_as_there_are_accuracies() -> None:
    """Of two seeds far apart the interval leaves 0 … 100 %, and the axis does not."""
    found = strips(study(winner=(0.40, 0.95), alone=(0.5, 0.5)))
    assert found is not None
    axis = str(found.axis)
    assert ">100<" in axis
    assert ">120<" not in axis
