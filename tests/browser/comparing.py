"""MLflow's compare page (3.17) as a person works it: which runs, which tab, which parameters and metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from study.results import TrialRow


def compare_page(server: str, experiment_id: str | None, rows: Sequence[TrialRow]) -> str:
    """The page that *Compare* leads to when these runs are ticked."""
    runs = quote(json.dumps([row.run_id for row in rows]))
    return f"{server}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment_id]))}"


def open_tab(browser: webdriver.Chrome, name: str) -> None:
    """`Scatter Plot`, `Box Plot` or `Contour Plot`."""
    found(browser, f"//*[text()='{name}']").click()


def choose_lines(browser: webdriver.Chrome, params: Sequence[str], metric: str) -> None:
    """Parallel coordinates of exactly these parameters, and of one metric."""
    found(browser, "//button[normalize-space()='Clear All']").click()
    boxes = browser.find_elements(By.CSS_SELECTOR, ".du-bois-light-select-multiple input")
    for box, names in zip(boxes, (params, [metric]), strict=True):
        for name in names:
            box.send_keys(name)
            found(browser, f"//*[contains(@class, 'option-content')][.='{name}']").click()
        box.send_keys(Keys.ESCAPE)


def choose_axis(browser: webdriver.Chrome, axis: str, name: str) -> None:
    """`x`, `y` or `z` of the tab that is open."""
    found(browser, f"//button[@id='{axis}-axis-selector' or @id='{axis}axis-selector']").click()
    found(browser, f"//*[@role='option'][normalize-space()='{name}']").click()


def found(browser: webdriver.Chrome, path: str) -> WebElement:
    """The first visible element of an XPath."""

    def look(driver: webdriver.Chrome) -> WebElement | None:
        return next((e for e in driver.find_elements(By.XPATH, path) if e.is_displayed()), None)

    element = WebDriverWait(browser, 30).until(look, f"nothing at {path}")
    assert element is not None
    return element
