"""When skipping has to end, and what is said then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainable.stepping import Breakable, accumulate, noise, plain_network, step_of, update
from tests.trainable.trials import CPU, MakeConfig
from trainable.config import TrainConfig
from trainable.distill.kd import KD
from trainable.distill.terms import KL, LOSS
from trainable.engine.health import Health
from trainable.engine.inputs import INPUT, LABEL, Inputs, Place
from trainable.engine.precision import Precision
from trainable.engine.step import Step
from trainable.errors import TrainingError
from trainable.networks.teacher import FrozenTeacher

NAMES = [INPUT, LABEL, "ce", "loss", "batchnorm", "head", "layer1"]


def health_of(**train: Any) -> Health:
    config = TrainConfig.model_validate(train)
    return Health(config, Precision(config, CPU), CPU)


def judge(health: Health, *places: str) -> float:
    """An update in which these places are not finite."""
    flags = torch.tensor([float(name in places) for name in NAMES])
    health.count(NAMES, flags)
    return float(flags.amax())


class Updates:
    """KD on a small network; its loss breaks on demand."""

    def __init__(self, make_config: MakeConfig, **train: Any) -> None:
        config = make_config(train=train)
        self.student, self.teacher = plain_network(0), FrozenTeacher(plain_network(1))
        self.method = Breakable(KD(config.distill))
        self.step: Step = step_of(self.student, config, {"lr": 0.01}, self.method)
        self.number = 0

    def one(self, *, bad: bool) -> None:
        self.method.term = KL if bad else None
        update(self.step, self.teacher, noise(self.number), [16], 0.01)
        self.number += 1
        self.step.health.check(f"epoch 1, update {self.number}")

    @property
    def scale(self) -> float:
        return self.step.precision.scaler.get_scale()


def test_one_skipped_update_more_than_allowed_in_a_row_ends_the_trial(
    make_config: MakeConfig,
) -> None:
    updates = Updates(make_config, max_skipped=3)
    for bad in (True, True, True, False, True, True, True):
        updates.one(bad=bad)
    with pytest.raises(TrainingError) as raised:
        updates.one(bad=True)
    assert str(raised.value) == (
        "train.max_skipped: at most 3 updates in a row may be skipped, not 4, "
        "got epoch 1, update 8: first not finite in kl 4×; "
        "lower optim.lr or set train.clip"
    )


def test_a_good_update_and_it_alone_starts_the_count_again(make_config: MakeConfig) -> None:
    updates = Updates(make_config, max_skipped=2)
    for bad in (True, True, False) * 4:
        updates.one(bad=bad)
    assert updates.step.health.flush() == (8, {"kl": 8})
    updates.one(bad=True)
    updates.step.health.flush()  # of the epoch; the row goes on
    updates.one(bad=True)
    with pytest.raises(TrainingError, match="not 3"):
        updates.one(bad=True)


def test_the_counts_by_place_come_largest_first() -> None:
    health = health_of(max_skipped=3, clip=1.0, precision="fp16")
    for place in ("ce", "layer1", "layer1"):
        judge(health, place)
        assert health.check("here") is False
    judge(health, "batchnorm", "layer1")
    with pytest.raises(TrainingError) as raised:
        health.check("epoch 2, update 7")
    said = "layer1 2×, ce 1×, batchnorm 1×"
    assert f"got epoch 2, update 7: first not finite in {said}; " in str(raised.value)
    assert str(raised.value).endswith("; lower optim.lr or use train.precision: bf16")


def test_only_the_row_that_ends_the_trial_is_told() -> None:
    health = health_of(max_skipped=2)
    for _ in range(20):
        judge(health, "layer1")
        judge(health)
    for _ in range(3):
        judge(health, "ce")
    with pytest.raises(TrainingError, match=r"first not finite in ce 3×;"):
        health.check("here")


@pytest.mark.parametrize("start", range(17))
def test_a_row_between_two_looks_at_a_gpus_counters_is_found(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: every 16th update is looked at, one look late."""
    health = health_of(max_skipped=3)
    judge(health)
    given: list[list[float] | None] = [None]

    def exchange(numbers: torch.Tensor) -> list[float] | None:
        given.append(numbers.tolist())
        return given[-2]

    monkeypatch.setattr(health._copies, "exchange", exchange)
    monkeypatch.setattr(health, "_device", torch.device("cuda"))
    judged = 0

    def updates() -> None:
        nonlocal judged
        for number in range(60):
            judged = number + 1
            judge(health, *(("ce",) if start <= number < start + 4 else ()))
            health.check("here")

    with pytest.raises(TrainingError, match=r"not 4, got here: first not finite in ce 4×"):
        updates()
    assert judged <= start + 4 + 32


