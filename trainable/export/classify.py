"""What a trained student says of picture files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainable.config import TrialConfig
from trainable.data.pictures import Picture, fit, size_text
from trainable.data.sources.base import decode
from trainable.errors import DataError, Problem
from trainable.export.trained import Trained, load_trained


@dataclass(frozen=True)
class Answer:
    """Of one picture."""

    file: Path
    likeliest: tuple[tuple[str, float], ...]
    """Classes and their probabilities, the likeliest first; none where the picture cannot be shown."""
    problems: tuple[Problem, ...] = ()
    """Why it cannot."""


def classify(
    config: TrialConfig, weights: Path, files: Sequence[Path], top: int
) -> Iterator[Answer]:
    """Show pictures, brought to size and channels as in validation, to the student of a trial's kept weights.

    Probabilities are the softmax of its logits, in fp32 on the CPU. Answers come in the order of the files.

    Raises:
        InputError: The data or the weights are not there.
    """
    trained = load_trained(config, weights)
    classes = trained.data.classes
    for file in files:
        try:
            picture = _read(config, trained, file)
        except DataError as error:
            yield Answer(file, (), error.problems)
            continue
        (shares,) = trained.logits(torch.tensor(picture).unsqueeze(0)).softmax(1)
        best = shares.topk(min(top, len(classes)))
        named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield Answer(file, tuple((classes[index], share) for index, share in named))


def _read(config: TrialConfig, trained: Trained, file: Path) -> Picture:
    """A file's picture, uint8 (C, H, W), as the network takes it; DataError if it cannot be had."""
    try:
        picture = decode(file.read_bytes(), str(file))
    except OSError as error:
        rule = f"must be a file that can be read ({error.strerror or error})"
        raise DataError([Problem(str(file), rule, "check the path")]) from error
    except DataError as error:
        remedy = "repair it, or leave it out"
        raise DataError([replace(p, remedy=remedy) for p in error.problems]) from error
    own = config.data
    picture = fit(picture, own.channels, own.image_size, own.resize)
    expected = (trained.data.channels, *trained.data.image_size)
    if picture.shape != expected:
        rule = f"must be {size_text(expected)} pixels, as the study's pictures are"
        remedy = "resize it, since the study resizes none (it has no data.image_size)"
        raise DataError([Problem(str(file), rule, remedy, size_text(picture.shape))])
    return picture
