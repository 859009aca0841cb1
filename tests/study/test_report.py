"""The leaderboard as a person reads it: order, names, folding, and what it says when all fails."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from study.report.links import open_command
from study.report.table import print_leaderboard, ranked
from study.report.text import duration, params_text, percent, short_names, size, value_text
from study.results import State, StudyResults, TrialRow, Value
from trainable.records import Finding

FOLDER = "/home/someone/projects/distillation/runs/quickstart/trials"
PARAMS: dict[str, Value] = {
    "distill.decomposition": "5/2",
    "distill.k": 5,
    "distill.n": 2,
    "distill.alpha": 0.51234,
    "optim.lr": 0.031234,
    "data.batch_size": 128,
    "optim.weight_decay": 0.000512,
}


def trial(number: int, state: State, value: float | None = None, **fields: object) -> TrialRow:
    row = {"params": PARAMS, "epochs": 20, "seconds": 61.4} | fields
    return TrialRow.model_validate(
        {"role": "trial", "number": number, "state": state, "value": value}
        | {"directory": f"{FOLDER}/{number}"}
        | row
    )


def other(role: str, state: State = "complete", **fields: object) -> TrialRow:
    return TrialRow.model_validate(
        {"role": role, "number": 0, "state": state, "directory": f"{FOLDER}/{role}"} | fields
    )


def study_of(*rows: TrialRow, **fields: object) -> StudyResults:
    known = {
        "name": "quickstart",
        "trials_planned": 12,
        "started_at": 0.0,
        "seconds": 754.0,
        "tracking_uri": "sqlite:////home/someone/projects/distillation/runs/mlflow.db",
        "experiment": "kd",
        "parent_run_id": "0",
    }
    return StudyResults.model_validate(known | {"rows": rows} | fields)


FULL = study_of(
    trial(0, "complete", 0.9012),
    trial(1, "pruned", 0.95, epochs=4),
    trial(2, "failed", epochs=0, error="RuntimeError: CUDA out of\n memory; use a smaller batch"),
    trial(3, "complete", 0.9131, test_accuracy=0.9044),
    trial(12, "pruned", 0.81, epochs=8),
    other("teacher", value=0.95, test_accuracy=0.9401, epochs=30),
    other("baseline", value=0.89, test_accuracy=0.8921, epochs=20),
)


def printed(results: StudyResults, width: int, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal)
    print_leaderboard(results, console)
    return out.getvalue()


def unwrapped(results: StudyResults, width: int = 80) -> str:
    return " ".join(printed(results, width).split())


def test_complete_trials_come_first_then_pruned_then_failed() -> None:
    rows = [*FULL.rows, trial(5, "running", 0.99), trial(6, "complete", 0.9131)]
    labels = [row.number for row in ranked(study_of(*rows))]
    assert labels == [3, 6, 0, 1, 12, 5, 2]


def test_first_is_the_winner_even_without_validation() -> None:
    results = study_of(trial(0, "complete"), trial(1, "complete"))
    assert ranked(results)[0] == results.winner
    assert "Best: trial 0." in unwrapped(results)
    tested = study_of(trial(0, "complete").model_copy(update={"test_accuracy": 0.75}))
    assert "Best: trial 0, test accuracy 75.00 %." in unwrapped(tested)


@pytest.mark.parametrize("width", [80, 120])
def test_table_of_an_ordinary_study(width: int) -> None:
    lines = printed(FULL, width).splitlines()
    winner = next(line for line in lines if re.match(r" *1 +trial 3 ", line))
    assert winner.split() == [
        *("1", "trial", "3", "complete", "91.31", "90.44", "20", "61"),
        *("5/2", "0.512", "0.0312", "128", "0.000512"),
    ]
    pruned = next(line for line in lines if "trial 1 " in line)
    assert pruned.split()[:4] == ["trial", "1", "pruned", "95.00"]
    heading = next(line for line in lines if "test %" in line)
    assert "k/n" in heading
    assert ("weight_decay" in heading) == (width == 120)


@pytest.mark.parametrize("width", [80, 120])
def test_error_rates_have_columns_where_classes_are_unseen(width: int) -> None:
    rows = (
        trial(0, "complete", 0.9012, val_eer=0.0512),
        trial(3, "complete", 0.9131, test_accuracy=0.9044, val_eer=0.0391, test_eer=0.0423),
        other("baseline", value=0.89, test_accuracy=0.8921, epochs=20, val_eer=0.06, test_eer=0.07),
    )
    lines = [line.split() for line in printed(study_of(*rows), width).splitlines()]
    (winner,) = (line for line in lines if line[:4] == ["1", "trial", "3", "complete"])
    assert winner[4:10] == ["91.31", "90.44", "3.91", "4.23", "20", "61"]
    (second,) = (line for line in lines if line[:4] == ["2", "trial", "0", "complete"])
    assert second[4:8] == ["90.12", "5.12", "20", "61"]
    compared = [line for line in lines if line[:1] == ["compared"]]
    assert compared == [
        ["compared", "val", "%", "test", "%", "EER", "%", "EER", "%", "epochs", "sec"]
    ]
    assert ["student", "without", "a", "teacher", "89.00", "89.21", "6.00", "7.00"] in [
        line[:8] for line in lines
    ]
    assert "EER" not in printed(FULL, width)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off_and_no_line_but_paths_too_long(width: int) -> None:
    text = printed(FULL, width)
    assert "…" not in text
    assert "\x1b" not in text
    wide = [line for line in text.splitlines() if len(line) > width]
    assert all(line.startswith(("Checkpoint", "MLflow")) for line in wide)
    assert f"{FOLDER}/3/best.safetensors\n" in text
    assert f"{open_command(FULL.tracking_uri)}\n" in text


@pytest.mark.parametrize("width", [80, 120])
def test_many_parameters_fold_into_one_column(width: int) -> None:
    many = PARAMS | {f"train.some_longer_option_{i}": 0.1 * i for i in range(12)}
    text = printed(study_of(trial(0, "complete", 0.9, params=many)), width)
    assert "hyperparameters" in text
    for piece in ("k/n=5/2", "weight_decay=0.000512", "some_longer_option_11=1.1"):
        assert piece in text
    assert max(len(line) for line in text.splitlines()[:12]) <= width


def test_comparison_and_gain() -> None:
    text = unwrapped(FULL)
    assert "trial 3, the best 91.31 90.44 20 61" in text
    assert "student without a teacher 89.00 89.21 20" in text
    assert "teacher 95.00 94.01 30" in text
    assert "Best: trial 3, +1.23 points of test accuracy over the student without" in text
    assert "One seed each: the difference can be within noise." in text
    assert "4 of 12" not in text
    assert "5 of 12 trials ended in 12 min 34 s: 2 complete, 2 pruned, 1 failed" in text
    assert "trial 2 failed: RuntimeError: CUDA out of memory; use a smaller batch" in text


def test_gain_on_validation_is_not_called_proof() -> None:
    results = study_of(trial(0, "complete", 0.9), other("baseline", value=0.91, epochs=20))
    text = unwrapped(results)
    assert "-1.00 points of validation accuracy" in text
    assert "the search chose by this number: not proof" in text


def test_comparison_that_failed_says_so() -> None:
    results = study_of(trial(0, "complete", 0.9), other("baseline", "failed"))
    text = unwrapped(results)
    assert "student without a teacher (failed)" in text
    assert "points of" not in text


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "No usable trial: none was started."),
        ([trial(0, "failed", error="no pictures")], "all 1 failed, for the reasons above."),
        ([trial(0, "pruned", 0.3), trial(1, "failed")], "none ran to its end (1 pruned, 1 failed)"),
        ([trial(0, "running")], "No usable trial yet"),
    ],
)
def test_no_usable_trial_says_why(rows: list[TrialRow], why: str) -> None:
    text = unwrapped(study_of(*rows))
    assert why in text
    assert "Checkpoint" not in text
    assert all(f"failed: {row.error}" in text for row in rows if row.error)


def finding(name: str) -> Finding:
    return Finding(name, f"Words of {name}.", "0 of 1", f"remedy of {name}")


def test_health_has_a_column_where_a_trial_has_findings() -> None:
    bad, worse = finding("exploding_gradients"), finding("dead_channels")
    rows = (
        trial(0, "complete", 0.9, findings=(bad, worse)),
        trial(1, "complete", 0.8, findings=()),
        trial(2, "pruned", 0.7),
    )
    for width in (80, 160):
        text = printed(study_of(*rows), width)
        assert " health" in text.splitlines()[3] + text.splitlines()[2]
        assert max(len(line) for line in text.splitlines() if "MLflow" not in line) <= max(
            width, len(f"Checkpoint  {FOLDER}/0/best.safetensors")
        )
    lines = printed(study_of(*rows), 160).splitlines()
    (first, second, third) = (
        next(line for line in lines if f"trial {n} " in line) for n in range(3)
    )
    assert "exploding gradients +1" in first
    assert "healthy" in second
    assert "healthy" not in third


def test_findings_stand_below_the_table_the_most_important_first() -> None:
    rows = (
        trial(0, "complete", 0.9, findings=(finding("of_the_best"),)),
        trial(1, "complete", 0.8, findings=(finding("common"), finding("rare"))),
        trial(2, "pruned", 0.7, findings=(finding("common"),)),
        trial(3, "pruned", 0.6, findings=()),
    )
    results = study_of(*rows, findings=(finding("of_the_study"),))
    text = unwrapped(results)
    order = [
        "of the study (the study): Words of of_the_study. Remedy: remedy of of_the_study",
        "of the best (trial 0): Words",
        "common (trial 1, trial 2): Words",
        "and 1 more finding: see the report for the rest",
        "Health: 3 of 4 trials have findings.",
        "Best: trial 0",
    ]
    places = [text.index(piece) for piece in order]
    assert places == sorted(places)
    assert "rare (" not in text


def test_health_is_silent_before_a_diagnosis_and_brief_where_all_is_well() -> None:
    assert "ealth" not in printed(FULL, 120)
    healthy = study_of(trial(0, "complete", 0.9, findings=()), trial(1, "pruned", 0.5, findings=()))
    text = unwrapped(healthy)
    assert "Health: nothing found wrong in 2 trials." in text
    assert "healthy" not in text


def test_the_report_has_a_place() -> None:
    out = io.StringIO()
    print_leaderboard(FULL, Console(file=out, width=40), Path("/a/folder/report.html"))
    assert "\nReport      /a/folder/report.html\nCheckpoint " in out.getvalue()
    assert "Report" not in printed(FULL, 80)
    assert "Disk" not in printed(FULL, 80)


def test_what_the_study_takes_on_disk_is_said_as_du_would(tmp_path: Path) -> None:
    page, out = tmp_path / "report.html", io.StringIO()
    page.write_bytes(bytes(3 * 2**20))
    page.with_name("the same").hardlink_to(page)
    print_leaderboard(FULL, Console(file=out, width=80), page)
    assert f"\nDisk        3.0 MiB in {tmp_path}\n" in out.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 KiB"),
        (900_000, "879 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (20 * 2**20, "20 MiB"),
        (5 * 2**29, "2.5 GiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_a_terminal_shows_the_best_of_a_thousand_trials_and_a_few_reasons() -> None:
    complete = [trial(number, "complete", 1 - number / 1000) for number in range(900)]
    out_of_memory = [trial(number, "failed", error="out of memory") for number in range(900, 993)]
    others = [trial(number, "failed", error=f"number {number}") for number in range(993, 1000)]
    results = study_of(*complete, *out_of_memory, *others, trials_planned=1000)
    text = printed(results, 120)
    assert len(text.splitlines()) < 70
    shown = [line.split()[:3] for line in text.splitlines() if " complete " in line]
    assert shown == [[str(number + 1), "trial", str(number)] for number in range(40)]
    assert "\nand 960 more trials: see the report for the rest\n" in text
    assert "\ntrial 900, trial 901, trial 902, trial 903, trial 904 and 88 more failed: out" in text
    assert "\ntrial 996 failed: number 996\n" in text
    assert "\nand 3 more reasons: see the report for the rest\n" in text
    assert "and " not in printed(study_of(*complete[:40]), 120).partition("Best")[0]


def test_markup_in_an_error_is_text() -> None:
    results = study_of(trial(0, "failed", error="KeyError: [/bold] [red]x"))
    assert "KeyError: [/bold] [red]x" in unwrapped(results)


def test_terminal_gets_colour() -> None:
    assert "\x1b[1;32m" in printed(FULL, 120, terminal=True)


def test_the_command_is_one_that_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program, *arguments = open_command("sqlite:///x.db").split()
    assert Path(program).exists()
    assert arguments == ["ui", "--backend-store-uri", "sqlite:///x.db"]
    (tmp_path / "mlflow").touch(mode=0o755)
    assert open_command("sqlite:///x.db").startswith("mlflow ui ")


def test_places_of_the_embedded_store() -> None:
    out = io.StringIO()
    print_leaderboard(FULL.model_copy(update={"experiment_id": "7"}), Console(file=out, width=80))
    *_, checkpoint, command, page = out.getvalue().splitlines()
    assert checkpoint == f"Checkpoint  {FOLDER}/3/best.safetensors"
    assert command == f"MLflow      {open_command(FULL.tracking_uri)}"
    assert page.startswith("then open   http://127.0.0.1:5000/#/experiments/7/runs?workflowType=")
    assert "searchFilter=tags.%60kd.study%60%20%3D%20%27quickstart%27&" in page


def test_places_of_a_server() -> None:
    results = FULL.model_copy(update={"tracking_uri": "https://host:5000/"})
    assert printed(results, 80).splitlines()[-1] == "MLflow      https://host:5000"
    out = io.StringIO()
    print_leaderboard(
        results.model_copy(update={"experiment_id": "7"}), Console(file=out, width=80)
    )
    assert "\nMLflow      https://host:5000/#/experiments/7/runs?" in out.getvalue()
    assert "mlflow ui" not in out.getvalue()


def test_short_names_are_the_shortest_that_differ() -> None:
    paths = ("optim.lr", "teacher.train.optim.lr", "train.optim.lr", "distill.alpha", "seed")
    row = trial(0, "complete", params=dict.fromkeys(paths, 1))
    assert short_names([row]) == {
        "optim.lr": "optim.lr",
        "teacher.train.optim.lr": "teacher.train.optim.lr",
        "train.optim.lr": "train.optim.lr",
        "distill.alpha": "alpha",
        "seed": "seed",
    }


def test_decomposition_is_one_column() -> None:
    assert short_names([trial(0, "complete")]) == {
        "distill.decomposition": "k/n",
        "distill.alpha": "alpha",
        "optim.lr": "lr",
        "data.batch_size": "batch_size",
        "optim.weight_decay": "weight_decay",
    }
    alone = trial(0, "complete", params={"distill.k": 5})
    assert short_names([alone]) == {"distill.k": "k"}
    assert params_text(PARAMS, {"distill.decomposition": "k/n"}) == "k/n=5/2"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.000123456, "0.000123"), (1e-5, "1e-05"), (128, "128"), (True, "true"), (None, "—")],
)
def test_value_text(value: Value | None, text: str) -> None:
    assert value_text(value) == text


def test_numbers() -> None:
    assert [duration(s) for s in (8.4, 59.6, 245, 7620, None)] == [
        "8 s",
        "1 min 00 s",
        "4 min 05 s",
        "2 h 07 min",
        "—",
    ]
    assert [percent(share) for share in (0.9131, None)] == ["91.31", "—"]
