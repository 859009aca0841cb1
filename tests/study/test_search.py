"""The searcher: what it draws, what it tells Optuna, and what survives a driver."""

from __future__ import annotations

from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import ConcurrencyLimiter, Searcher

from study.config import StudyConfig, parse_config
from study.jobs import Job
from study.optuna_storage import OptunaError
from study.optuna_study import (
    ended_curves,
    ended_states,
    open_baselines,
    open_study,
    prune,
    unfinished,
)
from study.pieces import open_halving
from study.schema import ConstraintsConfig
from study.search import StudySearch
from study.steps import Draw, GoOn

EPOCHS = 3


def config(folder: Path, **study: Any) -> StudyConfig:
    folder.mkdir(exist_ok=True)
    return parse_config(
        {
            "study": {"name": "s", "trials": 20, **study},
            "storage": {"path": str(folder), "optuna": f"sqlite:///{folder}/optuna.db"},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "train": {"epochs": EPOCHS},
            "search": {
                "optim.lr": {"loguniform": [1e-4, 1.0]},
                "optim.momentum": {"uniform": [0.0, 0.9]},
                "data.batch_size": {"choice": [32, 64, 128]},
            },
        }
    )


def journalled(folder: Path, **study: Any) -> StudyConfig:
    """With the default storage, a journal in the study's folder."""
    whole = config(folder, **study)
    journal = whole.model_copy(
        update={"storage": whole.storage.model_copy(update={"optuna": None})}
    )
    journal.folder.mkdir(parents=True)
    return journal


def result(epoch: int, value: float) -> dict[str, Any]:
    return {"epoch": epoch, "epochs": EPOCHS, "value": value, "metrics": []}


def suggest(search: StudySearch, trial_id: str) -> Job:
    return Job.from_dict(search.suggest(trial_id)["job"])


def play(search: StudySearch, trial_id: str, values: list[float]) -> Job:
    """A trial from its suggestion to its end; fewer values than epochs are a pruned one."""
    job = suggest(search, trial_id)
    for epoch, value in enumerate(values, start=1):
        search.on_trial_result(trial_id, result(epoch, value))
    search.on_trial_complete(trial_id, result(len(values), values[-1]))
    return job


def loss_of(job: Job) -> float:
    return 1.0 - abs(float(job.sample["optim.momentum"]) - 0.6)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_params_follow_from_seed_number_and_history_alone(tmp_path: Path, sampler: str) -> None:
    drawn: list[list[dict[str, Any]]] = []
    for name in ("one driver", "a driver a trial"):
        settings = config(tmp_path / name.replace(" ", "-"), sampler=sampler, seed=3)
        study = open_study(settings)
        search, samples = StudySearch(settings, study, repeat("trial")), []
        for number in range(14):  # TPE draws at random until it knows ten
            if name != "one driver":
                search = StudySearch(settings, open_study(settings), repeat("trial"))
                optuna.samplers.RandomSampler().reseed_rng()
            job = suggest(search, str(number))
            assert (job.role, job.number) == ("trial", number)
            for epoch in range(1, EPOCHS + 1):
                search.on_trial_result(str(number), result(epoch, loss_of(job)))
            search.on_trial_complete(str(number), result(EPOCHS, loss_of(job)))
            samples.append(job.sample)
        drawn.append(samples)
    assert drawn[0] == drawn[1]
    assert len({sample["optim.lr"] for sample in drawn[0]}) == 14


def test_another_seed_draws_other_params(tmp_path: Path) -> None:
    samples = []
    for seed in (0, 1):
        settings = config(tmp_path / str(seed), seed=seed)
        samples.append(
            suggest(StudySearch(settings, open_study(settings), repeat("trial")), "a").sample
        )
    assert samples[0] != samples[1]


def test_tpe_learns_from_what_it_is_told(tmp_path: Path) -> None:
    settings = config(tmp_path / "s")
    search = StudySearch(settings, open_study(settings), repeat("trial"))
    values = []
    for number in range(30):
        job = suggest(search, str(number))
        values.append(loss_of(job))
        search.on_trial_complete(str(number), result(EPOCHS, values[-1]))
    assert sum(values[20:]) / 10 > sum(values[:10]) / 10


def test_complete_trial_is_told_its_best_value_not_its_last(tmp_path: Path) -> None:
    study = open_study(config(tmp_path / "s"))
    search = StudySearch(config(tmp_path / "s"), study, repeat("trial"))
    play(search, "a", [0.3, 0.9, 0.5])
    (trial,) = study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.9)
    assert trial.intermediate_values == {1: 0.3, 2: 0.9, 3: 0.5}


