"""BatchNorm's state, and sums on the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainable.networks.blocks import BlockNetwork
from trainable.statistics.batchnorm import BatchStatistics, batchnorm_state
from trainable.statistics.totals import Totals

CPU = torch.device("cpu")


def test_state_finds_the_smallest_variance_and_dead_channels() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(3))
    network[0].running_var[:] = torch.tensor([1.0, 0.0, 0.5, 1e-13])
    state = batchnorm_state(network)
    assert state is not None
    assert state.min_var == 0
    assert state.dead_channels == 2


def test_a_network_without_batchnorm_has_no_state() -> None:
    assert batchnorm_state(nn.Linear(2, 2)) is None
    assert not BatchStatistics(nn.Linear(2, 2))


def test_drift_is_the_standardised_distance_from_the_batches() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(3)
    layer.running_mean[:] = torch.tensor([0.0, 1.0, -2.0])
    layer.running_var[:] = torch.tensor([1.0, 4.0, 0.25])
    network = nn.Sequential(layer).eval()
    batches = [torch.randn(20, 3), torch.randn(20, 3) + 1]
    statistics = BatchStatistics(network)
    with torch.no_grad(), statistics.measure():
        for number, batch in enumerate(batches, start=1):
            statistics.next_batch(number)
            torch.testing.assert_close(
                network(batch),
                (batch - batch.mean(0)) / (batch.var(0, unbiased=False) + layer.eps).sqrt(),
            )
    mean = torch.stack([batch.mean(0) for batch in batches]).mean(0)
    distance = (torch.tensor([0.0, 1.0, -2.0]) - mean).abs()
    expected = (distance / (torch.tensor([1.0, 4.0, 0.25]) + layer.eps).sqrt()).mean()
    assert statistics.drift == pytest.approx(expected.item(), rel=1e-5)


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


def test_totals_add_what_is_good_and_start_again() -> None:
    totals = Totals(CPU)
    good, bad = torch.zeros(()), torch.ones(())
    totals.add({"a": torch.tensor(1.5), "b": torch.tensor(2.0)}, good)
    totals.add({"a": torch.tensor(float("nan")), "b": torch.tensor(9.0)}, bad)
    totals.add({"a": torch.tensor(1.0), "b": torch.tensor(0.5)}, good)
    assert totals.flush() == {"a": 2.5, "b": 2.5}
    assert totals.flush() == {"a": 0.0, "b": 0.0}


def test_totals_keep_small_terms_beside_large_sums() -> None:
    totals = Totals(CPU)
    for value in (1e8, 1.0, 1.0):
        totals.add({"a": torch.tensor(value)}, torch.zeros(()))
    assert totals.flush() == {"a": 100000002.0}


def test_totals_refuse_other_names() -> None:
    totals = Totals(CPU)
    totals.add({"a": torch.zeros(())}, torch.zeros(()))
    with pytest.raises(ValueError, match="names"):
        totals.add({"b": torch.zeros(())}, torch.zeros(()))
