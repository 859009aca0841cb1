"""BatchNorm's state, and sums on the device."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from trainable.networks.blocks import BlockNetwork
from trainable.statistics.batchnorm import BatchStatistics, Recalibration
from trainable.statistics.totals import Totals

CPU = torch.device("cpu")


def test_drift_is_the_standardised_distance_from_the_batches() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(3)
    layer.running_mean[:] = torch.tensor([0.0, 1.0, -2.0])
    layer.running_var[:] = torch.tensor([1.0, 4.0, 0.25])
    other = nn.BatchNorm1d(3)
    other.running_mean[:] = 0.5
    network = nn.Sequential(layer, other).eval()
    batches = [torch.randn(20, 3), torch.randn(20, 3) + 1]
    statistics = BatchStatistics(network)
    with torch.no_grad(), statistics.measure():
        for number, batch in enumerate(batches, start=1):
            statistics.next_batch(number)
            normed = (batch - batch.mean(0)) / (batch.var(0, unbiased=False) + layer.eps).sqrt()
            torch.testing.assert_close(network[0](batch), normed)
            other(normed)
    running_mean, running_var = layer.running_mean.double(), layer.running_var.double()
    mean = torch.stack([batch.double().mean(0) for batch in batches]).mean(0)
    first = ((running_mean - mean).abs() / (running_var + layer.eps).sqrt()).mean().item()
    second = 0.5 / (1 + other.eps) ** 0.5  # `normed` has mean 0
    expected = [(first + second) / 2, first, second]
    assert statistics.names == ("0", "1")
    assert statistics.drifts.tolist() == pytest.approx(expected, rel=1e-5)


def test_measuring_leaves_the_network_as_it_was(student: BlockNetwork) -> None:
    student.train()
    student(torch.randn(8, 3, 8, 8))
    student.eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    statistics = BatchStatistics(student)

    def fail() -> None:
        with torch.no_grad(), statistics.measure():
            statistics.next_batch(1)
            student(torch.full((8, 3, 8, 8), float("nan")))
            raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not any(module.training for module in student.modules())
    momenta = {m.momentum for m in student.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.1}


def recalibrate(network: nn.Module, batches: list[Tensor]) -> None:
    recalibration = Recalibration(network)
    with recalibration.measure():
        for number, batch in enumerate(batches, start=1):
            recalibration.next_batch(number)
            assert not network(batch).requires_grad


def test_recalibration_weighs_each_batch_alike() -> None:
    """Unequal batches on purpose: 30 and 10 samples count the same (PreciseBN; update_bn does so too)."""
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(3)
    layer.running_mean[:] = 100.0
    layer.running_var[:] = float("inf")
    batches = [torch.randn(30, 3), 2 * torch.randn(10, 3) + 1, torch.randn(20, 3) - 4]
    recalibrate(nn.Sequential(layer), batches)
    means = torch.stack([batch.mean(0) for batch in batches])
    variances = torch.stack([batch.var(0) for batch in batches])
    torch.testing.assert_close(layer.running_mean, means.mean(0))
    torch.testing.assert_close(layer.running_var, variances.mean(0))


def test_recalibration_is_torchs_update_bn_with_dropout_off(student: BlockNetwork) -> None:
    """Dropout before BatchNorm would change the variances that evaluation meets (Li et al. 2018)."""
    batches = [torch.randn(8, 3, 8, 8) + shift for shift in (0.0, 1.0, -2.0)]
    reference = deepcopy(student.network)
    update_bn(batches, reference)
    student.network.get_submodule("layer1").append(nn.Dropout(0.5))
    recalibrate(student.train(), batches)
    theirs = dict(reference.named_buffers())
    for name, buffer in student.network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(buffer, theirs[name], rtol=1e-5, atol=1e-6)


def test_recalibration_changes_running_statistics_alone_and_in_place(student: BlockNetwork) -> None:
    student.train()
    student(torch.randn(8, 3, 8, 8))
    student.network.get_submodule("layer2").eval()
    tensors = dict(student.named_buffers()) | dict(student.named_parameters())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    modes = [module.training for module in student.modules()]
    recalibrate(student, [torch.randn(8, 3, 8, 8)])
    after = dict(student.named_buffers()) | dict(student.named_parameters())
    for name, tensor in after.items():
        assert tensor is tensors[name], name
        assert torch.equal(tensor, before[name]) != ("running" in name), name
    assert [module.training for module in student.modules()] == modes
    assert {m.momentum for m in student.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("fails", [True, False])
def test_recalibration_without_a_whole_pass_keeps_the_statistics(
    fails: bool, student: BlockNetwork
) -> None:
    student.train()(torch.randn(8, 3, 8, 8))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError):
            recalibrate(student, [torch.randn(8, 3, 8, 8), torch.randn(8, 7, 8, 8)])
    else:
        recalibrate(student, [])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training


def test_totals_add_what_is_good_and_start_again() -> None:
    totals = Totals(CPU)
    good, bad = torch.tensor(False), torch.tensor(True)
    totals.add({"a": torch.tensor(1.5), "b": torch.tensor(2.0)}, good)
    totals.add({"a": torch.tensor(float("nan")), "b": torch.tensor(9.0)}, bad)
    totals.add({"a": torch.tensor(1.0), "b": torch.tensor(0.5)}, good)
    assert totals.flush() == {"a": 2.5, "b": 2.5}
    assert totals.flush() == {"a": 0.0, "b": 0.0}


def test_totals_keep_small_terms_beside_large_sums() -> None:
    totals = Totals(CPU)
    for value in (1e8, 1.0, 1.0):
        totals.add({"a": torch.tensor(value)}, torch.tensor(False))
    assert totals.flush() == {"a": 100000002.0}


def test_totals_refuse_other_names() -> None:
    totals = Totals(CPU)
    totals.add({"a": torch.zeros(())}, torch.tensor(False))
    with pytest.raises(ValueError, match="names"):
        totals.add({"b": torch.zeros(())}, torch.tensor(False))
