"""Whether a search finds better students than random draws do, at equal budgets.

    python benchmarks/samplers.py                                  the quickstart, 10 seeds, half an hour on two cores
    python benchmarks/samplers.py --samplers tpe gp random --seeds 20 --set study.trials=20

Studies by the product's own command, one for each sampler and `study.seed`, all else equal. Compared are the winners'
best validation accuracy, which the search was after, and the test accuracy that came of it, in pairs of one seed: every
sampler with the last one. Written after each study to benchmarks/results/samplers-<config>-<device>.json; stopped
half-way, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from environment import environment
from scipy.special import stdtrit

from study.ledger import find_results

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parent.parent / "configs"
FIGURES = ("value", "test_accuracy")
"""Of a winner: its best validation accuracy, and its test accuracy."""


def run(options: argparse.Namespace, sampler: str, seed: int) -> dict[str, Any]:
    """One study, or what is known of it: its winner."""
    name = f"{options.config.stem}-{sampler}-{seed}"
    command = [sys.executable, "-m", "study", "run", str(options.config)]
    own = [f"study.name={name}", f"study.sampler={sampler}", f"study.seed={seed}"]
    for setting in (*own, f"storage.path={options.storage}", *options.settings):
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = find_results(options.storage, name)
    winner = results.winner
    assert winner is not None
    epochs = sum(row.epochs for row in results.of("trial"))
    return {**winner.model_dump(include={*FIGURES, "params"}), "epochs_searched": epochs}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The mean of the paired differences in points, and its 95 % interval by Student's t."""
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    mean, found = statistics.mean(points), {"mean": statistics.mean(points), "pairs": len(points)}
    if len(points) < 2:
        return found
    error = statistics.stdev(points) / math.sqrt(len(points))
    half = float(stdtrit(len(points) - 1, 0.975)) * error
    return {**found, "low": mean - half, "high": mean + half}


def differences(runs: Mapping[str, Mapping[str, Any]], samplers: Sequence[str]) -> dict[str, Any]:
    """Each sampler against the last, over the seeds that both have."""
    *others, last = samplers
    found: dict[str, Any] = {}
    for sampler in others:
        seeds = [seed for seed in runs[sampler] if seed in runs[last]]
        if seeds:
            found[f"{sampler} - {last}"] = {
                figure: difference(
                    *([runs[s][seed][figure] for seed in seeds] for s in (sampler, last))
                )
                for figure in FIGURES
            }
    return found


def main() -> None:
    """Run every study that is missing, and compare."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("config", type=Path, nargs="?", default=CONFIGS / "quickstart.yaml")
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="PATH=VALUE")
    parser.add_argument("--storage", type=Path, default=Path("runs/samplers"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.storage = options.storage.resolve()
    where = environment()
    device = (where["gpus"] or ["cpu"])[0].replace(" ", "-").lower()
    path = options.output / f"samplers-{options.config.stem}-{device}.json"
    runs: dict[str, dict[str, Any]] = {sampler: {} for sampler in options.samplers}
    for seed in range(options.seeds):
        for sampler in options.samplers:
            runs[sampler][str(seed)] = run(options, sampler, seed)
            record = {
                "environment": where,
                "config": options.config.name,
                "settings": options.settings,
                "differences": differences(runs, options.samplers),
                "runs": runs,
            }
            path.write_text(json.dumps(record, indent=1) + "\n")
        print(seed, json.dumps(record["differences"]), flush=True)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
