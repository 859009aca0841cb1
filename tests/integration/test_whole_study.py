"""One study with every kind of ending: what it tells MLflow, Optuna and a person, and that they agree."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

import study.driver
from study.cli import _app
from study.config import dump_config
from study.ledger import LEDGER
from study.optuna_study import claim
from trainable import records
from trainable.data.decoded import decoded_path
from trainable.data.opened import open_split
from trainable.data.sources import open_source
from trainable.errors import ConfigError
from trainable.places import cache_folder
from trainable.records import grad_norm_of, update_distance_of, update_travelled_of

pytestmark = pytest.mark.timeout(300)

EPOCHS, TRIALS, BROKEN = 3, 6, 2
BLOCKS = ("layer1", "layer2", "layer3", "layer4", "head")
EVERY_EPOCH = {
    *(value for name, value in vars(records).items() if name.startswith(("TRAIN_", "VAL_"))),
    *(value for name, value in vars(records).items() if name.startswith(("GRAD_", "AMP_", "BN_"))),
    *(value for name, value in vars(records).items() if name.startswith("UPDATE_")),
    *(grad_norm_of(block) for block in BLOCKS),
    *(update_distance_of(block) for block in BLOCKS),
    *(update_travelled_of(block) for block in BLOCKS),
} - {
    records.VAL_EER,  # of studies with unseen classes
    records.VAL_FLUCTUATION,  # from a stage's second epoch on
    records.TRAIN_PEAK_MEMORY,  # of GPUs
}
NAMED_BY_THE_DESIGN = {
    "train/loss",
    "train/ce",
    "train/kl",
    "train/feature",
    "train/lr",
    "train/stage",
    "train/images_per_second",
    "val/accuracy",
    "val/loss",
    "val/accuracy_batch_stats",
    "grad/norm",
    "grad/clip_rate",
    "grad/update_ratio",
    "amp/scale",
    "amp/skipped",
    "bn/drift",
    "bn/min_var",
    "bn/dead_channels",
}
STATES = {
    TrialState.COMPLETE: ("complete", "FINISHED"),
    TrialState.PRUNED: ("pruned", "KILLED"),
    TrialState.FAIL: ("failed", "FAILED"),
}


class TestFile:
    """The decoded test split in the node's cache."""

    __test__ = False

    def __init__(self, config: Any) -> None:
        source = open_source(config.data, cache_folder())
        opened = open_split(source, "test", config.data, cache_folder())
        self.path = decoded_path(cache_folder(), opened.key)
        self.seen_at: dict[str, bool] = {}

    def watch(self, phase: str) -> None:
        """Whoever reads the test split makes this file again."""
        self.seen_at[phase.partition(" ")[0]] = self.path.exists()
        if not phase.startswith("testing"):
            self.path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, configure: Any) -> Any:
    return configure(
        tmp_path_factory.mktemp("whole"),
        study={"trials": TRIALS, "pruner": {"name": "asha", "grace_epochs": 1}},
        teacher={"train": {"epochs": 2, "batch_size": 64, "optim": {"lr": 0.05}}},
        distill={"method": "stablekd", "alpha": 0.5, "decomposition": "3/1"},
        train={"epochs": EPOCHS},
        search={
            "distill.alpha": {"uniform": [0.1, 0.9]},
            "distill.decomposition": {"choice": ["1/0", "3/1", "5/2"]},
            "optim.lr": {"loguniform": [1e-4, 0.3]},
            "optim.weight_decay": {"loguniform": [1e-5, 1e-2]},
            "data.batch_size": {"choice": [32, 64]},
        },
    )


@pytest.fixture(scope="module")
def test_file(config: Any) -> TestFile:
    return TestFile(config)


@pytest.fixture(scope="module")
def whole(config: Any, conduct: Any, make_spy: Any, test_file: TestFile) -> Any:
    """Six trials of StableKD with early stopping, a teacher to train, and one trial that fails."""
    # A damaged checkpoint: the trial must fail on a worker, and nothing before can know.
    damaged = config.folder / "trials" / f"{BROKEN:04d}" / "checkpoints" / "000000001"
    damaged.mkdir(parents=True)
    (damaged / "state.pt").write_bytes(b"not a checkpoint")
    spy = make_spy()
    spy.at_phase = test_file.watch
    return conduct(config, spy)


