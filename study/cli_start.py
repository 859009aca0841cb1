"""The commands with which work on studies begins: `kd-study init`, `kd-study split` and `kd-study list`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TextIO

import typer

from study.arguments import OUT, Config, Set, Storage
from study.exits import bad_input_exits
from trainable.errors import InputError, input_error


def init(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The config to write; it must not be there yet.")
    ] = Path("my-study.yaml"),
) -> None:
    """Write a config with comments, for your own pictures and networks: fill in two paths, and validate it."""
    with bad_input_exits():
        text = files("study").joinpath("starter.yaml").read_text("utf-8")
        with _new(file) as config:
            config.write(text.replace("my-study.yaml", str(file)))
        said = f"{file}: fill in data.root and teacher.checkpoint, then `kd-study validate {file}`"
        OUT.print(said, soft_wrap=True, highlight=False, markup=False)


def split(
    config: Config,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The CSV file to write; it must not be there yet."),
    ],
    set_: Set = None,
) -> None:
    """Write which training pictures CONFIG trains on and which it holds out, to train a teacher on the former alone."""
    with bad_input_exits():
        from study.config import load_config
        from trainable.tasks import list_parts

        placed = list(list_parts(load_config(config, set_ or [])))
        with _new(file) as table:
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(("row", "picture", "class", "part"))
            rows.writerows(placed)
        counts = Counter(one.part for one in placed)
        told = ", ".join(f"{count:,} {part}" for part, count in counts.items())
        OUT.print(f"{file}: {told}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _new(file: Path) -> Generator[TextIO]:
    """To be written; InputError where it is there already, or cannot be."""
    try:
        with file.open("x", encoding="utf-8", newline="") as opened:
            yield opened
    except FileExistsError:
        remedy = "give another name"
        raise input_error(InputError, str(file), "must not be there yet", remedy) from None
    except OSError as error:
        rule, remedy = f"must be writable, but: {error.strerror}", "give another place"
        raise input_error(InputError, str(file), rule, remedy) from None


def list_(storage: Storage = Path("runs")) -> None:
    """List the studies under --storage, the last changed first: state, trials, best validation accuracy."""
    with bad_input_exits():
        from study.listing import studies_in
        from study.report.studies import print_studies

        folder = storage.absolute()
        if not folder.is_dir():
            remedy = "run a study, or name the folder that has them"
            raise input_error(InputError, "--storage", "must be a folder", remedy, str(folder))
        if studies := studies_in(folder):
            print_studies(studies, OUT)
        else:
            OUT.print(f"no studies in {folder}", soft_wrap=True, highlight=False, markup=False)
