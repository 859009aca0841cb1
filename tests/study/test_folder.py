"""A study's folder: one study, one driver at a time."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileSymlinkLock

from study.config import RESOLVED, StudyConfig, parse_config, with_values
from study.folder import (
    LOG,
    check_same_study,
    connect,
    has_unsent,
    keep_config,
    kept_config,
    load_finished,
    log_file,
    only_driver,
    open_results,
    replace_config,
    with_more_trials,
)
from study.ledger import LEDGER, load_results, save_results
from study.optuna_study import open_study
from study.spool import SPOOL, Spool
from tests.study.studies import results_of, trial_row
from trainable.errors import ConfigError, InputError


def config(folder: Path, lr: float = 0.1, **study: Any) -> StudyConfig:
    return parse_config(
        {
            "study": {"name": "s", **study},
            "storage": {"path": str(folder)},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "optim": {"lr": lr},
            "search": {"optim.momentum": {"uniform": [0.0, 0.9]}},
        }
    )


def test_differing_keys_are_named(tmp_path: Path) -> None:
    check_same_study(config(tmp_path))
    with only_driver(config(tmp_path).folder):
        keep_config(config(tmp_path))
    check_same_study(config(tmp_path))
    with pytest.raises(ConfigError) as error:
        check_same_study(config(tmp_path, lr=0.2, time_budget_s=60.0))
    began = "as when the study 's' began"
    remedy = "change it back, or give the study another name (study.name)"
    assert str(error.value).splitlines() == [
        f"optim.lr: must be 0.1, {began}, got 0.2; {remedy}",
        f"study.time_budget_s: must be nothing, {began}, got 60.0; {remedy}",
    ]


def test_of_many_differences_ten_are_told_and_the_others_counted(tmp_path: Path) -> None:
    kept = config(tmp_path)
    kept.folder.mkdir()
    keep_config(kept)
    other = {f"train.{key}": 3 for key in ("epochs", "max_skipped", "accumulate", "seed")}
    other |= {f"optim.{key}": 0.7 for key in ("momentum", "weight_decay", "peak_decay")}
    other |= {f"data.{key}": 0.5 for key in ("subset", "cache_budget_gib", "val_fraction")}
    other |= {"data.batch_size": 7, "train.clip": 1.0}
    changed = parse_config(with_values(kept.model_dump(mode="json", by_alias=True), other))
    with pytest.raises(ConfigError) as error:
        check_same_study(changed)
    *told, last = error.value.problems
    assert len({problem.path for problem in told}) == 10
    assert str(last) == (
        "study.name: must not be that of another study, and 's' differs in 2 more keys; "
        "give the study another name"
    )


def test_a_password_that_changed_is_not_told(tmp_path: Path) -> None:
    def at(password: str) -> StudyConfig:
        tree = config(tmp_path).model_dump(mode="json", by_alias=True)
        uri = f"postgresql://{'m' * 50}:{password}@host/db"
        return parse_config(with_values(tree, {"tracking.uri": uri}))

    at("old").folder.mkdir()
    keep_config(at("secretsecretsecret"))
    with pytest.raises(ConfigError, match=r"^tracking\.uri: must be ") as error:
        check_same_study(at("another"))
    assert "secret" not in str(error.value)
    assert "another@" not in str(error.value)


@pytest.mark.parametrize(
    ("trials", "remedy"),
    [
        (12, "set it to that, or `kd-study resume s` goes on"),
        (25, "set it to that, or `kd-study extend s --trials 5` adds to it"),
    ],
)
def test_another_number_of_trials_is_told_how_to_go_on(
    tmp_path: Path, trials: int, remedy: str
) -> None:
    kept = config(tmp_path)
    kept.folder.mkdir()
    keep_config(kept)
    with pytest.raises(ConfigError) as error:
        check_same_study(config(tmp_path, trials=trials))
    rule = "study.trials: must be 20, as the study 's' began or was extended to"
    assert str(error.value) == f"{rule}, got {trials}; {remedy}"


def test_the_kept_config_is_found_by_name_wherever_it_lay_before(tmp_path: Path) -> None:
    before = config(tmp_path / "before", seed=3)
    before.folder.mkdir(parents=True)
    keep_config(before)
    (tmp_path / "before").rename(tmp_path / "after")
    assert kept_config(tmp_path / "after", "s") == config(tmp_path / "after", seed=3)
    with pytest.raises(InputError, match=r"must hold the study, got 't'; there are s$"):
        kept_config(tmp_path / "after", "t")
    with pytest.raises(InputError, match="run a study, or name its --storage"):
        kept_config(tmp_path / "before", "s")
    (tmp_path / "after" / "s").rename(tmp_path / "after" / "t")
    with pytest.raises(
        InputError, match=r"study\.name: must be the name of its folder, t, got 's'"
    ):
        kept_config(tmp_path / "after", "t")


def test_more_trials_replace_the_config_and_nothing_else_of_it(tmp_path: Path) -> None:
    kept = config(tmp_path, seed=3)
    kept.folder.mkdir()
    keep_config(kept)
    longer = with_more_trials(kept, 5)
    replace_config(longer)
    assert kept_config(tmp_path, "s") == longer == config(tmp_path, seed=3, trials=25)
    assert [path.name for path in kept.folder.iterdir()] == [RESOLVED]


def test_a_baseline_that_was_searched_as_long_gets_as_many_trials(tmp_path: Path) -> None:
    kept = config(tmp_path, baselines={"none": 20})
    kept.folder.mkdir()
    longer = with_more_trials(kept, 5)
    assert longer == config(tmp_path, trials=25, baselines={"none": 25})
    keep_config(longer)
    with pytest.raises(ConfigError) as error:
        check_same_study(config(tmp_path, trials=25, baselines={"none": 20}))
    assert str(error.value) == (
        "study.baselines.none: must be 25, as the study 's' began or was extended to, got 20; "
        "set it to that, or `kd-study resume s` goes on"
    )
    for own, then in ((19, 19), (22, 25), (30, 30)):  # fewer were meant to be fewer
        found = with_more_trials(config(tmp_path, baselines={"none": own}), 5)
        assert found.study.baselines == {"none": then}


def test_more_trials_need_a_search(tmp_path: Path) -> None:
    alone = config(tmp_path).model_copy(update={"search": {}})
    with pytest.raises(ConfigError, match=r"^search: must have a path to search"):
        with_more_trials(alone, 1)


def test_the_config_that_a_study_began_with_stays(tmp_path: Path) -> None:
    folder = config(tmp_path).folder
    folder.mkdir()
    keep_config(config(tmp_path))
    before = (folder / RESOLVED).read_bytes()
    keep_config(config(tmp_path, lr=0.3))
    assert (folder / RESOLVED).read_bytes() == before
    assert [path.name for path in folder.iterdir()] == [RESOLVED]


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    hold = f"""
import time; from pathlib import Path; from study.folder import only_driver
with only_driver(Path({str(folder)!r})):
    print("held", flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another kd-study is at work"), only_driver(folder):
            pass
        other.kill()  # as the kernel would: no lock is left behind
        other.wait()
        with only_driver(folder):
            pass


def test_the_lock_of_a_driver_that_died_while_it_wrote_to_optunas_journal_is_gone(
    tmp_path: Path,
) -> None:
    one = config(tmp_path)
    one.folder.mkdir()
    open_study(one)
    lock = JournalFileSymlinkLock(str(one.folder / "optuna.journal"))
    lock.acquire()  # and nobody releases it
    with only_driver(one.folder):
        began = time.monotonic()
        open_study(one).ask()
        assert time.monotonic() - began < lock.grace_period / 2


def test_only_a_finished_study_is_loaded(tmp_path: Path) -> None:
    one = config(tmp_path)
    one.folder.mkdir()
    assert load_finished(one) is None
    save_results(results_of(name="s", trials_planned=20), one.folder / LEDGER)
    assert load_finished(one) is None
    save_results(results_of(name="s", trials_planned=20, finished=True), one.folder / LEDGER)
    assert load_finished(one) is not None
    assert load_finished(with_more_trials(one, 1)) is None


def test_places_in_the_ledger_are_where_the_study_lies_now(tmp_path: Path) -> None:
    rows = [trial_row(3, directory="/before/s/trials/0003"), trial_row(0, role="teacher")]
    one = config(tmp_path)
    one.folder.mkdir()
    known = {"finished": True, "trials_planned": 20, "tracking_uri": "sqlite:////before/mlflow.db"}
    save_results(results_of(*rows, name="s", **known), one.folder / LEDGER)
    found = load_finished(one)
    assert found is not None
    assert [row.directory for row in found.rows] == [
        f"{one.folder}/trials/0003",
        f"{one.folder}/teacher",
    ]
    assert found.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_what_goes_wrong_beside_is_in_the_log_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_file(tmp_path):
        assert not (tmp_path / LOG).exists()
        logging.getLogger("study.writer").warning("it was refused")
    logging.getLogger("study.writer").debug("nobody hears this")
    (line,) = (tmp_path / LOG).read_text().splitlines()
    assert line.endswith("study.writer: it was refused")
    assert capsys.readouterr() == ("", "")


def test_a_log_whose_folder_is_gone_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study").mkdir()
    with log_file(tmp_path / "study"):
        (tmp_path / "study").rename(tmp_path / "away")
        logging.getLogger("study.writer").warning("it was refused")
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == [tmp_path / "away"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of studies with one embedded store."""
    return tmp_path_factory.mktemp("studies")


def test_a_study_begins_and_is_taken_up_with_the_same_run(shared: Path) -> None:
    one = config(shared)
    one.folder.mkdir()
    store = connect(one)
    with Spool(one.folder / SPOOL) as spool:
        began = open_results(one, store, spool)
        assert began == load_results(one.folder / LEDGER)
    assert has_unsent(one.folder, began)  # its config, which is in the ledger's outbox
    assert not has_unsent(one.folder, began.model_copy(update={"outbox": None}))
    with Spool(one.folder / SPOOL) as spool:
        assert open_results(one, store, spool) == began
        assert began.outbox is not None
        spool.add(began.outbox)
    assert has_unsent(one.folder, began.model_copy(update={"outbox": None}))
    (one.folder / LEDGER).unlink()  # as if the driver had died before it wrote it
    with Spool(one.folder / SPOOL) as spool:
        assert open_results(one, store, spool).parent_run_id == began.parent_run_id
    other = config(shared, name="other")
    other.folder.mkdir()
    with Spool(other.folder / SPOOL) as spool:
        assert open_results(other, store, spool).parent_run_id != began.parent_run_id


def test_ids_of_the_ledger_are_known_where_the_spool_was_lost(shared: Path) -> None:
    one = config(shared, name="lost")
    one.folder.mkdir()
    store = connect(one)
    with Spool(one.folder / SPOOL) as spool:
        began = open_results(one, store, spool)
    with Spool(one.folder / "fresh") as spool:
        open_results(one, store, spool)
        assert spool.runs == {"study": began.parent_run_id}


def test_resuming_a_run_that_the_store_lacks(shared: Path) -> None:
    one = config(shared, name="lacking")
    one.folder.mkdir()
    store = connect(one)
    with Spool(one.folder / SPOOL) as spool:
        results = open_results(one, store, spool)
        store.client.delete_run(results.parent_run_id)
        with pytest.raises(ConfigError, match=r"^tracking\.uri: must name the store that holds"):
            open_results(one, store, spool)