def test_children_are_the_trials_and_the_references(whole: Any) -> None:
    roles = [run.data.tags["kd.role"] for run in whole.children]
    assert sorted(roles) == ["baseline", "teacher", *["trial"] * TRIALS]
    numbers = [r.data.tags["kd.trial"] for r in whole.children if r.data.tags["kd.role"] == "trial"]
    assert sorted(numbers) == [str(number) for number in range(TRIALS)]
    parent = whole.parent
    assert {run.data.tags["mlflow.parentRunId"] for run in whole.children} == {parent.info.run_id}
    assert (parent.info.run_name, parent.data.tags["kd.state"]) == ("tiny", "complete")
    assert parent.info.status == "FINISHED"


def test_mlflow_optuna_and_the_ledger_agree_on_every_trial(whole: Any) -> None:
    assert len(whole.optuna_trials) == TRIALS
    rows = {row.number: row for row in whole.results.of("trial")}
    for trial in whole.optuna_trials:
        state, status = STATES[trial.state]  # RUNNING or WAITING would be a KeyError
        run = whole.child(f"trial {trial.number}")
        row = rows[trial.number]
        assert (run.data.tags["kd.state"], run.info.status, row.state) == (state, status, state)
        curve = dict(whole.history(run_label(run)).get("val/accuracy", []))
        assert trial.intermediate_values == curve
        assert row.value == (max(curve.values()) if curve else None)
        assert trial.params.items() <= row.params.items()
        for path, value in row.params.items():
            assert run.data.params[path] == str(value)
        if state == "complete":
            assert trial.value == row.value


def run_label(run: Any) -> str:
    return f"{run.data.tags['kd.role']} {run.data.tags['kd.trial']}"


def test_the_study_had_every_kind_of_ending(whole: Any) -> None:
    states = [row.state for row in whole.results.of("trial")]
    assert states.count("failed") == 1
    assert "pruned" in states
    assert states.count("complete") >= 2


def test_params_are_flat_dotted_paths(whole: Any) -> None:
    for run in whole.children:
        params = run.data.params
        assert params["data.source"] == "digits"
        assert float(params["optim.lr"]) > 0
        assert float(params["optim.weight_decay"]) > 0
        assert params["train.epochs"] == ("2" if run.data.tags["kd.role"] == "teacher" else "3")
        if run.data.tags["kd.role"] == "trial":
            assert 0.1 <= float(params["distill.alpha"]) <= 0.9
            decomposition = f"{params['distill.k']}/{params['distill.n']}"
            assert params["distill.decomposition"] == decomposition
            assert params["data.batch_size"] in ("32", "64")
        else:
            assert params["distill.method"] == "none"
            assert "distill.k" not in params


def test_every_metric_is_there_at_every_epoch(whole: Any) -> None:
    assert NAMED_BY_THE_DESIGN <= EVERY_EPOCH
    for row in whole.results.of("trial"):
        if row.number == BROKEN:
            continue
        history = whole.history(row.label)
        history.pop("test/accuracy", None)
        best = history.pop("best/val_accuracy")
        assert best[-1] == (row.best_epoch, row.value)
        changes = history.pop(records.VAL_FLUCTUATION, [])  # within a stage
        assert 1 not in [step for step, _ in changes]
        parameters = history.pop(records.STUDENT_PARAMETERS, [])  # with the last epoch
        assert [step for step, _ in parameters] == [EPOCHS] * (row.state == "complete")
        assert set(history) == EVERY_EPOCH
        for name, points in history.items():
            steps = [step for step, _ in points]
            assert steps == list(range(1, row.epochs + 1)), name
        assert row.epochs == EPOCHS or row.state == "pruned"


