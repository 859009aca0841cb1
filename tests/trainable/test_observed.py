"""What is observed of gradients and updates, against plain arithmetic in fp64 on what hooks catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.conftest import MakeConfig
from tests.trainable.stepping import accumulate, noise, step_of, update
from trainable import records
from trainable.engine.step import Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.statistics.gradients import BlockMembership
from trainable.statistics.observed import Observed
from trainable.statistics.rows import Rows

EVERY = 2


class Caught:
    """Gradients and parameters before and after the observed updates, as the optimizer's hooks see them."""

    def __init__(self, step: Step, student: BlockNetwork) -> None:
        self.named = dict(student.network.named_parameters())
        self.gradients: list[dict[str, Tensor]] = []
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.updates = 0
        step.optimizer.register_step_pre_hook(self._see_before)
        step.optimizer.register_step_post_hook(self._see_after)

    def _see_before(self, *_: Any) -> None:
        if self.updates % EVERY == 0:
            self.gradients.append({n: p.grad.double() for n, p in self.named.items()})  # type: ignore[union-attr]
            self.before.append({n: p.detach().double() for n, p in self.named.items()})

    def _see_after(self, *_: Any) -> None:
        if self.updates % EVERY == 0:
            self.after.append({n: p.detach().double() for n, p in self.named.items()})
        self.updates += 1

    def expected(self, names: list[str]) -> dict[str, float]:
        """Statistics of the joined tensors of some parameters."""
        found: list[dict[str, float]] = []
        for gradients, before, after in zip(self.gradients, self.before, self.after, strict=True):
            g = torch.cat([gradients[name].flatten() for name in names])
            theta = torch.cat([before[name].flatten() for name in names])
            moved = torch.cat([after[name].flatten() for name in names]) - theta
            norm, size = g.norm(), theta.norm()
            numbers = {
                records.GRAD_NORM: norm,
                records.GRAD_MEAN: g.mean(),
                records.GRAD_STD: g.std(unbiased=False),
                records.GRAD_ZERO_SHARE: (g == 0).double().mean(),
                records.GRAD_PARAMETER_RATIO: norm / size if size else torch.tensor(0.0),
                records.UPDATE_DISTANCE: moved.norm(),
                records.GRAD_UPDATE_RATIO: moved.norm() / size if size else torch.tensor(0.0),
                records.GRAD_MAX: g.abs().max(),
            }
            found.append({name: number.item() for name, number in numbers.items()})
        means = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
        means[records.GRAD_MAX] = max(f[records.GRAD_MAX] for f in found)
        return {**means, records.GRAD_NONFINITE_SHARE: 0.0}


@pytest.fixture
def observing(student: BlockNetwork, make_config: MakeConfig) -> Step:
    return step_of(student, make_config(train={"observe_every": EVERY}))


def approx(expected: dict[str, float]) -> Any:
    return pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_every_layer_block_and_the_whole_is_as_the_plain_reference_has_it(
    observing: Step, student: BlockNetwork, teacher: FrozenTeacher
) -> None:
    dead = student.network.layer2[
        0
    ].bn1  # its channel says 0 whatever comes: gradients of exactly 0
    with torch.no_grad():
        dead.weight[0], dead.bias[0] = 0.0, -1.0
    caught = Caught(observing, student)
    for number in range(5):
        update(observing, teacher, noise(number), [9, 7], 0.05)
    measures = observing.observed.flush()
    assert len(caught.gradients) == 3
    assert list(measures.layers) == list(caught.named)
    for name, found in measures.layers.items():
        assert found == approx(caught.expected([name])), name
    of_parameter = {id(p): n for n, p in caught.named.items()}
    for block, parameters in student.block_parameters():
        names = [of_parameter[id(p)] for p in parameters]
        assert measures.blocks[block] == approx(caught.expected(names)), block
        assert {observing.observed.owners[name] for name in names} == {block}
    whole = dict(measures.whole)
    ratio = whole.pop(records.GRAD_FIRST_TO_LAST)
    assert whole == approx(caught.expected(list(caught.named)))
    assert 0 < whole[records.GRAD_ZERO_SHARE] < 1
    ends: list[list[float]] = []
    for index in (0, -1):
        _, parameters = list(student.block_parameters())[index]
        names = [of_parameter[id(p)] for p in parameters]
        ends.append(
            [
                torch.cat([gradients[name].flatten() for name in names]).norm().item()
                for gradients in caught.gradients
            ]
        )
    expected = sum(a / b for a, b in zip(*ends, strict=True)) / 3
    assert ratio == pytest.approx(expected, rel=1e-5)


