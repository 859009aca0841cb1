"""Each method against its source's equations, written out plainly and in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from tests.trainable.methods import (
    CONV,
    PICTURES,
    WIDER,
    Batch,
    Case,
    case,
    case_of,
    conv,
    noise,
    transformer,
)
from trainable.config import DistillConfig, TrialConfig
from trainable.distill.at import attention
from trainable.distill.dkd import decoupled
from trainable.distill.maps import FeatureShapes, feature_shapes
from trainable.distill.nst import squared_mmd
from trainable.distill.objective import method_of
from trainable.distill.reviewkd import ReviewKD, hierarchical_error, pooled
from trainable.distill.terms import CE, FEATURE, KL, LOSS
from trainable.engine.settings import apply_settings
from trainable.errors import ConfigError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.slope import random_directions
from trainable.networks.teacher import FrozenTeacher


@pytest.fixture
def batch() -> Batch:
    return noise()


def maps(seed: int, channels: int, size: int = 6, samples: int = 5) -> Tensor:
    """As a ReLU leaves them, with a channel that never fires and a sample that is dark."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, channels, size, size, generator=generator).relu()
    features[:, 1] = 0
    features[2] = 0
    return features


def evaluated(name: str, **changes: Any) -> Case:
    """With BatchNorm's running statistics, so that a second forward says the same."""
    found = case(name)
    if changes:
        settings = {**found.config.model_dump(), **changes}
        found = case_of(found.student, found.teacher, **settings)
    found.module.eval()
    return found


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    p = logits.double().softmax(1)
    return -p[torch.arange(len(labels)), labels].log().sum()


def added(found: Case, batch: Batch, expected: float) -> None:
    """LOSS is CE + λ·FEATURE, with the expected FEATURE."""
    terms = found.terms(batch)
    ce = plain_cross_entropy(found.student(batch[0]), batch[1])
    assert terms[FEATURE].item() == pytest.approx(expected, rel=1e-4)
    assert found.config.lam is not None
    assert terms[CE].item() == pytest.approx(ce.item(), rel=1e-5)
    assert terms[LOSS].item() == pytest.approx(ce.item() + found.config.lam * expected, rel=1e-4)


