"""The Ray cluster that a study runs on, and how many trials fit on it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import AuthenticationError

from study.config import StudyConfig
from study.packing import with_gpus
from study.schema import StudySection
from trainable.config import TrialConfig
from trainable.errors import ConfigError, Problem

_PATIENCE_S = 10.0
_QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A process for every core, most of which no trial would take.
    "RAY_prestart_worker_first_driver": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's own snapshots, for a restore that is not used here, grow with the trials: one, at the end.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


@dataclass(frozen=True)
class Capacity:
    """What a cluster offers."""

    cpus: float
    gpus: float
    nodes: tuple[tuple[float, float], ...] = ()
    """CPUs and GPUs of each node; empty for one that has all of them."""


def local_capacity() -> Capacity:
    """What this machine would offer."""
    return Capacity(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))


@contextmanager
def connected() -> Generator[Capacity]:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine for as long as this lasts."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    already = ray.is_initialized()
    if not already:
        # "local" is a cluster of our own, whatever else may have been started on this machine.
        address = os.environ.get("RAY_ADDRESS") or "local"
        try:
            _must_listen(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=_told(address),
            )
        except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
            if address == "local":
                raise
            raise _no_cluster(address, error) from None
    try:
        offered = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = tuple((one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in offered)
        cpus, gpus = (sum(amounts) for amounts in zip(*nodes, strict=True))
        yield Capacity(cpus, gpus, nodes)
    finally:
        if not already:
            ray.shutdown()


def with_resources(config: StudyConfig, capacity: Capacity) -> StudyConfig:
    """The config with `resources.gpus_per_worker` settled: 1 where the cluster has GPUs, else 0.

    So is `auto`, until a trial has been measured (`study.measuring`).
    """
    if config.resources.gpus is not None:
        return config
    return with_gpus(config, 1.0 if capacity.gpus else 0.0)


def uses_torch_trainer(config: TrialConfig) -> bool:
    """Whether a trial runs under Ray Train; else the loop runs in Tune's own actor."""
    launcher = config.train.launcher
    return launcher == "torch_trainer" or (launcher == "auto" and config.train.workers > 1)


def may_reuse_processes(config: StudyConfig) -> bool:
    """Whether trials follow each other in a process of Tune.

    A trial that ASHA stops stays in it, with its memory and its place on the GPU, until the next begins there. Where
    trials share a GPU, one that has to be alone waits for that, and might wait for ever.
    """
    is_shared = 0 < (config.resources.gpus or 0.0) < 1
    return not is_shared or config.study.pruner.name != "asha"


def worker_resources(config: TrialConfig) -> dict[str, float]:
    """What Ray reserves for one worker."""
    resources = config.resources
    reserved = {"CPU": float(resources.cpus_per_worker)}
    return {**reserved, "GPU": resources.gpus} if resources.gpus else reserved


def actor_resources(config: TrialConfig) -> dict[str, float]:
    """What Ray reserves for Tune's own actor of a trial.

    Under Ray Train the workers reserve their own; the actor only waits. One byte of memory is a
    reservation that Tune accepts and that can starve nobody.
    """
    return {"memory": 1} if uses_torch_trainer(config) else worker_resources(config)


def concurrency(config: StudyConfig, capacity: Capacity) -> int:
    """How many trials run at a time: as many as fit whole, so that none waits for what another holds.

    ConfigError if not even one fits.
    """
    need = worker_resources(config)
    workers = config.train.workers
    nodes = capacity.nodes or ((capacity.cpus, capacity.gpus),)
    fits = sum(_workers_on(node, need) for node in nodes) // workers
    if fits == 0:
        raise ConfigError([_too_large(need, workers, capacity)])
    return min(fits, _most_at_once(config.study), config.study.concurrency or fits)


def _most_at_once(study: StudySection) -> int:
    """Trials that could ever run beside each other: the search's, the baselines', or the replicates."""
    replicates, searched = study.replicates, len(study.baselines)
    again = 0 if replicates is None else replicates.seeds * (replicates.finalists + searched + 1)
    return max(study.trials, sum(study.baselines.values()), again)


def _told(address: str) -> dict[str, Any]:
    """What all processes of a study know. What frees the place of a trial whose node is lost, for one, asks the
    cluster of RAY_ADDRESS, and without it gives up on a machine where several run.
    """
    return {} if address == "local" else {"env_vars": {"RAY_ADDRESS": address}}


def _must_listen(address: str) -> None:
    """OSError at once, where Ray would try for a minute and print to stderr meanwhile."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), _PATIENCE_S).close()


def _no_cluster(address: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    rule = f"must be a running cluster of this Python and Ray, but: {reason}"
    remedy = "give e.g. 10.0.0.1:6379, or unset it to use this machine alone"
    return ConfigError([Problem("RAY_ADDRESS", rule, remedy, repr(address))])


def _workers_on(node: tuple[float, float], need: dict[str, float]) -> int:
    """How many find room on a node: none is spread over two."""
    cpus, gpus = node
    fits = int((cpus + 1e-9) // need["CPU"])
    if "GPU" not in need:
        return fits
    each = need["GPU"]
    on_gpus = int(gpus) * int((1 + 1e-9) // each) if each < 1 else int((gpus + 1e-9) // each)
    return min(fits, on_gpus)


def _too_large(need: dict[str, float], workers: int, capacity: Capacity) -> Problem:
    wanted = f"{workers} worker(s) of {need['CPU']:g} CPU(s)"
    wanted += f" and {need['GPU']:g} GPU(s)" if "GPU" in need else ""
    spread = f" on {len(capacity.nodes)} nodes" if len(capacity.nodes) > 1 else ""
    return Problem(
        "resources",
        f"one trial must fit on the cluster, which has {capacity.cpus:g} CPU(s) and {capacity.gpus:g} GPU(s)"
        f"{spread}, each worker on one of them",
        "lower train.workers, resources.cpus_per_worker or resources.gpus_per_worker, or add nodes",
        wanted,
    )