def test_last_epoch_counts_where_the_scheduler_stops_the_trial_at_it(tmp_path: Path) -> None:
    """Tune does not pass that epoch's result to the searcher before it ends the trial."""
    study = open_study(config(tmp_path / "s"))
    search = StudySearch(config(tmp_path / "s"), study, repeat("trial"))
    suggest(search, "a")
    search.on_trial_result("a", result(1, 0.1))
    search.on_trial_complete("a", result(2, 0.2))
    suggest(search, "b")
    search.on_trial_result("b", result(1, 0.1))
    search.on_trial_complete("b", result(EPOCHS, 0.7))
    suggest(search, "c")
    search.on_trial_complete("c", result(EPOCHS, 0.4))
    pruned, *complete = study.get_trials()
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {1: 0.1, 2: 0.2})
    assert [(t.state, t.value) for t in complete] == [
        (TrialState.COMPLETE, 0.7),
        (TrialState.COMPLETE, 0.4),
    ]


@pytest.mark.parametrize(
    ("last", "error"), [(result(2, 0.5), True), (None, False), ({}, False), ({"done": 1}, False)]
)
def test_failed_trial_is_told_as_such(tmp_path: Path, last: Any, error: bool) -> None:
    study = open_study(config(tmp_path / "s"))
    search = StudySearch(config(tmp_path / "s"), study, repeat("trial"))
    job = suggest(search, "a")
    search.on_trial_complete("a", last, error=error)
    if error:
        assert ended_states(study) == {}  # it may begin again
        search.failed(job)
    assert ended_states(study) == {0: "failed"}


def test_a_trial_that_begins_again_is_the_same_to_optuna_and_comes_before_other_steps(
    tmp_path: Path,
) -> None:
    settings = journalled(tmp_path / "s")
    study = open_study(settings)
    test = Job("trial", 0, split="test")
    search = StudySearch(settings, study, iter(["trial", test, "trial"]))
    job = suggest(search, "a")
    search.on_trial_result("a", result(1, 0.8))
    search.on_trial_complete("a", result(1, 0.8), error=True)
    search.begins_again(job)
    assert suggest(search, "b") == job
    search.on_trial_result("b", result(1, 0.8))  # a warning from Optuna would be an error here
    search.on_trial_complete("b", result(EPOCHS, 0.5))
    assert suggest(search, "c") == test  # of the same number, and unknown to Optuna
    search.on_trial_complete("c", error=True)
    search.failed(test)
    assert suggest(search, "d").number == 1
    (trial, _) = study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.8)


def test_unfinished_trial_is_handed_out_again_and_its_epochs_may_repeat(tmp_path: Path) -> None:
    settings = journalled(tmp_path / "s")
    search = StudySearch(settings, open_study(settings), repeat("trial"))
    play(search, "a", [0.1, 0.2, 0.3])
    unfinished = suggest(search, "b")
    search.on_trial_result("b", result(1, 0.8))

    study = open_study(settings)
    again = StudySearch(settings, study, repeat("trial"))
    assert suggest(again, "c") == unfinished
    again.on_trial_result("c", result(1, 0.8))  # a warning from Optuna would be an error here
    again.on_trial_result("c", result(2, 0.4))
    again.on_trial_complete("c", result(EPOCHS, 0.5))
    assert suggest(again, "d").number == 2
    trial = study.get_trials()[1]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.8)
    assert ended_states(study) == {0: "complete", 1: "complete"}
    assert ended_curves(study) == {0: {1: 0.1, 2: 0.2, 3: 0.3}, 1: {1: 0.8, 2: 0.4, 3: 0.5}}


def test_trial_whose_driver_died_while_it_was_drawn_gets_the_params_it_would_have_had(
    tmp_path: Path,
) -> None:
    whole = config(tmp_path / "whole", seed=1)
    expected = suggest(StudySearch(whole, open_study(whole), repeat("trial")), "a")
    half = config(tmp_path / "half", seed=1)
    study = open_study(half)
    study.sampler = optuna.samplers.RandomSampler(seed=99)
    study.ask()  # RUNNING, with none of its params
    assert suggest(StudySearch(half, open_study(half), repeat("trial")), "a") == expected