def features(found: Case, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's at each cut."""
    with torch.no_grad():
        *mine, _ = found.student.features(images)
    return list(zip(mine, found.teacher(images).features, strict=True))


# ------------------------------------------------------------------------------------------ at
def plain_attention(feature: Tensor) -> Tensor:
    """Of one sample (C, H, W), by its positions."""
    _, height, width = feature.shape
    squares = [
        sum(float(a) ** 2 for a in feature[:, y, x]) for y in range(height) for x in range(width)
    ]
    length = math.sqrt(sum(q**2 for q in squares))
    return torch.tensor([q / length if length else 0.0 for q in squares], dtype=torch.float64)


def test_attention_is_the_normalised_sum_of_squares() -> None:
    feature = maps(0, 4)
    expected = torch.stack([plain_attention(sample) for sample in feature])
    torch.testing.assert_close(attention(feature).double(), expected, rtol=1e-5, atol=1e-7)


def test_at_is_equation_2_over_networks_of_other_widths(batch: Batch) -> None:
    found = evaluated("at")
    expected = 0.0
    for mine, theirs in features(found, batch[0]):
        assert mine.shape[1] != theirs.shape[1]
        for a, b in zip(mine, theirs, strict=True):
            expected += (plain_attention(a) - plain_attention(b)).square().mean().item()
    added(found, batch, expected)


# ------------------------------------------------------------------------------------------ nst
def plain_mmd(student: Tensor, teacher: Tensor) -> float:
    """Of one sample (C, H, W) each, kernel by kernel."""

    def samples(feature: Tensor) -> list[Tensor]:
        vectors = [channel.double().flatten() for channel in feature]
        return [v / v.norm() if v.norm() > 0 else v for v in vectors]

    def kernel(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> float:
        values = [float(x @ y) ** 2 for x in xs for y in ys]
        return sum(values) / len(values)

    mine, theirs = samples(student), samples(teacher)
    return kernel(theirs, theirs) + kernel(mine, mine) - 2 * kernel(mine, theirs)


def test_mmd_is_that_of_the_polynomial_kernel() -> None:
    mine, theirs = maps(0, 4), maps(1, 7)
    expected = sum(plain_mmd(a, b) for a, b in zip(mine, theirs, strict=True))
    assert squared_mmd(mine, theirs).item() == pytest.approx(expected, rel=1e-5)


def test_nst_is_the_sources_equation_over_networks_of_other_widths(batch: Batch) -> None:
    found = evaluated("nst")
    expected = 0.0
    for mine, theirs in features(found, batch[0]):
        expected += sum(plain_mmd(a, b) for a, b in zip(mine, theirs, strict=True))
    added(found, batch, expected)


@pytest.mark.parametrize("name", ["at", "nst"])
def test_a_student_equal_to_its_teacher_has_no_error(name: str, batch: Batch) -> None:
    student = conv(0, CONV)
    found = case_of(student, FrozenTeacher(student), method=name, lam=1.0)
    found.module.eval()
    terms = found.terms(batch)
    assert abs(terms[FEATURE].item()) < 1e-6


@pytest.mark.parametrize("compare", [squared_mmd, lambda a, b: (attention(a) - attention(b)).sum()])
def test_dark_maps_have_a_finite_gradient(compare: Any) -> None:
    mine = maps(0, 4).requires_grad_()
    compare(mine, maps(1, 4)).backward()
    assert mine.grad is not None
    assert mine.grad.isfinite().all()
    assert mine.grad.abs().max() < 1e3


# ------------------------------------------------------------------------------------------ reviewkd
def plain_hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch."""
    total, weights = F.mse_loss(student, teacher), 1.0
    sides = [side for side in (4, 2, 1) if side < student.shape[2]]
    for power, side in enumerate(sides, start=1):
        mine, theirs = (F.adaptive_avg_pool2d(x, side) for x in (student, teacher))
        total = total + F.mse_loss(mine, theirs) / 2**power
        weights += 1 / 2**power
    return total / weights


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 14])
def test_the_hierarchical_error_is_that_of_adaptive_pooling(size: int) -> None:
    mine, theirs = torch.randn(5, 3, size, size), torch.randn(5, 3, size, size)
    expected = 5 * plain_hcl(mine.double(), theirs.double())
    assert hierarchical_error(mine, theirs).item() == pytest.approx(expected.item(), rel=1e-5)
    for side in range(1, size + 1):
        torch.testing.assert_close(pooled(mine, side), F.adaptive_avg_pool2d(mine, side))


def plain_review(
    method: nn.Module, student: Sequence[Tensor], teacher: Sequence[Tensor], *, training: bool
) -> float:
    """From the state dict alone, deepest first."""
    state = {name: tensor.clone().double() for name, tensor in method.state_dict().items()}

    def normed(x: Tensor, name: str, padding: int) -> Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], padding=padding)
        mean, var = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        weight, bias = state[f"{name}.1.weight"], state[f"{name}.1.bias"]
        return F.batch_norm(x, mean, var, weight, bias, training)

    total, deeper = 0.0, None
    for level in reversed(range(len(student))):
        name, theirs = f"fusions.{level}", teacher[level].double()
        x = normed(student[level].double(), f"{name}.reduce", 0)
        if deeper is not None:
            y = F.interpolate(deeper, size=x.shape[2:])
            both = torch.cat([x, y], dim=1)
            weights = state[f"{name}.attention.weight"], state[f"{name}.attention.bias"]
            mask = torch.sigmoid(F.conv2d(both, *weights))
            x = x * mask[:, 0, None] + y * mask[:, 1, None]
        x = deeper = F.interpolate(x, size=theirs.shape[2:])
        total += len(x) * plain_hcl(normed(x, f"{name}.expand", 1), theirs).item()
    return total


@pytest.mark.parametrize("training", [True, False])
def test_reviewkd_fuses_from_deep_to_shallow(training: bool, batch: Batch) -> None:
    found = evaluated("reviewkd")
    with torch.no_grad():
        for buffer in found.module.method.buffers():
            buffer.add_(0.5) if buffer.is_floating_point() else None
    pairs = features(found, batch[0])
    assert all(mine.shape[1] != theirs.shape[1] for mine, theirs in pairs)
    mine, theirs = zip(*pairs, strict=True)
    found.module.method.train(training)
    expected = plain_review(found.module.method, mine, theirs, training=training)
    added(found, batch, expected)


def test_reviewkd_resizes_to_the_teachers_maps() -> None:
    """The student's maps twice as high and wide."""
    shapes = FeatureShapes((8, 8), ("a", "b"), ((3, 8, 8), (5, 4, 4)), ((4, 4, 4), (6, 2, 2)))
    method = ReviewKD(DistillConfig(method="reviewkd", lam=1.0), shapes).eval()
    mine = [torch.randn(4, *shape) for shape in shapes.student]
    theirs = [torch.randn(4, *shape) for shape in shapes.teacher]
    fused, found = None, 0.0
    for fusion, x, y in reversed(list(zip(method.fusions, mine, theirs, strict=True))):
        reviewed, fused = fusion(x, fused)
        found += hierarchical_error(reviewed, y).item()
    assert found == pytest.approx(plain_review(method, mine, theirs, training=False), rel=1e-4)


# ------------------------------------------------------------------------------------------ dkd
def plain_dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[float, float, float]:
    """T²·TCKD, T²·NCKD and T²·(1 − p_T)·NCKD, from probabilities, sample by sample."""
    sums = [0.0, 0.0, 0.0]
    for z_s, z_t, label in zip(student.double(), teacher.double(), labels.tolist(), strict=True):
        p_s, p_t = ((z / temperature).softmax(0) for z in (z_s, z_t))
        rest_s, rest_t = 1 - p_s[label], 1 - p_t[label]
        target = p_t[label] * (p_t[label] / p_s[label]).log() + rest_t * (rest_t / rest_s).log()
        nontarget = sum(
            (p_t[c] / rest_t) * ((p_t[c] / rest_t) / (p_s[c] / rest_s)).log()
            for c in range(len(p_s))
            if c != label
        )
        for place, value in enumerate((target, nontarget, rest_t * nontarget)):
            sums[place] += temperature**2 * float(value)
    return sums[0], sums[1], sums[2]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_equation_7(temperature: float, batch: Batch) -> None:
    found = evaluated("dkd", temperature=temperature, target_weight=0.5, nontarget_weight=3.0)
    logits, outputs = found.student(batch[0]).detach(), found.teacher(batch[0])
    target, nontarget, rest = plain_dkd(logits, outputs.logits, batch[1], temperature)
    terms = found.terms(batch)
    ce = plain_cross_entropy(logits, batch[1]).item()
    assert terms[LOSS].item() == pytest.approx(ce + 0.5 * target + 3.0 * nontarget, rel=1e-4)
    assert terms[KL].item() == pytest.approx(target + rest, rel=1e-4)  # eq. 5


def test_dkd_weighs_as_the_source_unless_told_otherwise(batch: Batch) -> None:
    found = evaluated("dkd")
    target, nontarget = decoupled(
        found.student(batch[0]), found.teacher(batch[0]).logits, batch[1], 2.0
    )
    terms = found.terms(batch)
    torch.testing.assert_close(terms[LOSS], terms[CE] + target + 8.0 * nontarget)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_dkd_of_sure_networks_is_that_of_double_precision(size: float) -> None:
    """Where both are sure of one class each, of the label or not: a difference of logits, not an infinity."""
    sure = size * torch.eye(4)
    student = sure[[0, 1, 2, 0]].clone().requires_grad_()
    teacher, labels = sure[[0, 0, 0, 1]], torch.tensor([0, 0, 3, 3])
    target, nontarget = decoupled(student, teacher, labels, 1.0)
    # The label against the rest: they differ in the second picture alone, by the student's margin.
    # Among the rest: the first has none, the second an even teacher, the others one choice each.
    assert target.item() == pytest.approx(size, rel=1e-6)
    assert nontarget.item() == pytest.approx(size * 2 / 3 + size + size, rel=0.05)
    (target + nontarget).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_dkd_of_equal_logits_is_0_with_no_gradient() -> None:
    logits = torch.randn(5, 7)
    student = logits.clone().requires_grad_()
    target, nontarget = decoupled(student, logits, torch.arange(5), 2.0)
    (target + nontarget).backward()
    assert max(abs(target.item()), abs(nontarget.item())) < 1e-5
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


# ------------------------------------------------------------------------------------------ deit
def plain_kl(student: Tensor, teacher: Tensor, temperature: float) -> float:
    p_s, p_t = ((z.double() / temperature).softmax(1) for z in (student, teacher))
    return temperature**2 * (p_t * (p_t / p_s).log()).sum().item()


@pytest.mark.parametrize("name", ["deit-hard", "deit-soft"])
def test_deit_teaches_the_class_token_labels_and_the_other_the_teacher(
    name: str, batch: Batch
) -> None:
    """Equations 3 and 2, with α = 0.3 and T = 2."""
    found = evaluated(name)
    tokens = found.student.embed(batch[0])
    head = found.student.network.get_submodule("head")
    by_class, by_distillation = head.classifier(tokens[:, 0]), head.distillation(tokens[:, 1])
    answer = found.teacher(batch[0]).logits
    ce = plain_cross_entropy(by_class, batch[1]).item()
    kl = plain_kl(by_distillation, answer, 2.0)
    first_choice = plain_cross_entropy(by_distillation, answer.argmax(1)).item()
    terms = found.terms(batch)
    term = first_choice if name == "deit-hard" else kl
    assert terms[LOSS].item() == pytest.approx(0.7 * ce + 0.3 * term, rel=1e-5)
    assert terms[CE].item() == pytest.approx(ce, rel=1e-5)
    assert terms[KL].item() == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize(("alpha", "silent"), [(0.0, "distillation"), (1.0, "classifier")])
def test_each_token_learns_from_its_own_loss_alone(alpha: float, silent: str, batch: Batch) -> None:
    found = evaluated("deit-hard", alpha=alpha)
    for name, gradient in found.gradients(lambda: found.terms(batch)[LOSS]).items():
        if "head" in name.split("."):
            assert (gradient.abs().sum() == 0) == (silent in name), name


# ------------------------------------------------------------------------------------------ sobolev
def plain_slope(network: BlockNetwork, images: Tensor, directions: Tensor) -> Tensor:
    """vᵀ·J of log-probabilities, from the whole Jacobian of each picture."""
    network.eval()
    slopes: list[Tensor] = []
    for image, direction in zip(images, directions, strict=True):
        rows = jacobian(lambda x: network(x[None]).log_softmax(1)[0], image)
        slopes.append(torch.einsum("c,c...->...", direction, rows))
    return torch.stack(slopes)


def test_sobolev_compares_the_jacobians_along_a_direction(batch: Batch) -> None:
    found = evaluated("sobolev")
    outputs = found.ask(batch[0])
    assert outputs.slope is not None
    directions = outputs.slope.directions
    theirs = plain_slope(found.teacher.blocks, batch[0], directions)
    mine = plain_slope(found.student, batch[0], directions)
    torch.testing.assert_close(outputs.slope.gradient, theirs, rtol=1e-4, atol=1e-6)
    terms = found.module(*batch, outputs)
    expected = (mine - theirs).square().sum().item()
    assert terms[FEATURE].item() == pytest.approx(expected, rel=1e-4)
    logits = found.student(batch[0])
    kl = plain_kl(logits, outputs.logits, 2.0)
    ce = plain_cross_entropy(logits, batch[1]).item()
    assert terms[LOSS].item() == pytest.approx(0.7 * ce + 0.3 * kl + 2.0 * expected, rel=1e-4)


def test_the_gradient_of_sobolevs_term_is_that_of_finite_differences(batch: Batch) -> None:
    """The double backward, in double precision, along a random direction of all parameters."""
    found = evaluated("sobolev")
    found.module.double()
    found.teacher.double()
    images = batch[0].double()
    outputs = found.ask(images)

    def term() -> Tensor:
        return found.module(images, batch[1], outputs)[FEATURE]

    gradient = found.gradients(term)
    parameters = dict(found.module.named_parameters())
    generator = torch.Generator().manual_seed(4)
    way = {n: torch.randn(p.shape, generator=generator).double() for n, p in parameters.items()}
    values: list[float] = []
    for size in (1e-6, -1e-6):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(way[name], alpha=size)
        values.append(term().item())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.sub_(way[name], alpha=size)
    # The parameters of the last layer's bias are in the log-probabilities, too.
    along = sum(float((gradient[n] * way[n]).sum()) for n in gradient)
    assert along == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-3)


def test_sobolev_runs_in_fp32_under_autocast(batch: Batch) -> None:
    """Bit for bit: an inner gradient in fp16 would vanish, and no loss scale is for it."""
    found = evaluated("sobolev")
    torch.manual_seed(5)
    expected = found.gradients(lambda: found.terms(batch)[FEATURE])
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        term = found.terms(batch)[FEATURE]
    mine = found.gradients(lambda: term)
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_a_student_equal_to_its_teacher_has_its_slopes(batch: Batch) -> None:
    student = conv(0, CONV)
    found = case_of(student, FrozenTeacher(student), method="sobolev", alpha=1.0, lam=1.0)
    found.module.eval()
    terms = found.terms(batch)
    assert terms[FEATURE].item() < 1e-8
    assert terms[LOSS].item() < 1e-5


@pytest.fixture
def settings_of_sobolev() -> Iterator[None]:
    """Of the process, as a trial has them."""
    tree = {"data": {"source": "digits"}, "student": {"model": CONV}}
    apply_settings(TrialConfig.model_validate({**tree, "distill": {"method": "sobolev"}}))
    yield
    apply_settings(TrialConfig.model_validate(tree))
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.usefixtures("settings_of_sobolev")
@pytest.mark.parametrize("student", [transformer, partial(conv, model=CONV)])
def test_sobolev_trains_transformers_and_recomputed_blocks(
    student: Callable[[int], BlockNetwork], batch: Batch
) -> None:
    """Fused attention has no second derivative, and recomputation must give the same gradient."""
    teacher = FrozenTeacher(conv(1, WIDER))
    found = case_of(student(0), teacher, method="sobolev", alpha=0.5, lam=1.0)
    found.module.train()
    outputs = found.ask(batch[0])
    whole = found.gradients(lambda: found.module(*batch, outputs)[LOSS])
    found.student.recompute = True
    again = found.gradients(lambda: found.module(*batch, outputs)[LOSS])
    assert len(whole) == len(list(found.student.parameters()))
    for name, gradient in whole.items():
        torch.testing.assert_close(again[name], gradient)


def test_directions_are_of_length_1_and_drawn_from_the_global_generator() -> None:
    logits = torch.zeros(1000, 5)
    torch.manual_seed(3)
    first = random_directions(logits)
    second = random_directions(logits)
    torch.manual_seed(3)
    assert torch.equal(random_directions(logits), first)
    assert not torch.isclose(first, second).any()
    torch.testing.assert_close(first.norm(dim=1), torch.ones(1000))
    # Uniform on the sphere: no mean, and as much of the square in each class.
    assert first.mean(0).abs().max() < 0.07
    torch.testing.assert_close(first.square().mean(0), torch.full((5,), 0.2), rtol=0.1, atol=0)


def test_a_teacher_that_was_not_asked_for_its_slope_is_an_error(batch: Batch) -> None:
    found = case("sobolev")
    with pytest.raises(ValueError, match="slope"):
        found.module(*batch, found.teacher(batch[0]))


# ------------------------------------------------------------------------------------------ refusals
def built(method: str, shapes: FeatureShapes | None, **distill: Any) -> None:
    config = DistillConfig.model_validate({"method": method, **distill})
    method_of(config, transformer(0, distilled=False), [], shapes)


def shapes_of(student: tuple[int, ...], teacher: tuple[int, ...]) -> FeatureShapes:
    """Of two cuts, of which the first is sound."""
    return FeatureShapes((8, 8), ("one", "two"), ((3, 8, 8), student), ((5, 8, 8), teacher))


@pytest.mark.parametrize("method", ["at", "nst"])
def test_maps_of_other_sizes_are_refused_with_cut_and_shapes(method: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(method, shapes_of((4, 4, 4), (8, 2, 2)), lam=1.0)
    (problem,) = caught.value.problems
    assert problem.path == "student.cuts"
    assert "at two the student has (4, 4, 4) and the teacher (8, 2, 2)" in problem.rule
    assert "reviewkd" in problem.remedy
    built("reviewkd", shapes_of((4, 4, 4), (8, 2, 2)), lam=1.0)


@pytest.mark.parametrize("method", ["at", "nst", "reviewkd"])
@pytest.mark.parametrize("shape", [(65, 12), (4, 4, 96), (64,)])
def test_features_that_are_no_maps_are_refused(method: str, shape: tuple[int, ...]) -> None:
    """Tokens, Swin's channels-last, a vector."""
    for student, teacher in ((shape, (4, 4, 4)), ((4, 4, 4), shape), (shape, shape)):
        with pytest.raises(ConfigError, match="maps of") as caught:
            built(method, shapes_of(student, teacher), lam=1.0)
        (problem,) = caught.value.problems
        assert "kd, mse, kd_mse, sobolev, dkd, stablekd" in problem.remedy


def test_maps_of_oblong_pictures_are_maps() -> None:
    """64×48 pixels, halved five times, with a width that 2 does not divide any more."""
    sizes = [(64, 48), (32, 24), (16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]
    maps_ = tuple((7, *size) for size in sizes)
    names = tuple(f"cut{number}" for number in range(len(sizes)))
    built("at", FeatureShapes((64, 48), names, maps_, maps_), lam=1.0)


@pytest.mark.parametrize("method", ["at", "nst", "reviewkd"])
def test_networks_without_cuts_are_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=r"student.cuts: .*there are none; name one"):
        built(method, FeatureShapes((8, 8), (), (), ()), lam=1.0)


@pytest.mark.parametrize("method", ["at", "nst", "reviewkd"])
def test_maps_need_their_shapes_and_weight(method: str) -> None:
    shapes = feature_shapes(conv(0, CONV), conv(1, WIDER), PICTURES)
    with pytest.raises(ValueError, match="shapes"):
        built(method, None, lam=1.0)
    with pytest.raises(ValueError, match="lam must be set"):
        built(method, shapes)


def test_deit_needs_a_distillation_token() -> None:
    with pytest.raises(ConfigError, match=r"student.model: deit needs a vision transformer.*vit"):
        built("deit", None, alpha=0.5)


@pytest.mark.parametrize(
    ("method", "given"), [("deit", {}), ("sobolev", {"alpha": 0.5}), ("sobolev", {"lam": 0.5})]
)
def test_weights_that_are_missing_are_an_error(method: str, given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be set"):
        built(method, None, **given)
