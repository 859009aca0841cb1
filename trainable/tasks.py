"""What a study asks of a trial's world: look at the data and the networks, train, score.

Each is a plain function of configs and paths, so that a study can run it in its own process or on a
node of a cluster.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trainable import records
from trainable.bucket import Bucket
from trainable.config import TrialConfig
from trainable.data.augment import Normalizer
from trainable.data.loaders import open_loader
from trainable.data.parts import Placed, parts_of
from trainable.data.store import (
    DataSummary,
    check_data,
    open_dataset,
    open_test,
    open_unseen_test,
)
from trainable.distill.maps import feature_shapes
from trainable.distill.objective import method_of
from trainable.engine import checkpoint, deployed, mirror
from trainable.engine.asking import check_shapes, is_asked_once
from trainable.engine.evaluate import Evaluator
from trainable.engine.loop import TrialTask
from trainable.engine.neighbours import SharedGpu, notes_of, run_on
from trainable.engine.rehearsal import Footprint, rehearse
from trainable.engine.settings import apply_settings
from trainable.engine.verify import Verifier
from trainable.export.classify import Answer, classify
from trainable.export.program import FILES, FORMATS, RECIPE, Format, check_packages
from trainable.export.write import AGREEMENT, Exported, export_student
from trainable.methods import METHODS
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import (
    Pictures,
    build_student,
    build_teacher_network,
    check_all_is_read,
    check_embedding,
    check_features_match,
    check_own_blocks,
    flops,
    output_shapes,
    plain_student,
)
from trainable.networks.weights import load_weights, save_weights
from trainable.records import EpochRecord, Finding
from trainable.statistics import diagnosis

__all__ = [
    "AGREEMENT",
    "FILES",
    "FORMATS",
    "RECIPE",
    "Answer",
    "BlockSummary",
    "DataSummary",
    "Exported",
    "Footprint",
    "Format",
    "NetworkSummary",
    "Placed",
    "SharedGpu",
    "TrialTask",
    "best_weights",
    "check_checkpoint",
    "check_features",
    "check_method",
    "check_packages",
    "check_teacher_cache",
    "classify",
    "clear",
    "clear_kept",
    "default_device",
    "describe_student",
    "describe_teacher",
    "diagnose",
    "diagnose_study",
    "export_student",
    "inspect_data",
    "keep_teacher",
    "list_parts",
    "measure",
    "out_of_memory_notes",
    "parameters_in_use",
    "score_weights",
    "teacher_key",
    "train",
]


@dataclass(frozen=True)
class BlockSummary:
    """One block of a network."""

    name: str
    output: tuple[int, ...]
    """Shape for one picture."""
    parameters: int
    flops: int
    """Of one picture's forward, a multiply-add counted as two."""
    projector: tuple[int, int] | None = None
    """Channels of the student's and the teacher's features, where a projector ends the block."""


@dataclass(frozen=True)
class NetworkSummary:
    """A network, block by block."""

    model: str
    blocks: tuple[BlockSummary, ...]

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(block.parameters for block in self.blocks)

    @property
    def flops(self) -> int:
        """Of the whole network."""
        return sum(block.flops for block in self.blocks)


def default_device(config: TrialConfig) -> torch.device:
    """The device of a one-worker trial: the GPU that it was given, else the CPU."""
    return torch.device("cuda" if config.resources.gpus else "cpu")


def inspect_data(config: TrialConfig) -> DataSummary:
    """Decode and check all splits, once a node; DataError with everything that is wrong."""
    return check_data(config.data)


def list_parts(config: TrialConfig) -> Iterator[Placed]:
    """Every training picture, and whether it is trained on or held out; DataError for labels that are wrong."""
    return parts_of(config.data)


