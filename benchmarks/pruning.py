"""How much of a search's cost pruners save, and what they lose, replayed on recorded learning curves.

    python benchmarks/pruning.py                                        on all trials of the curves that it knows
    python benchmarks/pruning.py --half holdout --curves FILE.parquet   on some of another file

`study.halving`, stock ASHA (Tune's own class) over its two settings, and no pruner run studies of trials that
`learning_curves.py` recorded: every study takes so many of --sizes of them in a random order, --places at a time, each
epoch taking its trial's recorded seconds. Written to benchmarks/results/pruning-<half>.json by size, as means over the
studies with 95 % intervals (percentiles of 10,000 bootstrap resamplings of the studies; studies share trials, so they
say how sure the mean over such studies is, and not what other trials would do):

- cost: seconds of training, as a share of those without a pruner;
- regret: best validation accuracy of all of a study's trials less that of the complete ones, in points.

`rival` is the setting of ASHA that costs most like halving, `rival_less_halving` their difference study by study.
Variants of halving that were tried are in the same file: without moving points from the peaks of the learning rate,
with comparisons among all trials, and among those of one decomposition only.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from environment import environment
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from study import halving
from study.halving import Course, Halving, course_of
from trainable.config import TrialConfig

RESULTS = Path(__file__).parent / "results"
CURVES = tuple(
    RESULTS / f"learning-curves{part}.parquet"
    for part in (
        "-nvidia-h200",
        "-holdout-nvidia-h200",
        "-holdout2-nvidia-h100-80gb-hbm3",
        "-holdout3-nvidia-h100-80gb-hbm3",
        "-holdout4-nvidia-h100-80gb-hbm3",
        "-holdout5-nvidia-h100-80gb-hbm3",
    )
)
GRACE, FACTORS = (1, 2, 3, 4, 5), (2, 3, 4)
"""ASHA's settings."""
BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Recorded:
    """A trial that ran to its end."""

    number: int
    decomposition: str
    values: tuple[float, ...]
    """Validation accuracy by epoch."""
    seconds: float
    """Of an epoch."""
    course: Course
    """Under halving."""

    @property
    def final(self) -> float:
        """What the trial would be ranked by."""
        return max(self.values)


class Pruner(Protocol):
    """Decides, piece by piece, what the places of a study do."""

    def next(self, waiting: list[Recorded]) -> tuple[Recorded, int, int] | None:
        """A trial, one of `waiting` if it is new, and the epochs before and after its piece."""
        ...

    def came(self, trial: Recorded, epoch: int) -> None: ...


class Stopped:
    """No pruner, or one of Tune's that stops trials where they are."""

    def __init__(self, asha: ASHAScheduler | None) -> None:
        self._bracket: Any = None
        if asha is not None:
            (self._bracket,) = asha._brackets  # pyright: ignore[reportPrivateUsage]
        self._going: list[tuple[Recorded, int]] = []

    def next(self, waiting: list[Recorded]) -> tuple[Recorded, int, int] | None:
        if self._going:
            trial, epoch = self._going.pop()
            return trial, epoch, epoch + 1
        return (waiting.pop(0), 0, 1) if waiting else None

    def came(self, trial: Recorded, epoch: int) -> None:
        if epoch == len(trial.values):
            return
        if self._bracket is not None:
            known = SimpleNamespace(trial_id=trial.number)
            said = self._bracket.on_result(known, epoch, trial.values[epoch - 1])
            if said == TrialScheduler.STOP:
                return
        self._going.append((trial, epoch))


