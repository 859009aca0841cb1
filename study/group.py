"""A group of workers under Ray Train that does one piece of work after another.

Setting one up takes ten seconds and more: a controller and the workers are processes which import torch, and
then find each other. So it lasts as long as the process of Tune that goes from trial to trial, which sends
it away when it ends itself. What fails in it ends it, and the next trial makes another.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from study.cluster import worker_resources
from study.config import StudyConfig
from study.desk import Broken, Desk, Ended
from trainable.records import EpochRecord
from trainable.worker import Work, serve

_LEAVING_S = 30.0
"""How long a process waits for its workers to leave."""


class WorkerGroup:
    """`train.workers` processes with a process group, placed beside this one."""

    def __init__(self, config: StudyConfig) -> None:
        workers = config.train.workers
        # Beside a trial's own reservation, which has no room for it.
        desk: Any = ray.remote(Desk).options(num_cpus=0, scheduling_strategy="DEFAULT")
        self._desk: Any = desk.remote(workers)
        is_on_gpus = bool(config.resources.gpus)
        self._trainer = TorchTrainer(
            serve,
            train_loop_config={"desk": self._desk},
            torch_config=TorchConfig(backend="nccl" if is_on_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=is_on_gpus,
                resources_per_worker=worker_resources(config),
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=str(config.folder / "ray" / "workers"),
                # A group that Train began anew would not know where at the desk it was.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._live, name="worker group", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it takes work."""
        return self._thread.is_alive()

    def do(self, work: Work, report: Callable[[EpochRecord], None]) -> Any:
        """What `work` gives on rank 0; every rank waits until `report` has returned.

        If `report` raises, the work is stopped where it is, and the group is free again. Raises
        WorkerGroupError, and is gone, if a worker fails.
        """
        # In a list it stays packed on its way: what it is made of takes seconds to import.
        ray.get(self._desk.begin.remote([ray.put(work)]))
        while not isinstance(news := self._heard(), Ended):
            try:
                report(news)
            except BaseException:  # SystemExit, where Tune stops a trial
                with suppress(Exception):  # of a group that is gone meanwhile
                    self._answer(False)
                    self._heard()
                raise
            self._answer(True)
        return news.result

    def close(self) -> None:
        """End it, in the middle of its work if it has any, and give its places back.

        Ray removes a placement group with its job, not with the actor that made it: Train has to be let do it.
        """
        ray.get(self._desk.close.remote())
        self._thread.join(_LEAVING_S)

    def _live(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self._error = error
        finally:
            self._desk.breaks.remote()

    def _heard(self) -> Any:
        news = ray.get(self._desk.news.remote())
        if isinstance(news, Broken):
            self._thread.join()
            raise _told(self._error)
        return news

    def _answer(self, goes_on: bool) -> None:
        ray.get(self._desk.answer.remote(goes_on))


def _told(error: Exception | None) -> Exception:
    """The error of a group, with what its workers noted down of theirs."""
    if not isinstance(error, WorkerGroupError):
        return error or RuntimeError("the workers have left")
    failures = sorted(error.worker_failures.items(), reverse=True)  # rank 0 has the last word
    notes = [note for _, failure in failures for note in getattr(failure, "__notes__", ())]
    return WorkerGroupError("\n".join(notes), error.worker_failures) if notes else error


_group: WorkerGroup | None = None


class ClosesGroup:
    """Mixed into Tune's trainable: its process has no workers left when it ends."""

    def cleanup(self) -> None:
        """What Tune calls last."""
        if _group is not None and _group.is_alive:
            _group.close()
        super().cleanup()  # pyright: ignore[reportAttributeAccessIssue]


def lasting_group(config: StudyConfig) -> WorkerGroup:
    """This process's group, made if there is none that is alive. A process serves one study."""
    global _group
    if _group is None or not _group.is_alive:
        _group = WorkerGroup(config)
    return _group
