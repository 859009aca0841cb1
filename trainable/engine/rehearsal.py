"""What one trial takes of a GPU that it has to itself: memory, and how much of the time its kernels run.

Nothing of it is kept: a rehearsal is a trial that takes a few dozen updates, validates one batch, and is forgotten.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from trainable.engine.failures import Progress, explained
from trainable.engine.loop import Trial, TrialTask
from trainable.engine.settings import apply_settings
from trainable.engine.summary import validation_summary

WARM_UP, TIMED, TRACED = 12, 30, 10
"""Updates: to make kernels and capture graphs, to time, and to see the kernels of."""

_GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """What one trial takes of a GPU."""

    gib: float
    """Most memory: the allocator's, and what CUDA's context and libraries hold beside it. What other programs hold
    counts as the trial's, too: who shares the GPU shares it with them."""
    gpu_gib: float
    """Memory of the GPU."""
    busy: float
    """Share of an update's time in which a kernel runs, in [0, 1]; 0 where no kernel could be traced."""
    filled: float
    """The same, each kernel counted by the share of multiprocessors that it has a block for: at most `busy`."""
    update_ms: float
    """Wall time of an update."""


class Use(NamedTuple):
    """How long kernels ran, in seconds."""

    busy: float
    """At least one."""
    filled: float
    """Each weighed by the share of the multiprocessors that it has a block for."""


class Rehearsal(Trial):
    """A trial of which the beginning is run for what it takes."""

    def begin(self) -> None:
        """Enter the first epoch."""
        self._progress.epoch = 1
        self._enter_stage(1)
        self._enter_randomness(1)

    def take(self, updates: int) -> None:
        """Take so many updates of the usual size; nobody looks whether they went well."""
        plan = self._feed.plan(1)
        whole = [update for update in plan if update.size == plan[0].size]
        chosen = list(islice(cycle(whole), updates))
        batches = self._feed.batches(chosen, 1)
        for update in chosen:
            count = len(update.micro_batches)
            self.updater.take(batches, count, update.size, self._rates[0])

    def end(self) -> None:
        """Take what an epoch ends with: its short last update, and a batch of the validation."""
        last = self._feed.plan(1)[-1]
        batches = self._feed.batches([last], 1)
        self.updater.take(batches, len(last.micro_batches), last.size, self._rates[0])
        if self._evaluator is not None:
            watch = self._config.train.batchnorm.batch_stats_accuracy
            one = self._evaluator.shortened()
            validation_summary(one, self._student, watch_batch_statistics=watch)
            self._objective.train()


def rehearse(task: TrialTask, device: torch.device) -> Footprint:
    """Measure the task's trial on a CUDA device that this process has to itself.

    Raises:
        InputError: The data or the networks cannot be used.
        TrainingError: The trial cannot begin; OutOfMemoryError if it does not fit even so.
    """
    progress = Progress()
    with explained(progress, task.config, device):
        torch.cuda.reset_peak_memory_stats(device)
        apply_settings(task.config)
        trial = Rehearsal(task, device, progress)
        trial.begin()
        trial.take(WARM_UP)
        trial.end()
        update_s = _seconds(lambda: trial.take(TIMED), device) / TIMED
        free, total = torch.cuda.mem_get_info(device)
        outside = total - free - torch.cuda.memory_reserved(device)
        peak = torch.cuda.max_memory_reserved(device)
        use = _traced(lambda: trial.take(TRACED), device)
    busy = min(1.0, use.busy / TRACED / update_s)
    return Footprint(
        gib=(outside + peak) / _GIB,
        gpu_gib=total / _GIB,
        busy=busy,
        filled=min(busy, use.filled / TRACED / update_s),
        update_ms=1000 * update_s,
    )


def use_of(events: Iterable[Mapping[str, Any]]) -> Use:
    """What the kernels among a trace's events took; those that run at the same time count once for `busy`.

    An event is one of a Chrome trace by torch.profiler: `ts` and `dur` in µs, and of kernels the argument
    `blocks per SM`. A kernel without it is taken to fill the GPU.
    """
    kernels = sorted(
        (float(e["ts"]), float(e["dur"]), float(e.get("args", {}).get("blocks per SM", 1.0)))
        for e in events
        if e.get("cat") == "kernel"
    )
    busy = filled = 0.0
    until = float("-inf")
    for start, duration, blocks in kernels:
        end = start + duration
        busy += max(0.0, end - max(start, until))
        filled += duration * min(1.0, blocks)
        until = max(until, end)
    return Use(busy / 1e6, filled / 1e6)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _traced(work: Callable[[], None], device: torch.device) -> Use:
    """The kernels of this work, as CUPTI, which comes with torch, tells of them."""
    with profile(activities=[ProfilerActivity.CUDA]) as tracer:
        work()
        torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        tracer.export_chrome_trace(str(path))
        return use_of(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])
