"""Optuna's storage that goes away and comes back: nothing that it was to be told is lost, or told twice."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import time
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial
from sqlalchemy.exc import OperationalError

from study import optuna_storage
from study.config import StudyConfig
from study.jobs import Job
from study.ledger import LEDGER
from study.optuna_storage import AwayError, OptunaError, database_problems
from study.optuna_study import claim, ended_curves, ended_states, open_study, unfinished
from study.search import StudySearch
from tests.study.mlflow_server import free_port
from tests.study.postgres import Postgres
from tests.study.test_search import EPOCHS, config, journalled, play, result, suggest
from trainable.errors import ConfigError


def at(url: str, folder: Path, **study: Any) -> StudyConfig:
    """A study whose trials are kept at `url`."""
    whole = config(folder, **study)
    return whole.model_copy(update={"storage": whole.storage.model_copy(update={"optuna": url})})


def suggest_in_time(search: StudySearch, trial_id: str) -> Job:
    """As Tune, which asks again and again."""
    until = time.monotonic() + 30
    while (drawn := search.suggest(trial_id)) is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    return Job.from_dict(drawn["job"])


def outline(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """All that Optuna knows of trials, but when it was."""
    return [
        (t.number, t.state, t.values, t.params, t.intermediate_values, t.user_attrs, t.constraints)
        for t in trials
    ]


def test_a_study_does_not_take_anothers_trials_for_its_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    here, there = (at(url, tmp_path / name, baselines={"none": 2}) for name in ("here", "there"))
    for _ in range(2):
        claim(here, "one")
    told = f"storage.optuna: holds a study 's' that is not the one of {there.folder}"
    with pytest.raises(ConfigError, match=re.escape(told)):
        claim(there, "two")
    claim(at(url, tmp_path / "there", name="other"), "two")


def test_trials_that_nobody_has_claimed_are_the_folders_that_knows_them(tmp_path: Path) -> None:
    here = at(f"sqlite:///{tmp_path / 'optuna.db'}", tmp_path / "here")
    open_study(here).ask()
    with pytest.raises(ConfigError, match="holds a study 's'"):
        claim(here, "one")
    here.folder.mkdir(parents=True)
    (here.folder / LEDGER).touch()
    claim(here, "one")
    (here.folder / LEDGER).unlink()
    claim(here, "one")


def test_a_locked_sqlite_file_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    here = at(f"sqlite:///{tmp_path}/optuna.db?timeout=0", tmp_path)
    study = open_study(here, said.append)
    search = StudySearch(here, study, repeat("trial"))
    suggest(search, "a")
    other = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    search.on_trial_result("a", result(1, 0.9))
    search.on_trial_complete("a", result(EPOCHS, 0.5))
    assert search.suggest("b") is None
    assert search.suggest("b") is None
    (line,) = said
    assert line.startswith("Optuna's storage is away (database is locked): running trials go on")
    assert line.endswith("asked again for up to 15 minutes")
    other.execute("ROLLBACK")
    assert suggest_in_time(search, "b").number == 1
    assert ended_states(study) == {0: "complete"}
    assert ended_curves(study) == {0: {1: 0.9, EPOCHS: 0.5}}
    assert study.get_trials()[0].value == 0.9
    assert said[1].startswith("Optuna's storage is back after ")
    other.close()


def test_a_journal_whose_folder_is_away_is_waited_for_and_not_begun_anew(tmp_path: Path) -> None:
    here = journalled(tmp_path / "s")
    study = open_study(here)
    search = StudySearch(here, study, repeat("trial"))
    first = suggest(search, "a")
    here.folder.rename(tmp_path / "away")
    here.folder.mkdir()
    search.on_trial_complete("a", result(EPOCHS, 0.5))
    assert search.suggest("b") is None
    assert list(here.folder.iterdir()) == []
    here.folder.rmdir()
    (tmp_path / "away").rename(here.folder)
    assert suggest_in_time(search, "b").number == 1
    assert ended_states(open_study(here)) == {first.number: "complete"}


def test_half_a_line_of_a_journal_is_cut_off(tmp_path: Path) -> None:
    here = journalled(tmp_path / "s")
    play(StudySearch(here, open_study(here), repeat("trial")), "a", [0.1, 0.2, 0.3])
    before = outline(open_study(here).get_trials())
    journal = here.folder / "optuna.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"work')  # the disk was full
    after = StudySearch(here, open_study(here), repeat("trial"))
    assert play(after, "b", [0.1, 0.2, 0.3]).number == 1
    assert outline(open_study(here).get_trials())[:1] == before
    assert [json.loads(line)["op_code"] for line in journal.read_text().splitlines()]


class Flaky:
    """A database that loses one call in ten before it is made, and of others the answer: of the first of a kind."""

    def __init__(self, storage: Any) -> None:
        self._storage, self._random = storage, random.Random(7)
        self.lost: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            fate = self._random.random()
            if fate < 0.1:
                raise OperationalError(name, {}, Exception("no answer"))
            answer = getattr(self._storage, name)(*args, **kwargs)
            if fate > 0.9 or name not in self.lost:
                self.lost.add(name)
                raise OperationalError(name, {}, Exception("lost answer"))
            return answer

        return call


def costed(epoch: int, number: int) -> dict[str, Any]:
    return result(epoch, 0.05) | {"metrics": [("student/latency_ms", 1.0 + number)]}


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [["accuracy"], ["accuracy", "latency"]])
def test_calls_that_are_made_again_change_nothing(
    objectives: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna_storage, "_FIRST_WAIT_S", 0.0)
    known: list[list[tuple[Any, ...]]] = []
    for name in ("steady", "flaky"):
        sought = {"objectives": objectives, "constraints": {"latency": 6.5}}
        here = config(tmp_path / name, seed=2, **sought)
        study = open_study(here)
        flaky = Flaky(study._storage.storage)  # type: ignore[attr-defined]
        search = StudySearch(here, study, repeat("trial"))
        if name == "flaky":
            study._storage.storage = flaky  # type: ignore[attr-defined]
        for number in range(11):
            drawn = suggest_in_time(search, str(number))
            assert drawn.number == number
            for epoch in range(1, EPOCHS):
                search.on_trial_result(str(number), result(epoch, 0.1 * epoch))
            last = EPOCHS - number % 2
            search.on_trial_complete(str(number), costed(last, number), error=number == 5)
            if number == 5:
                search.failed(drawn)
        search.settle()
        study = open_study(here)
        assert unfinished(study) == []
        known.append(outline(study.get_trials()))
    assert known[0] == known[1]
    changing = {"create_new_trial", "set_trial_state_values", "set_trial_system_attr"}
    curve = "intermediate_value" if len(objectives) == 1 else "user_attr"
    assert flaky.lost >= changing | {"set_trial_param", f"set_trial_{curve}"}


def test_a_storage_that_stays_away_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna_storage, "PATIENCE_S", 0.2)
    here = at(f"sqlite:///{tmp_path}/optuna.db?timeout=0", tmp_path)
    search = StudySearch(here, open_study(here), repeat("trial"))
    suggest(search, "a")
    other = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    search.on_trial_complete("a", result(EPOCHS, 0.5))
    with pytest.raises(OptunaError, match=r"away for .*\(database is locked\); the same command"):
        search.settle()
    other.close()


def test_a_driver_that_finds_no_database_says_so_without_the_password(tmp_path: Path) -> None:
    here = at(f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/none", tmp_path)
    (problem,) = database_problems(here)
    assert str(problem).startswith("storage.optuna: must be the URL of a database that answers (")
    assert "secret" not in str(problem)
    assert "me:***@127.0.0.1" in str(problem)
    assert database_problems(at(f"sqlite:///{tmp_path}/new.db", tmp_path)) == []
    assert not (tmp_path / "new.db").exists()
    assert database_problems(journalled(tmp_path / "s")) == []


def test_a_sqlite_file_that_is_locked_from_the_beginning_is_said_in_a_line(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OptunaError, match=r"^Optuna's storage cannot be opened \(database is loc"):
        open_study(at(f"sqlite:///{tmp_path}/optuna.db?timeout=0", tmp_path))
    other.close()


@pytest.mark.service
def test_a_postgres_that_is_stopped_and_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    server = Postgres()
    try:
        server.start()
        here = at(server.uri, tmp_path)
        study = open_study(here, said.append)
        search = StudySearch(here, study, repeat("trial"))
        play(search, "a", [0.1, 0.2, 0.3])
        suggest(search, "b")
        server.crash()
        search.on_trial_result("b", result(1, 0.7))
        search.on_trial_complete("b", result(EPOCHS, 0.2))
        assert search.suggest("c") is None
        with pytest.raises(AwayError):
            study.get_trials()
        server.start_again()
        assert suggest_in_time(search, "c").number == 2
        fresh = open_study(here, said.append)
        assert ended_curves(fresh) == {0: {1: 0.1, 2: 0.2, 3: 0.3}, 1: {1: 0.7, EPOCHS: 0.2}}
        assert [job.number for job in unfinished(fresh)] == [2]
        assert ["is away" in said[0], "is back" in said[1], len(said)] == [True, True, 2]
        for one in (study, fresh):  # psycopg warns of connections that nobody closes
            one._storage.storage._backend.engine.dispose()  # type: ignore[attr-defined]
    finally:
        server.stop()