def test_stopped_trials_are_told_to_be_pruned(tmp_path: Path) -> None:
    settings = journalled(tmp_path / "s")
    study = open_study(settings)
    search = StudySearch(settings, study, repeat("trial"))
    play(search, "a", [0.1, 0.2, 0.3])
    jobs = [suggest(search, "b"), suggest(search, "c")]
    search.on_trial_result("b", result(1, 0.6))
    assert unfinished(study) == jobs
    for job in [*jobs, jobs[0]]:  # once more, as after a call whose answer was lost
        prune(study, job)
    assert ended_states(study) == {0: "complete", 1: "pruned", 2: "pruned"}
    assert unfinished(study) == []


def test_steps_are_taken_one_after_the_other(tmp_path: Path) -> None:
    settings = journalled(tmp_path / "s")
    study = open_study(settings)
    score = Job("teacher", split="val")
    search = StudySearch(settings, study, iter([Job("teacher"), "wait", "trial", score]))
    assert suggest(search, "a") == Job("teacher")
    assert search.suggest("b") is None
    assert suggest(search, "b").role == "trial"
    search.on_trial_result("a", result(1, 0.9))  # of a job that Optuna does not know
    search.on_trial_complete("a", result(EPOCHS, 0.9))
    assert suggest(search, "c") == score
    search.on_trial_complete("b", result(EPOCHS, 0.5))
    assert search.suggest("d") == search.suggest("e") == Searcher.FINISHED
    assert [(trial.number, trial.value) for trial in study.get_trials()] == [(0, 0.5)]


def test_a_study_without_a_search_needs_no_optuna_study(tmp_path: Path) -> None:
    search = StudySearch(config(tmp_path / "s"), None, iter([Job("trial")]))
    assert suggest(search, "a") == Job("trial")
    search.on_trial_complete("a", result(EPOCHS, 0.9))
    assert search.suggest("b") == Searcher.FINISHED


def test_tune_can_save_it(tmp_path: Path) -> None:
    """With the standard pickle, as Tune does every few seconds, in the middle of trials."""
    settings = journalled(tmp_path / "s")
    steps = (step for step in repeat("trial"))  # a generator, which cannot be pickled
    search = StudySearch(settings, open_study(settings), steps)
    suggest(search, "a")
    limited = ConcurrencyLimiter(search, max_concurrent=2)
    limited.save(str(tmp_path / "saved"))
    search.save_to_dir(str(tmp_path), "session")
    assert suggest(search, "b").number == 1


def test_a_storage_that_takes_no_end_of_a_trial_ends_the_study_and_not_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = config(tmp_path)
    search = StudySearch(here, open_study(here), repeat("trial"))
    job = suggest(search, "a")

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("it takes no such value")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", broken)
        search.on_trial_complete("a", result(EPOCHS, 0.5))  # Tune would call again if it raised
    with pytest.raises(OptunaError, match=r"failed \(ValueError: it takes no such value\); the"):
        search.suggest("b")
    assert ended_states(open_study(here)) == {}
    after = StudySearch(here, open_study(here), repeat("trial"))
    assert suggest(after, "c") == job


def compared(folder: Path) -> StudyConfig:
    """With a search of its own for the student without a teacher, which is the same one here."""
    return config(folder, baselines={"none": 20})


def test_a_baselines_trials_are_drawn_as_a_study_of_its_own_would_draw_them(tmp_path: Path) -> None:
    """Whatever the study's own trials did in between: both have numbers from 0, and are told apart."""
    alone = journalled(tmp_path / "alone")
    search = StudySearch(alone, open_study(alone), repeat("trial"))
    wanted = [play(search, str(n), [0.5, n / 100]).sample for n in range(12)]
    settings = journalled(tmp_path / "beside", baselines={"none": 20})
    study = open_study(settings)
    beside = open_baselines(settings, study)
    search = StudySearch(settings, study, cycle(["trial", Draw("none")]), beside)
    drawn = []
    for number in range(12):  # TPE draws at random until it knows ten
        own = suggest(search, f"own {number}")
        job = play(search, f"none {number}", [0.5, number / 100])
        search.on_trial_complete(f"own {number}", result(EPOCHS, 0.9))
        assert (own.role, own.of, own.number) == ("trial", "", number)
        assert (job.role, job.of, job.number) == ("baseline", "none", number)
        drawn.append(job.sample)
    assert drawn == wanted
    assert beside["none"].study_name == "s/none"
    assert set(ended_states(beside["none"]).values()) == {"pruned"}
    assert study.best_value == 0.9


