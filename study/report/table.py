"""The leaderboard: every trial of a study, what to compare them with, and where to look further."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from study.replicates import baselines_of, representative
from study.report.cost import bytes_on_disk
from study.report.front import Columns, sought_columns
from study.report.health import failures, grouped, health_summary, health_text, sick
from study.report.links import LOCAL_SERVER, open_command, runs_page, server_of
from study.report.text import (
    counted,
    duration,
    one_line,
    params_text,
    percent,
    short_names,
    size,
    value_text,
)
from study.report.trust import BASELINES, Trust, trust_of, warnings_of
from study.report.verdict import verdict
from study.results import Role, State, StudyResults, TrialRow

_STATES: tuple[State, ...] = ("complete", "pruned", "running", "waiting", "failed")
_STATE_STYLES: dict[State, str] = {
    "pruned": "dim",
    "running": "cyan",
    "waiting": "cyan",
    "failed": "red",
}
_UNLIMITED = 10_000
_SHOWN_FINDINGS = 3
_SHOWN_FAILURES = 5
_SHOWN_TRIALS = 40
"""In a terminal; the report has all of them."""
_HEALTH_WIDTH = 12
MEASURES: dict[str, Callable[[TrialRow], float | None]] = {
    "val %": lambda row: row.value,
    "test %": lambda row: row.test_accuracy,
    "val\nEER %": lambda row: row.val_eer,
    "test\nEER %": lambda row: row.test_eer,
}
"""Heading → share in [0, 1]; the equal error rates are of studies with unseen classes."""
COMPARED: dict[Role, str] = {
    "baseline": BASELINES[""],
    "teacher": "teacher",
}


def leaderboard(results: StudyResults, page: Path | None = None) -> RenderableType:
    """The whole report; it folds to the width of the console that prints it.

    `page` is the study's HTML report, if there is one. With MLflow's `experiment_id` it also gives the
    address of the study's page there.
    """
    return _Leaderboard(results, page)


def print_leaderboard(results: StudyResults, console: Console, page: Path | None = None) -> None:
    """Print the report; paths and commands stay whole even if the console is narrower."""
    console.print(leaderboard(results, page), crop=False, highlight=False)


def ranked(results: StudyResults) -> list[TrialRow]:
    """The trials: complete ones (the winner first), then pruned, running and failed ones.

    Within a state those that break a constraint come last; then the better validation accuracy comes first, then
    the earlier trial. The usable ones are in the order of `StudyResults.best_trials`.
    """
    usable = results.best_trials

    def key(row: TrialRow) -> tuple[int, bool, float, int]:
        value = float("-inf") if row.value is None else row.value
        return _STATES.index(row.state), bool(row.violates), -value, row.number

    return [*usable, *sorted((row for row in results.of("trial") if not row.is_usable), key=key)]


class _Leaderboard:
    def __init__(self, results: StudyResults, page: Path | None) -> None:
        self._results, self._page = results, page

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        results = self._results
        yield Text.assemble((results.name, "bold"), f"  {_summary(results)}")
        yield Text()
        if rows := ranked(results):
            yield _fitting(rows[:_SHOWN_TRIALS], results, console, options)
            yield from _more(len(rows) - _SHOWN_TRIALS, "trial")
            yield Text()
        if compared := _comparison(results):
            yield compared
            yield Text()
        if trust := _over_seeds(results):
            yield _standings(trust)
        warnings = warnings_of(results)
        yield from (Text(warning, style="yellow") for warning in warnings)
        if trust or warnings:
            yield Text()
        failed = failures(results)
        for labels, reason in failed[:_SHOWN_FAILURES]:
            yield Text(f"{labels} failed: {reason}", style="red")
        yield from _more(len(failed) - _SHOWN_FAILURES, "reason")
        yield from _findings(results)
        yield Text(verdict(results), style="bold")
        yield from _places(results, self._page)


def _summary(results: StudyResults) -> str:
    """`8 of 12 trials ended in 4 min 05 s: 5 complete, 2 pruned, 1 failed`."""
    trials = results.of("trial")
    counts, ended = Counter(row.state for row in trials), sum(row.has_ended for row in trials)
    states = ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])
    head = f"{ended} of {results.trials_planned} trials ended in {duration(results.seconds)}"
    return f"{head}: {states}" if states else head


def _fitting(
    rows: Sequence[TrialRow], results: StudyResults, console: Console, options: ConsoleOptions
) -> Table:
    """One column a parameter where that fits, else all parameters in one that folds."""
    names, columns = short_names(rows), _result_columns(rows, results)
    unlimited = options.update(width=_UNLIMITED)  # a measurement is cut off at the console's width
    for gap, separator in ((2, "_"), (1, "_\n")):
        headings = {path: name.replace("_", separator) for path, name in names.items()}
        table = _trials(rows, columns, headings, gap)
        if Measurement.get(console, unlimited, table).maximum <= options.max_width:
            return table
    return _folded(rows, columns, names)


def _trials(
    rows: Sequence[TrialRow], columns: Columns, headings: dict[str, str], gap: int
) -> Table:
    table = _table(gap)
    _add_result_columns(table, columns, rows)
    for heading in headings.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for rank, row in enumerate(rows, start=1):
        values = [value_text(row.params.get(path)) for path in headings]
        cells = _result_cells(row, rank, columns, rows)
        table.add_row(*cells, *values, style=_style(row, rank))
    return table


def _folded(rows: Sequence[TrialRow], columns: Columns, names: dict[str, str]) -> Table:
    table = _table(gap=1)
    _add_result_columns(table, columns, rows)
    table.add_column("hyperparameters", overflow="fold")
    for rank, row in enumerate(rows, start=1):
        params = params_text(row.params, names)
        table.add_row(*_result_cells(row, rank, columns, rows), params, style=_style(row, rank))
    return table


def _table(gap: int) -> Table:
    return Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")


def _result_columns(rows: Sequence[TrialRow], results: StudyResults) -> Columns:
    """Heading → text of a row: what was measured, sought and broken."""
    columns: Columns = {}
    for heading in measured(rows, "val %"):
        columns[heading] = partial(_share, heading)
    columns |= sought_columns(results, rows)
    columns["epochs"] = lambda row: str(row.epochs)
    columns["sec"] = lambda row: f"{row.seconds:.0f}"
    return columns


def _share(heading: str, row: TrialRow) -> str:
    share = MEASURES[heading](row)
    return "" if share is None and heading.startswith("test") else percent(share)


def _add_result_columns(table: Table, columns: Columns, rows: Sequence[TrialRow]) -> None:
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("trial", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    if sick(rows):
        table.add_column("health", overflow="fold", min_width=_HEALTH_WIDTH)


def _result_cells(
    row: TrialRow, rank: int, columns: Columns, rows: Sequence[TrialRow]
) -> Iterator[str]:
    """A pruned trial has no rank: its accuracy is of fewer epochs; nor has one that cannot win."""
    yield str(rank) if row.is_usable else ""
    yield row.label
    yield row.state
    for text in columns.values():
        yield text(row)
    if sick(rows):
        yield health_text(row)


def measured(rows: Sequence[TrialRow], *always: str) -> list[str]:
    """Headings of the measures to show: those that some row has, and these."""
    return [
        heading
        for heading, share in MEASURES.items()
        if heading in always or any(share(row) is not None for row in rows)
    ]


def _style(row: TrialRow, rank: int) -> str:
    if row.is_usable:
        return "bold green" if rank == 1 else ""
    return "dim" if row.violates else _STATE_STYLES.get(row.state, "")


def _comparison(results: StudyResults) -> Table | None:
    """The winner beside the student alone, other baselines and the teacher.

    Where baselines have been searched, with the trials of which each is the best: a larger search finds better ones.
    """
    named = {
        BASELINES[row.of] + (f" ({row.of} {row.number})" if row.of else ""): row
        for row in baselines_of(results)
    }
    for teacher in results.of("teacher"):
        named[COMPARED["teacher"]] = teacher
    if not named:
        return None
    if winner := results.winner:
        named = {f"{winner.label}, the best": winner, **named}
    table = _table(gap=2)
    table.add_column("compared")
    measures = measured([*named.values()], "val %", "test %")
    searches = ["best of"] if any(row.of for row in named.values()) else []
    for heading in (*measures, "epochs", "sec", *searches):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in named.items():
        label = name if row.state == "complete" else f"{name} ({row.state})"
        shares = (percent(MEASURES[heading](row)) for heading in measures)
        of = [_trials_of(results, row)] if searches else []
        table.add_row(label, *shares, str(row.epochs), f"{row.seconds:.0f}", *of)
    return table


def _trials_of(results: StudyResults, row: TrialRow) -> str:
    """How many trials the search had that a row is the best of; nothing for what no search has found."""
    return counted(len(results.of(row.role, row.of)), "trial") if row.is_searched else ""


def _over_seeds(results: StudyResults) -> Trust | None:
    """Of a study with replicates; what was tested once stands in the tables above."""
    has_replicates = any(row.role == "replicate" for row in results.rows)
    return trust_of(results) if has_replicates else None


def _standings(trust: Trust) -> Table:
    """Test accuracies over seeds, and the winner's lead."""
    table = _table(gap=2)
    table.add_column("trained again")
    for heading in ("seeds", "test %", "best ahead by (95 %)"):
        table.add_column(heading, justify="right", no_wrap=True)
    leads = ["", *(one.text for one in trust.comparisons)]
    for one, lead in zip(trust.standings, leads, strict=True):
        table.add_row(one.name, str(len(one.accuracies)), one.text, lead)
    return table