@pytest.mark.parametrize("first", range(len(NAMES)))
def test_the_first_place_is_blamed_for_what_comes_after_it(first: int) -> None:
    health = health_of()
    assert judge(health, *NAMES[first:]) == 1
    assert judge(health) == 0
    assert health.flush() == (1, {NAMES[first]: 1})
    assert health.flush() == (0, {})


@pytest.mark.parametrize("place", [INPUT, LABEL])
def test_a_bad_sample_is_told_to_who_can_name_it(place: str) -> None:
    health = health_of(max_skipped=1)
    for _ in range(3):  # more than may be skipped: the sample is the better reason
        judge(health, place, "ce")
    assert health.check("here") is True


def test_a_block_that_is_called_as_a_sample_is_none() -> None:
    health, names = health_of(), [*NAMES, INPUT]
    health.count(names, torch.tensor([*[0.0] * len(NAMES), 1.0]))
    assert health.check("here") is False


def test_places_cannot_change_on_the_way() -> None:
    health = health_of()
    judge(health)
    with pytest.raises(ValueError, match="the places must stay"):
        health.count(["input", "label"], torch.zeros(2))


def test_the_counters_go_on_from_their_state() -> None:
    health = health_of(max_skipped=2)
    judge(health, "loss")
    judge(health, "ce")
    again = health_of(max_skipped=2)
    of_before = {"in_a_row": torch.tensor(2.0)}  # checkpoints once had it; it is the row's sum
    again.load_state_dict({**health.state_dict(), **of_before})
    assert again.flush() == (2, {"ce": 1, "loss": 1})
    assert again.check("here") is False
    judge(again, "ce")
    with pytest.raises(TrainingError, match=r"not 3.*ce 2×, loss 1×"):
        again.check("here")


def test_a_state_from_before_the_first_update_can_be_gone_on_from() -> None:
    again = health_of()
    again.load_state_dict(health_of().state_dict())
    assert judge(again, "head") == 1
    assert again.flush() == (1, {"head": 1})


# The loss scale of fp16, which CPUs train in, too.


def test_the_scale_halves_on_a_skip_and_doubles_after_good_updates(
    make_config: MakeConfig,
) -> None:
    scale = {"initial": 64.0, "growth_interval": 3}
    updates = Updates(make_config, precision="fp16", loss_scale=scale)
    found = []
    for bad in (False, True, False, False, False, False, False, True, False):
        updates.one(bad=bad)
        found.append(updates.scale)
    assert found == [64, 32, 32, 32, 64, 64, 64, 32, 32]
    assert updates.step.health.flush() == (2, {"kl": 2})


def test_a_scale_below_its_floor_ends_the_trial(make_config: MakeConfig) -> None:
    scale = {"initial": 16.0, "floor": 4.0}
    updates = Updates(make_config, precision="fp16", loss_scale=scale)
    updates.one(bad=True)
    updates.one(bad=True)
    assert updates.scale == 4
    with pytest.raises(TrainingError) as raised:
        updates.one(bad=True)
    assert str(raised.value) == (
        "train.loss_scale.floor: the loss scale must stay >= 4: below it, it is not the scale "
        "that overflows, got epoch 1, update 3: first not finite in kl 3×; "
        "lower optim.lr or set train.clip or use train.precision: bf16"
    )


