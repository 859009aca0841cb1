"""Students of another width than their teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.trainable.trials import (
    CPU,
    MakeConfig,
    numbers,
    train,
    train_and_stop,
    untrained_teacher,
)
from trainable import tasks
from trainable.config import TrialConfig
from trainable.errors import ConfigError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student, build_teacher_network, shapes_at_cuts
from trainable.networks.projectors import differing_widths, fold

PICTURES = Pictures(10, 3, (8, 8))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WIDE = {"model": "mini_resnet_10_4", "checkpoint": "unused"}


@pytest.fixture
def narrow(make_config: MakeConfig) -> MakeConfig:
    """A student half as wide as its teacher, with projectors at all four cuts."""

    def made(projectors: str = "keep", **sections: Any) -> TrialConfig:
        student = {"model": "mini_resnet_10_2", "projectors": projectors}
        return make_config(student=student, **sections)

    return made


def test_features_are_as_wide_as_the_teachers(narrow: MakeConfig) -> None:
    config = narrow()
    mine, theirs = shapes_at_cuts(
        build_student(config, PICTURES), build_teacher_network(config, PICTURES), PICTURES
    )
    assert mine == theirs


def test_projectors_are_two_matrices_a_cut_and_belong_to_the_blocks_beside_it(
    narrow: MakeConfig,
) -> None:
    student = build_student(narrow(), PICTURES)
    sizes = [2 * mine * theirs for mine, theirs in ((2, 4), (4, 8), (8, 16), (16, 32))]
    assert sum(p.numel() for p in student.projectors.parameters()) == sum(sizes)
    blocks = {name: {id(p) for p in parameters} for name, parameters in student.block_parameters()}
    for index, (before, after) in enumerate(zip(student.names, student.names[1:], strict=False)):
        out, back = student.projectors[str(index)].children()  # type: ignore[union-attr]
        assert id(out.weight) in blocks[before]
        assert id(back.weight) in blocks[after]
    assert sum(map(len, blocks.values())) == len(list(student.parameters()))


@pytest.mark.parametrize(
    ("names", "expected", "published"),
    [
        (("wrn_40_2", "wrn_40_4"), 2 * 128 * 256, "2.3"),
        (("wrn_16_8", "wrn_16_10"), 2 * 512 * 640, "11.6"),
    ],
)
def test_counts_are_those_of_table_6(
    make_config: MakeConfig, names: tuple[str, str], expected: int, published: str
) -> None:
    """One pair at the last cut, the linear layer at the student's width."""
    student = {"model": names[0], "projectors": "keep", "cuts": ["relu"]}
    config = make_config(student=student, teacher={**WIDE, "model": names[1]})
    with torch.device("meta"):
        network = build_student(config, Pictures(100, 3, (32, 32)))
    added = sum(p.numel() for p in network.projectors.parameters())
    assert added == expected
    assert str(sum(p.numel() for p in network.parameters()) / 1e6).startswith(published)


def test_equal_widths_get_no_projector(make_config: MakeConfig) -> None:
    student = {"model": "mini_resnet_10_4", "projectors": "fold"}
    network = build_student(make_config(student=student), PICTURES)
    assert not network.projectors
    assert network.whole is network.network
    assert not network.is_to_be_folded


def test_a_narrower_student_starts_as_if_it_had_none(narrow: MakeConfig) -> None:
    student = randomised(build_student(narrow(), PICTURES)).eval()
    torch.testing.assert_close(student(IMAGES), student.network(IMAGES), rtol=1e-5, atol=1e-5)


def test_transformers_get_linear_projectors(make_config: MakeConfig) -> None:
    student = {"model": "vit_t4", "projectors": "keep"}
    config = make_config(student=student, teacher={**WIDE, "model": "vit_s8"})
    network = build_student(config, PICTURES)
    shapes = {tuple(p.shape) for p in network.projectors.parameters()}
    assert shapes == {(384, 192), (192, 384)}
    assert network(IMAGES).shape == (4, 10)


