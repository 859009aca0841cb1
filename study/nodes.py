"""The nodes of a cluster: whether all of them have the driver's versions and see the study's folder; who is there."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import study
import trainable
from trainable.errors import ConfigError, KdStudyError, Problem

_PATIENCE_S = 120.0
"""How long a node may take to start a process that answers."""


@dataclass(frozen=True)
class Node:
    """What a node says of itself."""

    name: str
    versions: Mapping[str, str]
    sees_storage: bool = True


class NodeLeavesError(KdStudyError):
    """The node is about to be taken away: what runs here goes on elsewhere."""


def known_nodes() -> dict[str, bool]:
    """Ids of all nodes that the cluster has or had, and whether they are alive as far as it knows."""
    return {node["NodeID"]: node["Alive"] for node in ray.nodes()}


def must_stay() -> None:
    """NodeLeavesError if this process's node is being drained: its cloud, or a person, gave notice."""
    # Ray has no public word for it; its own Ray Train asks the same.
    draining = ray._private.state.state.get_draining_nodes()  # pyright: ignore
    if ray.get_runtime_context().get_node_id() in draining:
        raise NodeLeavesError("the node is being drained")


def check_nodes(storage: Path) -> None:
    """ConfigError names the nodes of the cluster that are not as the driver's, and what they have.

    Asks every node that is alive, the head included, with a task that reserves nothing. A cluster of one
    node is the driver itself.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) == 1:
        return
    with _mark_in(storage) as mark:
        ask = ray.remote(num_cpus=0)(_asking())
        answers = {
            node["NodeManagerAddress"] + " " + node["NodeID"][:6]: ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(mark)
            for node in alive
        }
        nodes = [_answer(name, reference) for name, reference in answers.items()]
    if problems := problems_of_nodes(versions_here(), nodes, storage):
        raise ConfigError(problems)


def versions_here() -> dict[str, str]:
    """What must be the same on all nodes.

    Of torch without its build: a head without a GPU may have the one for CPUs. Of kd-study the code, too:
    a version that is being worked on has many.
    """
    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "torch": version("torch").partition("+")[0],
        "kd-study": f"{kd_study_version()} (code {_code()})",
    }


def kd_study_version() -> str:
    """The version of kd-study, or that its code lies here uninstalled."""
    try:
        return version("kd-study")
    except PackageNotFoundError:
        return "uninstalled"


def problems_of_nodes(here: Mapping[str, str], nodes: list[Node], storage: Path) -> list[Problem]:
    """What is wrong with the nodes, beside a driver with these versions."""
    found: list[Problem] = []
    differing = {node.name: _differing(here, node.versions) for node in nodes}
    if others := [f"{name} has {text}" for name, text in differing.items() if text]:
        ours = ", ".join(f"{name} {value}" for name, value in here.items())
        rule = f"every node must have what the driver has, {ours}"
        found.append(
            Problem("cluster", rule, "install the same on all nodes", "; ".join(sorted(others)))
        )
    if blind := sorted(node.name for node in nodes if not node.sees_storage):
        rule = f"must be a folder that all nodes share, which is not seen on {', '.join(blind)}"
        remedy = "mount a shared file system at the same place on all of them, or choose another"
        found.append(Problem("storage.path", rule, remedy, repr(str(storage))))
    return found


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in there.items() if here.get(name) != value)


def _asking() -> Callable[[str | None], tuple[dict[str, str], bool]]:
    """A function within a function travels as code, also to a node without kd-study."""

    def ask(mark: str | None) -> tuple[dict[str, str], bool]:
        from pathlib import Path

        sees = mark is None or Path(mark).exists()
        try:
            from study.nodes import versions_here

            return versions_here(), sees
        except ImportError as error:
            return {"kd-study": f"that cannot be imported ({error})"}, sees

    return ask


def _answer(name: str, reference: ray.ObjectRef[tuple[dict[str, str], bool]]) -> Node:
    try:
        return Node(name, *ray.get(reference, timeout=_PATIENCE_S))
    except GetTimeoutError:
        return Node(name, {"no": f"answer in {_PATIENCE_S:g} s"})
    except RayError as error:
        return Node(name, {"no": f"answer ({str(error).splitlines()[0]})"})


@contextmanager
def _mark_in(storage: Path) -> Generator[str | None]:
    """A file that whoever shares the folder sees; None if it cannot be written, which is said elsewhere."""
    mark = storage / f".seen-{uuid4().hex}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        yield None
        return
    try:
        yield str(mark)
    finally:
        with suppress(OSError):
            mark.unlink()


@cache
def _code() -> str:
    """A short digest of all modules of kd-study."""
    digest = hashlib.sha256()
    for package in (study, trainable):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
