"""A network that no zoo has, from a YAML file alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from mlflow.tracking import MlflowClient

from study.ledger import find_results

NETWORK = '''
from torch import nn

class Net(nn.Module):
    """Three groups of convolutions; its features go through functions, too."""

    def __init__(self, widths, num_classes, in_channels):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleDict()
        for name, before, after in zip(("one", "two"), widths, widths[1:]):
            self.stages[name] = nn.Sequential(
                nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
            )
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x):
        x = self.stem(x).relu()
        for stage in self.stages.values():
            x = stage(x)
        return self.classifier(x.mean((2, 3)))

def narrow(num_classes, in_channels):
    return Net((4, 6, 10), num_classes, in_channels)

def wide(num_classes, in_channels):
    return Net((8, 12, 10), num_classes, in_channels)
'''
CUTS = ("stem", "stages.one", "stages.two")
CONFIG = """
study: {name: own}
data: {source: digits, val_fraction: 0.25, batch_size: 64}
teacher:
  model: our_networks:wide
  train: {epochs: 2}
student:
  model: our_networks:narrow
  cuts: [stem, stages.one, stages.two]
  projectors: fold
distill: {method: stablekd, lam: 1.0, decomposition: 4/2}
train: {epochs: 3}
search:
  optim.lr: {loguniform: [0.01, 0.1]}
"""
FAILING = """
import torch.distributed as dist
from torch import nn

class FailsOnRank1(nn.Module):
    def __init__(self):
        super().__init__()
        self.forwards = 0

    def forward(self, x):
        self.forwards += self.training
        if self.forwards == 4 and dist.is_initialized() and dist.get_rank() == 1:
            raise ZeroDivisionError("on this rank alone")
        return x

def failing(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), FailsOnRank1(), nn.Linear(64 * in_channels, num_classes))
"""
ON_RANKS = """
study: {name: failing}
data: {source: digits, val_fraction: 0.25, batch_size: 64}
student: {model: our_networks:failing}
distill: {method: none}
train: {epochs: 2, workers: 2}
"""


def kd_study(folder: Path, cluster: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as it is installed, which does not look into the current folder by itself."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("kd-study")), *arguments],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": cluster, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_network_of_the_current_folder_distils_through_two_other_widths(
    tmp_path: Path, ray_cluster: str
) -> None:
    (tmp_path / "our_networks.py").write_text(NETWORK)
    (tmp_path / "own.yaml").write_text(CONFIG)
    shown = kd_study(tmp_path, ray_cluster, "validate", "own.yaml")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [line.split() for line in shown.stdout.splitlines()]
    projectors = [" ".join(line[4:]) for line in lines if line and line[0] in CUTS]
    assert projectors[:3] == ["4 → 8", "6 → 12", "—"]
    done = kd_study(tmp_path, ray_cluster, "train", "own.yaml")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    (best,) = tmp_path.glob("runs/own-train/trials/0000/best.safetensors")
    weights = safetensors.torch.load_file(best)
    assert {name: tuple(w.shape) for name, w in weights.items() if "projectors" in name} == {
        "projectors.0.folded.weight": (4, 4, 1, 1),
        "projectors.1.folded.weight": (6, 6, 1, 1),
    }


def test_a_network_that_cannot_be_found_is_named_before_anything_starts(
    tmp_path: Path, ray_cluster: str
) -> None:
    (tmp_path / "own.yaml").write_text(CONFIG)
    done = kd_study(tmp_path, ray_cluster, "train", "own.yaml")
    assert done.returncode == 2
    assert "student.model: must be package.module:factory" in done.stderr
    assert "No module named 'our_networks'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_error_on_the_second_rank_alone_is_told_everywhere_with_its_place(
    tmp_path: Path, ray_cluster: str
) -> None:
    (tmp_path / "our_networks.py").write_text(FAILING)
    (tmp_path / "failing.yaml").write_text(ON_RANKS)
    done = kd_study(tmp_path, ray_cluster, "train", "failing.yaml")
    assert (done.returncode, done.stderr) == (1, "")
    reason = (
        "ZeroDivisionError: on this rank alone (rank 1, epoch 1, update 4, "
        "forward and backward of 32 pictures in fp32)"
    )
    told = " ".join(done.stdout.split())
    assert told.count(f"trial 0 failed: {reason}") == 2  # when it happened, and in the end
    results = find_results(tmp_path / "runs", "failing-train")
    (row,) = results.of("trial")
    assert (row.state, row.epochs, row.error) == ("failed", 0, reason)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    run = client.get_run(row.run_id)
    assert (run.data.tags["kd.state"], run.data.tags["kd.error"]) == ("failed", reason)
    assert client.get_run(results.parent_run_id).data.tags["kd.health"] == "unknown"
    text = Path(client.download_artifacts(row.run_id, "error.txt")).read_text()
    assert re.search(r'File ".*our_networks\.py", line \d+, in forward', text), text
    assert text.rstrip().endswith(reason)
