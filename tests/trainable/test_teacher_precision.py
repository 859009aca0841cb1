"""A teacher that runs in another precision than its student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainable.methods import METHODS, case, noise
from tests.trainable.trials import CPU, MakeConfig, numbers, train, untrained_teacher
from trainable import records
from trainable.distill.terms import LOSS
from trainable.engine.checkpoint import BEST
from trainable.engine.precision import TeacherPrecision
from trainable.methods import METHODS as TRAITS
from trainable.networks.build import forget_teacher
from trainable.networks.teacher import TeacherOutputs

SHORT = {
    "data": {"val_fraction": 0.75},
    "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/0"},
}
READERS = [
    name
    for name, distill in METHODS.items()
    if TRAITS[distill["method"]].teacher and not TRAITS[distill["method"]].slope
]
"""Methods whose teacher can have a precision of its own."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_students_own_is_that_of_a_trial_without_the_key(
    precision: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    weights = untrained_teacher(make_config(), tmp_path)
    found: list[Any] = []
    for own in (None, precision):
        train_section = {"epochs": 1, "precision": precision}
        config = make_config(teacher={"precision": own}, train=train_section, **SHORT)
        told = numbers(train(config, tmp_path / str(own), weights))
        found.append((told, (tmp_path / str(own) / BEST).read_bytes()))
    assert found[0] == found[1]


def test_a_process_that_kept_a_teacher_of_another_precision_trains_as_a_fresh_one(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    weights = untrained_teacher(make_config(), tmp_path)
    found: dict[str, list[Any]] = {"fp32": [], "bf16": []}
    for number, own in enumerate(("fp32", "bf16", "fp32", "bf16")):
        if number == 3:
            forget_teacher()
        config = make_config(teacher={"precision": own}, train={"epochs": 1}, **SHORT)
        found[own].append(numbers(train(config, tmp_path / str(number), weights)))
    for first, again in found.values():
        assert first == again
    (exact, _), (rounded, _) = found.values()
    assert exact != rounded
    loss, other = (told[0][records.TRAIN_LOSS] for told in (exact, rounded))
    assert other == pytest.approx(loss, rel=0.02)


def handed(name: str, make_config: MakeConfig, images: Tensor, **types: str) -> TeacherOutputs:
    """What a method's teacher of one precision hands to a student of another."""
    config = make_config(
        distill={"alpha": None, **METHODS[name]},
        teacher={"precision": types["teacher"]},
        train={"precision": types["student"]},
    )
    precision = TeacherPrecision(config, CPU)
    with precision.forward():
        return case(name).teacher(images, precision.handed)


@pytest.mark.parametrize("name", READERS)
def test_a_student_in_fp32_runs_in_fp32(name: str, make_config: MakeConfig) -> None:
    """Whichever of the teacher's outputs its blocks take, and every parameter has its gradient."""
    own, (images, labels) = case(name), noise()
    outputs = handed(name, make_config, images, teacher="bf16", student="fp32")
    seen: set[torch.dtype] = set()

    def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.update(x.dtype for x in (*inputs, output) if isinstance(x, Tensor))

    for layer in own.student.network.modules():
        layer.register_forward_hook(look)
    loss = own.module(images, labels, outputs)[LOSS]
    gradients = own.gradients(lambda: loss)
    assert seen == {torch.float32}
    assert loss.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not torch.equal(outputs.logits, own.teacher(images).logits), "the rounding of bf16"
    exact = case(name).terms((images, labels))[LOSS]
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)


@pytest.mark.parametrize("name", READERS)
def test_a_student_in_half_precision_takes_exact_answers(
    name: str, make_config: MakeConfig
) -> None:
    own, (images, labels) = case(name), noise()
    outputs = handed(name, make_config, images, teacher="fp32", student="bf16")
    assert torch.equal(outputs.logits, own.teacher(images).logits)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = own.module(images, labels, outputs)[LOSS]
    assert all(gradient.isfinite().all() for gradient in own.gradients(lambda: loss).values())


@pytest.mark.parametrize(
    ("teacher", "student", "dtype", "features"),
    [
        ("bf16", "bf16", torch.bfloat16, 4),
        ("bf16", "fp32", torch.float32, 0),
        ("fp32", "bf16", torch.float32, 0),
    ],
)
def test_kd_is_handed_logits_alone_where_they_have_to_be_cast(
    teacher: str, student: str, dtype: torch.dtype, features: int, make_config: MakeConfig
) -> None:
    outputs = handed("kd", make_config, noise()[0], teacher=teacher, student=student)
    assert outputs.logits.dtype == dtype
    assert len(outputs.features) == features


def test_features_keep_their_layout(make_config: MakeConfig) -> None:
    images = noise()[0].contiguous(memory_format=torch.channels_last)
    outputs = handed("stablekd-5", make_config, images, teacher="bf16", student="fp32")
    assert len(outputs.features) == 4
    for feature in outputs.features[:2]:
        assert feature.dtype == torch.float32
        assert feature.is_contiguous(memory_format=torch.channels_last)
        assert not feature.is_contiguous()
