"""Own CUDA kernels of the errors between features, interpreted on the CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.stepping import step_of
from tests.trainable.trials import MakeConfig
from trainable.compiled import OWN, Compiler
from trainable.distill.at import attention_error
from trainable.distill.terms import feature_error, squared_error
from trainable.engine import step as step_module
from trainable.networks.blocks import BlockNetwork
from trainable.networks.zoo import Pictures, build

pytest.importorskip("triton")
from trainable.distill import attention_kernels, error_kernels
from trainable.networks import norm_kernels

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton interprets nothing here; tests/gpu has them", allow_module_level=True)

LAST = torch.channels_last


def maps(*shape: int, seed: int, dtype: torch.dtype = torch.float32, last: bool = True) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=LAST) if last and x.dim() == 4 else x


def own(student: Tensor, teacher: Tensor) -> Tensor:
    with Compiler(len(student), formulas=OWN).at_work(len(student)):
        return feature_error(student, teacher)


def calls_of(patch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """What a function will have been given."""
    seen: list[Any] = []
    function = getattr(module, name)

    def noted(*pair: Tensor) -> Tensor:
        seen.append(pair)
        return function(*pair)

    patch.setattr(module, name, noted)
    return seen


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Maps that the kernels were given."""
    return calls_of(monkeypatch, error_kernels, "squared_error")


@pytest.mark.parametrize("shape", [(4, 64, 9, 7), (3, 5), (2, 1, 1, 1), (5, 24, 48, 48), (2, 7, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
def test_error_and_gradient_are_those_of_double_precision(
    shape: tuple[int, ...], dtype: torch.dtype, last: bool, launched: list[Any]
) -> None:
    student, teacher = (maps(*shape, seed=seed, dtype=dtype, last=last) for seed in (0, 1))
    student.requires_grad_()
    error = own(student, teacher)
    (error * 3).backward()
    wide = student.detach().double().requires_grad_()
    per_sample = wide[0].numel()
    exact = (wide - teacher.double()).square().sum() / per_sample
    (exact * 3).backward()
    assert len(launched) == 1
    assert error.dtype == torch.float32
    assert float(error.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)
    assert student.grad is not None
    assert student.grad.stride() == student.stride()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(student.grad.double(), wide.grad, rtol=2 * eps, atol=1e-7)
    count = norm_kernels.arrivals(torch.device("cpu"))
    assert not count.any()


def test_it_is_the_formula_of_other_forms_in_half_precision(launched: list[Any]) -> None:
    """Either computes the gradient in fp32, and rounds it once."""
    teacher, gradients = maps(4, 8, 5, 5, seed=1, dtype=torch.float16), []
    for function in (own, squared_error):
        student = maps(4, 8, 5, 5, seed=0, dtype=torch.float16).requires_grad_()
        (function(student, teacher) * 1024).backward()
        gradients.append(student.grad)
    assert len(launched) == 1
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    student, teacher = maps(2, 4, 3, 3, seed=0), maps(2, 4, 3, 3, seed=1)
    student[1, 2, 0, 1] = bad
    student.requires_grad_()
    error = own(student, teacher)
    error.backward()
    assert not error.isfinite()
    assert student.grad is not None
    assert not student.grad[1, 2, 0, 1].isfinite()


def test_other_maps_have_torchs_formula(launched: list[Any]) -> None:
    student, teacher = maps(4, 8, 6, 6, seed=0), maps(4, 8, 6, 6, seed=1)
    others = [
        (student, teacher.contiguous()),  # they do not lie alike
        (student[:, :, ::2], teacher[:, :, ::2]),  # with gaps
        (student.double(), teacher.double()),
        (student, teacher.clone().requires_grad_()),
    ]
    for pair in others:
        found, expected = (function(*pair).detach() for function in (own, squared_error))
        torch.testing.assert_close(found, expected)
    assert not launched


@pytest.mark.parametrize(
    ("compiles", "norms", "formulas"),
    [(False, True, OWN), (True, True, "inductor"), (False, False, None)],
)
def test_formulas_have_own_kernels_where_norms_have(
    compiles: bool,
    norms: bool,
    formulas: str | None,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = build("mini_resnet_10_8", Pictures(10, 3, (16, 16)), path="student.model")
    monkeypatch.setattr(step_module, "has_kernels", lambda *_: True)
    student = BlockNetwork(built.network, built.cuts)
    step = step_of(student, make_config(distill={"method": "none"}))
    step.choose_kernels(compiles=compiles, own_norms=norms)
    step.compile_for(4)
    assert step._compiler is not None
    assert step._compiler.formulas == formulas


def own_attention(student: Tensor, teacher: Tensor) -> Tensor:
    with Compiler(len(student), formulas=OWN).at_work(len(student)):
        return attention_error(student, teacher)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Features whose attention maps the kernels compared."""
    return calls_of(monkeypatch, attention_kernels, "attention_error")


@pytest.mark.parametrize(
    ("size", "channels", "dtype"),
    [
        *((size, (100, 3), torch.float32) for size in [(9, 7), (1, 1)]),
        *(((9, 7), (8, 24), dtype) for dtype in (torch.float16, torch.bfloat16)),
        ((34, 34), (3, 5), torch.float32),  # more positions than are read at once
    ],
)
def test_attention_is_compared_as_in_double_precision(
    size: tuple[int, int], channels: tuple[int, int], dtype: torch.dtype, attended: list[Any]
) -> None:
    """As ReLUs leave the features, and with a sample that is dark in each."""
    mine, theirs = channels
    student = maps(4, mine, *size, seed=0, dtype=dtype).relu()
    teacher = maps(4, theirs, *size, seed=1, dtype=dtype).relu()
    student[1], teacher[2] = 0, 0
    student.requires_grad_()
    error = own_attention(student, teacher)
    (error * 300).backward()
    wide = student.detach().double().requires_grad_()
    maps_of = [x.square().sum(1).flatten(1) for x in (wide, teacher.double())]
    one, two = (q / q.norm(dim=1, keepdim=True).clamp_min(1e-12) for q in maps_of)
    exact = (one - two).square().mean(1).sum()
    (exact * 300).backward()
    assert len(attended) == 1
    assert float(error.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
    assert student.grad is not None
    assert student.grad.stride() == student.stride()
    assert wide.grad is not None
    eps, largest = torch.finfo(dtype).eps, float(wide.grad.abs().amax())
    off = (student.grad.double() - wide.grad).abs()
    assert float((off - 2 * eps * wide.grad.abs()).amax()) <= 2e-6 * largest + 1e-7


def test_a_dark_sample_has_no_gradient_and_a_bad_one_is_seen() -> None:
    student, teacher = (maps(3, 8, 4, 4, seed=seed) for seed in (0, 1))
    student[1] = 0
    student[2, 0, 0, 0] = float("nan")
    student.requires_grad_()
    error = own_attention(student, teacher)
    error.backward()
    assert error.isnan()
    assert student.grad is not None
    assert not student.grad[1].any()
    assert student.grad[2].isnan().any()
    assert student.grad[0].isfinite().all()


def test_attention_of_other_features_is_torchs(attended: list[Any]) -> None:
    student, teacher = maps(4, 8, 6, 6, seed=0), maps(4, 16, 6, 6, seed=1)
    others = [
        (student, teacher.contiguous()),
        (student[:, :, ::2], teacher[:, :, ::2]),
        (student.double(), teacher.double()),
        (student, teacher.clone().requires_grad_()),
    ]
    for pair in others:
        found, expected = (
            function(*pair).detach() for function in (own_attention, attention_error)
        )
        torch.testing.assert_close(found, expected)
    assert not attended
