"""Loss terms against plain formulas in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainable.distill.terms import (
    FEATURE,
    KL,
    LOSS,
    cross_entropy,
    feature_error,
    kd_divergence,
    with_features,
)


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))


def plain_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² Σ_b Σ_c p_t log(p_t / p_s), written out."""
    p_s = (student.double() / temperature).exp()
    p_t = (teacher.double() / temperature).exp()
    p_s, p_t = p_s / p_s.sum(1, keepdim=True), p_t / p_t.sum(1, keepdim=True)
    return temperature**2 * (p_t * (p_t / p_s).log()).sum()


def test_cross_entropy_is_a_sum_over_samples() -> None:
    labels = torch.arange(7) % 5
    p = logits(0).double().softmax(1)
    expected = -p[torch.arange(7), labels].log().sum()
    assert cross_entropy(logits(0), labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_cross_entropy_of_distributions_is_the_plain_formula() -> None:
    labels = logits(2).softmax(1)
    expected = -(labels.double() * logits(0).double().softmax(1).log()).sum()
    assert cross_entropy(logits(0), labels).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_kd_divergence_is_the_plain_formula(temperature: float) -> None:
    mine = kd_divergence(logits(0), logits(1), temperature)
    assert mine.item() == pytest.approx(
        plain_kl(logits(0), logits(1), temperature).item(), rel=1e-5
    )


def test_kd_divergence_has_the_teacher_first() -> None:
    one = kd_divergence(logits(0), logits(1), 1.0)
    other = kd_divergence(logits(1), logits(0), 1.0)
    assert not torch.isclose(one, other, rtol=0.01)


def test_kd_divergence_of_equal_logits_is_zero_with_zero_gradient() -> None:
    student = logits(0).requires_grad_()
    loss = kd_divergence(student, logits(0), 4.0)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_the_gradient_of_kd_keeps_its_size_at_any_temperature() -> None:
    """dL/ds → (s − t)/C for large T (Hinton et al. 2015, §2.1), for zero-mean logits."""
    student, teacher = logits(0), logits(1)
    student = (student - student.mean(1, keepdim=True)).requires_grad_()
    teacher = teacher - teacher.mean(1, keepdim=True)
    kd_divergence(student, teacher, 1000.0).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 5, rtol=0.02, atol=2e-3)


def test_feature_error_is_the_mean_of_a_sample_summed_over_samples() -> None:
    a, b = torch.randn(6, 3, 2, 2), torch.randn(6, 3, 2, 2)
    expected = sum(((x - y) ** 2).mean() for x, y in zip(a, b, strict=True))
    torch.testing.assert_close(feature_error(a, b), expected)


def test_feature_errors_enter_the_loss_with_their_weight() -> None:
    terms = {LOSS: torch.tensor(3.0), KL: torch.tensor(1.0)}
    errors = [torch.tensor(2.0), torch.tensor(6.0)]
    assert with_features(terms, errors) == {LOSS: 11.0, KL: 1.0, FEATURE: 8.0}
    assert with_features(terms, errors, 0.5) == {LOSS: 7.0, KL: 1.0, FEATURE: 8.0}
    assert with_features(terms, []) == {LOSS: 3.0, KL: 1.0, FEATURE: 0.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_fp32(dtype: torch.dtype) -> None:
    student, teacher = logits(0).to(dtype), logits(1).to(dtype)
    labels = torch.arange(7) % 5
    for term in (
        cross_entropy(student, labels),
        kd_divergence(student, teacher, 1.0),
        feature_error(student, teacher),
    ):
        assert term.dtype == torch.float32
    torch.testing.assert_close(
        kd_divergence(student, teacher, 1.0), kd_divergence(student.float(), teacher.float(), 1.0)
    )


def test_a_sure_teacher_gives_no_nan() -> None:
    sure = torch.zeros(7, 5)
    sure[:, 0] = 1e4
    student = logits(0).requires_grad_()
    loss = kd_divergence(student, sure, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
