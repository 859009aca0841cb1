"""Takes the pictures of docs/reading_a_study.md from a study that was run: `make screenshots`."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

from study.ledger import LEDGER, load_results
from tests.browser.comparing import choose_axis, choose_lines, compare_page, found, open_tab
from tests.browser.conftest import open_browser

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
PORT = 5321
COLOURS = 256
SETTLED_S = 4.0
"""MLflow's plots move into their places."""


def main(folder: Path) -> None:
    """Pictures of the report and of MLflow's pages of the study in `folder`."""
    results = load_results(folder / LEDGER)
    trials = results.best_trials
    ui = [sys.executable, "-m", "study", "ui", results.name, "--storage", str(folder.parent)]
    with (
        tempfile.TemporaryDirectory() as profile,
        open_browser(Path(profile)) as browser,
        subprocess.Popen([*ui, "--port", str(PORT)], stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            page = server.stdout.readline().split()[1]
            browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            take_report(browser, folder / "report.html")
            browser.set_window_size(1400, 900)
            browser.get(page)
            found(browser, "//button[@aria-label='Close']").click()  # the assistant's panel
            found(browser, "//input[@placeholder='Search metric charts']").send_keys("val/")
            take(browser, None, "mlflow_runs")
            address = f"http://127.0.0.1:{PORT}"
            browser.get(compare_page(address, results.experiment_id, trials))
            searched = ["distill.alpha", "optim.lr", "optim.weight_decay", "distill.decomposition"]
            choose_lines(browser, searched, "best/val_accuracy")
            take(browser, None, "mlflow_parallel_coordinates")
            open_tab(browser, "Contour Plot")
            for axis, name in {
                "x": "optim.lr",
                "y": "distill.alpha",
                "z": "best/val_accuracy",
            }.items():
                choose_axis(browser, axis, name)
            take(browser, None, "mlflow_contour")
        finally:
            server.terminate()


def take_report(browser: webdriver.Chrome, page: Path) -> None:
    """The upper part of the report, and its charts."""
    for name, place, height in (("report", "", 1180), ("report_charts", "#learning", 2020)):
        size = {"width": 1180, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get("about:blank")
        take(browser, page.as_uri() + place, name)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def take(browser: webdriver.Chrome, page: str | None, name: str) -> None:
    """A picture of a page, or of what is open, in few colours so that it is small."""
    if page is not None:
        browser.get(page)
    time.sleep(SETTLED_S)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": False})
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    IMAGES.mkdir(exist_ok=True)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
