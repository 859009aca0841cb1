"""The report of a study as one HTML file that needs nothing else: no network, no server, no script to be read."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import shlex
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from study.config import RESOLVED
from study.report.board import board_of, number_text
from study.report.cost import bytes_on_disk, cost_of, peak_gib
from study.report.decompositions import decomposition_map
from study.report.evidence import Evidence, gather
from study.report.front import front_pictures
from study.report.health import failures, grouped, health_summary, health_text
from study.report.importances import importances
from study.report.learning import learning_curves
from study.report.links import LOCAL_SERVER, PAGE, open_command, server_of, study_page
from study.report.panels import MOST_SICK, health_panels
from study.report.slices import accuracy_slices, chosen_pair, numeric_axes, scatter
from study.report.strips import strips
from study.report.text import duration, percent, short_names, size
from study.report.trials_file import TRIALS, write_trials
from study.report.trust import trust_of, warnings_of
from study.report.verdict import verdict
from study.results import StudyResults
from study.secrets import without_passwords

_NO_CONFIG = "The config cannot be read, and with it the ranges that were searched."
_PACKAGES = ("kd-study", "torch", "ray", "optuna", "mlflow")


def write_report(results: StudyResults, folder: Path) -> Path:
    """Write `report.html` and `trials.parquet` into the study's folder; the path of the page.

    What is missing (a config, learning curves, a search, trials) the page says.
    """
    evidence = gather(results, folder)
    write_trials(evidence)
    path = folder / PAGE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(render(evidence), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(evidence: Evidence) -> str:
    """The page's HTML."""
    script = _packaged("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "health_text": health_text,
    }
    page = environment.from_string(_packaged("page.html"))
    return page.render(
        style=Markup(_packaged("page.css")),
        script=Markup(script),
        script_digest=digest,
        **_facts(evidence),
        **_searched(evidence),
        **_details(evidence),
    )


def _facts(evidence: Evidence) -> dict[str, Any]:
    results = evidence.results
    counts = Counter(row.state for row in results.of("trial"))
    names = short_names(results.rows)
    winner = results.winner
    key = (
        []
        if winner is None
        else [(names[p], number_text(winner.params[p]), p) for p in names if p in winner.params]
    )
    return {
        "results": results,
        "verdict": verdict(results),
        "health": health_summary(results),
        "began": _date(results.started_at),
        "last_heard": _last_heard(evidence),
        "states": [
            (state, counts[state])
            for state in ("complete", "pruned", "running", "waiting", "failed")
        ],
        "hardware": _hardware(evidence),
        "winner": winner,
        "key": key,
        "written": _date(time.time()),
    }


def _searched(evidence: Evidence) -> dict[str, Any]:
    results, config = evidence.results, evidence.config
    search = {} if config is None else config.ranges
    names = short_names(results.of("trial"))
    shares = _NO_CONFIG if config is None else importances(results, search)
    axes = numeric_axes(search, names)
    pair = chosen_pair(axes, shares if isinstance(shares, dict) else {})
    return {
        "importances": {names.get(path, path): share for path, share in shares.items()}
        if isinstance(shares, dict)
        else {},
        "no_importances": shares if isinstance(shares, str) else None,
        "decompositions": decomposition_map(results),
        "pair": pair,
        "scatter": None if pair is None else scatter(results, *pair),
        "slices": accuracy_slices(results, axes),
    }


def _details(evidence: Evidence) -> dict[str, Any]:
    results = evidence.results
    server = server_of(results.tracking_uri)
    return {
        "board": board_of(results),
        "front": results.front,
        "pairs": front_pictures(results) if len(results.objectives) > 1 else [],
        "trust": trust_of(results),
        "warnings": warnings_of(results),
        "strips": strips(results),
        "repeated": bool(results.replicates_of_winner),
        "curves": learning_curves(evidence),
        "panels": health_panels(evidence),
        "most_sick": MOST_SICK,
        "groups": grouped(results),
        "diagnosed": any(row.findings is not None for row in results.rows),
        "failures": failures(results),
        "cost": cost_of(evidence),
        "disk": size(bytes_on_disk(evidence.folder)),
        "config_text": without_passwords(evidence.config_text or ""),
        "again": _again(evidence),
        "trials_file": evidence.folder / TRIALS,
        "ui_command": None if server else open_command(results.tracking_uri),
        "ui_page": study_page(server or LOCAL_SERVER, results),
        "versions": _versions(),
    }


def _again(evidence: Evidence) -> str:
    """The command that runs the study once more, under another name."""
    config = str(evidence.folder / RESOLVED)
    return shlex.join(
        ["kd-study", "run", config, "--set", f"study.name={evidence.results.name}-again"]
    )


def _last_heard(evidence: Evidence) -> str | None:
    ends = [curve[-1].timestamp_ms for curve in evidence.curves.values() if curve]
    return _date(max(ends) / 1000) if ends else None


def _hardware(evidence: Evidence) -> str | None:
    """What the trials' own records tell; None where there are none."""
    if not any(evidence.curves.values()):
        return None
    peak = peak_gib(evidence)
    return "CPUs only" if peak is None else f"GPUs; a trial took up to {peak:.1f} GiB of one"


def _versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue  # run from its sources
    return found


def _date(seconds: float) -> str:
    return time.strftime("%-d %b %Y, %H:%M %Z", time.localtime(seconds))


def _packaged(name: str) -> str:
    return files("study.report").joinpath(name).read_text(encoding="utf-8")
