"""What several commands take, and where they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from study.exits import exit_bad
from study.tree import is_uri

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a key, e.g. optim.lr=5e-4; repeatable."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A study's name.")]


def _folder(storage: str | Path) -> Path:
    """The folder of studies; exits where they are kept in a bucket."""
    if is_uri(str(storage)):
        exit_bad(
            f"--storage: must be a folder, got {str(storage)!r}; of a bucket, `kd-study report` shows a "
            "study, and `kd-study run CONFIG` goes on with it"
        )
    return Path(storage)


Storage = Annotated[
    Path,
    typer.Option(
        parser=_folder, envvar="KD_STUDY_STORAGE", metavar="PATH", help="Folder of the studies."
    ),
]
Anywhere = Annotated[
    str,
    typer.Option(
        envvar="KD_STUDY_STORAGE",
        metavar="PATH",
        help="Folder of the studies, or s3://bucket/prefix or gs://bucket/prefix.",
    ),
]
Port = Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="Where to listen.")]

OUT = Console()


def readable(storage: str, name: str, trial: int | None = None) -> Path:
    """The folder of the studies; for a bucket one with a copy of this study, as far as it is kept.

    Of its trials that has the weights of the winner, or of `trial`.
    """
    if not is_uri(storage):
        return Path(storage).absolute()
    from study.fetching import looked_at

    return looked_at(storage, name, trial)
