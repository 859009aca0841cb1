"""What a person sees of a study in MLflow's pages: runs by name, curves, comparison, failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from study.report.links import runs_page

if TYPE_CHECKING:
    from tests.browser.conftest import StoredStudy

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

TRIALS = [f"trial {number}" for number in range(8)]


def visible_text(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def shows(browser: webdriver.Chrome, page: str, *wanted: str, picture: Path) -> str:
    """Open a page, wait for every wanted text, leave a screenshot, and return all of its text."""
    browser.get("about:blank")  # a new fragment alone would not load the page again
    browser.get(page)
    try:
        WebDriverWait(browser, 60).until(
            lambda driver: all(text in visible_text(driver) for text in wanted)
        )
    except TimeoutException:
        seen = visible_text(browser)
        missing = [text for text in wanted if text not in seen]
        pytest.fail(f"{page} does not show {missing}, but:\n{seen}")
    finally:
        browser.save_screenshot(str(picture))
    return visible_text(browser)


def test_runs_page_lists_all_trials_the_best_first(
    browser: webdriver.Chrome, stored: StoredStudy, tmp_path: Path
) -> None:
    page = runs_page(stored.server, stored.experiment_id, "quickstart")
    wanted = [*TRIALS, "quickstart", "best/val_accuracy", "9 matching runs"]
    text = shows(browser, page, *wanted, picture=tmp_path / "runs.png")
    listed = [line for line in text.splitlines() if line in TRIALS]
    assert listed[:8] == sorted(TRIALS, reverse=True)  # as the accuracies were made up


def test_experiment_page_shows_the_study(
    browser: webdriver.Chrome, stored: StoredStudy, tmp_path: Path
) -> None:
    page = f"{stored.server}/#/experiments/{stored.experiment_id}/runs"
    wanted = ("quickstart", "9 matching runs")
    shows(browser, page, *wanted, picture=tmp_path / "experiment.png")


def test_compare_page_sets_trials_side_by_side(
    browser: webdriver.Chrome, stored: StoredStudy, tmp_path: Path
) -> None:
    runs, experiments = (quote(json.dumps(ids)) for ids in (stored.trials, [stored.experiment_id]))
    page = f"{stored.server}/#/compare-runs?runs={runs}&experiments={experiments}"
    wanted = ["Comparing 8 Runs", "Parallel Coordinates", "Contour Plot", *TRIALS]
    wanted += ["optim.lr", "distill.alpha", "val/accuracy", "train/loss", "0.65"]
    shows(browser, page, *wanted, picture=tmp_path / "compare.png")


def test_study_page_has_results_and_links_its_trials(
    browser: webdriver.Chrome, stored: StoredStudy, tmp_path: Path
) -> None:
    page = f"{stored.server}/#/experiments/{stored.experiment_id}/runs/{stored.parent}"
    wanted = ["A small study", "best/test_accuracy", "0.6789", "kd.state", *TRIALS]
    shows(browser, page, *wanted, picture=tmp_path / "study.png")


def test_failed_trial_shows_why(
    browser: webdriver.Chrome, stored: StoredStudy, tmp_path: Path
) -> None:
    run = f"{stored.server}/#/experiments/{stored.experiment_id}/runs/{stored.trials[7]}"
    shows(browser, run, "kd.error", "Failed", picture=tmp_path / "failed.png")
    page = f"{run}/artifacts/error.txt"
    shows(browser, page, "ValueError: no pictures", picture=tmp_path / "error.png")
