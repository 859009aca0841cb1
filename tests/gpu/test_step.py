"""The step on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from torch.amp import GradScaler

from tests.gpu.stepping import CAPTURED, CUDA, SIZE, TOO_LARGE, Setup, changed
from trainable.config import ResourcesConfig, TrainConfig, TrialConfig
from trainable.distill.terms import LOSS
from trainable.engine.inputs import Place
from trainable.engine.settings import apply_settings
from trainable.errors import TrainingError

pytestmark = pytest.mark.gpu
EVERY_FORM = pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])


def settings_of(precision: str) -> TrialConfig:
    """With the settings of the process, TF32's among them."""
    return TrialConfig.model_validate(
        {
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_8"},
            "distill": {"method": "none"},
            "train": TrainConfig.model_validate({"precision": precision}),
            "resources": ResourcesConfig(),
        }
    )


@pytest.mark.usefixtures("restored_determinism")
@EVERY_FORM
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_every_precision_trains(precision: str, graph: bool) -> None:
    apply_settings(settings_of(precision))
    setup = Setup(precision=precision, clip=5.0, graph=graph)
    losses: list[float] = []
    for _ in range(30):
        setup.update()
        sums = setup.step.losses.flush()
        losses += [sums[LOSS]] if sums[LOSS] else []
    assert len(losses) > 20
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.dtype == torch.float32 for p in setup.student.parameters())


@pytest.mark.usefixtures("restored_determinism")
def test_tf32_rounds_what_fp32_does_not() -> None:
    """On devices that have it: the inputs of a product to 10 bits."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the device has no TF32")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator).to(CUDA) for _ in range(2))
    errors = {}
    for precision in ("tf32", "fp32"):
        apply_settings(settings_of(precision))
        errors[precision] = float((a @ b - (a.double() @ b.double())).abs().max())
    assert errors["fp32"] < 1e-4
    assert errors["tf32"] > 10 * errors["fp32"]


def trained_in_fp16(*, graph: bool = False) -> Setup:
    """Past the first updates, in which the scale comes down to where it fits."""
    setup = Setup(precision="fp16", graph=graph)
    for _ in range(24):
        setup.update()
    setup.step.health.flush()
    return setup


@EVERY_FORM
def test_an_overflow_in_fp16_halves_the_scale_and_leaves_no_trace(graph: bool) -> None:
    setup = trained_in_fp16(graph=graph)
    scale, before = setup.scale, setup.state()
    setup.update(factor=TOO_LARGE)
    assert setup.scale == scale / 2
    assert setup.step.health.flush() == (1, {"feature": 1})
    assert changed(before, setup.state()) == []
    setup.step.losses.flush()
    first = None
    for _ in range(20):
        setup.update()
        first = setup.step.losses.flush()[LOSS] if first is None else first
    last = setup.step.losses.flush()[LOSS] / 19
    assert setup.step.health.flush() == (0, {})
    assert last < first
    assert all(value.isfinite().all() for value in setup.student.state_dict().values())


def test_without_the_guard_the_same_overflow_stays_in_batchnorm_for_good() -> None:
    """GradScaler alone saves the parameters, and no more."""
    setup = trained_in_fp16()
    scaler, optimizer = GradScaler("cuda", init_scale=setup.scale), setup.step.optimizer
    before = {name: p.detach().clone() for name, p in setup.student.named_parameters()}

    def plain_update(factor: float) -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            outputs = setup.teacher(setup.images)
            terms = setup.objective(setup.images * factor, setup.labels, outputs)
        scaler.scale(terms[LOSS] / SIZE).backward()
        scaler.step(optimizer)
        scaler.update()

    plain_update(TOO_LARGE)
    assert scaler.get_scale() == setup.scale / 2
    assert changed(before, dict(setup.student.named_parameters())) == []
    mean = setup.student.network.get_buffer("bn1.running_mean")
    assert mean.isnan().any()
    for _ in range(5):
        plain_update(1.0)
    assert mean.isnan().any()
    setup.student.eval()
    assert setup.student(setup.images).isnan().all()


@EVERY_FORM
@pytest.mark.parametrize("label", [10, -1, 2**40])
def test_a_label_without_a_class_is_skipped_and_does_not_stop_the_device(
    label: int, graph: bool
) -> None:
    setup = Setup(accumulate=2, observe_every=1, graph=graph)
    for _ in range(CAPTURED):
        setup.update()
    before, good = setup.state(), setup.labels.clone()
    setup.labels[SIZE // 2 + 5] = label
    setup.update()
    torch.cuda.synchronize()
    assert setup.step.health.flush() == (1, {"label": 1})
    assert setup.step.inputs.place() == Place(update=CAPTURED, micro_batch=1, position=5)
    assert changed(before, setup.state()) == []
    setup.labels.copy_(good)
    setup.update()
    assert setup.step.health.flush() == (0, {})
    assert "network.fc.weight" in changed(before, setup.state())


@EVERY_FORM
def test_a_picture_that_is_not_finite_is_told_to_the_loop(graph: bool) -> None:
    setup = Setup(observe_every=1, graph=graph)
    for _ in range(CAPTURED):
        setup.update()
    assert setup.step.health.check("here", wait=True) is False
    setup.images[7, 0, 3, 3] = float("nan")
    setup.update()
    assert setup.step.health.check("here", wait=True) is True
    assert setup.step.inputs.place() == Place(update=CAPTURED, micro_batch=0, position=7)


@EVERY_FORM
def test_too_many_skipped_updates_end_a_trial_though_nobody_waits_for_the_device(
    graph: bool,
) -> None:
    """The counters are looked at every 16 updates, and each look sees the one before."""
    setup = Setup(precision="fp16", max_skipped=3, loss_scale={"floor": 1e-9}, graph=graph)

    def only_bad_updates() -> None:
        for _ in range(100):
            setup.update(factor=TOO_LARGE)

    with pytest.raises(TrainingError, match=r"train.max_skipped: .* feature \d+×"):
        only_bad_updates()
    assert setup.number == 32
