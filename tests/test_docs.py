"""What the documents say of names and files holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from study.config import StudyConfig
from study.problems import all_paths
from tests import config_reference
from trainable import records

ROOT = Path(__file__).parent.parent
MEASURED = ("train/", "val/", "test/", "grad/", "update/", "bn/", "amp/", "best/", "student/")
NAMES = {
    value
    for name, value in vars(records).items()
    if name.isupper() and isinstance(value, str) and "/" in value
}


def test_every_statistic_is_explained_and_no_other() -> None:
    text = (ROOT / "docs" / "statistics.md").read_text("utf-8")
    told = set(re.findall(r"`((?:train|val|test|grad|update|bn|amp|best|student)/\w+)", text))
    assert told <= NAMES
    assert {name for name in NAMES if name.startswith(MEASURED)} <= told


def test_the_reference_of_the_config_is_what_its_classes_say() -> None:
    """`make reference` writes it anew."""
    assert config_reference.PAGE.read_text("utf-8") == config_reference.page()


def test_every_key_of_a_config_is_told_with_a_meaning() -> None:
    rows = re.findall(
        r"^\| `(.+?)` \| (.+) \| (.+) \| (.*) \|$", config_reference.page(), re.MULTILINE
    )
    assert [path for path, *cells in rows if not all(cells)] == []
    told = {path for path, *_ in rows}
    shared = ("teacher.train.optim.", "student.head.")  # as optim and teacher.head
    keys = [path for path in all_paths(StudyConfig) if "." in path and not path.startswith(shared)]
    assert set(keys) <= told
    assert {"uniform", "loguniform", "int", "choice", "k", "n"} == told - set(keys)


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    links = re.findall(r"\]\(([^)#\s]+)\)", text)
    broken = [
        link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()
    ]
    assert broken == []


def test_the_answers_have_the_figures_of_the_recorded_runs() -> None:
    """`make recorded-runs` writes them anew."""
    text = (ROOT / "docs" / "questions.md").read_text("utf-8")
    sick = recorded("dying-channels")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \|(.*)\|$", text, flags=re.MULTILINE)
    assert len(rows) == 6
    for epoch, loss, others in rows:
        at = {name: values[int(epoch) - 1] for name, values in sick.items()}
        assert loss == f"{at['train/loss']:.2f}"
        batch, own, drift, variance, dead = (cell.strip(" *") for cell in others.split("|"))
        assert batch == f"{at['val/accuracy_batch_stats']:.1%}".replace("%", " %")
        assert own == f"{at['val/accuracy']:.1%}".replace("%", " %")
        assert (drift, dead) == (f"{at['bn/drift']:.2f}", f"{100 * at['bn/dead_share']:.0f} %")
        assert number(variance) == pytest.approx(at["bn/min_var"], rel=0.2)
    for name, said in (
        ("clipped-at-times", "`train.clip: 1.5`"),
        ("clip-1000", "`train.clip: 1000`"),
    ):
        run = recorded(name)
        norms, accuracy = run["grad/norm"], run["val/accuracy"][-1]
        row = next(line for line in text.splitlines() if line.startswith(f"| {said}"))
        assert f"| {norms[0]:.1f} → {norms[-1]:.2f} |" in row
        assert f"| {100 * accuracy:.1f} % |" in row


def recorded(name: str) -> dict[str, list[float]]:
    """A run by metric, an epoch each."""
    path = ROOT / "tests" / "trainable" / "recorded" / f"{name}.json"
    return json.loads(path.read_text("utf-8"))


def number(text: str) -> float:
    """`0.27`, or `8·10⁻⁵`."""
    factor, _, power = text.partition("·10")
    digits = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float(factor) * 10 ** int(digits or 0)
