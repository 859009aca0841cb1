"""What the documents say of names and files holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
