"""What a rule reads: a trial's epochs, with the stages that its config plans for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trainable import records
from trainable.config import TrialConfig
from trainable.plan import Decomposition, Stage, stages
from trainable.records import EpochRecord

EARLY = 2
"""A loss of a later epoch says nothing of what there was to learn in the beginning."""


class Point(NamedTuple):
    """A metric's value after an epoch."""

    epoch: int
    value: float


class Told(NamedTuple):
    """What a rule says, as `records.Finding` has it without the rule's name."""

    words: str
    evidence: str
    remedy: str


@dataclass(frozen=True)
class History:
    """The epochs of a trial so far, or those of one stage, in their order."""

    config: TrialConfig
    records: tuple[EpochRecord, ...]

    def series(self, name: str) -> tuple[Point, ...]:
        """A metric's values in the epochs that have it."""
        return tuple(
            Point(record.epoch, record.metrics[name])
            for record in self.records
            if name in record.metrics
        )

    def values(self, name: str) -> tuple[float, ...]:
        """As `series`, without the epochs."""
        return tuple(point.value for point in self.series(name))

    def at(self, name: str, epoch: int) -> float | None:
        """A metric's value after an epoch; None where it was not measured."""
        return next((r.metrics.get(name) for r in self.records if r.epoch == epoch), None)

    def suffixes(self, name: str) -> tuple[str, ...]:
        """What follows `<name>.` among the metrics, e.g. the blocks of `grad/norm`; sorted."""
        prefix = f"{name}."
        found = {metric for record in self.records for metric in record.metrics}
        return tuple(sorted(metric[len(prefix) :] for metric in found if metric.startswith(prefix)))

    def of(self, stage: Stage) -> History:
        """The epochs of one stage."""
        own = (r for r in self.records if stage.first_epoch <= r.epoch <= stage.last_epoch)
        return History(self.config, tuple(own))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those planned. Their epochs and peaks do not depend on how many blocks the networks have."""
        text = self.config.distill.decomposition
        return stages(self.config, 1 if text is None else Decomposition.parse(text).k)

    @property
    def first_loss(self) -> float | None:
        """The training loss of the first epoch or two: what there is to learn; None if they have none."""
        losses = self.series(records.TRAIN_LOSS)
        return losses[0].value if losses and losses[0].epoch <= EARLY else None


Check = Callable[[History], Told | None]
"""A rule: what it has to say of a trial, or None."""


def runs(points: Sequence[Point], holds: Callable[[Point], bool]) -> list[list[Point]]:
    """The longest stretches of consecutive points for which something holds, in their order."""
    found: list[list[Point]] = []
    inside = False
    for point in points:
        if holds(point):
            found = found if inside else [*found, []]
            found[-1].append(point)
        inside = holds(point)
    return found


def last_run(points: Sequence[Point], holds: Callable[[Point], bool]) -> list[Point]:
    """The stretch of `runs` that reaches to the last point; empty if none does."""
    return runs(points, holds)[-1] if points and holds(points[-1]) else []