def test_a_baselines_trial_that_fails_begins_again_or_is_told_to_its_own_study(
    tmp_path: Path,
) -> None:
    settings = compared(tmp_path)
    study = open_study(settings)
    beside = open_baselines(settings, study)
    search = StudySearch(settings, study, iter(["trial", Draw("none")]), beside)
    own, job = suggest(search, "own"), suggest(search, "none")
    for trial_id in ("own", "none"):
        search.on_trial_complete(trial_id, error=True)
    search.begins_again(job)
    assert suggest(search, "again") == job
    search.on_trial_complete("again", error=True)
    search.failed(job)
    assert ended_states(beside["none"]) == {0: "failed"}
    assert ended_states(study) == {}
    search.failed(own)
    assert ended_states(study) == {0: "failed"}


def test_what_a_dead_driver_left_running_is_handed_out_by_its_own_study(tmp_path: Path) -> None:
    settings = compared(tmp_path)
    study = open_study(settings)
    steps = [Draw("none"), "trial"]
    first = StudySearch(settings, study, iter(steps), open_baselines(settings, study))
    left = [suggest(first, str(number)) for number in range(2)]
    again = open_study(settings)
    search = StudySearch(settings, again, iter(steps), open_baselines(settings, again))
    assert [suggest(search, str(number)) for number in range(2)] == left


def halved(folder: Path) -> tuple[StudyConfig, optuna.Study]:
    """Of trials of three epochs, which wait after the first and the second."""
    settings = config(folder, pruner={"name": "halving"}, sampler="random")
    steady = settings.optim.model_copy(update={"schedule": "multistep", "milestones": (2,)})
    settings = settings.model_copy(update={"optim": steady})
    return settings, open_study(settings)


def test_a_trial_that_waits_still_runs_for_optuna_and_goes_on_with_its_next_piece(
    tmp_path: Path,
) -> None:
    settings, study = halved(tmp_path / "s")
    halving = open_halving(settings, study)
    assert halving is not None
    steps = iter(["trial", "trial", GoOn(1), GoOn(1), "trial"])
    search = StudySearch(settings, study, steps, halving=halving)
    first, second = play(search, "a", [0.2]), play(search, "b", [0.3])
    assert (first.until, second.until) == (1, 1)
    assert halving.waiting() == (0, 1)
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING] * 2
    again = suggest(search, "c")
    assert (again.number, again.sample, again.until) == (1, second.sample, 2)
    search.on_trial_result("c", result(1, 0.3))  # what it had reported before
    search.on_trial_result("c", result(2, 0.5))
    search.on_trial_complete("c", result(2, 0.5))
    assert halving.waiting() == (0, 1)
    last = play(search, "d", [0.3, 0.5, 0.4])
    assert (last.number, last.until) == (1, None)
    (waits, whole) = study.get_trials()
    assert (waits.state, waits.intermediate_values) == (TrialState.RUNNING, {1: 0.2})
    assert (whole.state, whole.value) == (TrialState.COMPLETE, 0.5)
    assert suggest(search, "e").number == 2  # not the one that waits


def test_the_next_driver_knows_who_waits_and_hands_out_who_was_cut_short(tmp_path: Path) -> None:
    settings, study = halved(tmp_path / "s")
    search = StudySearch(settings, study, repeat("trial"), halving=open_halving(settings, study))
    play(search, "a", [0.2])
    cut_short = suggest(search, "b")
    study = open_study(settings)
    halving = open_halving(settings, study)
    assert halving is not None
    assert halving.waiting() == (0,)
    after = StudySearch(settings, study, repeat("trial"), halving=halving)
    assert suggest(after, "a") == cut_short
    assert suggest(after, "b").number == 2


def test_a_trial_that_fails_between_its_points_waits_no_more(tmp_path: Path) -> None:
    settings, study = halved(tmp_path / "s")
    halving = open_halving(settings, study)
    assert halving is not None
    search = StudySearch(settings, study, repeat("trial"), halving=halving)
    job = suggest(search, "a")
    search.on_trial_result("a", result(1, 0.3))
    search.on_trial_complete("a", error=True)
    assert halving.waiting() == ()
    search.failed(job)
    assert halving.waiting() == ()
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL]


