"""Where a study is seen in MLflow's pages (the addresses are those of MLflow 3.17)."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

from study.results import StudyResults
from study.secrets import without_passwords
from trainable.records import BEST_VAL_ACCURACY

PAGE = "report.html"
"""The report's file in a study's folder."""
LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens unless told otherwise."""


def server_of(tracking_uri: str) -> str | None:
    """The server's address as it can be shown, without a user's name; None for a store that has no pages of its own."""
    scheme, mark, rest = tracking_uri.rstrip("/").partition("://")
    if scheme not in ("http", "https"):
        return None
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def open_command(tracking_uri: str) -> str:
    """The command that serves the pages of a store without a server, as it can be typed here.

    But for a password, which the page and the terminal do not show.
    """
    uri = without_passwords(tracking_uri)
    return shlex.join([_mlflow(), "ui", "--backend-store-uri", uri])


def _mlflow() -> str:
    """MLflow's program: by its name if the shell finds it, else where this interpreter has it."""
    if shutil.which("mlflow"):
        return "mlflow"
    return os.path.relpath(Path(sys.executable).with_name("mlflow"))


def study_page(server: str, results: StudyResults) -> str:
    """A study's runs on a server, or the server itself for a study that does not know its experiment."""
    if results.experiment_id is None:
        return server
    return runs_page(server, results.experiment_id, results.name)


def runs_page(server: str, experiment_id: str, study: str) -> str:
    """A study's runs with their learning curves, the best validation accuracy first.

    The experiment's own page opens on MLflow's views for language models, which are empty here, and
    its list folds the trials into their parent.
    """
    view = {
        "workflowType": "machine_learning",
        "searchFilter": f"tags.`kd.study` = '{study}'",
        "orderByKey": f"metrics.`{BEST_VAL_ACCURACY}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
    }
    return f"{server}/#/experiments/{experiment_id}/runs?{urlencode(view, quote_via=quote)}"