class Waiting:
    """`study.halving`, which compares trials that are `alike`."""

    def __init__(self, trials: Sequence[Recorded], alike: Callable[[Recorded], str]) -> None:
        self._alike, self._trials = alike, {trial.number: trial for trial in trials}
        self._halving = Halving(len(trials))
        self._epochs = dict.fromkeys(self._trials, 0)

    def next(self, waiting: list[Recorded]) -> tuple[Recorded, int, int] | None:
        for number in self._halving.hopeless():
            self._halving.ends(number)
        if (number := self._halving.next_up(are_more=bool(waiting))) is not None:
            return self._begins(self._trials[number])
        if not waiting:
            return None
        trial = waiting.pop(0)
        course = replace(trial.course, kind=self._alike(trial))
        self._halving.follow(trial.number, course, {})
        return self._begins(trial)

    def came(self, trial: Recorded, epoch: int) -> None:
        before = self._epochs[trial.number]
        for now in range(before + 1, epoch + 1):
            self._halving.reported(trial.number, now, trial.values[now - 1])
        self._epochs[trial.number] = epoch
        is_whole = epoch == len(trial.values)
        (self._halving.ends if is_whole else self._halving.rests)(trial.number)

    def _begins(self, trial: Recorded) -> tuple[Recorded, int, int]:
        until = self._halving.begins(trial.number)
        return trial, self._epochs[trial.number], until or len(trial.values)


def replay(trials: Sequence[Recorded], pruner: Pruner, places: int) -> tuple[float, float]:
    """Cost and regret of one study."""
    waiting, busy, spent = list(trials), list[tuple[float, int, Recorded, int]](), 0.0
    now, counted, complete = 0.0, 0, list[float]()
    while True:
        while len(busy) < places and (piece := pruner.next(waiting)) is not None:
            trial, before, after = piece
            seconds, counted = (after - before) * trial.seconds, counted + 1
            spent += seconds
            heapq.heappush(busy, (now + seconds, counted, trial, after))
        if not busy:
            break
        now, _, trial, epoch = heapq.heappop(busy)
        pruner.came(trial, epoch)
        if epoch == len(trial.values):
            complete.append(trial.final)
    whole = sum(len(trial.values) * trial.seconds for trial in trials)
    return spent / whole, 100 * (max(trial.final for trial in trials) - max(complete))


def asha(epochs: int, grace: int, factor: float) -> Stopped:
    """As `study.scheduler` makes it."""
    return Stopped(
        ASHAScheduler(
            time_attr="epoch",
            metric="value",
            mode="max",
            max_t=epochs + 1,
            grace_period=grace,
            reduction_factor=factor,
        )
    )


def pruners(epochs: int) -> dict[str, Callable[[Sequence[Recorded]], Pruner]]:
    """All that are compared, by name."""
    found: dict[str, Callable[[Sequence[Recorded]], Pruner]] = {
        "none": lambda _: Stopped(None),
        "halving": lambda trials: Waiting(trials, lambda trial: trial.course.kind),
        "halving, all kinds compared": lambda trials: Waiting(trials, lambda _: ""),
        "halving, only equal decompositions compared": lambda trials: Waiting(
            trials, lambda trial: trial.decomposition
        ),
    }
    for grace, factor in product(GRACE, FACTORS):
        made = partial(asha, epochs, grace, factor)
        found[f"asha, grace {grace}, factor {factor}"] = lambda _, made=made: made()
    return found


def read(paths: Sequence[Path], half: str) -> list[Recorded]:
    """The trials of a half, of files of `learning_curves.py`, numbered anew."""
    rows: dict[tuple[Path, int], list[dict[str, Any]]] = {}
    for path in paths:
        for row in pq.read_table(path).to_pylist():
            if half in ("all", row["half"]):
                rows.setdefault((path, row["trial"]), []).append(row)
    return [
        Recorded(
            number,
            epochs[0]["decomposition"],
            tuple(row["val_accuracy"] for row in epochs),
            epochs[0]["seconds"] / len(epochs),
            course_of(config_of(epochs[0]["decomposition"], len(epochs))),
        )
        for number, epochs in enumerate(rows.values())
    ]


def config_of(decomposition: str, epochs: int) -> TrialConfig:
    """A trial's, as far as its stages depend on it."""
    return TrialConfig.model_validate(
        {
            "data": {"source": "cifar100", "batch_size": 128},
            "teacher": {"model": "resnet34"},
            "student": {"model": "resnet18"},
            "distill": {"method": "stablekd", "decomposition": decomposition},
            "optim": {"lr": 0.1},
            "train": {"epochs": epochs},
        }
    )


