"""What more GPUs give: the product's step on one rank and on several, side by side.

    python benchmarks/scaling.py                         2 GPUs (NCCL), ResNet34 → ResNet18 in fp16, 256 pictures each
    python benchmarks/scaling.py --device cpu            to try it (gloo), WRN-40-2 → WRN-16-2, one thread a rank

KD as `benchmarks/step.py` has it, every rank with a batch of its own. One process trains alone; as many more as there
are ranks train together, plainly, with SyncBatchNorm, and with 4 micro-batches an update. On GPUs updates are CUDA
graphs, as in the product, and the plain ones also run kernel by kernel; on CPUs, which have no graphs, all do. All
take turns, and wait while others are measured.

Times are medians over rounds, ratios those of the rounds' pairs, with the least and the most of a round.
`weak_scaling` is the time of one rank alone over that of all: 1 is perfect. `sync_batchnorm` is the time with it over
the time without. `of_a_micro_batch` is the time of one of four micro-batches over that of an update which has but one.
`exchanges` counts the all-reduces of an update by its number of micro-batches, as it runs kernel by kernel: those of
the groups of gradients, and one of what is not finite. `of_batchnorm` is the way of SyncBatchNorm's. Written to
benchmarks/results/scaling-<ranks>x-<device>.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from environment import keep
from loops import Case
from step import Ours, case_of, config_of, parser, seconds

from trainable.config import BatchNormConfig
from trainable.engine.settings import apply_settings
from trainable.networks.norms import with_norms
from trainable.networks.sync_batchnorm import SyncBatchNorm

ACCUMULATED = 4
ONE, ONE_EAGER = "one rank", "one rank, kernel by kernel"
ALONE: dict[str, Callable[[Case], Ours]] = {
    ONE: lambda case: Ours(case, graph=True),
    ONE_EAGER: lambda case: Ours(case, graph=False),
}
PLAIN, EAGER = "all ranks", "all ranks, kernel by kernel"
SYNCED, IN_PARTS = "all ranks, SyncBatchNorm", "all ranks, 4 micro-batches"
TOGETHER: dict[str, Callable[[Case], Ours]] = {
    PLAIN: lambda case: Ours(case, graph=True),
    EAGER: lambda case: Ours(case, graph=False),
    SYNCED: lambda case: Ours(synced(case), graph=True),
    IN_PARTS: lambda case: Ours(case, graph=True, micro_batches=ACCUMULATED),
}
BUT_ON_CPUS = (ONE_EAGER, EAGER)
PATIENCE_S = 120
"""How long a process waits for the others."""


def synced(case: Case) -> Case:
    """With SyncBatchNorm in the student."""
    student, settings = copy.deepcopy(case.student), BatchNormConfig(sync=True)
    return replace(case, student=with_norms(student, settings, workers=dist.get_world_size()))


def run_process(number: int, options: argparse.Namespace, folder: Path, turn: Any) -> None:
    """Measure the forms of one process: of the one that trains alone, which is number 0, or of a rank."""
    own, rank = TOGETHER, number - 1
    if number == 0:
        own, rank = ALONE, 0
    backend, device = "gloo", None
    if options.device == "cuda":
        backend, device = "nccl", torch.device("cuda", rank)
        torch.cuda.set_device(device)
    apply_settings(config_of(options.precision, options.batch))
    if own is TOGETHER:
        store, size = f"file://{folder}/store", options.ranks
        group = {"rank": rank, "world_size": size, "timeout": timedelta(seconds=PATIENCE_S)}
        dist.init_process_group(backend, init_method=store, device_id=device, **group)
    times, way = measured(options, own, turn)
    exchanges = {}
    if own is TOGETHER:
        case = case_of(options, options.batch)
        exchanges = {str(parts): exchanges_of(case, parts) for parts in (1, ACCUMULATED)}
        dist.destroy_process_group()
    found = {"times": times, "exchanges": exchanges, "of_batchnorm": way}
    (folder / f"{number}.json").write_text(json.dumps(found))


def measured(
    options: argparse.Namespace, own: Mapping[str, Callable[[Case], Ours]], turn: Any
) -> tuple[dict[str, list[float]], str]:
    """Seconds of an update in each round, of the forms that are this process's; and how SyncBatchNorm exchanges."""
    case, device = case_of(options, options.batch), torch.device(options.device)
    updates: dict[str, Ours] = {}
    for warming in (
        ALONE,
        TOGETHER,
    ):  # by turns, too: cuDNN chooses its kernels by how long they take
        turn.wait(PATIENCE_S)
        if warming is own:
            updates = {name: form(case) for name, form in own.items() if name in options.forms}
            for update in updates.values():
                seconds(update, 24 if device.type == "cuda" else 2, device)
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(options.rounds):
        for name in options.forms:
            turn.wait(PATIENCE_S)
            if name in updates:
                times[name].append(seconds(updates[name], options.updates, device))
    turn.wait(PATIENCE_S)
    return times, way_of_batchnorm(updates[SYNCED]) if SYNCED in updates else ""


