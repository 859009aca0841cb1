"""The loop under Ray: as a worker of Ray Train for one trial after another, and on a GPU that trials share."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from trainable.config import TrialConfig
from trainable.engine.loop import TrialTask
from trainable.engine.neighbours import SharedGpu, do_on, run_on
from trainable.records import EpochRecord

Work = TrialTask | Callable[[torch.device], Any]
"""A trial to run, or a function to call, on all ranks."""


class _StoppedError(Exception):
    """Nobody wants the rest of the trial."""


def serve(settings: dict[str, Any]) -> None:
    """Train loop of each worker: do what `settings["desk"]` hands out, on the device that Ray Train chose.

    The desk is an actor with the methods `work`, `report`, `end` and `closed`; see `study.desk`. An error
    ends the worker, and with it the group: other ranks may wait for this one for ever.
    """
    desk, rank = settings["desk"], ray.train.get_context().get_world_rank()
    threading.Thread(target=_leave, args=(desk,), name="leaving", daemon=True).start()
    device = ray.train.torch.get_device()

    def reporting() -> Callable[[EpochRecord], None]:
        # Counted for each piece of work: a rank may be stopped reports before another.
        reports = itertools.count(1)

        def report(record: EpochRecord) -> None:
            if not ray.get(desk.report.remote(rank, next(reports), record)):
                raise _StoppedError

        return report

    for number in itertools.count(1):
        (work,) = ray.get(desk.work.remote(number))
        result = _do(ray.get(work), reporting(), device)
        ray.get(desk.end.remote(rank, result))


def _leave(desk: Any) -> None:
    """End this process when the desk is closed, or gone: nothing else ends a trial in mid-epoch."""
    with suppress(RayError):
        ray.get(desk.closed.remote())
    # Ray would tell of a crash if the process ended by itself.
    ray.kill(ray.get_runtime_context().current_actor)


def _do(work: Work, report: Callable[[EpochRecord], None], device: torch.device) -> Any:
    """The result; None of a trial, whether it ends or is stopped."""
    try:
        if not isinstance(work, TrialTask):
            return work(device)
        run_on(shared_gpu(work.config), work, report, device)
    except _StoppedError:
        return None
    except Exception as error:
        error.add_note(traceback.format_exc())  # Ray passes a thousand characters of it on
        raise
    return None


def do_beside_others(
    config: TrialConfig, doing: str, work: Callable[[torch.device], Any], device: torch.device
) -> Any:
    """`work(device)` on the GPU of this Ray worker, which others may share; see `engine.neighbours.do_on`."""
    return do_on(shared_gpu(config), work, device, doing)


def shared_gpu(config: TrialConfig) -> SharedGpu | None:
    """The GPU that this Ray worker was given a fraction of; None where it has whole ones, or none."""
    gpus = config.resources.gpus
    if not gpus or gpus >= 1:
        return None
    (number,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return SharedGpu(f"gpu-{number}")