def describe_student(config: TrialConfig, data: DataSummary) -> NetworkSummary:
    """The student's blocks; ConfigError if it, or a cut, is not known, or its own blocks are not its forward."""
    pictures = _pictures(data)
    check_own_blocks(lambda: plain_student(config, pictures), pictures)
    with torch.device("meta"):
        network = build_student(config, pictures)
        check_all_is_read(network)
        return _describe(config.student.model, network, data)


def describe_teacher(config: TrialConfig, data: DataSummary) -> NetworkSummary:
    """The teacher's blocks; ConfigError as of the student's."""
    pictures = _pictures(data)
    check_own_blocks(lambda: build_teacher_network(config, pictures), pictures)
    with torch.device("meta"):
        network = build_teacher_network(config, pictures)
        return _describe("" if config.teacher is None else config.teacher.model, network, data)


def parameters_in_use(config: TrialConfig, data: DataSummary) -> int:
    """Parameters of a trial's student as it is used; see `engine.deployed`."""
    return deployed.parameters_in_use(config, _pictures(data))


def check_features(config: TrialConfig, data: DataSummary) -> None:
    """ConfigError unless the networks agree where the method compares or exchanges their features."""
    if METHODS[config.distill.method].features != "equal":
        return
    pictures = _pictures(data)
    with torch.device("meta"):
        student, teacher = build_student(config, pictures), build_teacher_network(config, pictures)
        check_features_match(student, teacher, pictures, config.distill.method)


def check_method(config: TrialConfig, data: DataSummary) -> None:
    """ConfigError if the method cannot be had with the networks' blocks."""
    pictures, shapes = _pictures(data), None
    with torch.device("meta"):
        student = build_student(config, pictures)
        if METHODS[config.distill.method].features == "maps":
            shapes = feature_shapes(student, build_teacher_network(config, pictures), pictures)
        method_of(config.distill, student, [(0, len(student))], shapes)


def check_checkpoint(config: TrialConfig, data: DataSummary, weights: Path) -> None:
    """CheckpointError unless the file fits the teacher."""
    network = build_teacher_network(config, _pictures(data))
    load_weights(network.network, weights, config_path="teacher.checkpoint")


def check_teacher_cache(config: TrialConfig, data: DataSummary) -> None:
    """ConfigError if `teacher.cache` would keep more than `data.cache_budget_gib`."""
    if not is_asked_once(config):
        return
    pictures = _pictures(data)
    with torch.device("meta"):
        shapes = output_shapes(build_teacher_network(config, pictures), pictures)
    check_shapes(config, data.train, shapes)


def train(
    task: TrialTask,
    report: Callable[[EpochRecord], None],
    device: torch.device,
    shared: SharedGpu | None = None,
) -> None:
    """Run a trial on this rank from its last checkpoint; see `engine.neighbours.run_on`."""
    run_on(shared, task, report, device)


def out_of_memory_notes(folder: Path) -> tuple[str, ...]:
    """When and why a trial found no memory beside others and began again; see `engine.neighbours`."""
    return notes_of(folder)


