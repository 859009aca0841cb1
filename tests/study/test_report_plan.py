"""The networks in what `validate` prints: every block's shape, parameters and share of FLOPs, counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from study.cluster import Capacity
from study.config import parse_config
from study.preflight import StudyPlan, preflight
from study.report.plan import print_plan
from trainable.tasks import NetworkSummary

Count = tuple[int, int]
"""Parameters and FLOPs, a multiply-add counted as two; of activations, norms and softmax none are counted."""
CLASSES, SIDE = 10, 32
WIDTH, PATCH = 192, 4
TOKENS = (SIDE // PATCH) ** 2 + 1


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPlan:
    """A ResNet18 that a ViT-T of depth 8 teaches, on pictures of 32 × 32 pixels."""
    monkeypatch.chdir(tmp_path)
    config = {
        "study": {"name": "small"},
        "data": {"source": "digits", "image_size": SIDE},
        "student": {"model": "resnet18"},
        "teacher": {"model": "vit_t8", "train": {"epochs": 1}},
        "distill": {"method": "kd", "alpha": 0.5},
    }
    return preflight(parse_config(config), Capacity(cpus=2, gpus=0))


def total(*parts: Count) -> Count:
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def convolution(inputs: int, outputs: int, side: int, kernel: int = 3) -> Count:
    """With its BatchNorm; `side` is the output's."""
    weights = kernel**2 * inputs * outputs
    return weights + 2 * outputs, 2 * weights * side**2


def linear(inputs: int, outputs: int, times: int = 1) -> Count:
    return (inputs + 1) * outputs, 2 * inputs * outputs * times


def resnet_group(channels: int, side: int) -> Count:
    """Two basic blocks, the first of which doubles the channels and halves the side."""
    half = channels // 2
    return total(
        convolution(half, channels, side),
        *(3 * [convolution(channels, channels, side)]),
        convolution(half, channels, side, kernel=1),
    )


def transformer_layer() -> Count:
    norms = (4 * WIDTH, 0)
    mixing = (0, 2 * (2 * TOKENS * TOKENS * WIDTH))  # q·k of all pairs, and their sums over v
    qkv, projection = linear(WIDTH, 3 * WIDTH, TOKENS), linear(WIDTH, WIDTH, TOKENS)
    mlp = linear(WIDTH, 4 * WIDTH, TOKENS), linear(4 * WIDTH, WIDTH, TOKENS)
    return total(norms, qkv, mixing, projection, *mlp)


def counts(network: NetworkSummary) -> list[Count]:
    return [(block.parameters, block.flops) for block in network.blocks]


def test_the_blocks_of_a_resnet_are_counted_as_derived(plan: StudyPlan) -> None:
    stem, first = convolution(3, 64, SIDE), 4 * [convolution(64, 64, SIDE)]
    groups = [resnet_group(channels, side) for channels, side in ((128, 16), (256, 8), (512, 4))]
    assert counts(plan.student) == [total(stem, *first), *groups, linear(512, CLASSES)]
    shapes = [block.output for block in plan.student.blocks]
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (CLASSES,)]


def test_the_blocks_of_a_vision_transformer_are_counted_as_derived(plan: StudyPlan) -> None:
    assert plan.teacher is not None
    patches = linear(3 * PATCH**2, WIDTH, TOKENS - 1)
    learned = ((1 + TOKENS) * WIDTH, 0)  # the class token and every token's position
    layers = 2 * [transformer_layer()]
    norm = (2 * WIDTH, 0)
    assert counts(plan.teacher) == [
        total(patches, learned, *layers),
        total(*layers),
        total(*layers),
        total(*layers, norm),
        linear(WIDTH, CLASSES),
    ]
    shapes = [block.output for block in plan.teacher.blocks]
    assert shapes == [(TOKENS, WIDTH)] * 4 + [(CLASSES,)]


def test_a_block_is_printed_with_shape_parameters_share_and_projector(plan: StudyPlan) -> None:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        print_plan(plan, console)
    student, teacher = capture.get().split("student resnet18")[1].split("teacher vit_t8")
    rows = [line.split() for line in student.splitlines()]
    assert ["layer2", "128×16×16", "525,568", "24.2%", "needed"] in rows
    assert ["head", "10", "5,130", "0.0%", "—"] in rows
    assert ["all", "11,173,962", "1.11", "G"] in rows
    rows = [line.split() for line in teacher.splitlines()]
    assert ["group1", "65×192", "911,808", "25.2%"] in rows
    assert ["all", "3,583,306", "487", "M"] in rows


def test_what_an_answer_takes_beside_the_search_is_printed(plan: StudyPlan) -> None:
    config = parse_config(
        {
            "study": {
                "name": "small",
                "trials": 9,
                "epoch_budget": 100,
                "screening": {"subset": 0.25, "keep": 0.3},
                "baselines": {"kd": 7},
                "replicates": {"finalists": 2, "seeds": 5},
            },
            "data": {"source": "digits", "image_size": SIDE},
            "student": {"model": "resnet18"},
            "teacher": {"model": "vit_t8", "train": {"epochs": 1}},
            "distill": {"method": "kd", "alpha": 0.5},
            "search": {"optim.lr": {"uniform": [0.1, 1]}, "train.epochs": {"int": [5, 30]}},
        }
    )
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        print_plan(replace(plan, config=config), console)
    lines = capture.get().splitlines()
    screened = (
        "as many epochs on 0.25 of a trial's pictures, after which 0.3 of each kind of trial begin"
    )
    assert f"screening   {screened}" in lines
    assert "budget      100 epochs of the search, 60 a trial at most" in lines
    assert "baseline    kd: 7 trials, searching optim.lr, train.epochs, distill.alpha" in lines
    (told,) = [line for line in lines if line.startswith("replicates")]
    assert told.endswith("each baseline: 20 trainings more, on all training pictures")