def way_of_batchnorm(update: Ours) -> str:
    """Of all layers alike."""
    layers = [m for m in update.student.modules() if isinstance(m, SyncBatchNorm)]
    is_direct = all(each.exchanges is not None and each.exchanges.forward for each in layers)
    return "from GPU to GPU" if is_direct else f"by {dist.get_backend()}"


def exchanges_of(case: Case, micro_batches: int) -> float:
    """How often ranks exchange something in an update."""
    update, updates = Ours(case, graph=False, micro_batches=micro_batches), 3
    update()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(updates):
            update()
    names = ("c10d::allreduce_", "c10d::allreduce_coalesced_")
    return sum(event.name in names for event in profile.events()) / updates


def ratios(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What the forms' times are to each other."""
    pairs = {
        "weak_scaling": (ONE, PLAIN, 1),
        "weak_scaling_kernel_by_kernel": (ONE_EAGER, EAGER, 1),
        "sync_batchnorm": (SYNCED, PLAIN, 1),
        "of_a_micro_batch": (IN_PARTS, PLAIN, ACCUMULATED),
    }
    found: dict[str, Any] = {}
    for name, (above, below, parts) in pairs.items():
        if above in times and below in times:
            of_rounds = [a / b / parts for a, b in zip(times[above], times[below], strict=True)]
            found[name] = {
                "ratio": statistics.median(of_rounds),
                "ratios": [min(of_rounds), max(of_rounds)],
            }
    return found


def pictures_a_second(name: str, step_s: float, options: argparse.Namespace) -> float:
    """Of all ranks."""
    ranks = 1 if name in ALONE else options.ranks
    return options.batch * ranks * (ACCUMULATED if name == IN_PARTS else 1) / step_s


def main() -> None:
    """Measure, print, write."""
    is_cuda = torch.cuda.is_available()
    command = parser(__doc__)
    command.add_argument("--batch", type=int, default=256 if is_cuda else 32, help="of each rank")
    command.add_argument("--ranks", type=int, default=2)
    options = command.parse_args()
    if options.device == "cuda" and torch.cuda.device_count() < options.ranks:
        command.error(
            f"{options.ranks} ranks need as many GPUs, here are {torch.cuda.device_count()}"
        )
    forms = {**ALONE, **TOGETHER}
    options.forms = [n for n in forms if options.device == "cuda" or n not in BUT_ON_CPUS]
    turn = mp.get_context("spawn").Barrier(options.ranks + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mp.spawn(run_process, (options, folder, turn), nprocs=options.ranks + 1)
        alone, first = (json.loads((folder / f"{n}.json").read_text()) for n in (0, 1))
    times = {**alone["times"], **first["times"]}
    figures: dict[str, Any] = {}
    for form in options.forms:
        step_s = statistics.median(times[form])
        rate = pictures_a_second(form, step_s, options)
        figures[form] = {"step_ms": 1000 * step_s, "pictures_per_s": rate}
        print(f"{form:<30} {1000 * step_s:9.2f} ms an update, {rate:9.1f} pictures/s")
    found = ratios(times)
    for key, value in found.items():
        print(
            f"{key:<30} {value['ratio']:.3f} ({value['ratios'][0]:.3f} to {value['ratios'][1]:.3f})"
        )
    print(f"all-reduces of an update by its micro-batches: {first['exchanges']}")
    print(f"SyncBatchNorm exchanges {first['of_batchnorm']}")
    kept = {"forms": figures, "ratios": found}
    kept |= {name: first[name] for name in ("exchanges", "of_batchnorm")}
    keep(options, f"scaling-{options.ranks}x", **kept)


if __name__ == "__main__":
    main()
