"""The networks of a trial, built from its config and the facts of its data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainable.config import TrialConfig
from trainable.errors import ConfigError, Problem, reason_of
from trainable.memory import is_out_of_memory
from trainable.networks.blocks import BlockNetwork
from trainable.networks.by_hand import check_composition, is_by_hand
from trainable.networks.norms import with_norms
from trainable.networks.projectors import Shape, between, differing_widths, projectors
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.weights import load_weights
from trainable.networks.zoo import Pictures, build

__all__ = [
    "Pictures",
    "build_student",
    "build_teacher_network",
    "check_all_is_read",
    "check_embedding",
    "check_features_match",
    "check_own_blocks",
    "flops",
    "forget_teacher",
    "load_teacher",
    "output_shapes",
    "plain_student",
    "shapes_at_cuts",
]


def build_student(
    config: TrialConfig, pictures: Pictures, *, for_inference: bool = False
) -> BlockNetwork:
    """The student with fresh weights from torch's global generator.

    `for_inference` gives it the layers of the weights that a trial keeps: projectors may be folded there.
    """
    student = plain_student(config, pictures)
    if config.student.projectors != "none" and config.teacher is not None:
        with torch.device("meta"):
            mine, theirs = shapes_at_cuts(
                plain_student(config, pictures), build_teacher_network(config, pictures), pictures
            )
        cuts = student.names[:-1]
        widths = differing_widths(cuts, mine, theirs, pictures.image_size)
        folds = config.student.projectors == "fold"
        student.project(projectors(widths, folded=folds and for_inference))
        student.is_to_be_folded = folds and not for_inference and bool(widths)
    student.recompute = config.train.activation_checkpointing
    return student


def plain_student(config: TrialConfig, pictures: Pictures) -> BlockNetwork:
    """The student without projectors, which its own forward knows nothing of."""
    own, distilled = config.student, config.distill.method == "deit"
    built = build(own.model, pictures, path="student.model", head=own.head, distilled=distilled)
    network = with_norms(built.network, config.train.batchnorm, workers=config.train.workers)
    return BlockNetwork(network, built.cuts if own.cuts is None else own.cuts)


def build_teacher_network(config: TrialConfig, pictures: Pictures) -> BlockNetwork:
    """The teacher's network with fresh weights, cut at its own cuts or else at the student's."""
    own = config.teacher
    if own is None:
        raise ValueError("the config names no teacher")
    built = build(own.model, pictures, path="teacher.model", head=own.head)
    path, cuts = "student.cuts", config.student.cuts
    if own.cuts is not None:
        path, cuts = "teacher.cuts", own.cuts
    cuts = built.cuts if cuts is None else cuts
    return BlockNetwork(built.network, cuts, path, model_path="teacher.model")


def load_teacher(config: TrialConfig, pictures: Pictures, weights: Path) -> FrozenTeacher:
    """The frozen teacher with the weights of a file.

    A process keeps the last one, on its device and with what was made of it, for the next trial.
    """
    identity = _identity(config, pictures, weights)
    if identity not in _kept:
        forget_teacher()
        # What is drawn next must not depend on whether the fresh weights, which are overwritten, were drawn; nor may
        # what no file of weights holds depend on which trial was the first.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_teacher_network(config, pictures)
        load_weights(network.network, weights, config_path="teacher.checkpoint")
        _kept[identity] = FrozenTeacher(network)
    return _kept[identity]


def forget_teacher() -> None:
    """Free the one that the process keeps."""
    _kept.clear()


_kept: dict[Hashable, FrozenTeacher] = {}


def _identity(config: TrialConfig, pictures: Pictures, weights: Path) -> Hashable:
    """What a teacher is made of; its file is another one after it was written again."""
    status = weights.stat() if weights.is_file() else None
    written = None if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)
    return repr(config.teacher), config.student.cuts, pictures, weights, written


def output_shapes(network: BlockNetwork, pictures: Pictures) -> tuple[Shape, ...]:
    """Shape of every block's output for one picture, without the batch; the network keeps its state.

    Raises:
        ConfigError: It cannot take such pictures, or a block overwrites what the one before has handed out.
    """
    shapes: list[Shape] = []
    try:
        with _looking_at(network, pictures) as x:
            for index, name in enumerate(network.names):
                before, version = x, x._version
                x = network.run(x, index, index + 1)
                _check_is_tensor(x, name, network)
                if before._version != version:
                    rule = "must be cut where no later layer works in place"
                    remedy = "make it return a new tensor, or cut elsewhere"
                    got = f"block {name}, which overwrites its input"
                    raise ConfigError([Problem(network.path, rule, remedy, got)])
                shapes.append(tuple(x.shape[1:]))
    except ConfigError:
        raise
    except Exception as error:  # whatever a person's own code raises
        if is_out_of_memory(error):
            raise
        raise ConfigError([_unfit(network, pictures, error)]) from error
    if shapes[-1] != (pictures.classes,):
        rule = f"must give {pictures.classes} logits, one a class"
        remedy = "make it do so, from num_classes"
        raise ConfigError([Problem(network.model_path, rule, remedy, str(shapes[-1]))])
    return tuple(shapes)


def _check_is_tensor(output: object, name: str, network: BlockNetwork) -> None:
    if isinstance(output, Tensor):
        return
    got = f"block {name}, which gives a {type(output).__name__}"
    rule, remedy = "must be cut where one tensor is given", "cut after another module"
    path = network.path
    if name == network.names[-1]:
        rule, remedy, path = "must give the logits alone", "change its forward", network.model_path
    raise ConfigError([Problem(path, rule, remedy, got)])


def _unfit(network: BlockNetwork, pictures: Pictures, error: Exception) -> Problem:
    """Of a network that raises at a picture; before a study there are shapes alone, without values."""
    reason = reason_of(error)
    if "meta" in reason:
        rule = f"must not look at values of its tensors ({reason})"
        return Problem(network.model_path, rule, "compute with them, as torch.where does")
    size = "×".join(str(side) for side in (pictures.channels, *pictures.image_size))
    remedy = "correct it or choose another network, or set data.image_size and data.channels"
    return Problem(network.model_path, f"must take pictures of {size} ({reason})", remedy)


def check_own_blocks(make: Callable[[], BlockNetwork], pictures: Pictures) -> None:
    """ConfigError unless the blocks that a network names itself are its forward: training runs the blocks alone.

    Of such a network `make` is asked for one with weights; global generators of random numbers stay as they are.
    """
    with torch.device("meta"):
        if not is_by_hand(make().network):
            return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        made = make().to("cpu")
        size = (pictures.channels, *pictures.image_size)
        check_composition(made.network, made, size, made.model_path)


def check_all_is_read(network: BlockNetwork) -> None:
    """Raise ConfigError where no parameter is trained, or one that is has no gradient, as no forward uses it."""
    if not any(parameter.requires_grad for parameter in network.network.parameters()):
        rule, remedy = "must have parameters to train", "choose another, or set requires_grad"
        raise ConfigError([Problem(network.model_path, rule, remedy, "none")])
    if unread := network.unread_parameters():
        rule = "must use all its parameters in its forward"
        remedy = "remove the others, or freeze them (requires_grad_(False))"
        got = f"{len(unread)} unused, the first {unread[0]}"
        raise ConfigError([Problem(network.model_path, rule, remedy, got)])


def check_embedding(network: BlockNetwork, pictures: Pictures) -> None:
    """Raise ConfigError unless a picture's embedding is a vector, which unseen classes are verified by."""
    with _looking_at(network, pictures) as x:
        shape = None if network.head is None else tuple(network.embed(x).shape[1:])
    if shape is None or len(shape) != 1:
        rule = "data.unseen_classes needs a network whose last layer takes a vector"
        got = "no last layer" if shape is None else f"{shape} of a picture"
        raise ConfigError(
            [Problem(network.model_path, rule, "choose another, or remove them", got)]
        )


