"""Which keys a trial reads: the one table of what a key's effect depends on.

A trial reads a key if another value would change how its student is trained, beyond its last block, the head:
a search then has something to learn from it. Two things can stand between a key and that. The trial may have no
use for it, as `kd` has none for `lam`; or what it weighs may reach the head alone, as StableKD's λ does while the
head is a group of its own (5/2): the other blocks then learn from features. Keys that are not in the table are
read by every trial.

What only happens where numbers end is left out: that the head's overflow skips an update of all blocks, or a
weight of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from trainable.config import Config, TrialConfig
from trainable.methods import METHODS, readers
from trainable.plan import Decomposition, head_stays_alone, schedule_of

Predicate = Callable[[TrialConfig], bool]

_Section = TypeVar("_Section", bound=Config)


@dataclass(frozen=True)
class Reading:
    """When a trial reads a key."""

    where: str
    """In words, of the config's keys."""
    decided_by: tuple[str, ...]
    """Dotted paths of the keys that decide it."""
    has_use: Predicate
    """Whether the trial has a use for the key at all: `rules` may refuse a value of one that it has not."""
    has_effect: Predicate = lambda _: True
    """Whether the key then changes more than the head; asked only where it `has_use`."""

    def is_read(self, config: TrialConfig) -> bool:
        """Whether the trial reads the key."""
        return self.has_use(config) and self.has_effect(config)


def is_read(config: TrialConfig, path: str) -> bool:
    """Whether another value at a dotted path would train another student, beyond its head."""
    reading = READINGS.get(path)
    return reading is None or reading.is_read(config)


def without_unused(config: TrialConfig, searched: Collection[str]) -> TrialConfig:
    """The trial with defaults at the keys that it has no use for, of those that a `searched` key decides."""
    for path, reading in READINGS.items():
        if not reading.has_use(config) and any(key in searched for key in reading.decided_by):
            config = at_default(config, path)
    return config


def with_value(section: _Section, path: str, value: Any) -> _Section:
    """A copy with a value at a dotted path; it is not validated."""
    key, _, rest = path.partition(".")
    inner = with_value(getattr(section, key), rest, value) if rest else value
    return section.model_copy(update={key: inner})


def at_default(section: _Section, path: str) -> _Section:
    """A copy in which the key at a dotted path has its default."""
    key, _, rest = path.partition(".")
    default = type(section).model_fields[key].default
    inner = at_default(getattr(section, key), rest) if rest else default
    return section.model_copy(update={key: inner})


def _method_reads(key: str, config: TrialConfig) -> bool:
    return key in METHODS[config.distill.method].reads


def _is_stablekd(config: TrialConfig) -> bool:
    return config.distill.method == "stablekd"


def _has_stages(config: TrialConfig) -> bool:
    """More than one."""
    text = config.distill.decomposition
    return _is_stablekd(config) and text is not None and Decomposition.parse(text).n > 0


def _blocks_learn_from_logits(config: TrialConfig) -> bool:
    """Whether the loss of the logits changes more than the head.

    The norm of the whole gradient has the head's in it: a bound of it makes of one block's gradient another's factor.
    """
    text, train = config.distill.decomposition, config.train
    if not _is_stablekd(config) or text is None:
        return True
    is_alone = head_stays_alone(Decomposition.parse(text))
    return not is_alone or (train.clip is not None and train.clip_by == "norm")


def _has_triangles(config: TrialConfig) -> bool:
    return _has_stages(config) and schedule_of(config.distill, config.optim) == "triangle"


def _has_milestones(config: TrialConfig) -> bool:
    return schedule_of(config.distill, config.optim) == "multistep"


def _has_momentum(config: TrialConfig) -> bool:
    return config.optim.name == "sgd" and config.optim.momentum > 0


def _keeps_state(config: TrialConfig) -> bool:
    return config.optim.name == "adamw" or config.optim.momentum > 0


def _has_batchnorm(config: TrialConfig) -> bool:
    return config.train.batchnorm.group_norm is None


def _has_other_workers(config: TrialConfig) -> bool:
    return config.train.workers > 1


def _recalibrates(config: TrialConfig) -> bool:
    return _has_batchnorm(config) and config.train.batchnorm.recalibrate > 0


