"""The networks of a trial, built from its config and the facts of its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trainable.config import StudentConfig, TeacherConfig, TrialConfig
from trainable.errors import ConfigError, Problem
from trainable.networks.blocks import BlockNetwork, Layers
from trainable.networks.norms import with_norms
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.weights import load_weights
from trainable.networks.zoo import build


@dataclass(frozen=True)
class Pictures:
    """What a network must know of its pictures."""

    classes: int
    channels: int
    image_size: tuple[int, int]
    """Height and width in pixels."""


def build_student(config: TrialConfig, pictures: Pictures) -> BlockNetwork:
    """The student with fresh weights from torch's global generator."""
    layers = _layers("student", config.student, pictures)
    layers = with_norms(layers, config.train.batchnorm, workers=config.train.workers)
    student = BlockNetwork(layers, config.student.cuts)
    student.recompute = config.train.activation_checkpointing
    return student


def build_teacher_network(config: TrialConfig, pictures: Pictures) -> BlockNetwork:
    """The teacher's network, cut where the student is, with fresh weights."""
    if config.teacher is None:
        raise ValueError("the config names no teacher")
    return BlockNetwork(_layers("teacher", config.teacher, pictures), config.student.cuts)


def _layers(section: str, network: StudentConfig | TeacherConfig, pictures: Pictures) -> Layers:
    return build(
        network.model,
        classes=pictures.classes,
        channels=pictures.channels,
        image_size=min(pictures.image_size),
        path=f"{section}.model",
        head=network.head,
    )


def load_teacher(config: TrialConfig, pictures: Pictures, weights: Path) -> FrozenTeacher:
    """The frozen teacher with the weights of a file."""
    network = build_teacher_network(config, pictures)
    load_weights(network.network, weights, config_path="teacher.checkpoint")
    return FrozenTeacher(network)


@torch.no_grad()
def output_shapes(network: BlockNetwork, pictures: Pictures) -> tuple[tuple[int, ...], ...]:
    """Shape of every block's output for one picture, without the batch; the network keeps its state."""
    training = network.training
    network.eval()
    shapes = network.features(torch.zeros(1, pictures.channels, *pictures.image_size))
    network.train(training)
    return tuple(tuple(shape.shape[1:]) for shape in shapes)


def check_features_match(
    student: BlockNetwork, teacher: BlockNetwork, pictures: Pictures, method: str
) -> None:
    """Raise ConfigError naming every cut where the networks' features differ in shape."""
    pairs = zip(
        student.names,
        output_shapes(student, pictures),
        output_shapes(teacher, pictures),
        strict=True,
    )
    found = [
        Problem(
            "student.cuts",
            f"{method} compares features, and at {name} the student has {mine} and the teacher {theirs}",
            "choose networks of equal widths, or cuts where they agree",
        )
        for name, mine, theirs in list(pairs)[:-1]
        if mine != theirs
    ]
    if found:
        raise ConfigError(found)
