"""The formats of an exported student: how each is written, and read again without what wrote it."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trainable.data.augment import Normalizer
from trainable.errors import ExportError, InputError, input_error
from trainable.export.recipe import Recipe, rebuilt
from trainable.networks.weights import load_weights

Format = Literal["safetensors", "program", "onnx"]
FORMATS: tuple[Format, ...] = ("safetensors", "program", "onnx")
FILES: dict[Format, str] = {
    "safetensors": "student.safetensors",
    "program": "student.pt2",
    "onnx": "student.onnx",
}
RECIPE = "config.json"
_ANY_BATCH = ({0: Dim("batch", min=1)},)
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Tensor], Tensor]
"""uint8 pictures (batch, channels, height, width) → fp32 logits (batch, classes)."""


class OfPixels(nn.Module):
    """A student that takes pictures as uint8: nobody else has to know its mean and deviation."""

    scale: Tensor
    shift: Tensor

    def __init__(self, student: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.student = student
        normalizer = Normalizer(mean, std, torch.device("cpu"))
        self.register_buffer("scale", normalizer.scale)
        self.register_buffer("shift", normalizer.shift)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (batch, channels, height, width) → logits (batch, classes)."""
        return self.student(images * self.scale + self.shift)


def check_packages(formats: Sequence[Format]) -> None:
    """InputError if a format needs packages that are not installed."""
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        rule = f"onnx needs {', '.join(missing)}"
        raise input_error(InputError, "--formats", rule, 'install it: pip install "kd-study[onnx]"')


def load_student(folder: Path) -> OfPixels:
    """The student of `student.safetensors` and `config.json`, in eval mode on the CPU."""
    recipe = Recipe.model_validate_json((folder / RECIPE).read_text("utf-8"))
    student = rebuilt(recipe)
    path = folder / FILES["safetensors"]
    load_weights(student.whole, path, config_path=str(path))
    return OfPixels(student, recipe.preprocessing.mean, recipe.preprocessing.std).eval()


def traced(student: OfPixels, recipe: Recipe) -> ExportedProgram:
    """Its forward as a program of torch's operators, for batches of any size from 1."""
    shown = recipe.preprocessing
    # The program keeps its example: no picture of anybody's.
    example = torch.zeros(2, shown.channels, *shown.size, dtype=torch.uint8)
    with refused("program", "leave program and onnx out of --formats"), torch.no_grad():
        return torch.export.export(student, (example,), dynamic_shapes=_ANY_BATCH)


def write_program(program: ExportedProgram, path: Path) -> None:
    """As `torch.export.load` reads it."""
    # Not to the file itself: where that cannot be written to its end, torch ends the whole process.
    content = io.BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """As an ONNX model: input `images`, output `logits`."""
    for noisy in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with refused("onnx", "leave onnx out of --formats"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.11's, of its own exporter
        model: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            dynamic_shapes=_ANY_BATCH,
            input_names=["images"],
            output_names=["logits"],
        )
    model.save(path)


def run_of(form: Format, folder: Path) -> Run:
    """What another program makes of a written format."""
    path = str(folder / FILES[form])
    match form:
        case "safetensors":
            return load_student(folder)
        case "program":
            with warnings.catch_warnings():  # torch 2.11's, of the bytes that it read itself
                warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
                return torch.export.load(path).module()
        case "onnx":
            return _onnx_run(path)


def _onnx_run(path: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def refused(form: str, remedy: str) -> Generator[None]:
    """In this block whatever a network's own code raises at being traced is an ExportError."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"student.model: cannot be written as {form} ({reason}); {remedy}"
        ) from error
