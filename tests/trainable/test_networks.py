"""Networks and their blocks."""

from __future__ import annotations

import pytest
import torch
import torchvision.models

from trainable.config import TrialConfig
from trainable.errors import ConfigError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import (
    Pictures,
    build_student,
    check_features_match,
    output_shapes,
)
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import build

NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "mini_resnet_10_4", "mini_resnet_18_8"]


def blocks_of(name: str, size: int = 32, classes: int = 10, channels: int = 3) -> BlockNetwork:
    built = build(name, Pictures(classes, channels, (size, size)), path="student.model")
    return BlockNetwork(built.network, built.cuts)


@pytest.mark.parametrize("name", NAMES)
def test_composed_blocks_equal_the_undivided_network(name: str) -> None:
    torch.manual_seed(0)
    network = blocks_of(name).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = network.network(images)
        assert torch.equal(network(images), whole)
        assert torch.equal(network.features(images)[-1], whole)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_those_of_the_papers_appendix(name: str) -> None:
    network = blocks_of(name)
    assert network.names == ("layer1", "layer2", "layer3", "layer4", "head")
    parameters = [p for _, block in network.block_parameters() for p in block]
    assert [id(p) for p in parameters] == [id(p) for p in network.network.parameters()]


def test_small_pictures_get_the_cifar_stem_and_large_ones_the_original() -> None:
    small, large = blocks_of("resnet18", size=32), blocks_of("resnet18", size=64)
    assert small.network.conv1.kernel_size == (3, 3)
    assert isinstance(small.network.maxpool, torch.nn.Identity)
    assert large.network.conv1.kernel_size == (7, 7)
    pictures = Pictures(10, 3, (32, 32))
    assert output_shapes(small, pictures) == (
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (10,),
    )


def test_parameter_counts_are_torchvisions_but_for_the_stem() -> None:
    for name in ("resnet18", "resnet34", "resnet50", "resnet101"):
        with torch.device("meta"):
            theirs = torchvision.models.get_model(name, weights=None, num_classes=100)
            mine = sum(p.numel() for p in blocks_of(name, classes=100).parameters())
        stem = 64 * 3 * (7 * 7 - 3 * 3)
        assert mine == sum(p.numel() for p in theirs.parameters()) - stem


def test_mini_resnet_counts_its_parameters_as_derived() -> None:
    """Depth 10 (one basic block a group), width 4, 3 channels, 10 classes."""

    def basic(inputs: int, outputs: int) -> int:
        convolutions = 9 * inputs * outputs + 9 * outputs * outputs
        shortcut = 0 if inputs == outputs else inputs * outputs + 2 * outputs
        return convolutions + 4 * outputs + shortcut

    stem = 9 * 3 * 4 + 2 * 4
    expected = stem + basic(4, 4) + basic(4, 8) + basic(8, 16) + basic(16, 32) + 32 * 10 + 10
    assert sum(p.numel() for p in blocks_of("mini_resnet_10_4").parameters()) == expected


def test_grey_pictures_get_a_stem_of_one_channel() -> None:
    for size in (32, 96):
        network = blocks_of("resnet18", size=size, channels=1)
        assert network(torch.zeros(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet19", ["student.model", "resnet18", "resnet19"]),
        ("mini_resnet_11_4", ["8n + 2", "mini_resnet_11_4"]),
        ("mini_resnet_2_4", ["8n + 2"]),
        ("nonsense", ["known are"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        blocks_of(name)
    assert all(word in str(caught.value) for word in words)


def test_cuts_must_be_layers_in_order() -> None:
    layers = build("resnet18", Pictures(10, 3, (32, 32)), path="student.model").network
    assert BlockNetwork(layers, ("layer2",)).names == ("layer2", "head")
    with pytest.raises(ConfigError, match="layer5"):
        BlockNetwork(layers, ("layer1", "layer5"))
    with pytest.raises(ConfigError, match="order"):
        BlockNetwork(layers, ("layer2", "layer1"))


@pytest.mark.parametrize("name", ["resnet18", "mini_resnet_10_4"])
def test_features_stay_as_they_are_at_every_possible_cut(name: str) -> None:
    """No later layer may overwrite, in place, what a cut has handed out."""
    whole = build(name, Pictures(10, 3, (16, 16)), path="student.model").network
    network = BlockNetwork(whole, [layer for layer, _ in whole.named_children()][:-1]).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for index, feature in enumerate(network.features(images)):
            assert torch.equal(feature, network.run(images, 0, index + 1)), network.names[index]


def test_features_of_other_widths_are_refused_by_the_cut() -> None:
    pictures = Pictures(10, 3, (32, 32))
    student, teacher = blocks_of("mini_resnet_10_4"), blocks_of("mini_resnet_10_8")
    with pytest.raises(ConfigError) as caught:
        check_features_match(student, teacher, pictures, "stablekd")
    assert len(caught.value.problems) == 4
    assert "(4, 32, 32)" in str(caught.value)
    assert {problem.remedy for problem in caught.value.problems} == {
        "set student.projectors: fold, or choose cuts where they agree"
    }
    check_features_match(student, blocks_of("mini_resnet_18_4"), pictures, "stablekd")


def test_a_projector_is_no_remedy_where_heights_differ() -> None:
    pictures = Pictures(10, 3, (32, 32))
    student, teacher = (
        BlockNetwork(build("mini_resnet_10_4", pictures, path="student.model").network, (cut,))
        for cut in ("layer1", "layer2")
    )
    with pytest.raises(ConfigError, match="choose cuts where they agree") as caught:
        check_features_match(student, teacher, pictures, "mse")
    assert "projectors" not in str(caught.value)


def test_looking_at_shapes_changes_nothing(student: BlockNetwork) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.train()
    output_shapes(student, Pictures(10, 3, (8, 8)))
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_teacher_stays_in_eval_mode_whatever_is_called(teacher: FrozenTeacher) -> None:
    images = torch.randn(4, 3, 8, 8)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    expected = teacher(images)
    teacher.train()
    torch.nn.Sequential(teacher).train()
    teacher.blocks.network.train()
    for module in teacher.modules():
        module.training = True
    outputs = teacher(images)
    assert torch.equal(outputs.logits, expected.logits)
    assert not outputs.logits.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_teacher_gives_features_at_the_cuts(teacher: FrozenTeacher) -> None:
    outputs = teacher(torch.zeros(2, 3, 8, 8))
    assert [tuple(f.shape[1:]) for f in outputs.features] == [
        (4, 8, 8),
        (8, 4, 4),
        (16, 2, 2),
        (32, 1, 1),
    ]
    assert outputs.logits.shape == (2, 10)


def test_student_weights_follow_from_the_seed(make_config: object) -> None:
    config: TrialConfig = make_config()  # type: ignore[operator]
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build_student(config, Pictures(10, 3, (8, 8))))
    first, second = (n.state_dict() for n in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
