from __future__ import annotations

import pytest

from study.entries import Params, Text
from study.report.links import open_command, server_of
from study.secrets import without_passwords
from study.store import open_store
from study.telling import study_begins
from trainable.errors import ConfigError

URI = "postgresql+psycopg://kd:s3cret@db:5432/mlflow"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"uri: {URI}", "uri: postgresql+psycopg://kd:***@db:5432/mlflow"),
        ("https://me:a:b@host/x and mysql://:p@h", "https://me:***@host/x and mysql://:***@h"),
        ("http://127.0.0.1:5000/#/x", "http://127.0.0.1:5000/#/x"),
        ("postgresql://me:a/b+c=@db/x, and more", "postgresql://me:***@db/x, and more"),
        ("mysql://db/x?user=me&password=s3/cret&ssl=1", "mysql://db/x?user=me&password=***&ssl=1"),
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


def test_the_address_of_a_page_has_no_user() -> None:
    assert server_of("https://me:s3cret@host:8443/mlflow/") == "https://host:8443/mlflow"
    assert server_of("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert server_of(URI) is None


def test_a_store_that_does_not_answer_is_named_without_its_password() -> None:
    uri = "http://me:s3cret@127.0.0.1:1"
    with pytest.raises(ConfigError, match=r"http://me:\*\*\*@127\.0\.0\.1:1") as refused:
        open_store(uri, "e", None)
    assert "s3cret" not in str(refused.value)
