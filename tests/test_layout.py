"""The repository itself: what may stand in tracked files, and files that others read by name."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Written in pieces, so that this file does not find itself.
REGISTRY_HOSTS = [
    "pypi" + r"\.(?:org|python\.org|io)",
    "files" + r"\.pythonhosted\.org",
    "download" + r"\.pytorch\.org",
    "registry" + r"\.npmjs\.org",
    "conda" + r"\.anaconda\.org",
]
MACHINE_PATHS = [rf"(?<![\w.~-])/{folder}/" for folder in ("work", "root", "Users")]


def tracked_files() -> list[Path]:
    """Files that git tracks or would: others may be adding theirs right now."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("pattern", [*REGISTRY_HOSTS, *MACHINE_PATHS])
def test_no_registry_host_or_machine_path(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text("utf-8", "ignore").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert found == []


def test_the_version_stands_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    headings = re.findall(
        r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert headings
    assert headings[0] in {"Unreleased", project["version"]}
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[:1] in ([], [project["version"]])


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert re.findall(r"^make (\S+)", shown.stdout, re.MULTILINE) == phony[1].split()


def test_ci_runs_the_documented_command_only() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make test"]