_METHOD, _DECOMPOSITION = "distill.method", "distill.decomposition"
_HEAD_ALONE = (_METHOD, _DECOMPOSITION, "train.clip", "train.clip_by")
_BEYOND_THE_HEAD = (
    "(for stablekd with more than the head in the last group of some stage, or train.clip by norm)"
)
_STAGES = "distill.decomposition has a second stage"
_GROUP_NORM = "train.batchnorm.group_norm"


def _of_method(key: str) -> Reading:
    *others, last = readers(key)
    names = f"{', '.join(others)} or {last}" if others else last
    return Reading(f"distill.method is {names}", (_METHOD,), partial(_method_reads, key))


def _of_logits(where: str, decided_by: tuple[str, ...], has_use: Predicate) -> Reading:
    """A key of the loss of the logits."""
    decided_by = tuple(dict.fromkeys((*decided_by, *_HEAD_ALONE)))
    return Reading(f"{where} {_BEYOND_THE_HEAD}", decided_by, has_use, _blocks_learn_from_logits)


def _weight(key: str) -> Reading:
    of_method = _of_method(key)
    return _of_logits(of_method.where, of_method.decided_by, of_method.has_use)


def _temperature_is_used(config: TrialConfig) -> bool:
    is_hard = config.distill.method == "deit" and config.distill.hard
    return _method_reads("temperature", config) and not is_hard


_MARGIN = _of_logits(
    "student.head.name is am_softmax",
    ("student.head.name",),
    lambda config: config.student.head.name == "am_softmax",
)
_MULTISTEP = Reading("optim.schedule is multistep", ("optim.schedule",), _has_milestones)
_FP16 = Reading(
    "train.precision is fp16", ("train.precision",), lambda config: config.train.precision == "fp16"
)
_BATCHNORM = Reading(f"{_GROUP_NORM} is not set", (_GROUP_NORM,), _has_batchnorm)

READINGS: Mapping[str, Reading] = MappingProxyType(
    {
        "distill.alpha": _weight("alpha"),
        "distill.lam": _weight("lam"),
        "distill.temperature": _of_logits(
            _of_method("temperature").where,
            (_METHOD, "distill.hard"),
            _temperature_is_used,
        ),
        **{
            f"distill.{key}": _of_method(key)
            for key in (
                "decomposition",
                "stage_epochs",
                "feature_weights",
                "feature_scale",
                "target_weight",
                "nontarget_weight",
                "hard",
            )
        },
        "distill.stage_split": Reading(
            _STAGES, (_METHOD, _DECOMPOSITION), _is_stablekd, _has_stages
        ),
        "student.head.margin": _MARGIN,
        "student.head.scale": _MARGIN,
        "optim.nesterov": Reading(
            "optim.name is sgd, with momentum", ("optim.name", "optim.momentum"), _has_momentum
        ),
        "optim.peak_decay": Reading(
            f"optim.schedule is a triangle for each stage, and {_STAGES}",
            (_METHOD, _DECOMPOSITION, "optim.schedule"),
            _has_triangles,
        ),
        "optim.reset_at_stages": Reading(
            f"{_STAGES}, and the optimizer keeps momentum or moments",
            (_METHOD, _DECOMPOSITION, "optim.name", "optim.momentum"),
            lambda config: _has_stages(config) and _keeps_state(config),
        ),
        "optim.milestones": _MULTISTEP,
        "optim.milestone_decay": _MULTISTEP,
        "train.clip_by": Reading(
            "train.clip is set", ("train.clip",), lambda config: config.train.clip is not None
        ),
        "train.loss_scale.initial": _FP16,
        "train.loss_scale.growth_interval": _FP16,
        "train.loss_scale.floor": _FP16,
        "train.batchnorm.sync": Reading(
            f"{_GROUP_NORM} is not set, and train.workers is above 1",
            (_GROUP_NORM, "train.workers"),
            _has_batchnorm,
            _has_other_workers,
        ),
        **{
            f"train.batchnorm.{key}": _BATCHNORM
            for key in ("momentum", "eps", "freeze_after", "recalibrate")
        },
        "train.batchnorm.recalibrate_at": Reading(
            "train.batchnorm.recalibrate is above 0",
            ("train.batchnorm.recalibrate", _GROUP_NORM),
            _recalibrates,
        ),
    }
)
