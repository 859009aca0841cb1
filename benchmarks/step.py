"""A distillation step in its forms, from the plainest loop to one CUDA graph an update.

    python benchmarks/step.py                            on a GPU, ResNet34 → ResNet18 in fp16, batches of 128 and 512
    python benchmarks/step.py --device cpu               on CPUs, WRN-40-2 → WRN-16-2

Every form augments the same pictures of noise (crop and flip), and takes the same update: KD at α = 1/2, the norm of
the gradient bounded, SGD with momentum and weight decay, a GradScaler in fp16. The first three are the loop that one
writes with torch alone: the student run once for each loss term, run once for both, and that in channels_last. Its two
parts follow by themselves: `student alone` learns from the labels, `teacher alone` is the teacher's forward; `teacher
fused` is the product's, `teacher in bf16` that with `teacher.precision: bf16`, cast for the student. `eager` is the
product's step, `graph` that replayed as a CUDA graph, and `compiled` such a graph with `train.compile`; these also
look at every picture, label and gradient, undo what a bad update does to BatchNorm, and measure every tenth gradient.

Times are medians over rounds in turns, ratios those of the rounds' pairs; `of_parts` is a form's time over the sum of
the two parts', `of_teacher` that of another teacher over the plain one's. Written to
benchmarks/results/step-<device>.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from environment import keep
from loops import (
    ALPHA,
    CLASSES,
    CLIP,
    LR,
    PICTURES,
    SGD,
    Case,
    Form,
    Pixels,
    Update,
    plain,
    teacher_alone,
)

from trainable import ranks
from trainable.config import OptimConfig, TrialConfig
from trainable.distill.maps import feature_shapes
from trainable.distill.objective import Objective, method_of
from trainable.engine.failures import Progress
from trainable.engine.feed import Feed
from trainable.engine.optimizers import build_optimizer
from trainable.engine.precision import TeacherPrecision
from trainable.engine.settings import apply_settings
from trainable.engine.step import Step
from trainable.engine.updater import Updater
from trainable.methods import METHODS
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import build
from trainable.plan import stages

RESULTS = Path(__file__).parent / "results"


class Ours:
    """The product's update."""

    def __init__(
        self, case: Case, *, graph: bool, stage: int = 0, micro_batches: int = 1, **sections: Any
    ) -> None:
        """In a stage counted from 0; `sections` are more settings of `distill` and `train`.

        The case's batch is a micro-batch of each rank.
        """
        self._batches = [case.pixels.batch] * micro_batches
        self._size = micro_batches * len(case.pixels.batch.labels) * ranks.world_size()
        train = {"cuda_graph": graph, "accumulate": micro_batches}
        sections["train"] = train | sections.get("train", {})
        config = config_of(case.precision, self._size, **sections)
        student = BlockNetwork(copy.deepcopy(case.student), case.cuts)
        teacher = BlockNetwork(copy.deepcopy(case.teacher), case.cuts)
        shapes = None
        if METHODS[config.distill.method].features == "maps":
            shapes = feature_shapes(student, teacher, PICTURES)
        groups = stages(config, len(student))[stage].groups
        method = method_of(config.distill, student, groups, shapes)
        self.student = student
        objective = Objective(student, method).to(case.device).train()
        frozen = FrozenTeacher(teacher).to(case.device)
        objective.to(memory_format=torch.channels_last)
        frozen.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(OptimConfig(**SGD), objective.parameters(), case.device)
        self.step = Step(objective, optimizer, config.train, case.device, classes=CLASSES)
        feed = cast("Feed", case.pixels)
        self._updater = Updater(config, feed, frozen, self.step, Progress(), case.device)

    def __call__(self) -> None:
        self._updater.take(iter(self._batches), len(self._batches), self._size, LR)


def fused_teacher(case: Case, precision: str | None = None) -> Update:
    """The product's forward of the teacher, by itself; None is the student's precision."""
    frozen = FrozenTeacher(BlockNetwork(copy.deepcopy(case.teacher), case.cuts)).to(case.device)
    frozen.to(memory_format=torch.channels_last)
    config = config_of(case.precision, 2, teacher={"precision": precision})
    own = TeacherPrecision(config, case.device)
    with own.forward():
        frozen.fuse(case.pixels.augmented(case.pixels.batch)[0])

    def update() -> None:
        images, _ = case.pixels.augmented(case.pixels.batch)
        with own.forward():
            frozen(images, own.handed)

    return update


def config_of(
    precision: str,
    batch: int,
    cpus: int = 1,
    distill: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
) -> TrialConfig:
    """Of a trial that takes this step."""
    return TrialConfig.model_validate(
        {
            "data": {"source": "digits", "batch_size": batch},
            "teacher": {"model": "resnet34", "checkpoint": "none.safetensors", **(teacher or {})},
            "student": {"model": "resnet18"},
            "distill": distill or {"method": "kd", "alpha": ALPHA},
            "train": {"precision": precision, "clip": CLIP, **(train or {})},
            "resources": {"cpus_per_worker": cpus},
        }
    )


