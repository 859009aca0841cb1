"""An update of each method, and of StableKD's stages, against one of KD: the shape of table 7 of the StableKD paper.

    python benchmarks/stages.py                          on a GPU, ResNet34 → ResNet18 in fp16, a batch of 128
    python benchmarks/stages.py --compile                the same with `train.compile`
    python benchmarks/stages.py --device cpu             on CPUs, WRN-40-2 → WRN-16-2

Every method is trained by the product's update as `benchmarks/step.py` has it, on the same pictures, in turns. An
epoch of StableKD-k/2, k being all blocks (5 of a ResNet), costs the mean over its three stages, which are equally
long. Times are medians over rounds, ratios those of the rounds' pairs. Written to
benchmarks/results/stages-<device>.json, or stages-compiled-<device>.json.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from environment import keep
from step import Ours, case_of, config_of, parser, seconds

from trainable.engine.settings import apply_settings

METHODS: dict[str, dict[str, Any]] = {
    "kd": {"method": "kd", "alpha": 0.5},
    "kd_mse": {"method": "kd_mse", "alpha": 0.5},
    "at": {"method": "at", "lam": 1000},
    "nst": {"method": "nst", "lam": 50},
    "reviewkd": {"method": "reviewkd", "lam": 1.0},
    "dkd": {"method": "dkd"},
}
WARM_UP = 24


def main() -> None:
    """Measure, print, write."""
    command = parser(__doc__)
    command.add_argument("--batch", type=int, default=128 if torch.cuda.is_available() else 64)
    command.add_argument("--compile", action="store_true", help="with train.compile")
    options = command.parse_args()
    apply_settings(config_of(options.precision, options.batch, torch.get_num_threads()))
    case, device = case_of(options, options.batch), torch.device(options.device)
    train = {"compile": options.compile}
    forms = {name: Ours(case, graph=True, distill=d, train=train) for name, d in METHODS.items()}
    decomposition = f"{len(case.cuts) + 1}/2"
    stable = {"method": "stablekd", "lam": 1.0, "decomposition": decomposition}
    for stage in range(3):
        own = Ours(case, graph=True, stage=stage, distill=stable, train=train)
        forms[f"stablekd, stage {stage + 1}"] = own
    for update in forms.values():
        seconds(update, WARM_UP if device.type == "cuda" else 2, device)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, update in forms.items():
            times[name].append(seconds(update, options.updates, device))
    each = [own for name, own in times.items() if name.startswith("stablekd")]
    times[f"StableKD-{decomposition}"] = [statistics.mean(own) for own in zip(*each, strict=True)]
    found: dict[str, Any] = {}
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times["kd"], strict=True))
        found[name] = {"step_ms": 1000 * statistics.median(own), "of_kd": ratio}
        print(f"{name:<20} {found[name]['step_ms']:8.2f} ms a step   {ratio:.3f} of KD")
    keep(options, "stages-compiled" if options.compile else "stages", methods=found)


if __name__ == "__main__":
    main()
