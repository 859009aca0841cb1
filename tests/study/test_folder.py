"""A study's folder: one study, one driver at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from study.config import RESOLVED, StudyConfig, parse_config
from study.folder import check_same_study, keep_config, load_finished, only_driver
from study.results import LEDGER, StudyResults, save_results
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