def test_failed_trial_says_why_with_the_remote_traceback(whole: Any) -> None:
    run = whole.child(f"trial {BROKEN}")
    assert "must hold a checkpoint that is whole" in run.data.tags["kd.error"]
    text = whole.client.download_artifacts(run.info.run_id, "error.txt")
    traceback = Path(text).read_text()
    assert re.search(r'File ".*engine/checkpoint\.py", line', traceback), traceback
    assert "\x1b" not in traceback
    row = next(row for row in whole.results.rows if row.number == BROKEN)
    assert row.error is not None
    assert "must hold a checkpoint that is whole" in row.error
    assert whole.history(f"trial {BROKEN}") == {}


def test_test_accuracy_is_measured_once_on_winner_baseline_and_teacher(whole: Any) -> None:
    winner = whole.results.winner
    tested = {run_label(run) for run in whole.children if "test/accuracy" in run.data.metrics}
    assert tested == {winner.label, "baseline 0", "teacher 0"}
    for label in tested:
        assert len(whole.history(label)["test/accuracy"]) == 1
    metrics = whole.parent.data.metrics
    assert metrics["best/val_accuracy"] == winner.value
    assert metrics["best/test_accuracy"] == winner.test_accuracy
    states = [row.state for row in whole.results.of("trial")]
    for state in ("complete", "pruned", "failed"):
        assert metrics[f"study/{state}"] == states.count(state)
    assert metrics["study/running"] == 0
    hours = sum(row.seconds for row in whole.results.rows) / 3600
    assert metrics["study/trial_hours"] == pytest.approx(hours, rel=1e-3)
    told = whole.client.get_metric_history(whole.parent.info.run_id, "study/complete")
    assert [point.step for point in told] == list(range(1, TRIALS + 1))
    complete = [row.value for row in whole.results.of("trial") if row.state == "complete"]
    assert winner.value == max(complete)


def test_test_split_is_read_after_the_search_only(whole: Any, test_file: TestFile) -> None:
    # It was deleted when the references began, and not made again until the tests.
    assert test_file.seen_at == {"training": True, "searching:": False, "testing": False}
    assert test_file.path.exists()


def test_artifacts(whole: Any) -> None:
    def names(run: Any, folder: str | None = None) -> set[str]:
        return {item.path for item in whole.client.list_artifacts(run.info.run_id, folder)}

    def told(findings: Sequence[Any] | None) -> set[str]:
        """Which trials the study has depends on how fast they were, and so does what is found in them."""
        return {"findings.txt"} if findings else set()

    assert names(whole.parent) == {"config.yaml", "report.html"} | told(whole.results.findings)
    kept = whole.client.download_artifacts(whole.parent.info.run_id, "report.html")
    assert Path(kept).read_bytes() == (whole.config.folder / "report.html").read_bytes()
    winner = whole.child(whole.results.winner.label)
    usual = {"checkpoint", "config.yaml", "statistics"}
    assert names(winner) == usual | told(whole.results.winner.findings)
    assert names(winner, "checkpoint") == {"checkpoint/best.safetensors"}
    best = Path(whole.client.download_artifacts(winner.info.run_id, "checkpoint/best.safetensors"))
    ours = Path(whole.results.winner.directory) / "best.safetensors"
    assert best.read_bytes() == ours.read_bytes()
    config = whole.client.download_artifacts(winner.info.run_id, "config.yaml")
    assert f"lr: {whole.results.winner.params['optim.lr']}" in Path(config).read_text()
    for row in whole.results.best_trials[1:3]:
        assert names(whole.child(row.label)) == usual | told(row.findings)


def test_finished_study_prints_its_leaderboard_without_ray(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_cluster() -> Any:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(study.driver, "connected", no_cluster)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(whole.config))
    again = CliRunner().invoke(_app, ["run", str(path)])
    assert again.exit_code == 0, again.output
    assert f"{TRIALS} of {TRIALS} trials ended" in again.stdout
    later = CliRunner().invoke(_app, ["report", "tiny", "--storage", whole.config.storage.path])
    assert (later.exit_code, later.stdout) == (0, again.stdout)


