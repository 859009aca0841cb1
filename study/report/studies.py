"""What `kd-study list` prints: a line for each study."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from study.listing import Listed, Standing
from study.report.text import UNKNOWN, percent
from study.results import StudyResults

_STYLES: dict[Standing, str] = {"running": "cyan", "interrupted": "yellow", "unreadable": "red"}


def print_studies(studies: Sequence[Listed], console: Console) -> None:
    """State, trials of the search that are over, the winner's validation accuracy, and when it last changed."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in ("study", "state"):
        table.add_column(column, overflow="fold")
    for column in ("trials", "best val %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("last change", no_wrap=True)
    for study in studies:
        state = Text(study.standing, _STYLES.get(study.standing, ""))
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(study.changed_at))
        table.add_row(Text(study.name), state, *_figures(study.results), changed)
    console.print(table)


def _figures(results: StudyResults | None) -> tuple[str, str]:
    if results is None:
        return UNKNOWN, UNKNOWN
    over = sum(row.has_ended for row in results.of("trial"))
    best = None if results.winner is None else results.winner.value
    return f"{over} of {results.trials_planned}", percent(best)
