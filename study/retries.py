"""Which of the trials that failed begin again: those that lost their node, and others a few times."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.train import PreemptionError, WorkerGroupError

from study.jobs import Job
from study.nodes import NodeLeavesError, known_nodes
from trainable.errors import KdStudyError

Blame = Literal["node", "trial", "unknown"]


@dataclass
class _Tries:
    """What is known of a job's attempts."""

    nodes: frozenset[str] = frozenset()
    """Those that were alive when the last one began; none before it has."""
    failures: int = 0
    """That were its own."""
    doubted: frozenset[str] | None = None
    """`nodes` of the attempt before, where nobody could say whether its node was lost."""


class Retries:
    """Counts how often each job of a study failed by itself.

    A node that is lost, or taken back, is no fault of the trials on it, and is not counted. Ray notices some seconds
    after the fact that a node is gone. Until then it can only say that a process does not answer: such a trial begins
    again at once, and when it fails once more it is known whether that was a node.
    """

    def __init__(
        self,
        max_failures: int,
        workers: int,
        nodes: Callable[[], Mapping[str, bool]] = known_nodes,
    ) -> None:
        """`workers` are those of a trial; `nodes` gives those that there are or were, and whether they are alive."""
        self._max_failures, self._workers, self._nodes = max_failures, workers, nodes
        self._tries: dict[tuple[object, ...], _Tries] = {}

    def begins(self, job: Job) -> None:
        """An attempt at a job begins."""
        self._of(job).nodes = _alive(self._nodes())

    def why_again(self, job: Job, error: Exception | None) -> str | None:
        """Why a job that failed with `error` is to begin again; None if it has failed for good."""
        tries, nodes = self._of(job), self._nodes()
        alive = _alive(nodes)
        if tries.doubted is not None and tries.doubted <= alive:
            tries.failures += 1  # it was no node
        tries.doubted = None
        began_on, tries.nodes = tries.nodes or alive, frozenset()
        match _blame(error, self._workers, nodes.keys() - alive):
            case "node":
                return "its node is gone, or about to go"
            case "unknown" if len(began_on) > 1:
                tries.doubted, why = began_on, "a process of it does not answer"
            case _:
                tries.failures += 1
                why = f"failure {tries.failures} of {self._max_failures} that it may have"
        return why if tries.failures <= self._max_failures else None

    def _of(self, job: Job) -> _Tries:
        return self._tries.setdefault((job.key, job.split), _Tries())


def _alive(nodes: Mapping[str, bool]) -> frozenset[str]:
    return frozenset(node for node, is_alive in nodes.items() if is_alive)


def _blame(error: Exception | None, workers: int, lost: Collection[str]) -> Blame:
    """Whose fault it was; `lost` are the nodes that are known to be gone: Ray's errors name their node."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, NodeLeavesError | PreemptionError):
        return "node"
    if isinstance(cause, RayActorError) and (
        cause.preempted or any(node in str(cause) for node in lost)
    ):
        return "node"
    if isinstance(cause, WorkerGroupError):
        # A rank may tell of an error because another has gone; who has gone tells of none.
        told = [one for one in cause.worker_failures.values() if isinstance(one, KdStudyError)]
        return "trial" if len(told) == workers else "unknown"
    return "unknown" if isinstance(cause, ActorUnavailableError) else "trial"