@contextmanager
def at_peaks() -> Generator[None]:
    """In this block points stay where they are."""
    before, halving.AROUND_PEAK = halving.AROUND_PEAK, 0.0
    try:
        yield
    finally:
        halving.AROUND_PEAK = before


def studies(
    trials: Sequence[Recorded],
    make: Callable[[Sequence[Recorded]], Pruner],
    size: int,
    options: Any,
) -> Any:
    """(cost, regret) of every resampling: the same studies for every pruner, [resamplings, 2]."""
    random = np.random.default_rng(options.seed)
    found = list[tuple[float, float]]()
    for _ in range(options.resamplings):
        order = random.choice(len(trials), size, replace=False)
        study = [trials[index] for index in order]
        found.append(replay(study, make(study), options.places))
    return np.array(found)


def interval(values: Any) -> dict[str, float]:
    """Of a mean."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(BOOTSTRAPS, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def summary(found: Any) -> dict[str, Any]:
    """Of one pruner."""
    cost, regret = found[:, 0], found[:, 1]
    return {
        "cost": interval(cost),
        "regret": interval(regret),
        "largest_regret": float(regret.max()),
        "without_regret": float((regret <= 0).mean()),
    }


def compare(trials: Sequence[Recorded], size: int, options: Any) -> dict[str, Any]:
    """All pruners, and halving against the setting of ASHA that costs as much, in studies of one size."""
    made = pruners(len(trials[0].values))
    found = {name: studies(trials, make, size, options) for name, make in made.items()}
    with at_peaks():
        judged_there = read(options.curves, options.half)
        found["halving, also at peaks"] = studies(judged_there, made["halving"], size, options)
    cost = found["halving"][:, 0].mean()
    rival = min(
        (name for name in found if name.startswith("asha")),
        key=lambda name: abs(found[name][:, 0].mean() - cost),
    )
    less = found[rival] - found["halving"]
    return {
        "pruners": {name: summary(values) for name, values in found.items()},
        "rival": rival,
        "rival_less_halving": {"cost": interval(less[:, 0]), "regret": interval(less[:, 1])},
    }


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    layout = argparse.RawTextHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    made.add_argument(
        "--curves", type=Path, nargs="+", default=CURVES, help="of learning_curves.py"
    )
    made.add_argument("--half", choices=("tuning", "holdout", "all"), default="all")
    made.add_argument("--resamplings", type=int, default=200)
    made.add_argument(
        "--sizes", type=int, nargs="+", default=(24, 48, 96), help="trials of a study"
    )
    made.add_argument("--places", type=int, default=4, help="trials at a time")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--output", type=Path, default=RESULTS)
    return made


def main() -> None:
    """Compare, show and keep."""
    command = parser()
    options = command.parse_args()
    trials = read(options.curves, options.half)
    if max(options.sizes) > len(trials):
        command.error(f"--sizes must be at most {len(trials)}, the trials there are")
    sizes = {size: compare(trials, size, options) for size in options.sizes}
    for size, found in sizes.items():
        show(size, found)
    kept = {key: value for key, value in vars(options).items() if key not in ("output", "sizes")}
    kept["curves"] = [path.name for path in options.curves]
    record = {"environment": environment(), "settings": kept, "trials": len(trials), "sizes": sizes}
    path = options.output / f"pruning-{options.half}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


def show(size: int, found: dict[str, Any]) -> None:
    """A line for each pruner, cheapest first."""
    print(f"studies of {size} trials")
    for name, of in sorted(found["pruners"].items(), key=lambda item: item[1]["cost"]["mean"]):
        cost, regret = of["cost"], of["regret"]
        print(
            f"{name:45} cost {cost['mean']:.3f} [{cost['low']:.3f}, {cost['high']:.3f}]  "
            f"regret {regret['mean']:.2f} [{regret['low']:.2f}, {regret['high']:.2f}] points, "
            f"none in {of['without_regret']:.0%}"
        )
    less = found["rival_less_halving"]
    print(f"{found['rival']} less halving: cost {less['cost']}, regret {less['regret']}")


if __name__ == "__main__":
    main()
