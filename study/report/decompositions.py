"""StableKD's decompositions k/n that were searched, as a map of k and n."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from study.results import StudyResults, TrialRow

K, N = "distill.k", "distill.n"


@dataclass(frozen=True)
class Cell:
    """The trials of one decomposition."""

    rows: tuple[TrialRow, ...]
    shade: int = 0
    """0 … 4, from the worst best accuracy to the best."""

    @property
    def whole(self) -> tuple[TrialRow, ...]:
        """Those that ran to their end."""
        return tuple(row for row in self.rows if row.state == "complete")

    @property
    def best(self) -> float | None:
        """Of those that ran to their end, or of the stopped ones where none did."""
        return max(self._values, default=None)

    @property
    def mean(self) -> float | None:
        """Over the same trials as `best`."""
        return fmean(self._values) if self._values else None

    @property
    def _values(self) -> list[float]:
        return [row.value for row in self.whole or self.rows if row.value is not None]


@dataclass(frozen=True)
class Map:
    """Rows of k, columns of n."""

    ks: tuple[int, ...]
    ns: tuple[int, ...]
    cells: dict[tuple[int, int], Cell]


def decomposition_map(results: StudyResults) -> Map | None:
    """None where no decomposition was searched."""
    found: dict[tuple[int, int], list[TrialRow]] = {}
    for row in results.of("trial"):
        if K in row.params and N in row.params:
            found.setdefault((int(row.params[K]), int(row.params[N])), []).append(row)
    if not found:
        return None
    cells = {place: Cell(tuple(rows)) for place, rows in found.items()}
    bests = [cell.best for cell in cells.values() if cell.best is not None]
    for place, cell in cells.items():
        if cell.best is not None and max(bests) > min(bests):
            share = (cell.best - min(bests)) / (max(bests) - min(bests))
            cells[place] = Cell(cell.rows, round(4 * share))
    ks, ns = (tuple(sorted({place[axis] for place in cells})) for axis in (0, 1))
    return Map(ks, ns, cells)
