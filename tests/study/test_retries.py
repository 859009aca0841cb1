"""What counts against study.max_failures, and what does not."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.train import PreemptionError, PreemptionInfo, WorkerGroupError

from study.jobs import Job
from study.nodes import NodeLeavesError
from study.retries import Retries
from trainable.errors import TrainingError

TRIAL = Job("trial", 0, {"optim.lr": 0.1})
HEAD, OTHER = "a" * 56, "b" * 56
DIED = RayActorError(error_msg="The actor died. Worker exit detail: killed by SIGKILL")
WITH_NODE = RayActorError(error_msg=f"The actor died because its node has died. Node Id: {OTHER}")
SILENT = ActorUnavailableError("RpcError: Connection reset by peer", None)
OWN = TrainingError("the loss is not finite (rank 0, epoch 2, update 3)")


def group_error(*failures: Exception) -> Exception:
    return WorkerGroupError("Training failed", dict(enumerate(failures)))


def task_error(cause: Exception) -> Exception:
    """As it comes from a process that lives on for a moment."""
    return RayTaskError("train", "Traceback …", cause)


class Cluster:
    """Two nodes, of which one may go."""

    def __init__(self) -> None:
        self._nodes = {HEAD: True, OTHER: True}

    def nodes(self) -> dict[str, bool]:
        return dict(self._nodes)

    def lose(self) -> None:
        self._nodes[OTHER] = False


def failing(error: Exception | None, *, times: int, allowed: int, nodes: int = 2) -> list[bool]:
    """Whether a trial begins again each time that it fails with `error`, while no node is lost."""
    cluster = Cluster()
    if nodes == 1:
        cluster.lose()
    retries, goes_on = Retries(allowed, 2, cluster.nodes), list[bool]()
    for _ in range(times):
        retries.begins(TRIAL)
        goes_on.append(retries.why_again(TRIAL, error) is not None)
    return goes_on


@pytest.mark.parametrize(
    "error", [None, DIED, task_error(OWN), task_error(group_error(OWN, OWN)), WITH_NODE]
)
def test_a_trials_own_failures_are_counted(error: Exception | None) -> None:
    """Also where an error names a node that is there all the same."""
    assert failing(error, times=1, allowed=0) == [False]
    assert failing(error, times=3, allowed=2) == [True, True, False]


@pytest.mark.parametrize(
    "error",
    [
        RayActorError(error_msg="The actor died", preempted=True),
        task_error(NodeLeavesError("the node is being drained")),
        task_error(PreemptionError(PreemptionInfo(None, {OTHER: [1]}))),
    ],
)
def test_a_node_that_is_taken_back_is_not_counted(error: Exception) -> None:
    assert failing(error, times=3, allowed=0) == [True] * 3


def test_a_node_that_is_lost_is_not_counted() -> None:
    cluster = Cluster()
    retries = Retries(0, 2, cluster.nodes)
    retries.begins(TRIAL)
    cluster.lose()
    assert retries.why_again(TRIAL, WITH_NODE) == "its node is gone, or about to go"
    # It had been given a place there, and had not begun yet.
    assert retries.why_again(TRIAL, WITH_NODE) == "its node is gone, or about to go"
    retries.begins(TRIAL)
    assert retries.why_again(TRIAL, DIED) is None


@pytest.mark.parametrize(
    "error", [SILENT, task_error(group_error(OWN)), task_error(group_error(OWN, SILENT))]
)
def test_silence_is_forgiven_once_where_no_node_was_lost(error: Exception) -> None:
    assert failing(error, times=2, allowed=0) == [True, False]
    assert failing(error, times=4, allowed=2) == [True] * 3 + [False]
    assert failing(error, times=1, allowed=0, nodes=1) == [False]  # the driver's own node is there


def test_silence_of_a_node_that_turns_out_to_be_lost_is_not_counted() -> None:
    cluster = Cluster()
    retries = Retries(1, 2, cluster.nodes)
    retries.begins(TRIAL)
    assert retries.why_again(TRIAL, SILENT) is not None
    retries.begins(TRIAL)
    cluster.lose()
    assert retries.why_again(TRIAL, OWN) == "failure 1 of 1 that it may have"
    retries.begins(TRIAL)
    assert retries.why_again(TRIAL, OWN) is None


def test_each_job_has_its_own_count() -> None:
    retries = Retries(1, 2, Cluster().nodes)
    for job in (TRIAL, Job("trial", 1), Job("baseline"), Job("trial", 0, split="test")):
        retries.begins(job)
        assert retries.why_again(job, OWN) is not None
    assert retries.why_again(TRIAL, OWN) is None