def flops(network: BlockNetwork, pictures: Pictures) -> tuple[int, ...]:
    """Floating-point operations of every block's forward for one picture, a multiply-add counted as two."""
    counts: list[int] = []
    with _looking_at(network, pictures) as x:
        for index in range(len(network)):
            with FlopCounterMode(display=False) as counter:
                x = network.run(x, index, index + 1)
            counts.append(counter.get_total_flops())
    return tuple(counts)


def shapes_at_cuts(
    student: BlockNetwork, teacher: BlockNetwork, pictures: Pictures
) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Shapes of the student's and the teacher's features at their cuts, for one picture.

    Raises:
        ConfigError: They are cut into different numbers of blocks.
    """
    if len(student) != len(teacher):
        rule = f"must cut both networks into as many blocks, not the teacher into {len(teacher)}"
        remedy = "name the cuts of both, in student.cuts and teacher.cuts"
        names = ", ".join(student.names[:-1])
        raise ConfigError([Problem("student.cuts", rule, remedy, f"{len(student)} ({names})")])
    return output_shapes(student, pictures)[:-1], output_shapes(teacher, pictures)[:-1]


def check_features_match(
    student: BlockNetwork, teacher: BlockNetwork, pictures: Pictures, method: str
) -> None:
    """Raise ConfigError naming every cut where the networks' features differ in shape."""
    mine_and_theirs = shapes_at_cuts(student, teacher, pictures)
    pairs = zip(student.names[:-1], *mine_and_theirs, strict=True)
    found = [
        Problem(
            "student.cuts",
            f"{method} compares features, and at {name} the student has {mine} and the teacher {theirs}",
            "choose cuts where they agree"
            if between(mine, theirs, pictures.image_size) is None
            else "set student.projectors: fold, or choose cuts where they agree",
        )
        for name, mine, theirs in pairs
        if mine != theirs
    ]
    if found:
        raise ConfigError(found)


@contextmanager
def _looking_at(network: BlockNetwork, pictures: Pictures) -> Generator[Tensor]:
    """A dark picture, (1, channels, height, width), while the network evaluates; then it is as it was."""
    training = network.training
    device = next((parameter.device for parameter in network.parameters()), None)
    network.eval()
    try:
        with torch.no_grad():
            yield torch.zeros(1, pictures.channels, *pictures.image_size, device=device)
    finally:
        network.train(training)
