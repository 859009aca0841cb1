"""Several objectives and constraints, as the terminal and the page show them."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from study.ledger import LEDGER, load_results, save_results
from study.report.board import board_of
from study.report.front import front_pictures, value_of
from study.report.page import write_report
from study.report.table import print_leaderboard, ranked
from study.report.trials_file import TRIALS
from study.report.verdict import verdict
from study.results import StudyResults, TrialRow
from tests.study.studies import results_of, trial_row, write_study

THREE = ("accuracy", "latency", "parameters")


def row(number: int, accuracy: float, latency: float, millions: float, **fields: Any) -> TrialRow:
    costs = {"latency": latency, "parameters": 1e6 * millions}
    return trial_row(number, value=accuracy, costs=costs, **fields)


def study(*rows: TrialRow, **fields: Any) -> StudyResults:
    return results_of(*rows, **{"objectives": THREE, "finished": True, **fields})


STOPPED = trial_row(
    5, state="pruned", costs={"parameters": 30e6}, violates=("parameters",), value=None
)
WHOLE = study(
    row(0, 0.80, 2.0, 11.2),
    row(1, 0.79, 1.0, 4.4),
    row(2, 0.78, 1.5, 4.4),  # bettered by trial 1
    row(3, 0.79, 1.0, 4.4),  # as good as trial 1
    row(4, 0.90, 9.0, 12.0, violates=("latency",)),
    STOPPED,
    trial_row(6, state="failed", error="no memory"),
    constraints={"latency": 5.0, "parameters": 2e7},
)


def printed(results: StudyResults, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO())
    print_leaderboard(results, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_trials_that_break_a_constraint_neither_win_nor_are_on_the_front() -> None:
    assert [row.number for row in WHOLE.front] == [0, 1, 3]
    assert WHOLE.winner is not None
    assert WHOLE.winner.number == 0
    assert [row.number for row in WHOLE.best_trials] == [0, 1, 3, 2]


def test_a_study_of_one_objective_has_no_front() -> None:
    one = WHOLE.model_copy(update={"objectives": ("accuracy",), "constraints": {}})
    assert one.front == ()
    assert "front" not in printed(one)
    assert "latency" not in printed(trial_only := results_of(trial_row(0, value=0.5)))
    assert front_pictures(trial_only) == []


def test_of_equal_accuracies_the_one_on_the_front_has_the_first_rank() -> None:
    equals = study(row(0, 0.80, 2.0, 11.2), row(1, 0.80, 1.0, 4.4))
    assert equals.winner is not None
    assert equals.winner.number == 1
    assert [row for row in ranked(equals) if row.is_usable] == list(equals.best_trials)
    assert [(line.rank, line.name) for line in board_of(equals).trials] == [
        *((1, "trial 1"), (2, "trial 0"))
    ]


def test_the_leaderboard_marks_the_front_and_what_is_broken() -> None:
    lines = [" ".join(line.split()) for line in printed(WHOLE).splitlines()]
    assert "1 trial 0 complete 80.00 2.00 11.20M ● 0 0" in lines
    assert "4 trial 2 complete 78.00 1.50 4.40M 0 0" in lines
    assert "trial 4 complete 90.00 9.00 12.00M latency 0 0" in lines
    assert "trial 5 pruned — 30.00M parameters 0 0" in lines
    order = re.findall(r"trial (\d)", printed(WHOLE))[:7]
    assert order == ["0", "1", "3", "2", "4", "5", "6"]


def test_bounded_costs_are_shown_though_none_is_sought() -> None:
    bounded = study(row(0, 0.8, 2.0, 11.2), objectives=("accuracy",), constraints={"latency": 5.0})
    assert "latency ms" in printed(bounded)
    assert "parameters" not in printed(bounded)
    assert "front" not in printed(bounded)


def test_the_verdict_names_the_constraints_that_leave_no_trial() -> None:
    rows = [row(0, 0.8, 9.0, 1.0, violates=("latency",)), STOPPED]
    rows.append(row(1, 0.4, 9.0, 1.0, violates=("latency", "accuracy")))
    bounds = {"accuracy": 0.5, "latency": 5.0, "parameters": 2e7}
    rows.append(trial_row(6, state="failed"))
    assert verdict(study(*rows, constraints=bounds)) == (
        "No usable trial: 2 break latency <= 5, 1 breaks parameters <= 2e+07, "
        "1 breaks accuracy >= 0.5, 1 failed."
    )
    assert verdict(WHOLE).startswith("Best: trial 0")


def test_each_pair_has_a_picture_with_its_front() -> None:
    pairs = front_pictures(WHOLE)
    assert [pair.caption for pair in pairs] == [
        "parameters against latency in ms",
        "validation accuracy in % against latency in ms",
        "validation accuracy in % against parameters",
    ]
    costs, accuracy, _ = (str(pair.picture) for pair in pairs)
    assert accuracy.count("data-trial") == 5  # those that ran to their end
    assert "on the front: trial 1, trial 3, trial 0." in accuracy
    assert len(re.findall(r'<use [^>]*class="mark complete broken"', accuracy)) == 1
    assert len(re.findall(r'<use [^>]*class="mark complete shade-4 best"', accuracy)) == 1
    assert ">trial 0</text>" in accuracy
    assert "on the front: trial 1, trial 3." in costs  # trial 0 is slower and larger


def test_a_front_is_drawn_as_stairs() -> None:
    pair = front_pictures(
        study(*(row(n, 0.7 + 0.1 * n, 1.0 + n, 1.0) for n in range(3)), objectives=THREE[:2])
    )[0]
    (points,) = re.findall(r'<polyline class="line front" points="([^"]*)"', str(pair.picture))
    places = [tuple(map(float, place.split(","))) for place in points.split()]
    assert len(places) == 5
    steps = [(a[0] == b[0], a[1] == b[1]) for a, b in pairwise(places)]
    assert steps == [(False, True), (True, False)] * 2  # to the right, then up


def test_values_are_short() -> None:
    assert value_of("accuracy", 0.8126) == "81.26"
    assert value_of("parameters", 11_173_962) == "11.17M"
    assert value_of("parameters", 85_320) == "85,320"
    assert value_of("latency", 1.23456) == "1.23"
    assert value_of("training_seconds", 1234.5) == "1234"


def with_costs(folder: Path, objectives: tuple[str, ...] = THREE) -> StudyResults:
    """A made-up study in this folder whose trials cost something, and some break a constraint."""
    results = load_results(folder / LEDGER)
    rows: list[TrialRow] = []
    for told in results.rows:
        if told.role == "trial" and told.state == "complete":
            latency = 0.6 + 4 * ((told.value or 0) - 0.5) ** 2 + 0.07 * (told.number % 9)
            costs = {
                "latency": latency,
                "parameters": (0.27, 1.1, 4.4, 11.2)[told.number % 4] * 1e6,
            }
            broken = ("latency",) if latency > 1.7 else ()
            told = told.model_copy(update={"costs": costs, "violates": broken})
        rows.append(told)
    update = {"rows": tuple(rows), "objectives": objectives, "constraints": {"latency": 1.7}}
    costed = results.model_copy(update=update)
    save_results(costed, folder / LEDGER)
    return costed


def test_the_page_shows_it(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=40, epochs=6)
    results = with_costs(folder)
    page = write_report(results, folder).read_text()
    section = page[page.index('<section id="front">') : page.index('<section id="learning">')]
    assert section.count("<figure>") == 3
    for member in results.front:
        assert member.label in section
    board = page[page.index('<section id="leaderboard">') : page.index('<section id="front">')]
    assert board.count('<td class="n">●</td>') == len(results.front)
    assert board.count('<td class="n">latency</td>') == sum(
        bool(told.violates) for told in results.rows
    )
    table = pq.read_table(folder / TRIALS).to_pylist()
    broken = [told["number"] for told in table if told["violates"]]
    assert broken == [told.number for told in results.rows if told.violates]
    again = write_study(tmp_path / "one", trials=4, epochs=3)
    assert 'id="front"' not in write_report(load_results(again / LEDGER), again).read_text()
