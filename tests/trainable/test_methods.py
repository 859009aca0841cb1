"""The methods of labels, logits and equal features: the right terms, the right gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.trainable.methods import HEADS, MARGIN, PICTURES, SCALE, Batch
from tests.trainable.trials import assert_equal
from trainable.config import DistillConfig, TrialConfig
from trainable.distill.objective import Objective, method_of
from trainable.distill.terms import (
    CE,
    FEATURE,
    KL,
    LOSS,
    cross_entropy,
    feature_error,
    kd_divergence,
)
from trainable.errors import ConfigError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import build_student
from trainable.networks.teacher import FrozenTeacher, TeacherOutputs
from trainable.plan import initial_groups, recompose


@pytest.fixture(params=HEADS)
def student(
    request: pytest.FixtureRequest, make_config: Callable[..., TrialConfig]
) -> BlockNetwork:
    """A student of five blocks, with each head."""
    torch.manual_seed(0)
    config = make_config(student={"head": HEADS[request.param]})
    return build_student(config, PICTURES)


def training_cross_entropy(student: BlockNetwork, logits: Tensor, labels: Tensor) -> Tensor:
    """Of plain logits, with the margin of an AM-Softmax head written as eq. 6 has it."""
    angular = getattr(student.network.fc, "bias", None) is None
    offset = SCALE * MARGIN * F.one_hot(labels, 10) if angular else 0.0
    return cross_entropy(logits - offset, labels)


def objective(student: BlockNetwork, **distill: Any) -> Objective:
    config = DistillConfig.model_validate(distill)
    k = int((config.decomposition or "1/0").split("/")[0])
    return Objective(student, method_of(config, student, initial_groups(len(student), k)))


def gradients(student: BlockNetwork, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    student.zero_grad()
    loss().backward()
    return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}


def norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def test_none_is_cross_entropy(student: BlockNetwork, batch: Batch) -> None:
    student.eval()
    terms = objective(student, method="none")(*batch, None)
    assert set(terms) == {LOSS, CE}
    expected = training_cross_entropy(student, student(batch[0]), batch[1])
    torch.testing.assert_close(terms[LOSS], expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_the_distillation_term(
    alpha: float, student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    student.eval()
    terms = objective(student, method="kd", alpha=alpha)(*batch, teacher(batch[0]))
    torch.testing.assert_close(terms[LOSS], (1 - alpha) * terms[CE] + alpha * terms[KL])


def test_kd_mse_weighs_each_cut(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    student.eval()
    weights = {"layer3": 0.5, "layer4": 0.25}
    module = objective(student, method="kd_mse", alpha=0.3, feature_weights=weights)
    outputs = teacher(batch[0])
    terms = module(*batch, outputs)
    mine = student.features(batch[0])
    expected = 0.5 * feature_error(mine[2], outputs.features[2])
    expected = expected + 0.25 * feature_error(mine[3], outputs.features[3])
    torch.testing.assert_close(terms[FEATURE], expected)
    torch.testing.assert_close(terms[LOSS], 0.7 * terms[CE] + 0.3 * terms[KL] + expected)


@pytest.mark.parametrize("method", ["mse", "kd_mse"])
def test_one_scale_stands_for_all_weights_times_it(
    method: str, student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    student.eval()
    scaled = objective(student, method=method, alpha=0.3, feature_scale=4.0)
    weights = dict.fromkeys(student.names[:-1], 4.0)
    weighed = objective(student, method=method, alpha=0.3, feature_weights=weights)
    outputs = teacher(batch[0])
    assert_equal(scaled(*batch, outputs), weighed(*batch, outputs))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_mse_weighs_labels_against_features(
    alpha: float, student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    """(1 − α)·CE + α·Σ w·MSE, each MSE the mean over a sample's elements, without KL."""
    student.eval()
    weights = {"layer2": 0.5, "layer4": 2.0}
    module = objective(student, method="mse", alpha=alpha, feature_weights=weights)
    outputs = teacher(batch[0])
    terms = module(*batch, outputs)
    mine, theirs = student.features(batch[0]), outputs.features
    expected = 0.5 * (mine[1] - theirs[1]).square().mean(dim=(1, 2, 3)).sum()
    expected = expected + 2.0 * (mine[3] - theirs[3]).square().mean(dim=(1, 2, 3)).sum()
    assert set(terms) == {LOSS, CE, FEATURE}
    torch.testing.assert_close(terms[FEATURE], expected)
    torch.testing.assert_close(terms[LOSS], (1 - alpha) * terms[CE] + alpha * expected)


