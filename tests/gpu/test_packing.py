"""What a trial takes of a CUDA device, and trials that share one."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from study.config import dump_config, parse_config
from study.ledger import find_results
from study.packing import packing_of
from tests.gpu.stepping import CUDA
from tests.trainable.trials import numbers, train
from trainable.config import TrialConfig
from trainable.engine.checkpoint import BEST
from trainable.engine.loop import TrialTask
from trainable.engine.neighbours import SharedGpu, notes_of, run_on
from trainable.engine.step import Step
from trainable.records import EpochRecord

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
TREE: dict[str, Any] = {
    "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 256, "image_size": 64},
    "teacher": {"model": "resnet34", "checkpoint": None, "train": {"epochs": 1}},
    "student": {"model": "resnet18"},
    "distill": {"method": "kd", "alpha": 0.5},
    "train": {"epochs": 2, "precision": "bf16"},
    "resources": {"gpus_per_worker": 1},
}
MEASURES = """
import json, sys
from dataclasses import asdict
from trainable import tasks
from trainable.config import TrialConfig
print(json.dumps(asdict(tasks.measure(TrialConfig.model_validate_json(sys.argv[1]), None))))
"""


class Watch:
    """The most memory that others took of the device since it began, in GiB, as the driver tells of the device."""

    def __init__(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        self.before = self._used()
        self.most = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ends.wait(0.002):
            self.most = max(self.most, self._used() - self.before)

    def end(self) -> None:
        self._ends.set()
        self._thread.join()

    @staticmethod
    def _used() -> float:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / GIB


def measured(**train: Any) -> tuple[dict[str, float], Watch]:
    """A footprint, measured in a process of its own, and what is seen of it from here."""
    config = TrialConfig.model_validate({**TREE, "train": {**TREE["train"], **train}})
    watch = Watch()
    done = subprocess.run(
        [sys.executable, "-c", MEASURES, config.model_dump_json()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    watch.end()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), watch


@pytest.mark.timeout(200)
def test_a_footprint_is_what_the_driver_and_the_clock_see(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its kernels take as long from a graph as one by one, and run for a smaller share of the time there."""
    by_graph, watch = measured()
    by_kernel, _ = measured(cuda_graph=False)
    own = by_graph["gib"] - watch.before
    with capsys.disabled():
        print(f"\nby graph: {by_graph}\nby kernel: {by_kernel}")
        print(f"takes {own:.2f} GiB, and {watch.most:.2f} GiB were seen from another process")
    assert by_graph["gpu_gib"] == pytest.approx(torch.cuda.mem_get_info()[1] / GIB)
    # Tracing its kernels, later, takes a little beside; looking every 2 ms, a short peak is overlooked.
    assert watch.most - 0.5 <= own <= watch.most + 0.3
    for found in (by_graph, by_kernel):
        assert 0 < found["filled"] <= found["busy"] <= 1, found
    assert by_graph["busy"] > by_kernel["busy"]
    assert by_graph["update_ms"] < by_kernel["update_ms"]
    kernels_ms = [found["busy"] * found["update_ms"] for found in (by_graph, by_kernel)]
    assert kernels_ms[0] == pytest.approx(kernels_ms[1], rel=0.35)


@pytest.mark.timeout(200)
def test_a_study_with_auto_packs_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernel by kernel the host decides, and most of the GPU's time is left to others."""
    config = parse_config(
        {
            **TREE,
            "study": {"name": "auto", "trials": 4, "sampler": "random"},
            "storage": {"path": str(tmp_path / "runs")},
            "data": {**TREE["data"], "batch_size": 64, "image_size": None},
            "teacher": {"model": "mini_resnet_10_16", "train": {"epochs": 1}},
            "student": {"model": "mini_resnet_10_8"},
            "train": {"epochs": 3, "cuda_graph": False, "deterministic": True},
            "resources": {"gpus_per_worker": "auto"},
            "search": {"optim.lr": {"loguniform": [0.01, 0.1]}},
        }
    )
    path = tmp_path / "auto.yaml"
    path.write_text(dump_config(config))
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "study", "run", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    with capsys.disabled():
        print(f"\n{time.monotonic() - started:.0f} s\n{done.stdout}")
    assert done.returncode == 0, done.stderr
    settled = packing_of(config.folder)
    assert settled is not None
    assert settled.trials >= 2, settled.told
    assert " ".join(settled.told.split()) in " ".join(done.stdout.split())
    rows = find_results(tmp_path / "runs", "auto").of("trial")
    assert [(row.state, row.error) for row in rows] == [("complete", None)] * 4


class Full(Step):
    """Asks for more memory than the device has, once, in the second epoch."""

    calls = 0
    held_before = 0

    def count(self) -> None:
        super().count()
        Full.calls += 1
        if Full.calls == 8:
            Full.held_before = torch.cuda.memory_reserved()
            torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")


@pytest.mark.usefixtures("restored_determinism")
def test_a_trial_that_found_no_memory_gives_back_its_own_and_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {**TREE, "train": {"epochs": 3, "precision": "bf16", "deterministic": True}}
    tree |= {"teacher": None, "distill": {"method": "none"}}
    config = TrialConfig.model_validate(tree)
    whole = numbers(train(config, tmp_path / "whole", None, CUDA))
    monkeypatch.setattr("trainable.engine.loop.Step", Full)
    monkeypatch.setattr(Full, "calls", 0)
    gpu, reported = SharedGpu("gpu-0", tmp_path / "locks"), list[EpochRecord]()
    alone, left = gpu.alone, list[int]()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()

    def look() -> Any:
        left.append(torch.cuda.memory_reserved() - before)
        return alone()

    monkeypatch.setattr(gpu, "alone", look)
    run_on(gpu, TrialTask(config, tmp_path / "again", None), reported.append, CUDA)
    (note,) = notes_of(tmp_path / "again")
    assert "epoch 2" in note
    assert "out of memory on cuda" in note
    held = Full.held_before - before
    assert left[0] < 0.1 * held, f"{left[0]:,} of {held:,} bytes were not given back"
    last = {record.epoch: record for record in reported}
    assert numbers(list(last.values())) == whole
    assert (tmp_path / "again" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
