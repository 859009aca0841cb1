"""The command `kd-study`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from study.config import (
    StudyConfig,
    draft_config,
    load_config,
    load_single,
)
from study.results import StudyResults, TrialRow, find_results
from trainable.errors import InputError

_app = typer.Typer(
    name="kd-study",
    help="Search the hyperparameters of knowledge distillation, and say which student to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")]
_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a key, e.g. optim.lr=5e-4; repeatable."
    ),
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A study's name.")]
_Storage = Annotated[
    Path, typer.Option(envvar="KD_STUDY_STORAGE", metavar="PATH", help="Folder of the studies.")
]

NO_USABLE_TRIAL, BAD_INPUT, INTERRUPTED = 1, 2, 130
_OUT = Console()


@_app.command()
def run(config: _Config, set_: _Set = None) -> None:
    """Run the study of CONFIG, go on with it, or print its leaderboard if it has finished."""
    _study(lambda: load_config(config, set_ or []))


@_app.command()
def train(config: _Config, set_: _Set = None) -> None:
    """Train one student at CONFIG's base values, without a search."""

    def load() -> StudyConfig:
        single, defaults = load_single(config, set_ or [])
        for path, value in defaults.items():
            shown = "nothing" if value is None else value
            _OUT.print(f"{path} is searched and has no base value: its default is {shown}")
        return single

    _study(load)


@_app.command()
def validate(config: _Config, set_: _Set = None) -> None:
    """Check CONFIG, its data and its networks, and print what would run."""
    with _bad_input_exits():
        draft = draft_config(config, set_ or [])
        from study.cluster import local_capacity
        from study.preflight import preflight_draft
        from study.report.plan import print_plan

        print_plan(preflight_draft(draft, local_capacity()), _OUT)


@_app.command()
def report(name: _Name, storage: _Storage = Path("runs")) -> None:
    """Print the leaderboard of a study."""
    with _bad_input_exits():
        _print_results(find_results(storage.absolute(), name))


def main() -> None:
    """Entry point of `kd-study`."""
    # A config may name a network of the current folder, which Ray's workers look into, too.
    sys.path.append(os.getcwd())
    _app()


def _study(load: Callable[[], StudyConfig]) -> None:
    with _bad_input_exits():
        config = load()
        from study.driver import StudyFailedError, StudyInterruptedError, run_study
        from study.report.progress import Progress

        if config.study.trials > 1 and not config.search:
            _exit_bad("search: run needs at least one path to search; or use kd-study train")

        def display(slots: int, ended: Sequence[TrialRow]) -> Progress:
            return Progress(config.study.trials, slots, ended=ended, console=_OUT)

        try:
            results = run_study(config, display)
        except StudyInterruptedError:
            _OUT.print("interrupted: run the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        except StudyFailedError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(NO_USABLE_TRIAL) from None
        _print_results(results)
        if results.winner is None:
            raise typer.Exit(NO_USABLE_TRIAL)


def _print_results(results: StudyResults) -> None:
    from study.report.table import print_leaderboard

    print_leaderboard(results, _OUT)


@contextmanager
def _bad_input_exits() -> Generator[None]:
    """Turns bad input into its message on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        _exit_bad(str(error))


def _exit_bad(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(BAD_INPUT)