def test_a_scale_that_was_below_its_floor_between_two_looks_is_found(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = {"initial": 4.0, "floor": 4.0, "growth_interval": 1}
    updates = Updates(make_config, precision="fp16", loss_scale=scale)
    with monkeypatch.context() as unseen:
        unseen.setattr(updates.step.health, "check", lambda where: False)
        for bad in (True, False, False):
            updates.one(bad=bad)
    assert updates.scale == 8
    with pytest.raises(TrainingError, match=r"train\.loss_scale\.floor"):
        updates.one(bad=False)


def test_a_gradient_that_overflows_by_the_scale_alone_is_skipped_until_it_fits(
    make_config: MakeConfig,
) -> None:
    """fp16 ends at 65504: the scale comes down until the gradient of the logits fits."""
    scale = {"initial": 2.0**32, "growth_interval": 1000}
    updates = Updates(make_config, precision="fp16", loss_scale=scale)
    for _ in range(25):
        updates.one(bad=False)
    skipped = updates.step.health.flush()
    assert 5 < skipped.total < 25
    assert set(skipped.by_place) <= {"head", "act"}
    assert updates.scale == 2.0 ** (32 - skipped.total)
    losses = updates.step.losses.flush()
    assert 0 < losses[LOSS] < float("inf")


def test_the_scale_goes_on_from_its_state(make_config: MakeConfig) -> None:
    scale = {"initial": 64.0, "growth_interval": 3}
    updates = Updates(make_config, precision="fp16", loss_scale=scale)
    for bad in (True, False, False):
        updates.one(bad=bad)
    again = Updates(make_config, precision="fp16", loss_scale=scale)
    again.step.load(updates.step.shared_state(), updates.step.own_state())
    assert again.scale == 32
    again.one(bad=False)  # the third good one in a row
    assert again.scale == 64


# Where a bad sample was.


def test_a_place_names_update_micro_batch_and_position(make_config: MakeConfig) -> None:
    updates = Updates(make_config)
    updates.one(bad=False)
    updates.one(bad=True)
    assert updates.step.inputs.place() is None
    images, labels = noise(5)
    images[13, 2, 0, 0] = float("nan")
    images[15] = float("nan")
    for batch in ((images, labels), noise(6), (images[:1] * float("inf"), labels[:1])):
        sizes = [6, 6, 4] if len(batch[1]) == 16 else [1]
        update(updates.step, updates.teacher, batch, sizes, 0.01)
    assert updates.step.inputs.place() == Place(update=2, micro_batch=2, position=1)
    assert updates.step.health.check("here") is True


def test_however_long_a_trial_is_a_bad_sample_is_found() -> None:
    inputs, (images, labels) = Inputs(10, CPU), noise(0)
    images[3] = float("nan")
    inputs.enter(2**27 + 5)  # the last that there are numbers for is 2²⁷ − 1
    inputs.start()
    inputs.look(images, labels, 0)
    assert inputs.found.tolist() == [1.0, 0.0]
    assert inputs.place() == Place(update=2**27 - 1, micro_batch=0, position=3)


@pytest.mark.parametrize("label", [10, -1, 2**40])
def test_a_label_without_a_class_is_found_and_brought_into_range(label: int) -> None:
    inputs = Inputs(10, CPU)
    inputs.enter(70_000)
    inputs.start()
    images, labels = noise(0)
    labels[7] = label
    inputs.look(images, labels, 300)
    seen = inputs.in_range(labels)
    assert inputs.found.tolist() == [0, 1]
    assert inputs.place() == Place(70_000, 300, 7)
    assert seen[7] in (0, 9)
    assert labels[7] == label
    keep = torch.arange(16) != 7
    assert torch.equal(seen[keep], labels[keep])
    inputs.enter(70_001)
    inputs.start()
    inputs.look(*noise(0), 0)
    assert inputs.found.tolist() == [0, 0]


def test_what_one_micro_batch_had_the_next_does_not_hide(make_config: MakeConfig) -> None:
    updates = Updates(make_config)
    images, labels = noise(5)
    images[0] = float("inf")
    accumulate(updates.step, updates.teacher, (images, labels), [4, 4, 8])
    assert updates.step.inputs.found.tolist() == [1, 0]
    updates.step.finish(0.01)
    assert updates.step.health.flush() == (1, {INPUT: 1})


def test_the_first_bad_sample_is_told_after_others_were_bad() -> None:
    inputs = Inputs(10, CPU)
    images, labels = noise(0)
    unknown, broken = labels.clone(), images.clone()
    unknown[6], broken[2, 0, 0, 0] = 10, float("-inf")
    for number, seen in ((3, (images, unknown)), (4, (broken, labels))):
        inputs.enter(number)
        inputs.start()
        inputs.look(*seen, 0)
        assert inputs.found.tolist() == [number == 4, number == 3]
    assert inputs.place() == Place(3, 0, 6)
