"""Every network of the paper learns by KD and by StableKD, in its blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainable.stepping import PLAIN_SGD, step_of, update
from tests.trainable.trials import MakeConfig
from trainable.networks.build import Pictures, build_student
from trainable.networks.teacher import FrozenTeacher

PICTURES = Pictures(10, 3, (8, 8))
CONVOLUTIONAL = {
    "resnet18": 5,
    "resnet34": 5,
    "wrn_16_2": 4,
    "wrn_16_8": 4,
    "wrn_16_10": 4,
    "wrn_28_10": 4,
    "wrn_40_2": 4,
    "wrn_40_4": 4,
    "resnext20_32x4d": 4,
    "resnext38_32x4d": 4,
}
"""Name → blocks."""
TRANSFORMERS = dict.fromkeys(
    ("vit_t8", "vit_t12", "vit_t16", "vit_s8", "vit_s12", "vit_s16", "swin_t", "swin_s"), 5
)
METHODS: dict[str, dict[str, Any]] = {
    "kd": {"method": "kd", "alpha": 0.5},
    "stablekd": {"method": "stablekd", "lam": 1.0, "alpha": None},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "blocks"), (CONVOLUTIONAL | TRANSFORMERS).items())
def test_three_steps_lower_the_loss(
    name: str, blocks: int, method: str, make_config: MakeConfig
) -> None:
    distill = METHODS[method] | ({"decomposition": f"{blocks}/1"} if method == "stablekd" else {})
    config = make_config(student={"model": name}, distill=distill)
    torch.manual_seed(0)
    student = build_student(config, PICTURES)
    assert len(student) == blocks
    teacher = FrozenTeacher(build_student(config, PICTURES))
    generator = torch.Generator().manual_seed(1)
    batch = (
        torch.randn(4, 3, 8, 8, generator=generator),
        torch.randint(0, 10, (4,), generator=generator),
    )
    step = step_of(student, config, PLAIN_SGD)
    losses: list[float] = []
    for _ in range(4):
        update(step, teacher, batch, [4], 1e-3)
        step.health.flush()
        losses.append(step.losses.flush()["train/loss"])
    assert losses[3] < losses[0]  # after three steps and before the first, on the same pictures
    student.eval()
    with torch.no_grad():
        composed, whole = student(batch[0]), student.network(batch[0])
    torch.testing.assert_close(composed, whole, rtol=1e-5, atol=1e-5)