def measure(config: TrialConfig, weights: Path | None) -> Footprint:
    """What a trial takes of the GPU that this process has to itself; see `engine.rehearsal.rehearse`.

    Where the teacher's weights are not there yet, any will do.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if weights is None and METHODS[config.distill.method].teacher:
            data = open_dataset(config.data)
            pictures = Pictures(len(data.classes), data.channels, data.image_size)
            weights = folder / "teacher.safetensors"
            save_weights(build_teacher_network(config, pictures).network, weights)
        return rehearse(TrialTask(config, folder, weights), default_device(config))


def best_weights(folder: Path) -> Path:
    """Where a trial keeps its best student."""
    return checkpoint.best_student(folder)


def clear(folder: Path, *, keep_best: bool) -> None:
    """Remove what a trial that is over has no more use for; see `engine.checkpoint.clear`."""
    checkpoint.clear(folder, keep_best=keep_best)


def clear_kept(bucket: Bucket, trial: str, *, keep_best: bool) -> None:
    """As `clear`, of the trial that a bucket has under this name; see `engine.mirror.clear_kept`."""
    mirror.clear_kept(bucket, trial, keep_best=keep_best)


def diagnose(config: TrialConfig, history: Sequence[EpochRecord]) -> tuple[Finding, ...]:
    """What is wrong with a trial, as its epochs so far tell; see `statistics.diagnosis.diagnose`."""
    return diagnosis.diagnose(config, history)


def diagnose_study(
    searched: Collection[str],
    trials: Sequence[TrialConfig],
    *,
    teacher: float | None,
    students: Mapping[str, float],
    pictures: int,
) -> tuple[Finding, ...]:
    """What is wrong with a study as a whole; see `statistics.diagnosis.diagnose_study`."""
    return diagnosis.diagnose_study(
        searched, trials, teacher=teacher, students=students, pictures=pictures
    )


_NOT_IN_WEIGHTS: dict[str, Any] = {
    "resources": True,
    "student": {"cuts"},
    "data": {"root", "download", "decode_workers"},
    "train": {
        "launcher": True,
        "checkpoint": True,
        "max_skipped": True,
        "observe_every": True,
        "batchnorm": {"batch_stats_accuracy"},
    },
}
"""Settings that leave a trained network's weights as they are."""


def teacher_key(training: TrialConfig, data: DataSummary) -> str:
    """Names a trained teacher: equal for training configs that give equal weights on equal pictures."""
    text = training.model_dump_json(exclude=_NOT_IN_WEIGHTS) + data.fingerprint
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def keep_teacher(folder: Path, destination: Path) -> None:
    """Keep the best weights of a teacher's trial where later studies find them."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    shutil.copyfile(best_weights(folder), temporary)
    temporary.replace(destination)


def score_weights(
    config: TrialConfig,
    network: Literal["student", "teacher"],
    weights: Path,
    split: Literal["val", "test"],
    device: torch.device,
) -> dict[str, float]:
    """Accuracy and, where classes are unseen, equal error rate of a network on one split.

    By metric name (`records.VAL_ACCURACY`, …); what cannot be measured is absent.
    """
    apply_settings(config)
    data = open_dataset(config.data)
    if split == "test":
        part, unseen = open_test(config.data), open_unseen_test(config.data)
        names = records.TEST_ACCURACY, records.TEST_EER
    else:
        part, unseen = data.val, data.unseen
        names = records.VAL_ACCURACY, records.VAL_EER
    pictures = Pictures(len(data.classes), data.channels, data.image_size)
    if network == "student":
        blocks = build_student(config, pictures, for_inference=True)
    else:
        blocks = build_teacher_network(config, pictures)
    load_weights(blocks.whole, weights, config_path=str(weights))
    normalize = Normalizer(data.mean, data.std, device)
    model = blocks.to(device)
    metrics: dict[str, float] = {}
    if part is not None:
        loader = open_loader(part, device, config.data.decode_workers)
        metrics[names[0]] = Evaluator(loader, len(part), normalize, device).score(model).accuracy
    if unseen is not None:
        loader = open_loader(unseen, device, config.data.decode_workers)
        metrics[names[1]] = Verifier(loader, unseen.labels, normalize, device).eer(model)
    return records.finite(metrics)


def _describe(model: str, network: BlockNetwork, data: DataSummary) -> NetworkSummary:
    pictures = _pictures(data)
    if data.unseen:
        check_embedding(network, pictures)
    costs = zip(output_shapes(network, pictures), flops(network, pictures), strict=True)
    blocks = [
        BlockSummary(
            name, shape, sum(p.numel() for p in parameters), cost, network.projected(index)
        )
        for index, ((name, parameters), (shape, cost)) in enumerate(
            zip(network.block_parameters(), costs, strict=True)
        )
    ]
    return NetworkSummary(model, tuple(blocks))


def _pictures(data: DataSummary) -> Pictures:
    return Pictures(len(data.classes), data.channels, data.image_size)
