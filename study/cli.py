"""The command `kd-study`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from study.arguments import OUT, Anywhere, Config, Name, Port, Set, Storage, readable
from study.cli_export import export, predict
from study.cli_start import init, list_, split
from study.config import (
    StudyConfig,
    draft_config,
    embedded_store,
    load_config,
    load_for_cluster,
    load_single,
)
from study.exits import INTERRUPTED, NO_USABLE_TRIAL, bad_input_exits, exit_bad
from study.ledger import all_results, find_results
from study.results import StudyResults, TrialRow
from study.version import kd_study_version
from trainable.errors import InputError, input_error

if TYPE_CHECKING:
    from study.driver import OpenDisplay

_app = typer.Typer(
    name="kd-study",
    help="Search the hyperparameters of knowledge distillation, and say which student to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        OUT.print(f"kd-study {kd_study_version()}", highlight=False)
        raise typer.Exit


@_app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


_app.command()(init)


@_app.command()
def run(config: Config, set_: Set = None) -> None:
    """Run the study of CONFIG, go on with it, or print its leaderboard if it has finished."""
    with bad_input_exits():
        _study(load_config(config, set_ or []))


@_app.command()
def train(config: Config, set_: Set = None) -> None:
    """Train one student at CONFIG's base values, without a search."""
    with bad_input_exits():
        single, defaults = load_single(config, set_ or [])
        for path, value in defaults.items():
            shown = "nothing" if value is None else value
            OUT.print(f"{path} is searched and has no base value: its default is {shown}")
        _study(single)


@_app.command()
def resume(name: Name, storage: Storage = Path("runs")) -> None:
    """Go on with the study NAME after any end of its driver, or print its leaderboard if it has finished.

    It goes on with the config that its folder keeps, wherever that folder lay before.
    """
    with bad_input_exits():
        from study.folder import kept_config

        _study(kept_config(storage.absolute(), name))


@_app.command()
def extend(
    name: Name,
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many trials more than planned so far.")
    ],
    storage: Storage = Path("runs"),
) -> None:
    """Search N more trials in the study NAME, finished or not, with all that it has learned.

    Baselines that were searched as long get as many. study.time_budget_s counts anew. Interrupted, it goes on with
    `kd-study resume NAME`.
    """
    with bad_input_exits():
        from study.driver import extend_study
        from study.folder import kept_config, with_more_trials

        kept = kept_config(storage.absolute(), name)
        again = f"`{shlex.join(['kd-study', 'resume', name, '--storage', str(storage)])}` goes on"
        _study(with_more_trials(kept, trials), partial(extend_study, before=kept), again)


@_app.command()
def validate(config: Config, set_: Set = None) -> None:
    """Check CONFIG, its data, its networks and its stores, and print what would run; begins no study."""
    with bad_input_exits():
        draft = draft_config(config, set_ or [])
        from study.around import around_problems, unchecked
        from study.cluster import local_capacity
        from study.preflight import preflight_draft
        from study.report.plan import print_plan

        plan = preflight_draft(draft, local_capacity(), around_problems(draft))
        print_plan(plan, OUT)
        open_questions = "; ".join(unchecked(plan.config))
        OUT.print(f"not checked {open_questions}", soft_wrap=True, highlight=False, markup=False)


_app.command()(split)


_app.command("list")(list_)


@_app.command()
def report(name: Name, storage: Anywhere = "runs") -> None:
    """Print the leaderboard of a study, and write its report.html and trials.parquet."""
    with bad_input_exits():
        root = readable(storage, name)
        folder, results = root / name, find_results(root, name)
        from study.report.page import write_report

        try:
            write_report(results, folder)
        except OSError as error:
            rule = f"must take the report's files, but: {error.strerror}"
            remedy = "give the folder room and write permission; the leaderboard is above"
            _print_results(results, folder)
            raise input_error(InputError, str(folder), rule, remedy) from None
        _print_results(results, folder)


_app.command()(export)
_app.command()(predict)


