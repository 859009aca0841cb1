"""The HTML report as a person opens it: quickly, on a phone, in the dark, on paper, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from study.ledger import LEDGER, load_results
from study.report.page import write_report
from tests.study.studies import NAUGHTY, write_study

if TYPE_CHECKING:
    from tests.browser.conftest import RunStudy

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 200 trials of 100 epochs, sick and failed ones among them."""
    folder = write_study(tmp_path_factory.mktemp("large"), trials=200, epochs=100)
    return write_report(load_results(folder / LEDGER), folder)


@pytest.fixture
def window(browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """The browser as it is again afterwards."""
    browser.get_log("browser")
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", {"type": "none"})


@pytest.fixture
def colourless(window: webdriver.Chrome, large: Path, tmp_path: Path) -> webdriver.Chrome:
    """The large report as someone sees it who sees no colour; leaves pictures of its parts to look at."""
    blind = {"type": "achromatopsia"}
    window.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", blind)
    for part in ("leaderboard", "learning", "slices", "findings"):
        window.get(f"{large.as_uri()}#{part}")
        window.save_screenshot(str(tmp_path / f"{part}.png"))
        with Image.open(tmp_path / f"{part}.png") as picture:
            red, green, blue = picture.convert("RGB").split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()
    return window


def look(browser: webdriver.Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def visible_text(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def severe(browser: webdriver.Chrome) -> list[Any]:
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_report_of_a_real_study_shows_all_of_it(window: webdriver.Chrome, ran: RunStudy) -> None:
    window.get((ran.folder / "report.html").as_uri())
    text = visible_text(window)
    winner = ran.results.winner
    assert winner is not None
    assert f"Best: {winner.label}" in text
    headings = [heading.text for heading in window.find_elements(By.TAG_NAME, "h2")]
    assert headings == [
        *(
            "Leaderboard",
            "Can it be trusted?",
            "Learning curves",
            "What mattered",
            "Decompositions",
        ),
        *("Where the trials lie", "Gradients and BatchNorm", "Findings", "Cost", "Do it again"),
    ]
    trials = window.find_elements(By.CSS_SELECTOR, "#leaderboard tbody:last-of-type tr")
    assert len(trials) == 6
    assert trials[0].text.startswith(f"1 {winner.label} ")
    curves = window.find_elements(By.CSS_SELECTOR, "#learning figure:first-of-type .line")
    assert len(curves) == 6 + 2  # the baseline, and the teacher's best as a rule
    for plot in window.find_elements(By.CSS_SELECTOR, ".plot"):
        assert plot.size["width"] > 150
        assert plot.size["height"] > 100
    assert severe(window) == []


def test_large_report_opens_within_two_seconds(window: webdriver.Chrome, large: Path) -> None:
    assert large.stat().st_size < 2_000_000
    window.get(large.as_uri())
    loaded = look(window, "performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < loaded < 2000
    assert "All 200 trials" in visible_text(window)
    assert severe(window) == []


def test_sick_trials_are_told_with_words_and_nothing_is_run(
    window: webdriver.Chrome, large: Path
) -> None:
    window.get(large.as_uri())
    text = visible_text(window)
    assert "exploding gradients" in text
    assert "batchnorm drift" in text
    assert " ".join(NAUGHTY.split()) in " ".join(text.split())
    assert window.title == "made-up – kd-study"


@pytest.mark.parametrize("width", [320, 390, 700, 1280])
def test_page_is_never_wider_than_its_window(
    window: webdriver.Chrome, large: Path, width: int
) -> None:
    size = PHONE | {"width": width}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    window.get(large.as_uri())
    assert look(window, "document.documentElement.scrollWidth") == width
    assert float(look(window, "getComputedStyle(document.body).fontSize").removesuffix("px")) >= 16
    box = "document.querySelector('#leaderboard .box')"
    assert look(window, f"{box}.scrollWidth > {box}.clientWidth") == (width < 1280)
    smallest = look(
        window,
        "Math.min(...[...document.querySelectorAll('text')].map("
        "text => parseFloat(getComputedStyle(text).fontSize)))",
    )
    assert smallest >= 14


def test_no_text_of_a_chart_leaves_the_page(window: webdriver.Chrome, large: Path) -> None:
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    window.get(large.as_uri())
    outside = look(
        window,
        "[...document.querySelectorAll('text')].map(text => [text.textContent, "
        "text.getBoundingClientRect()]).filter(([name, place]) => place.width && "
        "(place.left < 0 || place.right > 390)).map(([name]) => name)",
    )
    assert outside == []


def test_dark_and_light_follow_the_reader(window: webdriver.Chrome, large: Path) -> None:
    seen: dict[str, list[float]] = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        window.get(large.as_uri())
        paper = brightness(look(window, "getComputedStyle(document.body).backgroundColor"))
        ink = brightness(look(window, "getComputedStyle(document.body).color"))
        seen[scheme] = [paper, ink]
    assert seen["light"][0] > 0.95
    assert seen["light"][1] < 0.2
    assert seen["dark"][0] < 0.15
    assert seen["dark"][1] > 0.8


def test_paper_is_white_and_has_every_trial(window: webdriver.Chrome, large: Path) -> None:
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [feature]})
    window.get(large.as_uri())
    assert brightness(look(window, "getComputedStyle(document.body).backgroundColor")) == 1
    assert brightness(look(window, "getComputedStyle(document.body).color")) == 0
    box = "document.querySelector('#leaderboard .box')"
    assert look(window, f"{box}.scrollHeight <= {box}.clientHeight + 1")
    findings = "[...document.querySelectorAll('.finding li')]"
    assert look(window, f"{findings}.length") > 40
    assert look(window, f"{findings}.every(item => item.checkVisibility())")
    printed = base64.b64decode(window.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")


def test_curves_are_told_apart_without_colour(colourless: webdriver.Chrome) -> None:
    """Winner, baseline and teacher by dash and width, stopped trials by the mark at their end."""
    curves = "#learning figure:first-of-type"
    (winner,), (baseline,), (teacher,), (other,) = (
        {Look(seen.dash, seen.width) for seen in looks(colourless, f"{curves} .line.{kind}")}
        for kind in ("winner", "baseline", "teacher", "other")
    )
    assert len({winner.dash, baseline.dash, teacher.dash}) == 3
    assert winner.dash == other.dash == "none"
    assert winner.width >= 2 * other.width
    labels = {label.text for label in colourless.find_elements(By.CSS_SELECTOR, ".label")}
    assert {"teacher", "no teacher"} < labels
    marked = {seen.trial for seen in looks(colourless, f"{curves} .mark")}
    for state in ("pruned", "failed"):
        ends = {seen.trial for seen in looks(colourless, f"{curves} .mark.{state}")}
        assert ends == {seen.trial for seen in looks(colourless, f"{curves} .line.{state}")}
        assert ends
        marked -= ends
    assert marked == set()


def test_marks_are_told_apart_without_colour(colourless: webdriver.Chrome) -> None:
    """Complete, pruned and failed trials by shape, the best by its outline."""
    (complete,), (pruned,), (failed,) = (
        {seen.shape for seen in looks(colourless, f".mark.{state}, .icon .{state}")}
        for state in ("complete", "pruned", "failed")
    )
    assert len({complete, pruned, failed}) == 3
    best, others = (
        {seen.width for seen in looks(colourless, f".mark.complete{which}")}
        for which in (".best", ":not(.best)")
    )
    assert min(best) >= 2 * max(others)


def test_states_and_findings_are_told_in_words(colourless: webdriver.Chrome) -> None:
    rows = colourless.find_elements(By.CSS_SELECTOR, "#leaderboard tbody tr")
    told = {(row.get_attribute("class"), text_of(row, ".state")) for row in rows}
    ended = {"winner": "complete", "": "complete", "stopped": "pruned", "failed": "failed"}
    assert told == set(ended.items())
    (best,), (other,) = (
        {seen.weight for seen in looks(colourless, f"#leaderboard tr{which} td:nth-child(2)")}
        for which in (".winner", ":not(.winner)")
    )
    assert best >= other + 200
    titles = ("exploding gradients", "batchnorm drift")
    warned = colourless.find_elements(By.CSS_SELECTOR, "span.warn, .finding h3")
    assert len(warned) > 20
    assert all(str(e.get_attribute("textContent")).strip().startswith(titles) for e in warned)
    assert all("failed:" in e.text for e in colourless.find_elements(By.CSS_SELECTOR, "p.bad"))


class Look(NamedTuple):
    """What an element looks like besides its colour, as the browser computes it."""

    dash: str
    width: float
    """Of the stroke, in pixels."""
    weight: int = 400
    """Of the font."""
    shape: str | None = None
    """Of a mark: what is drawn."""
    trial: str | None = None


def looks(browser: webdriver.Chrome, selector: str) -> list[Look]:
    found = look(
        browser,
        f"[...document.querySelectorAll('{selector}')].map(part => {{"
        "const style = getComputedStyle(part), mark = document.querySelector(part.getAttribute('href'));"
        "return [style.strokeDasharray, parseFloat(style.strokeWidth), parseInt(style.fontWeight),"
        "mark && mark.tagName + mark.getAttribute('d'), part.dataset.trial]})",
    )
    return [Look(*each) for each in found]


def text_of(row: WebElement, selector: str) -> str:
    return row.find_element(By.CSS_SELECTOR, selector).text


def test_page_says_all_without_scripts(window: webdriver.Chrome, large: Path) -> None:
    window.get(large.as_uri())
    with_scripts = visible_text(window)
    window.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    window.get(large.as_uri())
    assert visible_text(window) == with_scripts


def test_pointing_at_a_row_lights_its_curve(window: webdriver.Chrome, large: Path) -> None:
    window.get(large.as_uri())
    row = window.find_elements(By.CSS_SELECTOR, "#leaderboard tbody:last-of-type tr")[3]
    name = row.get_attribute("data-trial")
    assert window.find_elements(By.CSS_SELECTOR, ".line.lit") == []
    ActionChains(window).move_to_element(row).perform()
    lit = window.find_elements(By.CSS_SELECTOR, ".line.lit")
    assert {line.get_attribute("data-trial") for line in lit} == {name}


def brightness(colour: str) -> float:
    """Of `rgb(r, g, b)`, in [0, 1]."""
    channels = [float(part) for part in colour[4:-1].split(",")]
    return sum(channels) / 3 / 255