def test_mse_needs_alpha(student: BlockNetwork) -> None:
    with pytest.raises(ValueError, match="alpha"):
        objective(student, method="mse")


@pytest.mark.parametrize("method", ["mse", "kd_mse"])
def test_weights_of_unknown_cuts_are_refused(method: str, student: BlockNetwork) -> None:
    with pytest.raises(ConfigError, match=r"distill.feature_weights.*layer9.*choose from layer1"):
        objective(student, method=method, alpha=0.3, feature_weights={"layer9": 1.0})


def errors_at_cuts(
    student: BlockNetwork, outputs: TeacherOutputs, images: Tensor, weights: dict[str, float] | None
) -> Tensor:
    """Σ w·MSE, in a forward of its own."""
    *features, _ = student.features(images)
    cuts = dict(zip(student.names, zip(features, outputs.features, strict=True), strict=False))
    weight_of = dict.fromkeys(cuts, 1.0) if weights is None else weights
    return torch.stack([w * feature_error(*cuts[cut]) for cut, w in weight_of.items()]).sum()


FEATURE_WEIGHTS = (None, {"layer1": 0.5, "layer3": 4.0}, {"layer2": 0.0, "layer4": 2.0})


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("method", "weights"),
    [("kd", None), *((method, w) for method in ("mse", "kd_mse") for w in FEATURE_WEIGHTS)],
)
def test_the_shared_forward_has_the_gradients_of_a_pass_for_each_term(
    method: str,
    weights: dict[str, float] | None,
    alpha: float,
    student: BlockNetwork,
    teacher: FrozenTeacher,
    batch: Batch,
) -> None:
    """CE on logits with the margin, KL on plain ones and MSE, each of a forward and a backward of its own.

    In train mode, where all passes normalise by the same batch; to 1e-6 of the whole gradient in
    fp32, which rounds relative to the sizes of what it adds.
    """
    images, labels = batch
    outputs = teacher(images)
    student.train()
    shared = objective(student, method=method, alpha=alpha, feature_weights=weights)
    # As the step does: the sum over the samples, divided by their number.
    joint = gradients(student, lambda: shared(images, labels, outputs)[LOSS] / len(labels))
    terms = {
        CE: (1 - alpha, lambda: training_cross_entropy(student, student(images), labels)),
        KL: (alpha, lambda: kd_divergence(student(images), outputs.logits, 1.0)),
        FEATURE: (
            alpha if method == "mse" else 1.0,
            lambda: errors_at_cuts(student, outputs, images, weights),
        ),
    }
    separate = {name: torch.zeros_like(gradient) for name, gradient in joint.items()}
    for term in {"kd": (CE, KL), "mse": (CE, FEATURE), "kd_mse": (CE, KL, FEATURE)}[method]:
        weight, loss = terms[term]
        alone = gradients(student, lambda w=weight, f=loss: w * f() / len(labels))
        for name, gradient in alone.items():
            separate[name] += gradient
    assert norm(separate.values()) > 0
    differences = {name: gradient - separate[name] for name, gradient in joint.items()}
    assert norm(differences.values()) <= 1e-6 * norm(separate.values())
    for name, difference in differences.items():
        assert difference.norm() <= 1e-5 * separate[name].norm(), name


