"""Several trials at once on one GPU against one after another: how many an hour, and are their results the same?

    python benchmarks/packing.py --set train.epochs=60   configs/quickstart.yaml, 8 trials, 4 at once; 2 at once on CPUs
    python benchmarks/packing.py configs/cifar100_kd.yaml --at-once 4 --set data.source=parquet --set data.root=…

`kd-study run` runs the same study in turn: one trial at a time with the GPU for itself, then N trials at a time with
`resources.gpus_per_worker` of 1/N, as many as `auto` says, and N once more under NVIDIA's MPS where
`nvidia-cuda-mps-control` is installed. On CPUs a trial has one core, and there is no `auto`. The sampler is `random`,
so that a trial's hyperparameters do not hang on what ended before it, no trial is pruned, and `train.deterministic` is
on, so that results can be compared: they are the same if a trial's hyperparameters and its loss and accuracy of every
epoch are. `--set train.deterministic=false` shows the speed of the usual kernels, and how far results then lie apart.

Time is from the first trial's start to the last one's end. Every process starts CUDA once in it, which takes seconds:
trials should take longer, as 60 epochs of the quickstart do. Written to benchmarks/results/packing-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from environment import keep
from mlflow.tracking import MlflowClient

from study.ledger import find_results
from study.packing import packing_of

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
CURVES = ("train/loss", "val/accuracy")
MPS = "nvidia-cuda-mps-control"
ONE = "one after another"


class Outcome(NamedTuple):
    """What became of a trial."""

    params: Mapping[str, Any]
    """Searched ones."""
    curves: Mapping[str, list[float]]
    """A value an epoch."""


class Studied(NamedTuple):
    """What became of a study."""

    seconds: float
    """From the first trial's start to the last one's end."""
    outcomes: Mapping[int, Outcome]
    """By the trials' numbers."""
    told: str | None = None
    """What `auto` was settled to, and why."""


def studied(
    options: argparse.Namespace, name: str, gpus: str, at_once: int, env: Mapping[str, str]
) -> Studied:
    """Run the study with so many trials at a time, each with this share of the GPU."""
    storage = options.storage
    settings = [
        "study.sampler=random",
        "study.pruner={name: none}",
        "train.deterministic=true",
        *options.settings,
        f"study.name={name}",
        f"study.trials={options.trials}",
        f"study.concurrency={at_once}",
        f"storage.path={storage}",
        f"resources.gpus_per_worker={gpus}",
    ]
    command = [sys.executable, "-m", "study", "run", str(options.config.resolve())]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    results = find_results(storage, name)
    rows = [row for row in results.of("trial") if row.state == "complete"]
    if len(rows) != options.trials:
        raise RuntimeError(f"{len(rows)} of {options.trials} trials ended well:\n{done.stdout}")
    client = MlflowClient(results.tracking_uri)
    runs = [client.get_run(row.run_id or "").info for row in rows]
    spent_ms = max(run.end_time for run in runs) - min(run.start_time for run in runs)
    outcomes = {row.number: Outcome(row.params, _curves(client, row.run_id or "")) for row in rows}
    settled = packing_of(storage / name)
    return Studied(spent_ms / 1000, outcomes, None if settled is None else settled.told)


def share_of(at_once: int) -> float:
    """Of a GPU, rounded down so that all of them fit."""
    return int(10_000 / at_once) / 10_000


def difference(ours: Mapping[int, Outcome], theirs: Mapping[int, Outcome]) -> dict[str, Any]:
    """Which trials differ, and how far their values of an epoch lie apart at most, by metric."""
    differing = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
    pairs = [(ours[n].curves, theirs[n].curves) for n in {*ours} & {*theirs}]
    largest: dict[str, float] = {}
    for name in CURVES:
        both = [zip(mine[name], other[name], strict=False) for mine, other in pairs]
        largest[name] = max((abs(a - b) for epochs in both for a, b in epochs), default=0.0)
    return {"unchanged": not differing, "differing_trials": differing, "largest": largest}


@contextmanager
def under_mps(usual: Mapping[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """An MPS daemon of its own; the value is the environment of its clients."""
    env = {**usual, "CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    subprocess.run([MPS, "-d"], check=True, env=env)
    try:
        yield env
    finally:
        subprocess.run([MPS], input="quit\n", text=True, check=False, env=env)


def compared(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Each way's record."""
    usual, many = dict(os.environ), f"{options.at_once} at once"
    is_cuda, options.storage = options.device == "cuda", folder / "runs"
    share = str(share_of(options.at_once)) if is_cuda else "0"
    if is_cuda:
        usual["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    alone = studied(options, "packing-alone", "1" if is_cuda else "0", 1, usual)
    found = {ONE: _record(options, alone)}
    packed = studied(options, "packing-packed", share, options.at_once, usual)
    found[many] = _record(options, packed, alone)
    if is_cuda:
        auto = studied(options, "packing-auto", "auto", options.trials, usual)
        found["auto"] = _record(options, auto, alone)
    if is_cuda and shutil.which(MPS):
        try:
            with under_mps(usual, folder) as env:
                shared = studied(options, "packing-mps", share, options.at_once, env)
            found[f"{many}, MPS"] = _record(options, shared, alone)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            found[f"{many}, MPS"] = {"error": str(error)}
    return found


def main() -> None:
    """Measure, print, write."""
    is_cuda = torch.cuda.is_available()
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    usual = ROOT / "configs" / "quickstart.yaml"
    parser.add_argument("config", type=Path, nargs="?", default=usual)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="PATH=VALUE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if is_cuda else "cpu")
    parser.add_argument("--at-once", type=int, default=4 if is_cuda else 2)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.at_once > (cpus := os.cpu_count() or 1):
        parser.error(f"{options.at_once} trials at once need a CPU each, here are {cpus}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        ways = compared(options, Path(name))
    for way, own in ways.items():
        print(f"{way:<20} {json.dumps(own)}")
    # Places on this machine have no part in a record.
    options.config, options.storage = options.config.name, None
    options.settings = [s for s in options.settings if not Path(s.partition("=")[2]).is_absolute()]
    keep(options, "packing", mps_is_installed=shutil.which(MPS) is not None, ways=ways)


def _curves(client: MlflowClient, run_id: str) -> dict[str, list[float]]:
    return {name: [p.value for p in client.get_metric_history(run_id, name)] for name in CURVES}


def _record(
    options: argparse.Namespace, own: Studied, alone: Studied | None = None
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "seconds": own.seconds,
        "trials_per_hour": 3600 * options.trials / own.seconds,
    }
    if own.told is not None:
        record["told"] = own.told
    if alone is not None:
        record["throughput"] = alone.seconds / own.seconds
        record |= difference(own.outcomes, alone.outcomes)
    return record


if __name__ == "__main__":
    main()
