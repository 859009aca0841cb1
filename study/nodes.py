"""The nodes of a cluster: whether all of them have the driver's versions, clock and files; who is there."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import study
import trainable
from study.cluster import uses_torch_trainer
from study.config import StudyConfig
from study.version import kd_study_version
from trainable.bucket import Bucket, BucketError
from trainable.errors import KdStudyError, Problem
from trainable.places import is_bucket

_PATIENCE_S = 120.0
"""How long a node may take to start a process that answers."""
CLOCKS_S = 60.0
"""How far a node's clock may be from the driver's. An epoch has the time of the node that trained it, and its run
that of the driver: MLflow's curves over time would begin before their run, or go back where a trial changes nodes."""


@dataclass(frozen=True)
class Node:
    """What a node says of itself."""

    name: str
    versions: Mapping[str, str]
    sees_storage: bool = True
    missing: tuple[str, ...] = ()
    """Keys of the config whose files it does not see."""
    clock_off_s: float = 0.0
    """How far its clock is from the driver's, at least: positive if ahead."""


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


def cluster_problems(config: StudyConfig) -> list[Problem]:
    """What is wrong with the nodes of the cluster that are not as the driver's, with their names.

    Asks every node that is alive, the head included, with a task that reserves nothing. A cluster of one
    node is the driver itself.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) == 1:
        return []
    storage, files = config.storage.path, _files_of(config)
    with _mark_in(storage) as mark:
        ask, asked_at = ray.remote(num_cpus=0)(_asking()), time.time()
        answers = {
            node["NodeManagerAddress"] + " " + node["NodeID"][:6]: ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(storage, mark, files)
            for node in alive
        }
        nodes = [_answer(name, reference, asked_at) for name, reference in answers.items()]
    problems = problems_of_nodes(versions_here(), nodes, storage, files)
    if config.bucket is not None and uses_torch_trainer(config):
        problems.append(_workers_apart(config))
    return problems


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


def problems_of_nodes(
    here: Mapping[str, str], nodes: list[Node], storage: str, files: Mapping[str, str]
) -> list[Problem]:
    """What is wrong with the nodes, beside a driver with these versions and `files` by their keys."""
    found: list[Problem] = []
    differing = {node.name: _differing(here, node.versions) for node in nodes}
    if others := [f"{name} has {text}" for name, text in differing.items() if text]:
        ours = ", ".join(f"{name} {value}" for name, value in here.items())
        rule = f"every node must have what the driver has, {ours}"
        found.append(
            Problem("cluster", rule, "install the same on all nodes", "; ".join(sorted(others)))
        )
    if blind := sorted(node.name for node in nodes if not node.sees_storage):
        found.append(_not_seen(storage, ", ".join(blind)))
    for key, place in files.items():
        if lacking := sorted(node.name for node in nodes if key in node.missing):
            rule = f"must be on every node, and is not seen on {', '.join(lacking)}"
            found.append(Problem(key, rule, "copy it there, or mount it at the same place", place))
    if wrong := [node for node in nodes if abs(node.clock_off_s) > CLOCKS_S]:
        rule = f"every node's clock must be within {CLOCKS_S:g} s of the driver's"
        off = "; ".join(sorted(f"{node.name} is {_off(node.clock_off_s)}" for node in wrong))
        found.append(Problem("cluster", rule, "set the clocks, e.g. by NTP", off))
    return found


def _off(seconds: float) -> str:
    return f"at least {abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"


def _files_of(config: StudyConfig) -> dict[str, str]:
    """What trials read, by key, as far as the driver sees it: what it does not see is said elsewhere."""
    checkpoint = config.teacher.checkpoint if config.teacher is not None else None
    root = None if config.data.download else config.data.root
    places = {"data.root": root, "teacher.checkpoint": checkpoint}
    return {key: place for key, place in places.items() if place and Path(place).exists()}


def _not_seen(storage: str, blind: str) -> Problem:
    if is_bucket(storage):
        rule = f"must be a bucket that all nodes may use, which cannot be read on {blind}"
        remedy = "give these nodes its address and credentials before `ray start`"
    else:
        rule = f"must be a folder that all nodes share, which is not seen on {blind}"
        remedy = "mount a shared file system at the same place on all of them, or choose another"
    return Problem("storage.path", rule, remedy, repr(storage))


def _workers_apart(config: StudyConfig) -> Problem:
    """Workers of one trial read each other's files, and Ray may place them on several nodes."""
    rule = "must be inline on a cluster of several nodes where storage.path is a bucket"
    remedy = "set train.workers: 1, or choose a folder that all nodes share"
    return Problem("train.launcher", rule, remedy, repr(config.train.launcher))


def _differing(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in there.items() if here.get(name) != value)


_Answer = tuple[dict[str, str], bool, tuple[str, ...], float]
"""Versions, whether it sees the mark, the keys of what it does not see, and its time."""


def sees(storage: str, mark: str) -> bool:
    """Whether this node finds a file in a folder or a bucket."""
    try:
        return Bucket(storage, patience_s=0).read(mark) is not None
    except BucketError:
        return False


def _asking() -> Callable[[str, str | None, Mapping[str, str]], _Answer]:
    """A function within a function travels as code, also to a node without kd-study."""

    def ask(storage: str, mark: str | None, files: Mapping[str, str]) -> _Answer:
        import time
        from pathlib import Path

        missing = tuple(key for key, place in files.items() if not Path(place).exists())
        try:
            from study.nodes import sees, versions_here
        except ImportError as error:
            versions = {"kd-study": f"that cannot be imported ({error})"}
            return versions, True, missing, time.time()
        is_seen = mark is None or sees(storage, mark)
        return versions_here(), is_seen, missing, time.time()

    return ask


def _answer(name: str, reference: ray.ObjectRef[_Answer], asked_at: float) -> Node:
    try:
        versions, sees, missing, its_time = ray.get(reference, timeout=_PATIENCE_S)
        # It said its time at some moment between the two.
        ahead, behind = its_time - time.time(), its_time - asked_at
        return Node(name, versions, sees, missing, max(ahead, 0.0) + min(behind, 0.0))
    except GetTimeoutError:
        return Node(name, {"no": f"answer in {_PATIENCE_S:g} s"})
    except RayError as error:
        return Node(name, {"no": f"answer ({str(error).splitlines()[0]})"})


@contextmanager
def _mark_in(storage: str) -> Generator[str | None]:
    """A file that whoever shares the storage sees; None if it cannot be written, which is said elsewhere."""
    place, name = Bucket(storage, patience_s=0), f".seen-{uuid4().hex}"
    try:
        place.put(name, b"")
    except BucketError:
        yield None
        return
    try:
        yield name
    finally:
        with suppress(BucketError):
            place.remove(name)


@cache
def _code() -> str:
    """A short digest of all modules of kd-study."""
    digest = hashlib.sha256()
    for package in (study, trainable):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
