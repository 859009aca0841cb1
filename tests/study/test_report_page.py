"""The HTML report: what a reader finds on it, and that nothing missing or naughty breaks it."""

from __future__ import annotations

import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from study.config import RESOLVED
from study.curves import CURVE
from study.ledger import LEDGER, load_results
from study.report.board import aligned
from study.report.evidence import gather
from study.report.page import render, write_report
from study.results import State, StudyResults, TrialRow
from tests.study.studies import (
    DRIFTING,
    EXPLODING,
    NAUGHTY,
    curve,
    results_of,
    write_curve,
    write_study,
)
from trainable.records import Finding

VOID = {"meta", "link", "br", "circle", "path", "use", "line", "polyline"}
SECTIONS = [
    *("leaderboard", "trust", "learning", "importances", "decompositions", "slices"),
    *("health", "findings", "cost", "repeat"),
]


class Page(HTMLParser):
    """A parsed page: its elements, its visible text, and whether every element was closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def ids(self, name: str) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.elements if tag == name]

    def of(self, name: str, style: str) -> list[dict[str, str | None]]:
        """The attributes of the elements of that name and class."""
        named = [attributes for tag, attributes in self.elements if tag == name]
        return [a for a in named if style in (a.get("class") or "").split()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.pieces.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("storage"), trials=30, epochs=12)


@pytest.fixture
def results(folder: Path) -> StudyResults:
    return load_results(folder / LEDGER)


def page_of(results: StudyResults, folder: Path) -> Page:
    return Page(render(gather(results, folder)))


def row(folder: Path, number: int = 0, **fields: Any) -> TrialRow:
    known = {"role": "trial", "number": number, "state": "complete", "directory": str(folder)}
    return TrialRow.model_validate(known | fields)


def test_the_page_has_every_section_in_order(folder: Path, results: StudyResults) -> None:
    page = page_of(results, folder)
    assert page.ids("section") == SECTIONS
    winner = results.winner
    assert winner is not None
    assert f"Best: {winner.label}, " in page.text
    assert "points of test accuracy over the student without a teacher" in page.text
    assert len(page.of("line", "grid")) > 10


def test_the_file_is_written_whole_and_needs_nothing_else(results: StudyResults) -> None:
    folder = Path(results.rows[0].directory).parent
    path = write_report(results, folder)
    assert path == folder / "report.html"
    html = path.read_text()
    assert [p.name for p in folder.glob("*.tmp")] == []
    page = Page(html)
    loaded = ("link", "img", "iframe", "object", "embed", "video", "audio", "source")
    assert [tag for tag, _ in page.elements if tag in loaded] == []
    assert all("src" not in attributes for _, attributes in page.elements)
    assert "@import" not in html
    assert "url(" not in html
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_trial_has_a_row_and_a_curve(folder: Path, results: StudyResults) -> None:
    page = page_of(results, folder)
    labels = {row.label for row in results.rows}
    rows = [
        attributes["data-trial"] for tag, attributes in page.elements if tag == "tr" and attributes
    ]
    assert {label for label in rows if label} >= labels
    curves = {a["data-trial"] for a in page.of("polyline", "line") if a.get("data-trial")}
    assert curves == labels - {"teacher"}
    winner = results.winner
    assert winner is not None
    assert {a["data-trial"] for a in page.of("polyline", "winner") if a.get("data-trial")} == {
        winner.label
    }


def test_a_curve_lies_where_its_accuracies_are(tmp_path: Path) -> None:
    records = curve(3, 0.9, random.Random(0))
    for record, accuracy in zip(records, (0.2, 0.4, 0.8), strict=True):
        record.metrics["val/accuracy"] = accuracy
    write_curve(tmp_path, records)
    page = page_of(results_of(row(tmp_path, value=0.8, epochs=3)), tmp_path)
    first = page.of("polyline", "winner")[0]["points"]
    assert first is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(int, place.split(",")) for place in first.split())
    assert (x0, x1, x2) == (0, 500, 1000)
    assert y0 - y1 == pytest.approx((y1 - y2) / 2, abs=2)  # down is up: 0.2 more, then 0.4 more
    assert 0 < y2 < y1 < y0 < 1000


def test_naughty_words_stay_words(folder: Path, results: StudyResults) -> None:
    page = page_of(results, folder)
    assert " ".join(NAUGHTY.split()) in page.text
    assert [tag for tag, _ in page.elements].count("script") == 1


def test_names_and_params_are_escaped(tmp_path: Path) -> None:
    params = {NAUGHTY: NAUGHTY, "optim.lr": 0.1}
    naughty = row(tmp_path, params=params, value=0.5, findings=(Finding(*[NAUGHTY] * 4),))
    results = results_of(naughty, name=NAUGHTY, tracking_uri=f"sqlite:////{NAUGHTY}")
    page = page_of(results, tmp_path)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert [tag for tag, _ in page.elements].count("b") <= 20


def test_findings_stand_with_words_evidence_and_remedy(tmp_path: Path) -> None:
    rows = (
        row(tmp_path, 0, value=0.9, findings=(DRIFTING,)),
        row(tmp_path, 1, value=0.8, findings=(EXPLODING,)),
        row(tmp_path, 2, value=0.7, findings=(EXPLODING,)),
        row(tmp_path, 3, value=0.6, findings=()),
    )
    of_study = Finding(
        "noisy_winner", "The best three are within noise.", "0.1 points", "More seeds."
    )
    text = page_of(results_of(*rows, findings=(of_study,)), tmp_path).text
    findings = text[text.index("Findings") :]
    order = [
        "noisy winner: the study",
        "batchnorm drift: trial 0",
        "exploding gradients: trial 1, trial 2",
    ]
    assert sorted(order, key=findings.index) == order
    for finding in (of_study, DRIFTING, EXPLODING):
        for words in (finding.words, " ".join(finding.evidence.split()), finding.remedy):
            assert words in findings
    assert "3 of 4 trials have findings" in text
    assert "healthy" in text


def test_sick_trials_have_panels_beside_the_winners(folder: Path, results: StudyResults) -> None:
    page = page_of(results, folder)
    ill = [row for row in results.rows if row.findings]
    assert len(ill) >= 2
    assert page.text.count("grad/norm 2-norm before clipping") == 1 + min(8, len(ill))
    assert "not measured" not in page.text


def test_what_is_not_measured_is_said(tmp_path: Path) -> None:
    records = curve(4, 0.9, random.Random(0))
    for record in records:
        record.metrics.pop("bn/drift")
        record.metrics["bn/min_var"] = 0.0  # a logarithmic axis has no place for it
    write_curve(tmp_path, records)
    page = page_of(results_of(row(tmp_path, value=0.9, epochs=4)), tmp_path)
    assert page.text.count("not measured") == 2


@pytest.mark.parametrize("missing", [RESOLVED, CURVE, LEDGER])
def test_missing_files_are_said_not_fatal(tmp_path: Path, missing: str) -> None:
    folder = write_study(tmp_path, trials=6, epochs=3, diagnosed=False)
    results = load_results(folder / LEDGER)
    for path in folder.rglob(missing):
        path.unlink()
    text = Page(write_report(results, folder).read_text()).text
    assert ("The study's config is missing" in text) == (missing == RESOLVED)
    assert ("the ranges that were searched" in text) == (missing == RESOLVED)
    assert ("CPUs only" in text) == (missing != CURVE)
    assert ("There are none: no trial has told of a validation accuracy" in text) == (
        missing == CURVE
    )
    assert "No trial has been diagnosed" not in text  # the winner was
    assert "Best: trial" in text


def test_a_config_of_another_version_is_shown_all_the_same(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=3, epochs=3)
    (folder / RESOLVED).write_text("study: {name: old}\nlong_gone: <b>1\n")
    page = page_of(load_results(folder / LEDGER), folder)
    assert "long_gone: <b>1" in page.text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [],
            ["No usable trial: none was started.", "No trial was started.", "Nothing was trained."],
        ),
        (
            [{"state": "failed", "error": "no pictures"}],
            ["trial 0 failed: no pictures", "all 1 failed"],
        ),
        ([{"state": "running"}], ["No usable trial yet", "1 running"]),
        ([{"state": "pruned", "value": 0.3, "epochs": 2}], ["none ran to its end", "1 pruned"]),
        ([{"value": 0.5, "epochs": 2, "seconds": 4}], ["validation accuracy 50.00 %"]),
        ([{"value": None, "epochs": 2}], ["Best: trial 0."]),
        ([{"value": math.nan, "epochs": 2}, {"value": math.inf}], ["Best: trial 0."]),
    ],
)
def test_a_study_of_any_kind_has_a_page(
    tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    results = results_of(*(row(tmp_path, number, **fields) for number, fields in enumerate(rows)))
    text = page_of(results, tmp_path).text
    for piece in words:
        assert piece in text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_values_that_are_not_finite_leave_the_others(tmp_path: Path) -> None:
    records = curve(5, 0.9, random.Random(0))
    records[2].metrics.update({"val/accuracy": math.nan, "grad/norm": math.inf})
    write_curve(tmp_path, records)
    page = page_of(results_of(row(tmp_path, value=0.9, epochs=5)), tmp_path)
    points = page.of("polyline", "winner")[0]["points"]
    assert points is not None
    assert len(points.split()) == 4
    assert "nan" not in points


def test_too_few_trials_have_no_importances(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=6, epochs=3)
    text = page_of(load_results(folder / LEDGER), folder).text
    assert re.search(r"Too few trials to tell: \d of 20", text)


def test_cost_of_a_study(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=1, epochs=10)
    whole = curve(10, 0.9, random.Random(0))
    rows: list[TrialRow] = []
    for number, ran in enumerate((10, 4)):
        place = tmp_path / str(number)
        for record in whole:
            record.metrics["train/peak_memory_gib"] = 2.0
        write_curve(place, whole[:ran])
        state = "complete" if ran == 10 else "pruned"
        fields = {"state": state, "epochs": ran, "seconds": 360.0 * ran, "value": 0.5}
        rows.append(row(place, number, **fields))
    text = page_of(results_of(*rows), folder).text
    assert "2 trainings took 1 h 24 min of work" in text
    assert "on GPUs for 1.40 GPU hours" in text
    assert "Stopping 1 trial early saved 6 epochs, about 36 min 00 s at their own pace." in text
    assert "a trial took up to 2.0 GiB of one" in text
    assert re.search(r"The study's folder takes \d+ KiB on disk", text)


def test_decimal_points_stand_below_each_other() -> None:
    texts = aligned([0.5, 0.000123, 12, None, 1e-9])
    assert [text.strip("\u2007\u2008") for text in texts] == [
        "0.500",
        "0.000123",
        "12",
        "",
        "1e-09",
    ]
    lengths = {len(text) - (text + ".").replace("\u2008", ".").index(".") for text in texts[:3]}
    assert len(lengths) == 1
    assert aligned(["5/2", "3/1"]) == ["5/2", "3/1"]


@pytest.mark.parametrize("state", get_args(State))
def test_every_state_has_its_mark(tmp_path: Path, state: str) -> None:
    row = TrialRow.model_validate(
        {"role": "trial", "number": 0, "state": state, "value": 0.5, "directory": str(tmp_path)}
    )
    page = Page(render(gather(results_of(row), tmp_path)))
    drawn = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    used = {attributes["href"] for tag, attributes in page.elements if tag == "use"}
    assert f"#mark-{state}" in used
    assert {href.removeprefix("#") for href in used if href} <= drawn
