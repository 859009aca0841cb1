"""Measuring a trial before the first, to settle how many share a GPU; and what is told of sharing."""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import RayError

from study.cluster import concurrency, worker_resources
from study.config import StudyConfig
from study.packing import Packing, keep_packing, with_gpus
from study.preflight import StudyPlan
from study.results import Value
from study.rules import valid_candidates
from study.telling import reason_of
from trainable import tasks
from trainable.config import TrialConfig
from trainable.methods import METHODS
from trainable.tasks import Footprint

USABLE = 0.9
"""Share of a GPU's memory that trials are let fill: theirs differ, and fragments are lost."""
ENOUGH = 0.9
"""Of the throughput that could be had by sharing: more trials would add memory, and next to nothing else."""

_MPS = "nvidia-cuda-mps-control"
_PATIENCE_S = 10.0
_LOG = logging.getLogger(__name__)


def packed(plan: StudyPlan, weights: Path | None) -> tuple[StudyPlan, str]:
    """The plan with `auto` settled, and a line about trials that share a GPU; "" where none do.

    The file of the teacher's `weights` need not be there yet.
    """
    if plan.is_unsettled and _most(plan) > 1:
        packing = _measured_or_alone(plan, weights)
        config = with_gpus(plan.config, packing.gpus)
        slots = concurrency(config, plan.capacity)
        return replace(plan, config=config, concurrency=slots), packing.told
    gpus = plan.config.resources.gpus or 0.0
    if 0 < gpus < 1 and plan.concurrency > 1:
        trials = min(int((1 + 1e-9) // gpus), plan.concurrency)
        return plan, _sharing(trials, _ask_mps(plan.config))
    return plan, ""


def trials_per_gpu(footprint: Footprint, *, mps: bool, most: int) -> int:
    """How many trials of such a footprint share a GPU: as many as fit and are of use, and at most `most`.

    Without MPS the kernels of several processes take turns, so that trials whose kernels run for a share b of the
    time gain until n·b = 1; with it they run side by side until the multiprocessors are filled. The smallest n is
    taken that has `ENOUGH` of that. Where no kernel was seen, trials do not share.
    """
    used = footprint.filled if mps else footprint.busy
    fitting = int(USABLE * footprint.gpu_gib / footprint.gib)
    useful = math.ceil(ENOUGH / used) if used else 1
    return max(1, min(fitting, useful, most))


def hungriest(plan: StudyPlan) -> TrialConfig:
    """The trial that is measured: of each searched key the value that takes most memory, of others the first."""
    config, space = plan.config, plan.config.space
    candidates, _ = valid_candidates(config)
    usual = space.usual

    def flops(model: Value) -> float:
        return tasks.describe_student(
            config.trial(usual | {"student.model": model}), plan.data
        ).flops

    hunger = {**_HUNGER, "student.model": flops}
    sample = {p: max(v, key=hunger[p]) if p in hunger else v[0] for p, v in candidates.items()}
    return config.trial(space.drawn(sample))


def mps_is_on() -> bool:
    """Whether NVIDIA's Multi-Process Service runs on this machine for this user: its clients need do nothing."""
    if shutil.which(_MPS) is None:
        return False
    try:
        asked = subprocess.run(
            [_MPS],
            input="get_server_list\n",
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _method_hunger(method: Value) -> float:
    """Of a method: gradients of gradients before maps of features, those before features, and a teacher before none."""
    traits = next(own for name, own in METHODS.items() if name == method)
    return (
        8 * traits.slope
        + 4 * (traits.features == "maps")
        + 2 * (traits.features == "equal")
        + traits.teacher
    )


_PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
_HUNGER: Mapping[str, Callable[[Value], float]] = {
    "data.batch_size": float,
    "train.accumulate": lambda count: -float(count),
    "train.activation_checkpointing": lambda on: -float(on),
    "train.precision": lambda name: _PRECISIONS.index(str(name)),
    "distill.method": _method_hunger,
}
"""Searched keys that memory depends on most: value → a number that is larger for what takes more."""


def _most(plan: StudyPlan) -> int:
    """Trials a GPU that CPUs, the study's length and its own bound leave room for."""
    config, capacity = plan.config, plan.capacity
    on_cpus = concurrency(with_gpus(config, 0.0), capacity)
    return math.ceil(on_cpus / capacity.gpus)


def _measured_or_alone(plan: StudyPlan, weights: Path | None) -> Packing:
    """A trial that cannot be measured has its GPU for itself, until a driver can: a study never fails of it."""
    try:
        packing = _measured(plan, weights)
    except RayError as error:
        _LOG.exception("a trial could not be measured")
        reason = reason_of(str(error))
        return Packing(trials=1, told=f"each trial has a GPU: none could be measured ({reason})")
    keep_packing(packing, plan.config.folder)
    return packing


def _measured(plan: StudyPlan, weights: Path | None) -> Packing:
    """Measured where trials run."""
    is_everywhere = plan.config.bucket is None or not plan.config.trains_teacher
    weights = weights if weights is not None and weights.exists() and is_everywhere else None
    trial = hungriest(plan)
    cached_gib = 0.0
    if trial.teacher is not None and trial.teacher.cache:
        # Its answers would be asked for first, of a teacher that may not be trained yet.
        cached_gib = trial.data.cache_budget_gib
        teacher = trial.teacher.model_copy(update={"cache": False})
        trial = trial.model_copy(update={"teacher": teacher})
    cpus = worker_resources(plan.config)["CPU"]
    measure = ray.remote(num_cpus=cpus, num_gpus=1, max_calls=1)(_measure)
    footprint, mps = ray.get(measure.remote(trial, weights))
    footprint = replace(footprint, gib=footprint.gib + cached_gib)
    trials = trials_per_gpu(footprint, mps=mps, most=_most(plan))
    return Packing(trials=trials, told=_words(footprint, trials, mps))


def _measure(trial: TrialConfig, weights: Path | None) -> tuple[Footprint, bool]:
    """In a process of its own, whose memory is gone with it."""
    return tasks.measure(trial, weights), mps_is_on()


def _ask_mps(config: StudyConfig) -> bool:
    need = worker_resources(config)
    task = ray.remote(num_cpus=need["CPU"], num_gpus=need["GPU"], max_calls=1)(mps_is_on)
    return ray.get(task.remote())


def _words(footprint: Footprint, trials: int, mps: bool) -> str:
    seen = f"{footprint.busy:.0%} of its time" if footprint.busy else "no time that could be seen"
    figures = (
        f"one takes {footprint.gib:.2f} of {footprint.gpu_gib:.1f} GiB and runs kernels for {seen}, "
        f"in {footprint.update_ms:.2f} ms an update"
    )
    if mps:
        figures += f", on {footprint.filled:.0%} of the GPU"
    if trials == 1:
        return f"each trial has a GPU: {figures}"
    return f"{_sharing(trials, mps)} ({figures})"


def _sharing(trials: int, mps: bool) -> str:
    how = "on: their kernels run side by side" if mps else "off: their kernels take turns"
    return f"up to {trials} trials share a GPU; NVIDIA's MPS is {how}"
