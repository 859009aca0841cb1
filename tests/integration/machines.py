"""A Ray cluster of several nodes on this machine, each started as `ray start` does, and lost as machines are."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
from ray.util.state import list_actors, list_nodes
from ray.util.state.exception import ServerUnavailable

from tests.integration.jobs import OUTSIDE, running_cluster
from tests.study.mlflow_server import free_port

_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
TRIAL, WORKER = "ImplicitFunc", "RayTrainWorker"
"""Ray's names of the processes that train: of Tune's own, and of one of several for a trial."""
_NOTICE_S = 300.0
"""How long a node that is asked to leave may take until its processes are ended."""


@dataclass(frozen=True)
class Machine:
    """A node that joined a cluster."""

    node_id: str
    starter: subprocess.Popen[bytes]
    """`ray start --block`, the parent of all that runs on the node."""
    folder: str
    """Its own, as machines have: in one that they share, one node would clean up what a job sent to the other."""


class Machines:
    """The nodes of a cluster, and what runs where."""

    def __init__(self, dashboard: str, gcs_port: int) -> None:
        self.dashboard, self.address = dashboard, f"127.0.0.1:{gcs_port}"
        self.head = self._new(set())
        self.joined: list[Machine] = []
        """Other nodes that are there."""

    def join(self, *, cpus: int) -> Machine:
        """Start another node, and wait until the cluster has it."""
        command = [*_RAY, "start", "--block", f"--address={self.address}", f"--num-cpus={cpus}"]
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        command += [f"--temp-dir={folder}"]
        command += ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}"]
        before, quiet = self._ids(), subprocess.DEVNULL
        env = OUTSIDE | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{_NOTICE_S:g}"}
        starter = subprocess.Popen(
            command, env=env, stdout=quiet, stderr=quiet, start_new_session=True
        )
        try:
            machine = Machine(self._new(before), starter, folder)
        except AssertionError:
            _end(starter)
            raise
        self.joined.append(machine)
        return machine

    def lose(self, machine: Machine) -> float:
        """As if its power had gone: every process on it ends at once. When that was, in seconds since 1970."""
        now = time.time()
        _end(machine.starter)
        self._forget(machine)
        return now

    def ask_to_leave(self, machine: Machine) -> None:
        """As Kubernetes does that takes a node back: SIGTERM, and Ray drains the node. Waits until it has left."""
        machine.starter.send_signal(signal.SIGTERM)
        machine.starter.wait(_NOTICE_S)
        self._forget(machine)

    def nodes_with(self, kind: str) -> Sequence[str]:
        """The node of each process of this kind that is alive now."""
        actors = list_actors(address=self.dashboard, limit=1000)
        alive = [actor for actor in actors if actor.state == "ALIVE"]
        return [actor.node_id for actor in alive if actor.class_name == kind]

    def close(self) -> None:
        """End all nodes that joined."""
        for machine in list(self.joined):
            self.lose(machine)

    def _forget(self, machine: Machine) -> None:
        shutil.rmtree(machine.folder, ignore_errors=True)
        self.joined.remove(machine)

    def _new(self, before: set[str]) -> str:
        """The node that is not one of those, once it is there."""
        until = time.monotonic() + 180
        while time.monotonic() < until:
            with suppress(ServerUnavailable):  # the dashboard of a machine with much to do
                if new := self._ids() - before:
                    return new.pop()
            time.sleep(0.2)
        raise AssertionError("no new node")

    def _ids(self) -> set[str]:
        # With a filter Ray takes the nodes that are gone for lost output.
        nodes = list_nodes(address=self.dashboard)
        return {node.node_id for node in nodes if node.state == "ALIVE"}


def _end(starter: subprocess.Popen[bytes]) -> None:
    """Kill it, and all that it started."""
    parent = psutil.Process(starter.pid)
    for process in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    starter.wait(60)


@contextmanager
def running_machines(*, head_cpus: int) -> Generator[Machines]:
    """A cluster that as yet has its head alone."""
    port = free_port()
    with running_cluster(cpus=head_cpus, gcs_port=port) as dashboard:
        machines = Machines(dashboard, port)
        try:
            yield machines
        finally:
            machines.close()
