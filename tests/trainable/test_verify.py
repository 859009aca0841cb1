"""The equal error rate, and how well networks tell classes apart that they were not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainable import records, tasks
from trainable.config import TrialConfig
from trainable.data.augment import Normalizer
from trainable.data.loaders import open_loader
from trainable.data.store import open_dataset, open_unseen_test
from trainable.engine import verify
from trainable.engine.verify import Verifier, equal_error_rate
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student
from trainable.networks.weights import save_weights

CPU = torch.device("cpu")
UNSEEN = {"unseen_classes": ["8", "9"]}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[int], list[bool]]:
    """Scores with many ties, of at least one same and one different pair."""
    same = [True, False, *draw(st.lists(st.booleans(), max_size=20))]
    count = len(same)
    return draw(st.lists(st.integers(-4, 4), min_size=count, max_size=count)), same


def rate(scores: list[int] | list[float], same: list[bool]) -> float:
    return equal_error_rate(torch.tensor(scores, dtype=torch.float64), torch.tensor(same))


def slow_rate(scores: list[int], same: list[bool]) -> Fraction:
    """Every threshold in turn, the two error rates counted anew at each, in fractions."""

    def errors(threshold: float) -> tuple[Fraction, Fraction]:
        accepted = [score >= threshold for score in scores]
        false_accepts = [a for a, s in zip(accepted, same, strict=True) if not s]
        false_rejects = [not a for a, s in zip(accepted, same, strict=True) if s]
        return (
            Fraction(sum(false_accepts), len(false_accepts)),
            Fraction(sum(false_rejects), len(false_rejects)),
        )

    points = [errors(threshold) for threshold in (math.inf, *sorted(set(scores), reverse=True))]
    for (fa, fr), (next_fa, next_fr) in pairwise(points):
        if next_fa >= next_fr:
            # fa + w (next_fa − fa) = fr + w (next_fr − fr)
            w = (fr - fa) / ((next_fa - fa) - (next_fr - fr))
            return fa + w * (next_fa - fa)
    raise AssertionError("the last threshold accepts all")


@given(pairs())
def test_it_is_what_all_thresholds_give(case) -> None:
    assert rate(*case) == pytest.approx(float(slow_rate(*case)), abs=1e-15)


@given(pairs())
def test_only_the_order_of_the_scores_matters(case) -> None:
    scores, same = case
    expected = rate(scores, same)
    assert 0 <= expected <= 1
    assert rate([math.exp(score) for score in scores], same) == expected
    assert rate([3 * score**3 - 7 for score in scores], same) == expected
    assert rate(scores[::-1], same[::-1]) == expected


@given(pairs())
def test_the_opposite_of_a_score_has_the_opposite_rate(case) -> None:
    scores, same = case
    opposite = rate([-score for score in scores], same)
    assert opposite == pytest.approx(1 - rate(scores, same), abs=1e-15)
    others = [not s for s in same]
    assert rate([-score for score in scores], others) == pytest.approx(rate(scores, same))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 1, 2, 2], 0.0),
        ([2, 2, 1, 1], 1.0),
        ([5, 5, 5, 5], 0.5),
        ([1, 2, 2, 3], 0.25),  # one tie of both kinds: half of either pair is wrong
        ([1, 3, 2, 4], 0.5),
    ],
)
def test_rates_that_can_be_done_by_hand(scores: list[int], expected: float) -> None:
    assert rate(scores, [False, False, True, True]) == expected


def test_pairs_of_one_kind_have_no_rate_and_nan_has_none() -> None:
    for same in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="there must be same and different pairs"):
            rate([0.1, 0.2], same)
    assert math.isnan(rate([0.1, math.nan], [True, False]))


class Plain(BlockNetwork):
    """Embeds a picture as its pixels."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 1)), ())

    def embed(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return x.flatten(1)


def verifier_of(config: TrialConfig) -> Verifier:
    unseen = open_dataset(config.data).unseen
    assert unseen is not None
    prepare = Normalizer((0.0,) * 3, (1 / 255,) * 3, CPU)
    return Verifier(open_loader(unseen, CPU, 0), unseen.labels, prepare, CPU)


@pytest.mark.parametrize("batch", [512, 7])
def test_every_pair_of_unseen_pictures_is_compared(
    make_config: Callable[..., TrialConfig], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "EVALUATION_BATCH", batch)
    config = make_config(data=UNSEEN)
    unseen = open_dataset(config.data).unseen
    assert unseen is not None
    vectors = unseen.images(np.arange(len(unseen))).reshape(len(unseen), -1).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    both = list(combinations(range(len(unseen)), 2))
    scores = [round(float(vectors[i] @ vectors[j]), 9) for i, j in both]
    same = [bool(unseen.labels[i] == unseen.labels[j]) for i, j in both]
    network = Plain().train()
    assert verifier_of(config).eer(network) == pytest.approx(rate(scores, same), abs=1e-6)
    assert not network.training


def test_the_embedding_is_read_in_eval_mode_and_changes_nothing(
    make_config: Callable[..., TrialConfig],
) -> None:
    config = make_config(data=UNSEEN)
    torch.manual_seed(0)
    network = build_student(config, Pictures(8, 3, (8, 8))).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    verifier = verifier_of(config)
    first, second = verifier.eer(network), verifier.eer(network)
    assert first == second
    assert 0 < first < 0.5, "even random features tell an 8 from a 9"
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_a_network_of_nan_has_no_rate(make_config: Callable[..., TrialConfig]) -> None:
    config = make_config(data=UNSEEN)
    network = build_student(config, Pictures(8, 3, (8, 8)))
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    assert math.isnan(verifier_of(config).eer(network))


def test_a_large_set_is_sampled_once(
    make_config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "PICTURES", 40)
    seen: list[list[int]] = []

    class Watched(Plain):
        def embed(self, x: Tensor) -> Tensor:
            seen.append(x.flatten(1).sum(1).tolist())
            return super().embed(x)

    verifier = verifier_of(make_config(data=UNSEEN))
    assert verifier.eer(Watched()) == verifier.eer(Watched())
    assert [len(sums) for sums in seen] == [40, 40]
    assert seen[0] == seen[1]


def test_weights_are_scored_on_either_split(
    make_config: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data=UNSEEN)
    torch.manual_seed(0)
    student = build_student(config, Pictures(8, 3, (8, 8)))
    weights = tmp_path / "weights.safetensors"
    save_weights(student.network, weights)
    test = tasks.score_weights(config, "student", weights, "test", CPU)
    assert set(test) == {records.TEST_ACCURACY, records.TEST_EER}

    def never(*_: object) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(tasks, "open_test", never)
    monkeypatch.setattr(tasks, "open_unseen_test", never)
    val = tasks.score_weights(config, "student", weights, "val", CPU)
    assert set(val) == {records.VAL_ACCURACY, records.VAL_EER}
    data = open_dataset(config.data)
    assert data.unseen is not None
    normalize = Normalizer(data.mean, data.std, CPU)
    verifier = Verifier(open_loader(data.unseen, CPU, 0), data.unseen.labels, normalize, CPU)
    assert val[records.VAL_EER] == verifier.eer(student)
    assert open_unseen_test(make_config().data) is None


def test_a_class_of_two_pictures_among_many_is_compared() -> None:
    labels = np.array([0] * 50_000 + [1, 1])
    chosen = verify._drawn(labels)[: verify.PICTURES]
    assert {50_000, 50_001} <= set(chosen.tolist())
    assert sorted(verify._drawn(labels).tolist()) == list(range(len(labels)))