def test_swins_channels_come_last() -> None:
    found = differing_widths(
        ("a", "b"), [(8, 8, 96), (64, 8, 8)], [(8, 8, 128), (32, 8, 8)], (32, 32)
    )
    assert found == {0: (96, 128, False), 1: (64, 32, True)}


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ((4, 8, 8), (4, 4, 4)),
        ((64, 8, 8), (64, 8, 4)),
        ((64, 8, 8), (8, 8, 64)),
        ((65, 192), (4, 8, 8)),
    ],
)
def test_what_differs_in_more_than_channels_is_refused(mine: Any, theirs: Any) -> None:
    with pytest.raises(ConfigError, match=r"student\.cuts: .*channels alone.* at cut"):
        differing_widths(("cut",), [mine], [theirs], (32, 32))


def test_a_folded_student_says_the_same(narrow: MakeConfig) -> None:
    student = randomised(build_student(narrow("fold"), PICTURES))
    assert student.is_to_be_folded
    folded = build_student(narrow("fold"), PICTURES, for_inference=True)
    folded.whole.load_state_dict(fold(student.whole.state_dict()))
    assert {tuple(p.shape[:2]) for p in folded.projectors.parameters()} == {
        (2, 2),
        (4, 4),
        (8, 8),
        (16, 16),
    }
    torch.testing.assert_close(folded.eval()(IMAGES), student.eval()(IMAGES), rtol=1e-5, atol=1e-5)


def randomised(network: BlockNetwork) -> BlockNetwork:
    """With running statistics that have seen something."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network


STABLE = {"method": "stablekd", "lam": 1.0, "decomposition": "5/2", "alpha": None}


@pytest.mark.parametrize("projectors", ["keep", "fold"])
def test_the_kept_student_scores_as_the_trained_one(
    narrow: MakeConfig, tmp_path: Path, projectors: str
) -> None:
    config = narrow(projectors, distill=STABLE, train={"epochs": 3})
    teacher = untrained_teacher(config, tmp_path)
    found = train(config, tmp_path / "trial", teacher)
    weights = tasks.best_weights(tmp_path / "trial")
    names = set(safetensors.torch.load_file(weights))
    layers = {"out", "back"} if projectors == "keep" else {"folded"}
    assert {n.split(".")[2] for n in names if n.startswith("projectors.")} == layers
    score = tasks.score_weights(config, "student", weights, "val", CPU)
    best = max(record.metrics["val/accuracy"] for record in found)
    assert score["val/accuracy"] == best


def test_all_of_it_is_trained_and_resumed(narrow: MakeConfig, tmp_path: Path) -> None:
    config = narrow("fold", distill=STABLE, train={"epochs": 3})
    teacher = untrained_teacher(config, tmp_path)
    whole = train(config, tmp_path / "whole", teacher)
    train_and_stop(config, tmp_path / "parts", teacher, after=2)
    assert numbers(train(config, tmp_path / "parts", teacher)) == numbers(whole)
    first, second = (
        safetensors.torch.load_file(tasks.best_weights(tmp_path / name))
        for name in ("whole", "parts")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    torch.manual_seed(config.train.seed)
    fresh = fold(build_student(config, PICTURES).whole.state_dict())
    moved = [name for name in fresh if name.startswith("projectors.")]
    assert moved
    assert not any(torch.equal(fresh[name], first[name]) for name in moved)


def test_other_widths_without_projectors_are_refused_with_the_remedy(narrow: MakeConfig) -> None:
    config = narrow("none", distill=STABLE)
    with pytest.raises(ConfigError, match=r"set student\.projectors: fold") as caught:
        tasks.check_features(config, tasks.inspect_data(config))
    assert len(caught.value.problems) == 4


def test_other_numbers_of_cuts_are_refused(make_config: MakeConfig) -> None:
    config = make_config(
        student={"model": "mini_resnet_10_4", "cuts": ["layer1", "layer3"]},
        teacher={**WIDE, "cuts": ["layer1"]},
        distill=STABLE | {"decomposition": "2/1"},
    )
    with pytest.raises(ConfigError, match=r"student\.cuts: .*the teacher into 2, got 3"):
        tasks.check_features(config, tasks.inspect_data(config))


def test_a_teacher_of_other_names_has_its_own_cuts(make_config: MakeConfig) -> None:
    config = make_config(
        student={"model": "mini_resnet_10_4", "cuts": ["layer1"]},
        teacher={**WIDE, "model": "wrn_10_4", "cuts": ["group1"]},
    )
    teacher = build_teacher_network(config, PICTURES)
    assert teacher.names == ("group1", "head")
