"""A study's folder: one study, one driver at a time."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from study.config import RESOLVED, StudyConfig, parse_config
from study.folder import (
    LOG,
    check_same_study,
    connect,
    has_unsent,
    keep_config,
    load_finished,
    log_file,
    only_driver,
    open_results,
)
from study.results import LEDGER, StudyResults, load_results, save_results
from study.spool import SPOOL, Spool
from trainable.errors import ConfigError


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
        check_same_study(config(tmp_path, lr=0.2, seed=4))
    assert {problem.path for problem in error.value.problems} == {"optim.lr", "study.seed"}


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


def test_only_a_finished_study_is_loaded(tmp_path: Path) -> None:
    results = StudyResults(
        name="s",
        trials_planned=1,
        started_at=0.0,
        tracking_uri="",
        experiment="",
        parent_run_id="p",
    )
    assert load_finished(tmp_path) is None
    save_results(results, tmp_path / LEDGER)
    assert load_finished(tmp_path) is None
    save_results(results.model_copy(update={"finished": True}), tmp_path / LEDGER)
    assert load_finished(tmp_path) is not None


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
