"""A cluster whose nodes are not alike is refused in words, before anything runs on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from study.nodes import CLOCKS_S, Node, problems_of_nodes, versions_here
from tests.integration.jobs import OUTSIDE

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.11.0", "kd-study": "0.1.0 (code 1234)"}
STORAGE = "/shared/runs"
CONFIG = """
study: {{name: s, trials: 1}}
storage: {{path: {path}}}
data: {{source: digits, val_fraction: 0.25}}
student: {{model: mini_resnet_10_4}}
distill: {{method: none}}
train: {{epochs: 1}}
"""
TWO_NODES = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": sys.argv[1]})
try:
    sys.exit(subprocess.run([sys.executable, "-m", "study", "train", sys.argv[2]],
                            env=__import__("os").environ | {"RAY_ADDRESS": cluster.address}).returncode)
finally:
    cluster.shutdown()
"""


def test_nodes_that_are_alike_pass() -> None:
    assert problems_of_nodes(HERE, [Node("a", HERE), Node("b", dict(HERE))], STORAGE, {}) == []
    assert set(versions_here()) == set(HERE)
    assert "+" not in versions_here()["torch"]


def test_every_node_that_differs_is_named_with_what_it_has() -> None:
    nodes = [
        Node("10.0.0.1 aa", HERE),
        Node("10.0.0.3 cc", {"kd-study": "that cannot be imported (No module named 'study')"}),
        Node("10.0.0.2 bb", HERE | {"torch": "2.10.0", "python": "3.12.1"}),
    ]
    (problem,) = problems_of_nodes(HERE, nodes, STORAGE, {})
    assert str(problem) == (
        "cluster: every node must have what the driver has, python 3.11.7, ray 2.60.0, torch 2.11.0, "
        "kd-study 0.1.0 (code 1234), got 10.0.0.2 bb has python 3.12.1, torch 2.10.0; "
        "10.0.0.3 cc has kd-study that cannot be imported (No module named 'study'); "
        "install the same on all nodes"
    )


def test_a_folder_that_is_not_shared_is_named_with_the_nodes_that_do_not_see_it() -> None:
    nodes = [Node("a", HERE), Node("c", HERE, sees_storage=False), Node("b", HERE, False)]
    (problem,) = problems_of_nodes(HERE, nodes, STORAGE, {})
    assert str(problem).startswith(
        "storage.path: must be a folder that all nodes share, which is not seen on b, c, got "
    )


def test_files_that_trials_read_are_named_with_the_nodes_that_lack_them() -> None:
    files = {"data.root": "/data/x", "teacher.checkpoint": "/models/t.safetensors"}
    nodes = [
        Node("a", HERE),
        Node("c", HERE, missing=("data.root",)),
        Node("b", HERE, missing=("data.root", "teacher.checkpoint")),
    ]
    assert [str(problem) for problem in problems_of_nodes(HERE, nodes, STORAGE, files)] == [
        "data.root: must be on every node, and is not seen on b, c, got /data/x; "
        "copy it there, or mount it at the same place",
        "teacher.checkpoint: must be on every node, and is not seen on b, got "
        "/models/t.safetensors; copy it there, or mount it at the same place",
    ]


def test_clocks_that_are_wrong_are_named_with_how_far() -> None:
    nodes = [
        Node("a", HERE, clock_off_s=CLOCKS_S),
        Node("c", HERE, clock_off_s=3600.4),
        Node("b", HERE, clock_off_s=-61.0),
    ]
    (problem,) = problems_of_nodes(HERE, nodes, STORAGE, {})
    assert str(problem) == (
        "cluster: every node's clock must be within 60 s of the driver's, got "
        "b is at least 61 s behind; c is at least 3600 s ahead; set the clocks, e.g. by NTP"
    )


def test_a_bucket_that_a_node_cannot_read_is_named_with_the_node() -> None:
    nodes = [Node("a", HERE), Node("b", HERE, sees_storage=False)]
    (problem,) = problems_of_nodes(HERE, nodes, "s3://bucket/prefix", {})
    assert str(problem) == (
        "storage.path: must be a bucket that all nodes may use, which cannot be read on b, got "
        "'s3://bucket/prefix'; give these nodes its address and credentials before `ray start`"
    )


def train_on_two_nodes(folder: Path, second: Path) -> subprocess.CompletedProcess[str]:
    """`kd-study train` on a cluster whose second node finds this folder's packages first."""
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(path=folder / "runs"))
    command = [sys.executable, "-c", TWO_NODES, str(second), str(path)]
    env = OUTSIDE | {"RAY_LOG_TO_STDERR": "0"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=110)


@pytest.mark.slow
def test_two_real_nodes_with_another_torch(tmp_path: Path) -> None:
    other = tmp_path / "other" / "torch-1.2.3.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.2.3\n")
    ended = train_on_two_nodes(tmp_path, other.parent)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("cluster: ")]
    assert " has torch 1.2.3; install the same on all nodes" in line
    assert os.listdir(tmp_path / "runs") == []


@pytest.mark.slow
def test_two_real_nodes_that_are_alike(tmp_path: Path) -> None:
    ended = train_on_two_nodes(tmp_path, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "1 of 1 trials ended" in ended.stdout
