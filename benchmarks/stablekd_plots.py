"""The plots of docs/reproduction.md, drawn from the records in benchmarks/results.

    python benchmarks/stablekd_plots.py

- `reproduction_figure_3.svg`: validation accuracy by epoch without recomposition, and how far an update moves the
  student (mean over the observed updates of an epoch); the paper's figure 3, and the measure of its figure 1b.
- `reproduction_table_5.svg`: test accuracy after so many epochs, ours beside the paper's; the standard deviation where
  there are several seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from stablekd_cells import CELLS
from stablekd_listing import fluctuation, kept_records

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLOURS = {
    "StableKD-1/0": "#b5541c",
    "StableKD-3/0": "#7a7a7a",
    "StableKD-5/0": "#1c6fb5",
    "KD": "#b5541c",
    "StableKD-5/2": "#1d8348",
}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "kd"}

Cells = Mapping[str, Mapping[str, Any]]


def kept_cells() -> dict[str, dict[str, Any]]:
    """By name; of several records the one with most seeds."""
    found: dict[str, dict[str, Any]] = {}
    for _, cells in kept_records(RESULTS):
        for name, cell in cells.items():
            if len(cell["runs"]) > len(found.get(name, {"runs": ()})["runs"]):
                found[name] = cell
    return found


def figure_3(cells: Cells) -> Any:
    """Accuracies on the left, update distances on the right."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for cell in CELLS:
        if cell.table != "figure 3" or cell.name not in cells:
            continue
        curves = cells[cell.name]["runs"]["0"]["curves"]
        accuracies, colour = curves["val/accuracy"], COLOURS[cell.scheme]
        epochs = range(1, len(accuracies) + 1)
        label = f"{cell.scheme.removeprefix('StableKD-')}: lost {fluctuation(accuracies):.1f} points on its way"
        left.plot(epochs, [100 * value for value in accuracies], color=colour, label=label)
        right.plot(epochs, curves["update/distance"], color=colour)
    left.set(xlabel="epoch", ylabel="validation accuracy, %")
    left.legend(frameon=False, loc="lower right")
    right.set(xlabel="epoch", ylabel="distance of an update, ‖θ′ − θ‖₂", yscale="log")
    return figure


def table_5(cells: Cells) -> Any:
    """Dots are ours, crosses the paper's."""
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for scheme in ("KD", "StableKD-5/0", "StableKD-5/2"):
        rows = [cell for cell in CELLS if cell.table == "5" and cell.scheme == scheme]
        ours = [cell for cell in rows if cell.name in cells]
        means = [cells[cell.name]["mean"] for cell in ours]
        spreads = [cells[cell.name].get("sd", math.nan) for cell in ours]
        at, colour = [cell.epochs for cell in ours], COLOURS[scheme]
        axes.errorbar(at, means, spreads, fmt="o-", ms=3, color=colour, capsize=3, label=scheme)
        axes.plot(
            [cell.epochs for cell in rows],
            [cell.paper for cell in rows],
            "x:",
            color=colour,
            lw=0.8,
        )
    axes.plot([], [], "x:", color="black", lw=0.8, label="the paper")
    axes.set(xlabel="epochs", ylabel="test accuracy, %", xticks=[20, 40, 60, 100, 150, 200])
    axes.legend(frameon=False, ncols=2, loc="lower right")
    return figure


def main() -> None:
    """Draw both."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--output", type=Path, default=IMAGES)
    output = options.parse_args().output
    cells = kept_cells()
    with pyplot.rc_context(STYLE):
        for name, draw in (("figure_3", figure_3), ("table_5", table_5)):
            path = output / f"reproduction_{name}.svg"
            draw(cells).savefig(path, metadata={"Date": None})
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
