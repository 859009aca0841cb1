"""A study that was run, in MLflow's pages: names, nesting, the winner first, comparison by what was searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser.comparing import choose_axis, choose_lines, compare_page, open_tab

if TYPE_CHECKING:
    from tests.browser.conftest import RunStudy

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]

MLFLOWS_OWN = (
    # A page asks who is logged in; the embedded server knows no users.
    "/mlflow/users/current - Failed to load resource: the server responded with a status of 404 (Not Found)",
    "ResizeObserver loop completed with undelivered notifications.",
)


def visible_text(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def shows(browser: webdriver.Chrome, page: str, *wanted: str) -> str:
    browser.get("about:blank")  # a new fragment alone would not load the page again
    browser.get_log("browser")
    browser.get(page)
    wait_for(browser, *wanted)
    return visible_text(browser)


def wait_for(browser: webdriver.Chrome, *wanted: str) -> None:
    """Wait until the page shows all of this."""

    def missing() -> list[str]:
        return [text for text in wanted if text not in visible_text(browser)]

    try:
        WebDriverWait(browser, 60).until(lambda _: not missing())
    except TimeoutException:
        pytest.fail(f"the page does not show {missing()}, but:\n{visible_text(browser)}")


def complaints(browser: webdriver.Chrome) -> list[Any]:
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [e for e in severe if not any(own in e["message"] for own in MLFLOWS_OWN)]


def test_the_page_that_is_printed_lists_the_runs_the_best_first(
    browser: webdriver.Chrome, ran: RunStudy
) -> None:
    labels = [row.label for row in ran.results.rows]
    text = shows(browser, ran.page, *labels, "quickstart", "9 matching runs", "best/val_accuracy")
    listed = [line for line in text.splitlines() if line in labels]
    best = {row.label: row.value for row in ran.results.rows}
    assert [best[label] for label in listed[:8]] == sorted(best.values(), reverse=True)
    assert complaints(browser) == []


def test_trials_are_nested_in_the_study(browser: webdriver.Chrome, ran: RunStudy) -> None:
    page = f"{ran.server}/#/experiments/{ran.results.experiment_id}/runs"
    parent = f"{page}/{ran.results.parent_run_id}"
    shows(browser, parent, "Child runs", *(row.label for row in ran.results.rows))
    assert complaints(browser) == []


def test_the_report_is_an_artifact_of_the_study(browser: webdriver.Chrome, ran: RunStudy) -> None:
    run = f"{ran.server}/#/experiments/{ran.results.experiment_id}/runs/{ran.results.parent_run_id}"
    shows(browser, f"{run}/artifacts/report.html", "report.html", "config.yaml")
    frame = WebDriverWait(browser, 60).until(
        lambda driver: driver.find_element(By.CSS_SELECTOR, "iframe")
    )
    browser.switch_to.frame(frame)
    try:
        wait_for(browser, "Leaderboard", "Learning curves", "Best: trial")
    finally:
        browser.switch_to.default_content()
    assert complaints(browser) == []


def test_comparison_draws_what_was_searched_against_accuracy(
    browser: webdriver.Chrome, ran: RunStudy, tmp_path: Path
) -> None:
    trials = ran.results.of("trial")
    page = compare_page(ran.server, ran.results.experiment_id, trials)
    shows(browser, page, "Comparing 6 Runs", "Parallel Coordinates", *(r.label for r in trials))
    assert complaints(browser) == []
    searched = ["distill.alpha", "optim.lr", "distill.decomposition"]
    choose_lines(browser, searched, "best/val_accuracy")
    drawn(browser, ".parcoords .axis-title", *searched, "best/val_accuracy")
    browser.save_screenshot(str(tmp_path / "lines.png"))
    assert complaints(browser) == []
    for tab, axes in (
        ("Scatter Plot", {"x": "optim.lr", "y": "best/val_accuracy"}),
        ("Box Plot", {"x": "distill.decomposition", "y": "best/val_accuracy"}),
        ("Contour Plot", {"x": "optim.lr", "y": "distill.alpha", "z": "best/val_accuracy"}),
    ):
        open_tab(browser, tab)
        for axis, name in axes.items():
            choose_axis(browser, axis, name)
        drawn(browser, ".js-plotly-plot .xtitle", axes["x"])
        drawn(browser, ".js-plotly-plot .ytitle", axes["y"])
        browser.save_screenshot(str(tmp_path / f"{tab}.png"))
        assert complaints(browser) == []


def drawn(browser: webdriver.Chrome, titles: str, *names: str) -> None:
    """Wait until the visible plot has these axes."""

    def seen(driver: webdriver.Chrome) -> bool:
        shown = {e.text for e in driver.find_elements(By.CSS_SELECTOR, titles) if e.is_displayed()}
        return set(names) <= shown

    WebDriverWait(browser, 30).until(seen, f"no plot with {titles} {names}")
