"""The same study gives the same numbers, to the last bit: again, in a fresh process, under Ray Train."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from study.config import dump_config, parse_config, with_values, without_search
from study.jobs import Job
from study.tuning import TuneListener
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = pytest.mark.timeout(300)

TRIALS, EPOCHS = 3, 2
NOISE = re.compile(r"ray::|\(pid=|Tune|WARNING|INFO|Warning|deprecated|\bray\b.*(started|address)")
Numbers = dict[str, dict[str, list[tuple[int, float]]]]


def numbers(left: Any) -> Numbers:
    """Every point of every metric by run, but those of the machine."""
    result: Numbers = {}
    for row in left.results.rows:
        result[row.label] = left.history(row.label)
        for name in OF_THE_MACHINE:
            result[row.label].pop(name, None)
    return result


@pytest.fixture(scope="module")
def teacher_bytes(random_teacher: Path) -> bytes:
    return random_teacher.read_bytes()


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, dict[int, int]]]:
    """By the folder that Tune has for a study: the process of each trial of the search, as Tune is told."""
    found: dict[str, dict[int, int]] = {}
    hear = TuneListener.on_trial_result

    def on_trial_result(
        self: TuneListener, iteration: int, trials: list[Trial], trial: Trial, result: Any
    ) -> None:
        job = Job.from_dict(trial.config["job"])
        if job.role == "trial" and job.split is None:
            found.setdefault(trial.local_experiment_path, {})[job.number] = result["pid"]
        hear(self, iteration, trials, trial, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TuneListener, "on_trial_result", on_trial_result)
        yield found


@pytest.fixture(scope="module")
def studies(
    tmp_path_factory: pytest.TempPathFactory,
    configure: Any,
    conduct: Any,
    teacher_bytes: bytes,
    processes: dict[str, dict[int, int]],
) -> list[Any]:
    """The same study twice, one trial at a time, each in storage of its own."""
    search = {
        "optim.lr": {"loguniform": [1e-3, 0.3]},
        "distill.decomposition": {"choice": ["1/0", "3/1"]},
        "data.batch_size": {"choice": [32, 64]},
    }
    return [
        conduct(
            configure(
                tmp_path_factory.mktemp("repeat"),
                study={"trials": TRIALS, "concurrency": 1, "seed": 5, "sampler": "random"},
                distill={"method": "stablekd", "alpha": 0.5, "decomposition": "1/0"},
                train={"epochs": EPOCHS},
                search=search,
            )
        )
        for _ in range(2)
    ]


def test_the_same_study_repeats_itself(studies: list[Any]) -> None:
    first, second = studies
    assert first.spy.slots == 1
    params = [[row.params for row in study.results.of("trial")] for study in studies]
    assert params[0] == params[1]
    assert len({str(sample) for sample in params[0]}) == TRIALS
    assert numbers(first) == numbers(second)
    for row in first.results.of("trial"):
        assert len(numbers(first)[row.label]["val/accuracy"]) == EPOCHS


def test_a_given_teacher_has_a_run_of_its_own_and_stays_as_it_is(
    studies: list[Any], random_teacher: Path, teacher_bytes: bytes
) -> None:
    for left in studies:
        (row,) = left.results.of("teacher")
        assert (row.state, row.epochs) == ("complete", 0)
        run = left.child("teacher 0")
        assert run.data.tags["kd.state"] == "complete"
        assert run.data.params["teacher.checkpoint"] == str(random_teacher)
        history = left.history("teacher 0")
        assert set(history) == {"val/accuracy", "best/val_accuracy", "test/accuracy"}
        assert history["val/accuracy"] == history["best/val_accuracy"] == [(0, row.value)]
        assert 0 < row.test_accuracy < 0.5  # it is untrained
        assert not (Path(left.config.storage.path) / "teachers").exists()
    assert random_teacher.read_bytes() == teacher_bytes


def test_its_trials_shared_one_process(
    studies: list[Any], processes: dict[str, dict[int, int]]
) -> None:
    assert len(processes) == len(studies)
    for by_trial in processes.values():
        assert len(by_trial) == TRIALS
        assert len(set(by_trial.values())) == 1


def train_alone(left: Any, storage: Path, **values: Any) -> Any:
    """The last trial's config, for `kd-study train`."""
    row = left.results.of("trial")[-1]
    sample = {path: row.params[path] for path in left.config.search}
    tree = left.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    tree = with_values(tree, {**sample, "storage.path": str(storage), **values})
    return parse_config({**tree, "search": {}})


def test_train_in_a_fresh_process_gives_the_same_numbers(
    studies: list[Any], tmp_path: Path, ray_cluster: str, left_by: Any
) -> None:
    config = train_alone(studies[0], tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    done = subprocess.run(
        [sys.executable, "-m", "study", "train", str(path)],
        env={**os.environ, "RAY_ADDRESS": ray_cluster},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert not NOISE.search(done.stdout), done.stdout
    alone = left_by(without_search(config))
    assert alone.config.study.name == "tiny-train"
    (row,) = alone.results.of("trial")
    ours, theirs = alone.history("trial 0"), studies[0].history(f"trial {TRIALS - 1}")
    for history in (ours, theirs):
        for name in (*OF_THE_MACHINE, "test/accuracy"):
            history.pop(name, None)
    assert ours == theirs
    assert row.test_accuracy is not None


@pytest.mark.slow
def test_ray_train_gives_the_same_numbers_as_the_inline_loop(
    studies: list[Any], tmp_path: Path, conduct: Any
) -> None:
    launcher = {"train.launcher": "torch_trainer"}
    alone = conduct(without_search(train_alone(studies[0], tmp_path, **launcher)))
    ours, theirs = alone.history("trial 0"), studies[0].history(f"trial {TRIALS - 1}")
    for history in (ours, theirs):
        for name in (*OF_THE_MACHINE, "test/accuracy"):
            history.pop(name, None)
    assert ours == theirs
    assert len(ours["val/accuracy"]) == EPOCHS
