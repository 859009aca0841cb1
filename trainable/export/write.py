"""Writing a trained student in formats that other programs read, and reading each again to see what it says."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainable.config import TrialConfig
from trainable.data.store import open_test
from trainable.errors import ExportError
from trainable.export.program import (
    FILES,
    RECIPE,
    Format,
    OfPixels,
    check_packages,
    refused,
    run_of,
    traced,
    write_onnx,
    write_program,
)
from trainable.export.recipe import NetworkRecipe, Preprocessing, Recipe, rebuilt
from trainable.export.trained import Trained, load_trained
from trainable.networks.build import flops
from trainable.networks.folding import Named, fold_layers, foldable
from trainable.networks.projectors import widths_of
from trainable.networks.weights import put_weights, save_tensors
from trainable.statistics.batchnorm import batchnorm_layers

AGREEMENT = 1e-5
"""How far a logit may be from the trained student's, over the largest of its logits on the same pictures: fp32's
rounding over some dozens of layers, which other kernels and folded weights do in another order."""
COMPARED = 64
"""Pictures, evenly spaced, on which the two are compared: together, and the first alone."""


@dataclass(frozen=True)
class Exported:
    """What was written, and what is known of it."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    splits: Mapping[str, int]
    """Pictures of the splits `train`, `val` and `test`."""
    differences: Mapping[Format, float]
    """Largest absolute difference of a logit from the trained student's."""
    largest_logit: float
    """The largest size of the trained student's logits on those pictures."""
    compared: int
    """Pictures."""
    compared_split: Literal["val", "train"]
    parameters: int
    flops: int
    """Of one picture's forward, a multiply-add counted as two."""
    norms: int
    """BatchNorm layers of the trained student."""
    folded: int
    """Those that the convolution before them has taken in."""
    versions: Mapping[str, str]


def export_student(
    config: TrialConfig, weights: Path, folder: Path, formats: Sequence[Format], *, fold: bool
) -> Exported:
    """Write `config.json` and the formats into an empty folder, and see that each says what the student says.

    `fold` puts BatchNorm into the convolutions before it.

    Raises:
        InputError: A package, the data or the weights are not there.
        ExportError: The network cannot be written so, or what was written is off by more than `AGREEMENT`.
    """
    check_packages(formats)
    trained = load_trained(config, weights)
    images, split = _some_pictures(trained)
    batches = images, images[:1]
    expected = tuple(map(trained.logits, batches))
    folded = _foldable(trained) if fold else ()
    recipe = _recipe(config, trained, folded, formats)
    student = _write(trained, recipe, folder, formats)
    differences: dict[Format, float] = {
        form: _compared(form, folder, batches, expected) for form in formats
    }
    return Exported(
        classes=recipe.classes,
        preprocessing=recipe.preprocessing,
        splits=_splits(config, trained),
        differences=differences,
        largest_logit=float(expected[0].abs().max()),
        compared=len(images),
        compared_split=split,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        flops=sum(flops(trained.student, trained.pictures)),
        norms=len(batchnorm_layers(trained.student)),
        folded=len(folded),
        versions=recipe.versions,
    )


def _splits(config: TrialConfig, trained: Trained) -> dict[str, int]:
    val = trained.data.val
    return {
        "train": len(trained.data.train),
        "val": 0 if val is None else len(val),
        "test": len(open_test(config.data)),
    }


def _some_pictures(trained: Trained) -> tuple[Tensor, Literal["val", "train"]]:
    """Real ones: of the validation split, or without one of the training split."""
    split, name = trained.data.val, "val"
    if split is None:
        split, name = trained.data.train, "train"
    count = min(COMPARED, len(split))
    rows = np.linspace(0, len(split) - 1, count).round().astype(np.int64)
    return torch.from_numpy(split.images(rows)), name


def _foldable(trained: Trained) -> tuple[Named, ...]:
    pictures = trained.pictures
    with refused("a folded network", "leave out --fold"):
        return foldable(trained.student, torch.zeros(2, pictures.channels, *pictures.image_size))


def _recipe(
    config: TrialConfig, trained: Trained, folded: Sequence[Named], formats: Sequence[Format]
) -> Recipe:
    data, student = trained.data, trained.student
    widths = widths_of(student.projectors)
    network = NetworkRecipe(
        model=config.student.model,
        head=config.student.head,
        distilled=config.distill.method == "deit",
        cuts=student.names[:-1],
        group_norm=config.train.batchnorm.group_norm,
        batchnorm_eps=config.train.batchnorm.eps,
        projectors=config.student.projectors if widths else "none",
        widths=widths,
        folded=tuple(folded),
    )
    shown = Preprocessing(
        channels=data.channels,
        resize=config.data.resize or config.data.image_size,
        size=data.image_size,
        mean=data.mean,
        std=data.std,
    )
    versions = _versions(config.student.model, formats)
    return Recipe(classes=data.classes, preprocessing=shown, network=network, versions=versions)


def _versions(model: str, formats: Sequence[Format]) -> dict[str, str]:
    packages = ["kd-study", "torch", "torchvision", "safetensors"]
    packages += ["timm"] if model.startswith("timm:") else []
    packages += ["onnx", "onnxscript", "onnxruntime"] if "onnx" in formats else []
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _write(trained: Trained, recipe: Recipe, folder: Path, formats: Sequence[Format]) -> OfPixels:
    """The student in the form that was written."""
    (folder / RECIPE).write_text(f"{recipe.model_dump_json(indent=2)}\n", "utf-8")
    student, own = rebuilt(recipe), trained.student
    # Names of layers are the network's; `whole` has them as its own only without projectors.
    folded = fold_layers(own.network, recipe.network.folded)
    put_weights(student.network, folded)
    student.projectors.load_state_dict(own.projectors.state_dict())
    if "safetensors" in formats:
        save_tensors(student.whole.state_dict(), folder / FILES["safetensors"])
    pixels = OfPixels(student, trained.data.mean, trained.data.std).eval()
    if {"program", "onnx"} & set(formats):
        program = traced(pixels, recipe)
        if "program" in formats:
            write_program(program, folder / FILES["program"])
        if "onnx" in formats:
            write_onnx(program, folder / FILES["onnx"])
    return pixels


@torch.no_grad()
def _compared(
    form: Format, folder: Path, batches: Sequence[Tensor], expected: Sequence[Tensor]
) -> float:
    """The largest absolute difference of logits; ExportError if it is too large."""
    with refused(form, f"leave {form} out of --formats"):
        run = run_of(form, folder)
        given = [run(images) for images in batches]
    pairs = zip(given, expected, strict=True)
    found = torch.cat([(mine - logits).abs() for mine, logits in pairs]).max().item()
    bound = AGREEMENT * expected[0].abs().max().item()
    if not found <= bound:  # nor where it is no number
        text = (
            f"{FILES[form]}: must give the trained student's logits to {bound:.2g} ({AGREEMENT:g} of the largest), "
            f"and is off by {found:.2g}; nothing was kept"
        )
        raise ExportError(text)
    return found