FORMS: dict[str, Form] = {
    "two passes": lambda case: plain(case, passes=2, channels_last=False),
    "shared": lambda case: plain(case, passes=1, channels_last=False),
    "channels_last": lambda case: plain(case, passes=1, channels_last=True),
    "student alone": lambda case: plain(case, passes=0, channels_last=True),
    "teacher alone": teacher_alone,
    "teacher fused": lambda case: fused_teacher(case),
    "teacher in bf16": lambda case: fused_teacher(case, "bf16"),
    "eager": lambda case: Ours(case, graph=False),
    "graph": lambda case: Ours(case, graph=True),
    "compiled": lambda case: Ours(case, graph=True, train={"compile": True}),
}
PARTS = ("student alone", "teacher alone")
TEACHERS = ("teacher fused", "teacher in bf16")
ALONE = (*PARTS, *TEACHERS)


def seconds(update: Update, updates: int, device: torch.device) -> float:
    """An update's."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(updates):
        update()
    _wait(device)
    return (time.perf_counter() - started) / updates


def case_of(options: argparse.Namespace, batch: int) -> Case:
    """The networks that the options name, and a batch of noise."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    student, teacher = (
        build(name, PICTURES, path="student.model") for name in (options.student, options.teacher)
    )
    return Case(
        device,
        options.precision,
        student.network,
        teacher.network,
        tuple(student.cuts),
        Pixels(batch, device),
    )


def measured(options: argparse.Namespace, batch: int, forms: dict[str, Form]) -> dict[str, Any]:
    """Those forms that are asked for at one batch size, in turns."""
    case, device = case_of(options, batch), torch.device(options.device)
    updates = {name: form(case) for name, form in forms.items() if name in options.forms}
    for update in updates.values():
        seconds(update, 24 if device.type == "cuda" else 2, device)
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(options.rounds):
        for name, update in updates.items():
            times[name].append(seconds(update, options.updates, device))
    first, last = next(iter(times.values())), list(times.values())[-1]
    found: dict[str, Any] = {}
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, last, strict=True))
        gain = statistics.median(a / b for a, b in zip(first, own, strict=True))
        found[name] = {"step_ms": 1000 * statistics.median(own), "of_last": ratio, "gain": gain}
        if set(PARTS) <= set(times) and name not in ALONE:
            parts = [sum(both) for both in zip(*(times[part] for part in PARTS), strict=True)]
            of_parts = statistics.median(a / b for a, b in zip(own, parts, strict=True))
            found[name]["of_parts"] = of_parts
        if PARTS[1] in times and name in TEACHERS:
            pairs = zip(own, times[PARTS[1]], strict=True)
            found[name]["of_teacher"] = statistics.median(a / b for a, b in pairs)
        print(f"{batch:>4} {name:<16} {1000 * statistics.median(own):8.2f} ms a step {gain:6.2f}×")
    if options.profile:
        profile(list(updates.values())[-1], device)
    return found


def profile(update: Update, device: torch.device) -> None:
    """Where the device's time goes in the last form."""
    with torch.profiler.profile() as found:
        seconds(update, 10, device)
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=kind, row_limit=30, max_name_column_width=80))


def main() -> None:
    """Measure, print, write."""
    run("step", FORMS, parser(), but_on_cpus=("graph", "compiled"))


def run(
    benchmark: str,
    forms: dict[str, Form],
    command: argparse.ArgumentParser,
    but_on_cpus: Sequence[str],
) -> None:
    """Measure the forms that are asked for into <benchmark>-<device>.json; some are not usual on CPUs."""
    is_cuda = torch.cuda.is_available()
    usual = [name for name in forms if is_cuda or name not in but_on_cpus]
    sizes = [128, 512] if is_cuda else [64]
    command.add_argument("--batches", type=int, nargs="*", default=sizes)
    command.add_argument("--forms", nargs="*", default=usual, choices=list(forms))
    command.add_argument("--profile", action="store_true", help="where the last form's time goes")
    options = command.parse_args()
    apply_settings(config_of(options.precision, options.batches[0], torch.get_num_threads()))
    found: dict[str, Any] = {}
    for batch in options.batches:
        found[str(batch)] = measured(options, batch, forms)
        keep(options, benchmark, batches=found)


def parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    """Options of every benchmark of a step; networks that suit the device unless they are given."""
    layout = argparse.RawTextHelpFormatter
    made = argparse.ArgumentParser(description=description, formatter_class=layout)
    is_cuda = torch.cuda.is_available()
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if is_cuda else "cpu")
    made.add_argument("--student", default="resnet18" if is_cuda else "wrn_16_2")
    made.add_argument("--teacher", default="resnet34" if is_cuda else "wrn_40_2")
    made.add_argument("--precision", default="fp16" if is_cuda else "fp32")
    made.add_argument("--updates", type=int, default=40 if is_cuda else 5, help="a round's")
    made.add_argument("--rounds", type=int, default=9 if is_cuda else 5)
    made.add_argument("--output", type=Path, default=RESULTS)
    return made


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
