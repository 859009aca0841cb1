"""What a trial draws: of a search whose trials differ in what they read, with first trials and a warm start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import repeat
from pathlib import Path
from typing import Any

import optuna
import pytest

from study.config import StudyConfig, parse_config
from study.drawing import sampler_of
from study.jobs import Job
from study.ledger import LEDGER, load_results, save_results
from study.optuna_study import ended_states, open_study
from study.search import StudySearch
from study.space import SearchRange
from study.warm_start import known_trials, warm_start_problems
from tests.study.studies import TREE, write_study
from tests.study.test_samplers import OF_ONE, needs_cmaes
from trainable.errors import ConfigError

EPOCHS = 6
SEARCH: dict[str, Any] = {
    "distill.alpha": {"uniform": [0.1, 0.9]},
    "distill.temperature": {"loguniform": [1, 8]},
    "distill.decomposition": {"k": [1, 5], "n": [0, 2]},
    "distill.method": {"choice": ["kd", "stablekd"]},
    "optim.lr": {"loguniform": [0.01, 0.5]},
    "optim.peak_decay": {"uniform": [0.2, 1]},
    "data.batch_size": {"choice": [32, 64, 128]},
}
FIRST: list[dict[str, Any]] = [
    {"distill.method": "stablekd", "distill.decomposition": "5/2", "optim.lr": 0.5},
    {},
    {"distill.method": "kd", "distill.alpha": 0.9, "data.batch_size": 32},
]


def config(folder: Path, *, search: dict[str, Any] = SEARCH, **study: Any) -> StudyConfig:
    """Beside the made-up study of `write_study`, in a journal of its own."""
    base = {"name": "s", "trials": 60}
    tree = {**TREE, "study": base | study, "search": search, "train": {"epochs": EPOCHS}}
    tree["distill"] = {**TREE["distill"], "decomposition": "5/2"}
    made = parse_config({**tree, "storage": {"path": str(folder)}})
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def play(settings: StudyConfig, count: int) -> list[Job]:
    """So many trials under one driver, each as good as its learning rate is near 0.1."""
    search, jobs = StudySearch(settings, open_study(settings), repeat("trial")), []
    for number in range(count):
        jobs.append(Job.from_dict(search.suggest(str(number))["job"]))
        value = 1 - abs(float(jobs[-1].sample["optim.lr"]) - 0.1)
        result = {"epoch": EPOCHS, "epochs": EPOCHS, "value": value, "metrics": []}
        search.on_trial_complete(str(number), result)
    return jobs


def samples(jobs: list[Job]) -> list[dict[str, Any]]:
    assert [job.role for job in jobs] == ["trial"] * len(jobs)
    return [job.sample for job in jobs]


def dying_in_a_draw(
    settings: StudyConfig, after: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A driver dies when it has drawn so many parameters of its next trial; what they are."""
    study = open_study(settings)
    search, left = StudySearch(settings, study, repeat("trial")), iter(range(after))
    suggest = SearchRange.suggest

    def suggest_or_die(values: SearchRange, trial: Any, path: str) -> Any:
        if not isinstance(trial, optuna.trial.FixedTrial) and next(left, None) is None:
            raise KeyboardInterrupt
        return suggest(values, trial, path)

    with monkeypatch.context() as patch:
        patch.setattr(SearchRange, "suggest", suggest_or_die)
        with pytest.raises(KeyboardInterrupt):
            search.suggest("dies")
    return study.get_trials()[-1].params


@pytest.mark.parametrize("sampler", OF_ONE)
def test_conditional_draws_follow_from_seed_number_and_history_alone(
    tmp_path: Path, sampler: str
) -> None:
    whole = play(config(tmp_path / "whole", sampler=sampler), 24)
    parts = config(tmp_path / "parts", sampler=sampler)
    assert [job for count in (1, 10, 2, 11) for job in play(parts, count)] == whole
    assert [job.number for job in whole] == list(range(24))
    assert len({tuple(sample) for sample in samples(whole)}) > 3
    assert (
        samples(play(config(tmp_path / "other", sampler=sampler, seed=1), 5)) != samples(whole)[:5]
    )


