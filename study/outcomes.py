"""What Optuna's storage is told of a trial on its way: its curve, and how far it broke constraints.

Each can be told once more, where the answer of a call was lost. Optuna keeps intermediate values for studies of one
objective only; for others the curve is in the trial's attributes.
"""

from __future__ import annotations

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial

from study.config import StudySection
from study.objectives import Values, excesses, objective
from study.samplers import LEARN_CONSTRAINTS

SCREENING = 0
"""The step of a screening's value, among those of the trial's epochs."""
_EPOCH = "epoch:"
"""What precedes an epoch's number in the name of an attribute."""


def directions(section: StudySection) -> list[StudyDirection]:
    """Whether most or least is sought of each objective."""
    return [
        StudyDirection.MAXIMIZE if objective(name).seeks_most else StudyDirection.MINIMIZE
        for name in section.objectives
    ]


def stored(trial: Trial) -> FrozenTrial:
    """A trial as the storage has it, also of what it was told before this driver."""
    storage = trial.study._storage  # pyright: ignore[reportPrivateUsage]
    return storage.get_trial(trial._trial_id)  # pyright: ignore[reportPrivateUsage]


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """Value by epoch."""
    return {epoch: value for epoch, value in _told(trial).items() if epoch != SCREENING}


def screened_value(trial: FrozenTrial) -> float | None:
    """What its screening came to; None if it has none, or not yet."""
    return _told(trial).get(SCREENING)


def _told(trial: FrozenTrial) -> dict[int, float]:
    told = {
        int(name.removeprefix(_EPOCH)): value
        for name, value in trial.user_attrs.items()
        if name.startswith(_EPOCH)
    }
    return trial.intermediate_values | told


def report(trial: Trial, epoch: int, value: float) -> None:
    """An epoch's value, or the screening's; one that is reported again, by a trial that goes on, is known."""
    if epoch in _told(stored(trial)):
        return
    if len(trial.study.directions) == 1:
        trial.report(value, epoch)
    else:
        trial.set_user_attr(f"{_EPOCH}{epoch}", value)


def tell_excesses(trial: Trial, section: StudySection, values: Values) -> None:
    """How far these values break constraints, for a sampler that draws by it."""
    so_far = stored(trial)
    if section.sampler not in LEARN_CONSTRAINTS or so_far.state.is_finished():
        return
    for name, excess in excesses(section.constraints.bounds, values).items():
        if name not in so_far.constraints:
            trial.set_constraint(name, excess)
