"""Has the product's step become slower? Ratios on one CPU thread, in a quarter of a minute: `make bench-check`.

    python benchmarks/check.py                           exits 1 where a ratio is too high
    python benchmarks/check.py --repeat 20               how the ratios spread on this machine

Small networks, an update of each form in turn in many short rounds: the same update in loops of torch alone, by the
product, and by the product with StableKD or with gradients measured always or never. A ratio is the median of those of
the rounds. Time is that of this process on its CPU, which other programs disturb least. A ratio is too high from the
middle between what is usual and 30 % above it, and is measured three times before that is said. Only the host and the
kernels for CPUs are seen: what a GPU gains or loses is measured by step.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loops import Form, Update
from step import FORMS, Ours, case_of, config_of

from trainable.engine.settings import apply_settings

SETTINGS = Namespace(
    device="cpu", precision="fp32", student="mini_resnet_10_16", teacher="mini_resnet_26_16"
)
BATCH, ROUNDS, WARM_UP, ATTEMPTS = 16, 24, 3, 3
SLOWER = 1.3
"""What has to be found."""
NEVER = 1_000_000
STABLEKD = {"method": "stablekd", "lam": 1.0, "decomposition": "5/2"}

MEASURED: dict[str, Form] = {
    **{name: FORMS[name] for name in ("channels_last", "student alone", "teacher alone")},
    "kd": lambda case: Ours(case, graph=False),
    "kd, observes nothing": lambda case: Ours(case, graph=False, train={"observe_every": NEVER}),
    "kd, observes always": lambda case: Ours(case, graph=False, train={"observe_every": 1}),
    "stablekd": lambda case: Ours(case, graph=False, distill=STABLEKD),
}
Seconds = Mapping[str, float]
"""An update's, by its form."""


@dataclass(frozen=True)
class Ratio:
    """Of a round's times."""

    of: Callable[[Seconds], float]
    usual: float
    """The median on two cores with torch 2.14 of a teacher that is not fused, as where there is no oneDNN; `--repeat`
    measures it, with what this machine fuses."""

    @property
    def most(self) -> float:
        """From here on it is nearer to a step that is slower than to the usual one."""
        return self.usual * SLOWER**0.5


RATIOS = {
    "KD ÷ the loop of torch alone": Ratio(lambda s: s["kd"] / s["channels_last"], 0.99),
    "KD ÷ (student alone + teacher alone)": Ratio(
        lambda s: s["kd"] / (s["student alone"] + s["teacher alone"]), 1.05
    ),
    "StableKD ÷ KD": Ratio(lambda s: s["stablekd"] / s["kd"], 1.04),
    "observing always ÷ never": Ratio(
        lambda s: s["kd, observes always"] / s["kd, observes nothing"], 1.07
    ),
}


def measured(rounds: int) -> list[Seconds]:
    """The times of every round."""
    apply_settings(config_of(SETTINGS.precision, BATCH, cpus=1))
    case = case_of(SETTINGS, BATCH)
    updates = {name: form(case) for name, form in MEASURED.items()}
    for update in updates.values():
        for _ in range(WARM_UP):
            update()
    return [{name: cpu_seconds(update) for name, update in updates.items()} for _ in range(rounds)]


def cpu_seconds(update: Update) -> float:
    """One update's, in all threads of this process."""
    started = time.process_time()
    update()
    return time.process_time() - started


def medians(rounds: list[Seconds]) -> dict[str, float]:
    """Each ratio's."""
    return {
        name: statistics.median(ratio.of(each) for each in rounds) for name, ratio in RATIOS.items()
    }


def too_high(found: Mapping[str, float]) -> list[str]:
    """Names of ratios."""
    return [name for name, value in found.items() if value > RATIOS[name].most]


def check() -> list[str]:
    """The ratios that were too high in every attempt."""
    suspects = list(RATIOS)
    for _ in range(ATTEMPTS):
        found = medians(measured(ROUNDS))
        suspects = [name for name in too_high(found) if name in suspects]
        for name, value in found.items():
            verdict = "TOO HIGH" if name in suspects else ""
            if value < RATIOS[name].usual / SLOWER**0.5:
                verdict = "faster than usual: lower what is usual in check.py"
            bounds = f"usual {RATIOS[name].usual:.2f}, at most {RATIOS[name].most:.2f}"
            print(f"{name:<38} {value:6.3f}  {bounds}  {verdict}".rstrip(), flush=True)
        if not suspects:
            break
    return suspects


def spread(repeat: int) -> None:
    """Print the ratios of so many checks, and how far they lie apart."""
    every: list[dict[str, float]] = []
    for _ in range(repeat):
        every.append(medians(measured(ROUNDS)))
        print("  ".join(f"{value:.3f}" for value in every[-1].values()), flush=True)
    for name in RATIOS:
        values = [found[name] for found in every]
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:<38} {low:.3f} to {high:.3f}, median {middle:.3f}, of {repeat}")


def main() -> None:
    """Check, or show the spread."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--repeat", type=int, help="measure so often, and judge nothing")
    options = parser.parse_args()
    if options.repeat is not None:
        spread(options.repeat)
    elif slower := check():
        sys.exit(f"the step has become slower: {', '.join(slower)}")


if __name__ == "__main__":
    main()