@_app.command()
def ui(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A study's name.")] = None,
    storage: Storage = Path("runs"),
    port: Port = 5000,
) -> None:
    """Serve MLflow's pages of the studies under --storage until Ctrl-C, and print their addresses.

    A study that is tracked by a server has its page there: with NAME, that is printed.
    """
    with bad_input_exits():
        from study.report.links import server_of, study_page
        from study.report.server import ServerError, serve

        folder = storage.absolute()
        uri = embedded_store(folder)
        shown = [r for r in all_results(folder) if r.tracking_uri == uri]
        if name is not None:
            shown = [find_results(folder, name)]
            uri = shown[0].tracking_uri
            if server := server_of(uri):
                OUT.print(study_page(server, shown[0]), soft_wrap=True, highlight=False)
                return

        def ready(address: str) -> None:
            for results in shown:
                page = f"{results.name}  {study_page(address, results)}"
                OUT.print(page, soft_wrap=True, highlight=False)
            OUT.print(f"MLflow at {address}; Ctrl-C stops it", highlight=False)

        try:
            serve(uri, port, ready)
        except ServerError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(NO_USABLE_TRIAL) from None


@_app.command()
def submit(
    config: Config,
    address: Annotated[
        str,
        typer.Option(metavar="URL", help="The cluster's dashboard, e.g. http://127.0.0.1:8265."),
    ],
    set_: Set = None,
    code: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="A Python file or package that CONFIG names, to send; repeatable."
        ),
    ] = None,
    with_kd_study: Annotated[
        bool, typer.Option("--with-kd-study", help="Send kd-study's own code, too.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how the study's job is.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Have it save itself and end.")] = False,
) -> None:
    """Run the study of CONFIG as a job of a Ray cluster, and follow its log; Ctrl-C lets it go on alone.

    The same command follows the job again, or submits a stopped study anew, which then goes on.
    """
    with bad_input_exits():
        if status and stop:
            exit_bad("--status: goes without --stop; give one of them")
        loaded = load_for_cluster(config, set_ or [])
        _must_search(loaded)
        from study.following import exit_as, follow, look_at
        from study.submit import JobServer, packaged, state_of

        server = JobServer(address)
        if status or stop:
            look_at(server, loaded, stop=stop)
            return
        with packaged(loaded, config, code or [], with_kd_study=with_kd_study) as package:
            job = server.submit(package)
        print(state_of(job))
        exit_as(follow(server, job))


def main() -> None:
    """Entry point of `kd-study`."""
    # Ray reads it when it is imported; unset, it depends on whether a token lies in the home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # A config may name a network of the current folder, which Ray's workers look into, too.
    sys.path.append(os.getcwd())
    _app()


def _study(
    config: StudyConfig,
    conduct: Callable[[StudyConfig, OpenDisplay], StudyResults] | None = None,
    again: str = "run the same command again to go on",
) -> None:
    """Have the driver `conduct` a study, by default run it, and exit as it ends."""
    _must_search(config)
    from study.driver import StudyFailedError, StudyInterruptedError, run_study
    from study.report.progress import Progress

    def display(slots: int, ended: Sequence[TrialRow]) -> Progress:
        section = config.study
        return Progress(
            section.trials, slots, ended=ended, objectives=section.objectives, console=OUT
        )

    try:
        results = (conduct or run_study)(config, display)
    except StudyInterruptedError:
        OUT.print(f"interrupted: {again}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    except StudyFailedError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(NO_USABLE_TRIAL) from None
    _print_results(results, config.folder)
    if results.winner is None:
        raise typer.Exit(NO_USABLE_TRIAL)


def _must_search(config: StudyConfig) -> None:
    if config.study.trials > 1 and not config.search:
        exit_bad("search: run needs at least one path to search; or use kd-study train")


def _print_results(results: StudyResults, folder: Path) -> None:
    from study.report.links import PAGE
    from study.report.table import print_leaderboard

    page = folder / PAGE
    print_leaderboard(results, OUT, page if page.exists() else None)