def _findings(results: StudyResults) -> Iterator[Text]:
    """What is wrong, most important first, in a few lines."""
    groups = grouped(results)
    for group in groups[:_SHOWN_FINDINGS]:
        finding = group.finding
        yield Text.assemble(
            (f"{group.title} ({group.where})", "yellow"),
            f": {one_line(finding.words)} Remedy: {one_line(finding.remedy)}",
        )
    yield from _more(len(groups) - _SHOWN_FINDINGS, "finding")
    if summary := health_summary(results):
        yield Text(f"Health: {summary}.")


def _more(count: int, what: str) -> Iterator[Text]:
    """What the terminal does not show."""
    if count > 0:
        yield Text(f"and {counted(count, f'more {what}')}: see the report for the rest")


def _places(results: StudyResults, report: Path | None) -> Iterator[Text]:
    """Paths, commands and addresses to copy: never wrapped, so that they can be."""
    if report is not None:
        yield _place("Report", str(report))
    if answer := representative(results):
        yield _place("Checkpoint", str(Path(answer.directory) / "best.safetensors"))
    if report is not None:
        folder = report.parent
        yield _place("Disk", f"{size(bytes_on_disk(folder))} in {folder}")
    server = server_of(results.tracking_uri)
    if server is None:
        yield _place("MLflow", open_command(results.tracking_uri))
    if results.experiment_id is not None:
        page = runs_page(server or LOCAL_SERVER, results.experiment_id, results.name)
        yield _place("MLflow" if server else "then open", page)
    elif server is not None:
        yield _place("MLflow", server)


def _place(name: str, place: str) -> Text:
    return Text(f"{name:<11} {place}", no_wrap=True, overflow="ignore")
