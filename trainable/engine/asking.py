"""Asking the teacher about every training picture once a node, for all of its trials."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainable.config import TrialConfig
from trainable.data import cache
from trainable.data.augment import Views
from trainable.data.cache import Arrays
from trainable.data.content import combine, content_key
from trainable.data.faults import data_error
from trainable.data.store import Dataset
from trainable.engine.answers import Answers, Bytes, Layout
from trainable.engine.feed import Feed
from trainable.engine.precision import TeacherPrecision
from trainable.errors import ConfigError, Problem
from trainable.methods import METHODS
from trainable.networks.projectors import Shape
from trainable.networks.teacher import FrozenTeacher
from trainable.places import cache_folder

FORMAT = "2"
"""Version of the files: raise it whenever equal keys would stand for other answers."""
ASKED = 128
"""Pictures that the teacher is asked about at a time, at most."""
CHECKED = 32
"""Pictures, evenly spaced, that it is asked about again before what was kept is used."""

_GIB = 2**30
_ROUNDING = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 5e-2, "fp16": 5e-2}
"""By how much of the largest number outputs may differ in another micro-batch."""


class Question(NamedTuple):
    """Who is asked, and about what."""

    config: TrialConfig
    teacher: FrozenTeacher
    weights: Path
    """The teacher's file."""
    data: Dataset
    feed: Feed
    device: torch.device

    @property
    def precision(self) -> TeacherPrecision:
        """In which the teacher answers."""
        return TeacherPrecision(self.config, self.device)


class OtherAnswersError(ValueError):
    """The teacher says something else than was kept."""


def is_asked_once(config: TrialConfig) -> bool:
    """Whether trials are given what the teacher once said, not the teacher."""
    is_cached = config.teacher is not None and config.teacher.cache
    return is_cached and METHODS[config.distill.method].teacher


def open_answers(question: Question) -> Answers:
    """The answers in the node's cache folder, made by the first of its processes that asks.

    Before they are used the teacher is asked about a few pictures again: if it says something else, as after a change
    of its code, it is asked about all of them anew.

    Raises:
        ConfigError: They are larger than `data.cache_budget_gib`, or depend on a picture's micro-batch.
        DataError: The cache folder cannot be written or has no room.
    """
    path = cache_folder() / "teachers" / f"{_key(question)}.arrow"

    def parse(arrays: Arrays) -> Answers:
        answers = Answers(arrays, question.device)
        _check(question, answers)
        return answers

    try:
        if (known := cache.load(path, parse)) is not None:
            return known
        return cache.build(path, parse, lambda: _asked_about_all(question, path.parent))
    except OtherAnswersError as error:
        rule = f"needs a teacher that looks at each picture of a batch by itself ({error})"
        raise ConfigError([Problem("teacher.cache", rule, "set it to false", "true")]) from error


def check_shapes(config: TrialConfig, pictures: int, shapes: Sequence[Shape]) -> None:
    """ConfigError if the answers about so many pictures are larger than `data.cache_budget_gib`, before any is given.

    `shapes` are those of the teacher's outputs, the logits last. Autocast gives some of them in 16 bits, and which
    is not known: all count as such.
    """
    kept = shapes if _reads_features(config) else shapes[-1:]
    each = 2 if config.teacher_precision in ("bf16", "fp16") else 4
    _check_budget(config, pictures, each * sum(math.prod(shape) for shape in kept))


def _check_budget(config: TrialConfig, pictures: int, size: int) -> None:
    """`size` is that of the answers about one view of a picture, in bytes."""
    views = len(Views(config.data.augment.crop, config.data.augment.flip))
    gib, budget = pictures * views * size / _GIB, config.data.cache_budget_gib
    if gib > budget:
        what = "logits and features" if _reads_features(config) else "logits"
        of = f"{views} views of each of {pictures:,}" if views > 1 else f"{pictures:,}"
        rule = f"teacher.cache needs at least {gib:.3g} GiB for {what} of {of} pictures"
        remedy = "raise it, or set teacher.cache to false"
        raise ConfigError([Problem("data.cache_budget_gib", rule, remedy, f"{budget:g}")])