def test_a_flush_begins_anew(observing: Step, teacher: FrozenTeacher) -> None:
    update(observing, teacher, noise(0), [16], 0.05)
    assert observing.observed.flush().whole[records.GRAD_MAX] > 0
    empty = observing.observed.flush()
    assert empty.whole == {}
    assert all(found == {} for found in (*empty.blocks.values(), *empty.layers.values()))


def test_of_a_skipped_update_only_what_is_not_finite_is_counted(
    student: BlockNetwork, teacher: FrozenTeacher, make_config: MakeConfig
) -> None:
    step = step_of(student, make_config(train={"observe_every": 1}))
    caught = Caught(step, student)
    caught.updates = 0
    update(step, teacher, noise(0), [16], 0.05)
    expected = caught.expected(list(caught.named))
    accumulate(step, teacher, noise(1), [16])
    weight = student.network.fc.weight
    weight.grad[:, 0] = float("nan")  # type: ignore[index]
    step.finish(0.05)
    measures = step.observed.flush()
    entries = sum(p.numel() for p in caught.named.values())
    expected[records.GRAD_NONFINITE_SHARE] = len(weight) / entries / 2
    whole = {n: v for n, v in measures.whole.items() if n != records.GRAD_FIRST_TO_LAST}
    assert whole == approx(expected)
    share = measures.layers["fc.weight"][records.GRAD_NONFINITE_SHARE]
    assert share == pytest.approx(1 / weight.shape[1] / 2)
    assert measures.layers["fc.bias"][records.GRAD_NONFINITE_SHARE] == 0


def test_sums_go_on_after_a_checkpoint(
    observing: Step, teacher: FrozenTeacher, student: BlockNetwork, make_config: MakeConfig
) -> None:
    update(observing, teacher, noise(0), [16], 0.05)
    update(observing, teacher, noise(1), [16], 0.05)
    other = step_of(student, make_config(train={"observe_every": EVERY}))
    other.load(observing.shared_state(), observing.own_state())
    for step in (observing, other):
        step.observed.gradient(step.membership.gradients(), torch.tensor(False))
        step.observed.before()
        step.observed.after(torch.tensor(False))
    assert observing.observed.flush() == other.observed.flush()


def test_a_block_without_parameters_has_nothing_to_tell() -> None:
    blocks = [("pool", []), ("head", [torch.nn.Parameter(torch.ones(3))])]
    observed = Observed(BlockMembership(blocks, student=2), ["weight"])
    observed.gradient([torch.full((3,), 2.0)], torch.tensor(False))
    observed.before()
    observed.after(torch.tensor(False))
    measures = observed.flush()
    assert measures.blocks["pool"] == {}
    assert measures.blocks["head"][records.GRAD_MEAN] == 2
    assert records.GRAD_FIRST_TO_LAST not in measures.whole


def test_a_layer_longer_than_a_row_is_measured_whole_whatever_its_layout() -> None:
    """Rows are 1,024 wide; channels_last parameters have their strides in another order."""
    torch.manual_seed(0)
    shapes = [(1,), (1024,), (1025,), (40, 30, 3, 3)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    parameters[-1].data = parameters[-1].data.to(memory_format=torch.channels_last)
    rows = Rows(parameters)
    values = [torch.randn_like(p) for p in parameters]
    values[1][5], values[2][1024] = float("inf"), 0.0
    rows.fill(values)
    moments = rows.moments()
    for number, value in enumerate(values):
        x = value.double()
        expected = [x.sum(), x.square().sum(), (x != 0).sum(), (~x.isfinite()).sum(), x.abs().max()]
        found = [*moments, rows.largest()]
        torch.testing.assert_close(
            torch.stack([part[number] for part in found]),
            torch.stack([part.double() for part in expected]),
            rtol=1e-6,
            atol=1e-9,
        )
    rows.subtract(values[:1] + [torch.zeros_like(v) for v in values[1:]])
    assert rows.squares()[0] == 0
