"""What each distillation method reads of the config and of the teacher: the one table of them.

Pure: validation, the study and the engine ask it the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

MethodName = Literal[
    "none",
    "kd",
    "mse",
    "kd_mse",
    "at",
    "sobolev",
    "nst",
    "reviewkd",
    "dkd",
    "deit",
    "stablekd",
]


@dataclass(frozen=True)
class Traits:
    """One method."""

    loss: str
    """What it minimises, as errors say it."""
    needs: tuple[str, ...] = ()
    """Weights among the keys of `distill` that must be given, all of them."""
    needs_one: tuple[str, ...] = ()
    """Weights of which exactly one must be given."""
    takes: tuple[str, ...] = ()
    """Other keys of `distill` that it reads."""
    teacher: bool = True
    """Whether it needs a teacher."""
    features: Literal["none", "equal", "maps"] = "none"
    """What it wants of the networks' features at the cuts: nothing, equal shapes, or maps (channels, height,
    width) of any widths."""
    one_class: bool = False
    """Whether its formula needs the one class of each picture, which mixed pictures have not."""
    slope: bool = False
    """Whether it needs the gradient of the teacher's answer with respect to the pictures."""

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that it knows."""
        return (*self.needs, *self.needs_one)

    @property
    def reads(self) -> tuple[str, ...]:
        """Every key of `distill` that it reads."""
        return (*self.weights, *self.takes)


_KD = "(1 − α)·CE + α·T²·KL"

METHODS: Mapping[MethodName, Traits] = MappingProxyType(
    {
        "none": Traits("CE", teacher=False),
        "kd": Traits(_KD, needs=("alpha",), takes=("temperature",)),
        "mse": Traits(
            "(1 − α)·CE + α·Σ w·MSE",
            needs=("alpha",),
            takes=("feature_weights", "feature_scale"),
            features="equal",
        ),
        "kd_mse": Traits(
            f"{_KD} + Σ w·MSE",
            needs=("alpha",),
            takes=("temperature", "feature_weights", "feature_scale"),
            features="equal",
        ),
        "at": Traits("CE + λ·AT", needs=("lam",), features="maps"),
        "sobolev": Traits(
            f"{_KD} + λ·‖difference of input gradients‖²",
            needs=("alpha", "lam"),
            takes=("temperature",),
            slope=True,
        ),
        "nst": Traits("CE + λ·MMD²", needs=("lam",), features="maps"),
        "reviewkd": Traits("CE + λ·HCL", needs=("lam",), features="maps"),
        "dkd": Traits(
            "CE + T²·(α·TCKD + β·NCKD)",
            takes=("temperature", "target_weight", "nontarget_weight"),
            one_class=True,
        ),
        "deit": Traits(
            "(1 − α)·CE(class token) + α·distillation token",
            needs=("alpha",),
            takes=("temperature", "hard"),
        ),
        "stablekd": Traits(
            "CE + λ·T²·KL, or (1 − α)·CE + α·T²·KL, + Σ MSE",
            needs_one=("lam", "alpha"),
            takes=("temperature", "decomposition", "stage_epochs", "stage_split"),
            features="equal",
        ),
    }
)


def readers(key: str) -> tuple[MethodName, ...]:
    """The methods that read this key of `distill`."""
    return tuple(name for name, traits in METHODS.items() if key in traits.reads)