def test_another_config_under_the_same_name_is_refused(whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(whole.config))
    settings = ["--set", "optim.momentum=0.5", "--set", "study.trials=7"]
    refused = CliRunner().invoke(_app, ["run", str(path), *settings])
    assert refused.exit_code == 2
    named = {line.partition(":")[0] for line in refused.stderr.splitlines()}
    assert named == {"optim.momentum", "study.trials"}


def test_report_of_an_unknown_study_names_those_that_are_there(whole: Any) -> None:
    missing = CliRunner().invoke(_app, ["report", "tny", "--storage", whole.config.storage.path])
    assert missing.exit_code == 2
    assert "there are tiny" in missing.stderr


def test_a_database_with_anothers_study_of_that_name_is_refused_before_anything_begins(
    tmp_path: Path, configure: Any, conduct: Any
) -> None:
    database = {"path": str(tmp_path / "here"), "optuna": f"sqlite:///{tmp_path}/optuna.db"}
    search = {"optim.lr": {"loguniform": [0.01, 0.1]}}
    config = configure(tmp_path / "here", storage=database, search=search)
    claim(config, "another's")
    with pytest.raises(ConfigError, match=r"^storage\.optuna: holds a study 'tiny' that is not"):
        conduct(config)
    assert not (config.folder / LEDGER).exists()


def test_second_study_finds_the_teacher_and_stops_when_its_time_is_up(
    whole: Any, configure: Any, conduct: Any, make_spy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requirement of the time budget: trials in flight end as pruned everywhere, and the study is done."""
    changes = whole.config.model_dump(
        exclude={"study", "storage"}, exclude_unset=True, by_alias=True
    )
    section = {"name": "second", "trials": 50, "time_budget_s": 1000.0}
    config = configure(Path(whole.config.storage.path), **changes | {"study": section})
    (weights,) = (Path(config.storage.path) / "teachers").iterdir()
    before = weights.read_bytes(), weights.stat().st_mtime_ns
    stops: list[Any] = []

    class Stop(study.driver.Stop):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            stops.append(self)

    def time_is_up_in_trial_2(row: Any, record: Any) -> None:
        with contextlib.suppress(StopIteration):
            next(r for r in spy.ended if r.role == "trial" and r.state == "complete")
            if row.role == "trial":
                # Not of an attribute that is no more; several epochs may come in before Tune asks.
                assert stops[-1]._deadline is not None
                stops[-1]._deadline = 0.0

    def no_report(*arguments: Any) -> Path:
        raise OSError("no room")

    monkeypatch.setattr(study.driver, "Stop", Stop)
    monkeypatch.setattr(study.driver, "write_report", no_report)
    spy = make_spy()
    spy.at_epoch = time_is_up_in_trial_2
    second = conduct(config, spy)

    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before
    assert list((Path(config.storage.path) / "teachers").iterdir()) == [weights]
    assert not any("teacher" in phase for phase in spy.phases if phase.startswith("training"))
    (teacher,) = second.results.of("teacher")
    (trained,) = whole.results.of("teacher")
    assert (teacher.epochs, teacher.value) == (0, trained.value)
    assert teacher.test_accuracy == trained.test_accuracy

    assert second.results.finished
    assert spy.messages == ["no report, because no room: `kd-study report` tries again"]
    assert not (second.config.folder / "report.html").exists()
    assert second.results.winner is not None
    trials = second.optuna_trials
    assert len(trials) < 50
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(second.results.of("trial")) == len(trials)
    for trial in trials:
        state, status = STATES[trial.state]
        run = second.child(f"trial {trial.number}")
        assert (run.data.tags["kd.state"], run.info.status) == (state, status)
    assert any(phase == "stopping (out of time)" for phase in spy.phases)

    monkeypatch.undo()
    again = conduct(config)
    assert again.results.rows == second.results.rows
    assert (second.config.folder / "report.html").exists()
    artifacts = second.client.list_artifacts(second.parent.info.run_id)
    assert "report.html" in {item.path for item in artifacts}
