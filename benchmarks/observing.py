"""What the statistics of gradients and updates cost a training step.

    python benchmarks/observing.py                       on a GPU, ResNet34 → ResNet18 in bf16
    python benchmarks/observing.py --device cpu          on CPUs, WRN-40-2 → WRN-16-2

The product's step of KD, as `benchmarks/step.py` has it, with `train.observe_every` at its default, and at 1, against
one that observes nothing, on the same pictures, in turns. What the non-finite guard needs of every gradient belongs to
all three. Times are medians over rounds, ratios those of the rounds' pairs. Written to
benchmarks/results/observing-<device>.json.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from environment import keep
from step import Ours, case_of, config_of, parser

from trainable.config import TrainConfig
from trainable.engine.settings import apply_settings

NEVER = 1_000_000
DEFAULT = TrainConfig().observe_every
FORMS = {"observes nothing": NEVER, "default": DEFAULT, "every update": 1}
WARM_UP = 3 * DEFAULT
"""Updates before any is timed: by then those that observe are graphs, too."""


def step_seconds(update: Ours, updates: int) -> float:
    """An update's, with the flush at the end."""
    _wait()
    started = time.perf_counter()
    for _ in range(updates):
        update()
    update.step.observed.flush()
    _wait()
    return (time.perf_counter() - started) / updates


def main() -> None:
    """Measure, print, write."""
    command = parser(__doc__)
    command.add_argument("--batch", type=int, default=128 if torch.cuda.is_available() else 64)
    is_cuda = torch.cuda.is_available()
    command.set_defaults(precision="bf16" if is_cuda else "fp32", rounds=9)
    command.set_defaults(updates=(20 if is_cuda else 2) * DEFAULT)
    options = command.parse_args()
    apply_settings(config_of(options.precision, options.batch, torch.get_num_threads()))
    case = case_of(options, options.batch)
    forms = {
        name: Ours(case, graph=True, train={"observe_every": every})
        for name, every in FORMS.items()
    }
    for update in forms.values():
        step_seconds(update, WARM_UP if options.device == "cuda" else 2)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, update in forms.items():
            times[name].append(step_seconds(update, options.updates))
    nothing = times["observes nothing"]
    found: dict[str, Any] = {}
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, nothing, strict=True)]
        found[name] = {
            "step_ms": 1000 * statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratios": [min(ratios), max(ratios)],
        }
        print(f"{name:<18} {found[name]['step_ms']:8.2f} ms a step   {found[name]['ratio']:.4f}×")
    keep(options, "observing", observe_every=FORMS, forms=found)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