@pytest.mark.parametrize(
    ("before", "sampler"),
    [
        (0, "tpe"),
        (1, "tpe"),
        (14, "tpe"),
        (6, "gp"),
        *(pytest.param(14, one, marks=pytest.mark.slow) for one in ("nsga2", "qmc", "random")),
        pytest.param(14, "cmaes", marks=[needs_cmaes, pytest.mark.slow]),
    ],
)
def test_a_trial_half_drawn_by_a_driver_that_died_is_the_trial_it_would_have_been(
    before: int, sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random, among the first trials, and of parameters that were drawn together."""
    first = FIRST if before else []
    settings = config(tmp_path / "whole", sampler=sampler, first_trials=first)
    (*_, expected) = play(settings, before + 1)
    for after in range(len(expected.sample)):
        settings = config(tmp_path / str(after), sampler=sampler, first_trials=first)
        play(settings, before)
        drawn = dying_in_a_draw(settings, after, monkeypatch)
        assert drawn.items() <= expected.sample.items()
        assert len(drawn) == after
        assert play(settings, 1) == [expected]


@pytest.mark.slow
def test_draws_do_not_depend_on_how_a_process_hashes(tmp_path: Path) -> None:
    """Optuna groups parameters in sets of their names."""
    code = (
        "import sys, json; from pathlib import Path; from tests.study.test_drawing import *; "
        "print(json.dumps(samples(play(config(Path(sys.argv[1])), 24))))"
    )
    found = []
    for seed in ("1", "2", "3"):
        told = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(told.stdout))
    assert found[0] == found[1] == found[2]


def test_the_first_trials_have_the_values_they_are_given_and_draw_the_others(
    tmp_path: Path,
) -> None:
    drawn = samples(play(config(tmp_path / "given", first_trials=FIRST), 5))
    for sample, given in zip(drawn, FIRST, strict=False):
        assert given.items() <= sample.items()
    assert "distill.alpha" not in drawn[0]  # which 5/2 does not read
    assert "data.batch_size" in drawn[0]
    plain = samples(play(config(tmp_path / "plain"), 5))
    assert [drawn[number] for number in (1, 3, 4)] == [plain[number] for number in (1, 3, 4)]


RARELY_UNREAD: dict[str, Any] = {
    "distill.decomposition": {"choice": ["1/0", "2/1", "4/1", "5/2"]},  # 5/2 reads no α
    "distill.alpha": {"uniform": [0.1, 0.9]},
    "optim.lr": {"loguniform": [0.01, 0.5]},
    "optim.weight_decay": {"loguniform": [1e-5, 1e-2]},
}


@needs_cmaes
@pytest.mark.parametrize(("seed", "first"), [(28, []), (0, [{"optim.lr": 0.3}] * 10)])
def test_cmaes_goes_on_though_trials_differ_in_what_they_read_or_are_given(
    tmp_path: Path, seed: int, first: list[dict[str, Any]]
) -> None:
    settings = config(
        tmp_path, search=RARELY_UNREAD, sampler="cmaes", first_trials=first, seed=seed
    )
    assert list(settings.space.conditions) == ["distill.alpha"]
    jobs = play(settings, 40)
    moved = [t.system_attrs.get("cma:generation") for t in open_study(settings).get_trials()]
    begins = max(1, len(first))
    assert moved[:begins] == [None] * begins
    assert None not in moved[begins:]
    assert moved[-1] > 2
    assert all(job.sample == settings.space.drawn(job.sample) for job in jobs)
    assert {"distill.alpha" in job.sample for job in jobs} == {True, False}


@needs_cmaes
def test_cmaes_moves_the_numbers_that_every_trial_draws(tmp_path: Path) -> None:
    ranges = {
        "optim.weight_decay": {"uniform": [1e-4, 1e-4]},
        "optim.momentum": {"uniform": [0, 0.9]},
    }
    for name, search in (("one", SEARCH | ranges), ("other", ranges | SEARCH)):
        settings = config(tmp_path / name, search=search, sampler="cmaes")
        play(settings, 1)
        study, space = open_study(settings), settings.space
        moved = sampler_of(settings, 1, [], space).infer_relative_search_space(
            study, study.get_trials()[0]
        )
        assert list(moved) == sorted(space.numbers) == ["optim.lr", "optim.momentum"]


@pytest.mark.parametrize("first", [[], FIRST])
def test_in_whatever_order_trials_end_qmc_draws_the_same(
    tmp_path: Path, first: list[dict[str, Any]]
) -> None:
    """Four at a time; in the other order the first to end reads other paths."""
    drawn: list[dict[str, dict[str, Any]]] = []
    for ends in (0, -1):
        settings = config(tmp_path / str(ends), sampler="qmc", first_trials=first, seed=1)
        search, running = StudySearch(settings, open_study(settings), repeat("trial")), list[str]()
        drawn.append({})
        for name in map(str, range(16)):
            drawn[-1][name] = Job.from_dict(search.suggest(name)["job"]).sample
            running.append(name)
            if len(running) == 4:
                result = {"epoch": EPOCHS, "epochs": EPOCHS, "value": 0.5, "metrics": []}
                search.on_trial_complete(running.pop(ends), result)
    assert drawn[0] == drawn[1]
    assert drawn[0]["0"].keys() != drawn[0]["3"].keys()  # which were the first to end


def test_a_first_trial_of_qmc_has_its_point_but_for_what_it_is_given(tmp_path: Path) -> None:
    first = [{"optim.lr": 0.5}, {"data.batch_size": 32}]
    given = samples(play(config(tmp_path / "given", sampler="qmc", first_trials=first), 3))
    plain = samples(play(config(tmp_path / "plain", sampler="qmc"), 3))
    assert given == [{**one, **values} for one, values in zip(plain, [*first, {}], strict=True)]


@pytest.mark.parametrize("sampler", OF_ONE)
def test_a_resumed_study_neither_repeats_nor_skips_a_first_trial(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = play(config(tmp_path / "whole", first_trials=FIRST, sampler=sampler), 5)
    parts = config(tmp_path / "parts", first_trials=FIRST, sampler=sampler)
    found = play(parts, 1)
    dying_in_a_draw(parts, 0, monkeypatch)
    found += play(parts, 1)
    dying_in_a_draw(parts, 2, monkeypatch)
    assert found + play(parts, 3) == whole


def test_a_whole_number_that_is_given_is_drawn_as_the_real_one_it_stands_for(
    tmp_path: Path,
) -> None:
    first: list[dict[str, Any]] = [{"distill.temperature": 4, "distill.method": "kd"}]
    (sample,) = samples(play(config(tmp_path, first_trials=first), 1))
    assert type(sample["distill.temperature"]) is float


@pytest.mark.parametrize(
    ("first", "line"),
    [
        ({"optim.lr": 5.0}, "optim.lr: must be a value that search.optim.lr can give, got 5.0; "),
        ({"data.batch_size": True}, "data.batch_size: must be a value that search.data.batch_size"),
        ({"distill.decomposition": "5/3"}, "distill.decomposition: must be a value that search."),
        ({"optim.momentum": 0.9}, "optim.momentum: is not searched, and so the same for all"),
        (
            {"distill.method": "kd", "distill.decomposition": "5/2"},
            "distill.decomposition: is not drawn by this trial, but only where distill.method is",
        ),
        (
            {"distill.decomposition": "5/2", "distill.method": "stablekd", "distill.alpha": 0.5},
            "distill.alpha: is not drawn by this trial, but only where distill.method is kd, mse,",
        ),
    ],
)
def test_a_value_that_the_trial_could_not_draw_is_refused(
    first: dict[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, first_trials=[{}, first])
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"study.first_trials.1.{line}")


def test_more_first_trials_than_trials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"study\.first_trials: must be at most 2, which is study"
    ):
        config(tmp_path, first_trials=FIRST, trials=2)


def test_an_alpha_that_may_be_read_can_be_given(tmp_path: Path) -> None:
    first = [{"distill.alpha": 0.5}]  # of a method and a decomposition that are yet to be drawn
    drawn = [
        sample
        for seed in range(6)
        for sample in samples(play(config(tmp_path / str(seed), first_trials=first, seed=seed), 1))
    ]
    given = [sample["distill.alpha"] for sample in drawn if "distill.alpha" in sample]
    assert 0 < len(given) < 6
    assert set(given) == {0.5}


NARROW = {
    "distill.decomposition": {"choice": ["1/0", "3/1", "5/1", "5/2"]},
    "distill.alpha": {"uniform": [0.1, 0.9]},
    "optim.lr": {"loguniform": [0.001, 0.5]},
    "data.batch_size": {"choice": [32, 64]},
}


def warm(folder: Path, **study: Any) -> StudyConfig:
    return config(folder, search=NARROW, warm_start=["made-up"], **study)


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """The storage of a finished study of forty trials, with a search that is another than `NARROW`."""
    write_study(tmp_path, trials=40, epochs=EPOCHS)
    return tmp_path


def test_a_warm_study_knows_the_complete_trials_that_it_could_draw(made_up: Path) -> None:
    said: list[str] = []
    settings = warm(made_up)
    study = open_study(settings, said.append)
    rows = load_results(made_up / "made-up" / LEDGER).of("trial")
    complete = [row for row in rows if row.state == "complete"]
    fitting = [row for row in complete if row.params["data.batch_size"] != 128]
    known = known_trials(study, settings)
    assert [trial.value for trial in known] == [row.value for row in fitting]
    assert 0 < len(fitting) < len(complete) < len(rows)
    assert said == [
        f"{len(fitting)} of {len(complete)} complete trials of made-up are known to the sampler"
    ]
    for trial, row in zip(known, fitting, strict=True):
        assert trial.params["optim.lr"] == row.params["optim.lr"]
        is_whole = row.params["distill.decomposition"] == "1/0"
        assert ("distill.alpha" in trial.params) == is_whole


def test_a_whole_number_among_choices_stands_for_a_real_one(made_up: Path) -> None:
    """A trial's temperature is a real number, and this search's choices are whole ones."""
    said: list[str] = []
    whole = int(parse_config({**TREE, "storage": {"path": "/s"}}).distill.temperature)
    search = NARROW | {"distill.temperature": {"choice": [whole, whole + 1]}}
    settings = config(made_up, search=search, warm_start=["made-up"])
    known = known_trials(open_study(settings, said.append), settings)
    path = "distill.temperature"
    drawn = [trial.params[path] for trial in known if path in trial.params]
    assert drawn
    assert {type(value) for value in drawn} == {int}


def test_known_trials_are_none_of_the_studys(made_up: Path) -> None:
    settings = warm(made_up)
    jobs = play(settings, 3)
    assert [job.number for job in jobs] == [0, 1, 2]
    study = open_study(settings)
    assert ended_states(study) == {0: "complete", 1: "complete", 2: "complete"}
    assert [trial.number for trial in study.get_trials()] == [0, 1, 2]


def test_the_first_draw_of_a_warm_study_is_learnt_from_what_it_knows(tmp_path: Path) -> None:
    """Of other studies of which one does well at low rates and one at high ones, the draws are near theirs."""
    folder = write_study(tmp_path, trials=40, epochs=EPOCHS)
    results = load_results(folder / LEDGER)
    medians: list[float] = []
    for name, best in (("low", 0.01), ("high", 0.4)):
        rows = [
            row.model_copy(
                update={
                    "state": "complete",
                    "value": 1 - abs(float(row.params["optim.lr"]) - best),
                    "params": {**row.params, "data.batch_size": 64},
                }
            )
            for row in results.of("trial")
        ]
        other = tmp_path / name
        shutil.copytree(folder, other / "made-up")
        save_results(results.model_copy(update={"rows": tuple(rows)}), other / "made-up" / LEDGER)
        rates = [float(job.sample["optim.lr"]) for job in play(warm(other), 9)]
        medians.append(sorted(rates)[4])
    assert medians[0] < 0.05 < 0.15 < medians[1]


def test_what_a_warm_study_draws_does_not_depend_on_the_others_any_more(made_up: Path) -> None:
    whole = play(warm(made_up, name="whole"), 6)
    parts = warm(made_up, name="parts")
    found = play(parts, 2)
    shutil.rmtree(made_up / "made-up")
    assert found + play(parts, 4) == whole
    cold = play(config(made_up, search=NARROW, name="cold"), 6)
    assert samples(cold) != samples(whole)


def test_a_warm_study_does_not_draw_again_at_random_what_others_drew_with_its_seed(
    made_up: Path,
) -> None:
    settings = warm(made_up)
    known = known_trials(open_study(settings), settings)
    drawn: list[float] = []
    for count in range(5):  # too few for TPE to learn from
        study = optuna.create_study(direction="maximize")
        study.sampler = sampler_of(settings, 0, known[:count], settings.space)
        drawn.append(float(settings.space(study.ask())["optim.lr"]))
    assert len(set(drawn)) == 5


def test_a_view_has_the_other_trials_first_and_leaves_the_study_as_it_is(made_up: Path) -> None:
    settings = warm(made_up)
    play(settings, 12)
    study = open_study(settings)
    known, before = known_trials(study, settings), study.get_trials()
    seen: list[list[int]] = []

    class Watching(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            states = [optuna.trial.TrialState.COMPLETE]
            found = study.get_trials(states=states)
            seen.append([trial.number, *(one.number for one in found)])
            return super().infer_relative_search_space(study, trial)

    sampler = sampler_of(settings, 12, known, settings.space)
    sampler._sampler = Watching()  # type: ignore[attr-defined]
    study.sampler = sampler
    trial = study.ask()
    settings.space(trial)
    assert trial.number == 12
    (numbers,) = seen
    assert numbers == [len(known) + 12, *range(len(known) + 12)]
    assert study.get_trials()[:12] == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"epochs": EPOCHS + 1}}, "train.epochs 6 there and 7 here"),
        ({"student": {"model": "mini_resnet_10_8"}}, "student.model"),
        (
            {"data": {"source": "digits", "val_fraction": 0.2}},
            "data.val_fraction 0.25 there and 0.2",
        ),
        (
            {"teacher": {"model": "mini_resnet_18_4", "train": {"epochs": 7}}},
            "teacher.train.epochs",
        ),
    ],
)
def test_a_study_of_something_else_is_refused_by_name(
    change: dict[str, Any], words: str, made_up: Path
) -> None:
    settings = warm(made_up)
    other = parse_config(
        {**json.loads(settings.model_dump_json(by_alias=True)), **change, "search": NARROW}
    )
    (problem,) = warm_start_problems(other)
    assert problem.path == "study.warm_start"
    assert "unlike made-up" in problem.rule
    assert words in (problem.got or "")
    with pytest.raises(ConfigError, match="unlike made-up"):
        open_study(other)


def test_only_finished_studies_that_are_there_can_be_known(made_up: Path) -> None:
    settings = config(made_up, search=NARROW, warm_start=["made-up", "gone"])
    (problem,) = warm_start_problems(settings)
    assert problem.rule.startswith("must name finished studies, but gone: ")
    assert "there are made-up" in str(problem)
    ledger = made_up / "made-up" / LEDGER
    save_results(load_results(ledger).model_copy(update={"finished": False}), ledger)
    (problem,) = warm_start_problems(warm(made_up))
    assert (problem.got, problem.remedy[:40]) == (
        "made-up",
        "finish it (kd-study resume made-up), or ",
    )


def test_a_trial_without_a_value_of_what_is_searched_is_not_known(made_up: Path) -> None:
    search = {**NARROW, "train.clip": {"loguniform": [1, 10]}}  # of which there is none there
    settings = config(made_up, search=search, warm_start=["made-up"])
    assert known_trials(open_study(settings), settings) == []


def test_a_trial_with_another_value_of_what_is_not_searched_is_not_known(made_up: Path) -> None:
    settings = warm(made_up)
    optim = settings.optim.model_copy(update={"weight_decay": 1e-3})
    study = open_study(settings.model_copy(update={"optim": optim}))
    assert known_trials(study, settings) == []
