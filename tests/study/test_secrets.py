from __future__ import annotations

import pytest

from study.entries import Params, Text
from study.report.links import open_command
from study.secrets import without_passwords
from study.telling import study_begins

URI = "postgresql+psycopg://kd:s3cret@db:5432/mlflow"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"uri: {URI}", "uri: postgresql+psycopg://kd:***@db:5432/mlflow"),
        ("https://me:a:b@host/x and mysql://:p@h", "https://me:***@host/x and mysql://:***@h"),
        ("http://127.0.0.1:5000/#/x", "http://127.0.0.1:5000/#/x"),
        (
            "sqlite:////runs/mlflow.db, write to me@host",
            "sqlite:////runs/mlflow.db, write to me@host",
        ),
    ],
)
def test_passwords_of_addresses_are_not_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_what_mlflow_and_the_leaderboard_are_told_has_no_password() -> None:
    params, text = study_begins({"tracking": {"uri": URI}}, f"tracking: {{uri: {URI}}}")
    assert isinstance(params, Params)
    assert isinstance(text, Text)
    for told in (params.params["tracking.uri"], text.text, open_command(URI)):
        assert "s3cret" not in told
        assert "kd:***@db:5432/mlflow" in told