@pytest.mark.parametrize(
    ("bound", "goes_on"), [({"parameters": 10.0}, True), ({"accuracy": 0.6}, True), ({}, False)]
)
def test_a_whole_trial_that_breaks_a_constraint_leaves_its_place_to_the_next(
    tmp_path: Path, bound: dict[str, float], goes_on: bool
) -> None:
    """Now, and for the next driver."""
    settings, study = halved(tmp_path / "s")
    section = settings.study.model_copy(
        update={"constraints": ConstraintsConfig.model_validate(bound)}
    )
    settings = settings.model_copy(update={"study": section})
    halving = open_halving(settings, study)
    assert halving is not None
    steps = iter(["trial", "trial", GoOn(1), GoOn(1)])
    search = StudySearch(settings, study, steps, halving=halving)
    play(search, "a", [0.2])
    play(search, "b", [0.3])
    play(search, "c", [0.3, 0.4])
    suggest(search, "d")
    whole = {**result(3, 0.5), "metrics": [("student/parameters", 11.0)]}
    search.on_trial_complete("d", whole)
    again = open_halving(settings, open_study(settings), {1} if bound else ())
    assert again is not None
    for one in (halving, again):
        assert one.next_up(are_more=False) == (0 if goes_on else None)


def test_trials_of_baselines_train_in_one_piece(tmp_path: Path) -> None:
    settings = config(tmp_path / "s", pruner={"name": "halving"}, baselines={"none": 2})
    study = open_study(settings)
    halving, beside = open_halving(settings, study), open_baselines(settings, study)
    search = StudySearch(settings, study, iter([Draw("none")]), beside, halving=halving)
    assert suggest(search, "a").until is None


def screened(folder: Path) -> tuple[StudyConfig, optuna.Study]:
    settings = config(folder, screening={"epochs": 2, "keep": 0.5}, sampler="random")
    return settings, open_study(settings)


def screen(search: StudySearch, trial_id: str, values: list[float]) -> Job:
    job = suggest(search, trial_id)
    assert job.role == "screening"
    for epoch, value in enumerate(values, start=1):
        search.on_trial_result(trial_id, {**result(epoch, value), "epochs": 2})
    search.on_trial_complete(trial_id, {**result(len(values), values[-1]), "epochs": 2})
    return job


def test_a_trial_that_was_screened_begins_from_its_beginning(tmp_path: Path) -> None:
    settings, study = screened(tmp_path / "s")
    halving = open_halving(settings, study)
    steps = iter(["trial", "trial", GoOn(0)])
    search = StudySearch(settings, study, steps, halving=halving)
    first, second = screen(search, "a", [0.4, 0.3]), screen(search, "b", [0.1, 0.2])
    assert first.config(settings).train.epochs == 2
    told = [trial.intermediate_values for trial in study.get_trials()]
    assert told == [{0: 0.4}, {0: 0.2}]  # of the best epoch
    whole = play(search, "c", [0.1, 0.3, 0.2])
    assert (whole.role, whole.number, whole.until) == ("trial", 0, None)
    assert whole.config(settings).train.epochs == EPOCHS
    (complete, waits) = study.get_trials()
    assert (complete.state, complete.value) == (TrialState.COMPLETE, 0.3)  # not its screening's
    assert waits.state == TrialState.RUNNING
    assert ended_curves(study) == {0: {1: 0.1, 2: 0.3, 3: 0.2}}
    again = open_halving(settings, open_study(settings))
    assert again is not None
    assert again.waiting() == (second.number,)


def test_a_screening_that_was_cut_short_is_handed_out_again(tmp_path: Path) -> None:
    settings, study = screened(tmp_path / "s")
    search = StudySearch(settings, study, repeat("trial"), halving=open_halving(settings, study))
    cut_short = suggest(search, "a")
    search.on_trial_result("a", {**result(1, 0.4), "epochs": 2})
    study = open_study(settings)
    after = StudySearch(settings, study, repeat("trial"), halving=open_halving(settings, study))
    assert screen(after, "a", [0.4, 0.3]) == cut_short
    assert study.get_trials()[0].intermediate_values == {0: 0.4}


def test_a_trial_whose_screening_failed_has_failed(tmp_path: Path) -> None:
    settings, study = screened(tmp_path / "s")
    halving = open_halving(settings, study)
    assert halving is not None
    search = StudySearch(settings, study, repeat("trial"), halving=halving)
    job = suggest(search, "a")
    search.on_trial_complete("a", error=True)
    search.begins_again(job)
    assert suggest(search, "b") == job
    search.on_trial_complete("b", error=True)
    search.failed(job)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL]
    assert halving.waiting() == ()