def test_stablekd_with_one_group_and_alpha_is_kd_to_the_bit(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    student.train()
    outputs = teacher(batch[0])
    settings = {"alpha": 0.3, "temperature": 2.0}
    kd = objective(student, method="kd", **settings)
    stable = objective(student, method="stablekd", decomposition="1/0", **settings)
    expected = gradients(student, lambda: kd(*batch, outputs)[LOSS])
    mine = gradients(student, lambda: stable(*batch, outputs)[LOSS])
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    assert torch.equal(kd(*batch, outputs)[LOSS], stable(*batch, outputs)[LOSS])


@pytest.mark.parametrize("lam", [0.5, 3.0])
def test_stablekd_with_one_group_and_lam_is_kd_times_1_plus_lam(
    lam: float, student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    """CE + λ·KL = (1 + λ)·((1 − α)·CE + α·KL) at α = λ/(1 + λ)."""
    student.train()
    outputs = teacher(batch[0])
    kd = objective(student, method="kd", alpha=lam / (1 + lam))
    stable = objective(student, method="stablekd", lam=lam, decomposition="1/0")
    # As the step does: the sum over the samples, divided by their number.
    expected = gradients(student, lambda: (1 + lam) * kd(*batch, outputs)[LOSS] / 16)
    mine = gradients(student, lambda: stable(*batch, outputs)[LOSS] / 16)
    assert mine.keys() == expected.keys()
    differences = [mine[name] - expected[name] for name in expected]
    assert norm(expected.values()) > 0
    assert norm(differences) <= 1e-6 * norm(expected.values())


def test_stablekd_without_the_teachers_features_equals_equation_8(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    """CE + λ·KL of the head on the teacher's features, and Σ MSE of each block on the teacher's input."""
    student.eval()
    images, labels = batch
    outputs = teacher(images)
    terms = objective(student, method="stablekd", lam=2.0, decomposition="5/0")(
        images, labels, outputs
    )
    inputs = [images, *outputs.features]
    logits = student.run(inputs[4], 4, 5)
    expected = training_cross_entropy(student, logits, labels)
    expected = expected + 2.0 * kd_divergence(logits, outputs.logits, 1.0)
    for block in range(4):
        output = student.run(inputs[block], block, block + 1)
        expected = expected + feature_error(output, outputs.features[block])
    torch.testing.assert_close(terms[LOSS], expected)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_each_group_depends_on_its_own_loss_only(
    stage: int, student: BlockNetwork, teacher: FrozenTeacher, batch: Batch
) -> None:
    """5/3: in every stage, zeroing the other groups leaves a group's gradient as it is, to the bit."""
    groups = initial_groups(5, 5)
    for _ in range(stage):
        groups = recompose(groups)
    module = objective(student, method="stablekd", lam=1.0, decomposition="5/3").train()
    module.regroup(groups)
    outputs = teacher(batch[0])
    together = gradients(student, lambda: module(*batch, outputs)[LOSS])
    inputs = [batch[0], *outputs.features]
    names = {id(p): n for n, p in student.named_parameters()}
    owner = dict(enumerate(parameters for _, parameters in student.block_parameters()))
    for start, stop in groups:

        def own_loss(start: int = start, stop: int = stop) -> Tensor:
            output = student.run(inputs[start], start, stop)
            if stop < 5:
                return feature_error(output, outputs.features[stop - 1])
            ce = training_cross_entropy(student, output, batch[1])
            return ce + kd_divergence(output, outputs.logits, 1.0)

        alone = gradients(student, own_loss)
        mine = {names[id(p)] for block in range(start, stop) for p in owner[block]}
        assert {n for n, g in alone.items() if g.abs().sum() > 0} == mine
        for name in mine:
            torch.testing.assert_close(together[name], alone[name], rtol=1e-6, atol=1e-7)


EQUAL = {
    "mse": {"method": "mse", "alpha": 0.3},
    "kd_mse": {"method": "kd_mse", "alpha": 0.3},
    **{
        f"stablekd-{k}": {"method": "stablekd", "lam": 1.0, "decomposition": f"{k}/0"}
        for k in (5, 4, 3, 2)
    },
}


@pytest.mark.parametrize("name", EQUAL)
def test_a_student_equal_to_its_teacher_has_no_feature_error(
    name: str, student: BlockNetwork, batch: Batch
) -> None:
    student.eval()
    terms = objective(student, **EQUAL[name])(*batch, FrozenTeacher(student)(batch[0]))
    assert terms[FEATURE].item() == 0
    assert abs(terms[KL].item() if KL in terms else 0.0) < 1e-5