def _reads_features(config: TrialConfig) -> bool:
    """Whether the features at the cuts are kept beside the logits."""
    return METHODS[config.distill.method].features != "none"


def _key(question: Question) -> str:
    """Of all that the answers depend on, as far as it is known without asking."""
    config, data, device = question.config, question.data, question.device
    teacher, augment, train = config.teacher, config.data.augment, config.train
    assert teacher is not None
    rows = hashlib.blake2b(data.train.rows.tobytes(), digest_size=16).hexdigest()
    weights = content_key(question.weights.parent, [question.weights], None)
    kind = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        kind = f"{torch.cuda.get_device_name(device)}, deterministic: {train.deterministic}"
        kind += f", tf32: {train.precision == 'tf32'}"  # of what autocast leaves in fp32
    cuts = config.student.cuts if teacher.cuts is None else teacher.cuts
    settings = (
        (data.mean, data.std),
        (augment.crop, augment.flip),
        teacher.model_dump_json(include={"model", "head"}),
        cuts if _reads_features(config) else "logits",
        (config.teacher_precision, torch.__version__, kind),
    )
    return combine(FORMAT, data.fingerprint, rows, weights, *(repr(s) for s in settings))


def _outputs(question: Question, images: Tensor) -> dict[str, Tensor]:
    """What is kept of the teacher's outputs, by name, the logits last."""
    with question.precision.forward():
        outputs = question.teacher(images)
    features = outputs.features if _reads_features(question.config) else ()
    named = {f"features {number}": tensor for number, tensor in enumerate(features)}
    return {**named, "logits": outputs.logits}


def _asked_about_all(question: Question, folder: Path) -> Arrays:
    count, columns, facts = question.feed.rows, dict[str, Bytes](), dict[str, str]()
    # All of one size, the last over some of the one before: the teacher is fused for it, and rounds alike in all.
    starts = [*range(0, count - ASKED, ASKED), max(0, count - ASKED)]
    parts = [np.arange(start, min(start + ASKED, count), dtype=np.int64) for start in starts]
    for rows, images in zip(parts, question.feed.views(parts), strict=True):
        with question.precision.forward():
            question.teacher.fuse(images)
        outputs = _outputs(question, images)
        layouts = {name: Layout.of(tensor) for name, tensor in outputs.items()}
        if not columns:
            size = sum(layout.size for layout in layouts.values())
            _check_budget(question.config, len(question.data.train), size)
            _check_room(folder, count * size)
            facts = {name: layout.text() for name, layout in layouts.items()}
            columns = {n: np.empty((count, own.size), np.uint8) for n, own in layouts.items()}
        for name, layout in layouts.items():
            columns[name][rows] = layout.to_bytes(outputs[name])
    return Arrays(columns, facts)


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise data_error(
            str(folder),
            f"must have room for {size / _GIB:.3g} GiB of what the teacher says",
            "make room, set KD_STUDY_CACHE to another folder, or set teacher.cache to false",
            f"{free / _GIB:.3g} GiB",
        )


def _check(question: Question, answers: Answers) -> None:
    """OtherAnswersError unless the teacher says what was kept, but for the rounding of another micro-batch."""
    count = question.feed.rows
    rows = np.linspace(0, count - 1, min(CHECKED, count)).round().astype(np.int64)
    (images,) = question.feed.views([rows])
    kept = answers(torch.from_numpy(rows).to(question.device))
    outputs = _outputs(question, images)
    bound = _ROUNDING[question.config.teacher_precision]
    for (name, now), then in zip(outputs.items(), (*kept.features, kept.logits), strict=True):
        if now.dtype != then.dtype or now.shape != then.shape:
            raise OtherAnswersError(f"{name} of another type or shape")
        expected = now.double()
        largest = float(expected.nan_to_num(0, 0, 0).abs().max())
        kept_ones, atol = then.double(), bound * largest
        if not torch.allclose(kept_ones, expected, rtol=0, atol=atol, equal_nan=True):
            apart = float((kept_ones - expected).abs().max())
            raise OtherAnswersError(f"{name} differ by {apart:.2g}, the largest is {largest:.2g}")
