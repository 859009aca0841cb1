"""An exported student says what the trained one says, whoever loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.trainable.exports import keep, logits_of, pictures_of, trial
from trainable.config import DataConfig, TrialConfig
from trainable.engine.checkpoint import best_student
from trainable.engine.loop import TrialTask, run
from trainable.errors import ExportError, InputError
from trainable.export import program
from trainable.export.program import Format, load_student, run_of
from trainable.export.trained import load_trained
from trainable.export.write import AGREEMENT, Exported, export_student

TOGETHER: tuple[Format, ...] = ("safetensors", "program")
WIDE = {"model": "mini_resnet_10_4", "checkpoint": "unused"}
KD = {"distill": {"method": "kd", "alpha": 0.5}, "teacher": WIDE}
DEIT = {"distill": {"method": "deit", "alpha": 0.5}, "teacher": WIDE}
AM_SOFTMAX = {"head": {"name": "am_softmax", "scale": 20}}
HERE = __name__

FAMILIES = {
    "mini_resnet": trial("mini_resnet_10_2"),
    "grey, am_softmax": trial("mini_resnet_10_2", channels=1, student=AM_SOFTMAX),
    "deit": trial("vit_t8", 8, **DEIT),
    "resnet": trial("resnet18", 32),
    "resnet for large pictures": trial("resnet18", 64),
    "wrn": trial("wrn_16_1", 32),
    "resnext": trial("resnext20_32x4d", 32),
    "vit": trial("vit_t8", 32),
    "swin": trial("swin_t", 32),
    "torchvision": trial("torchvision:mobilenet_v3_small", 32),
    "torchvision's dense": trial("torchvision:densenet121", 32),
    "timm": trial("timm:resnet10t", 32),
    "timm's own BatchNorm": trial("timm:efficientnet_lite0", 32),
    "factory": trial(f"{HERE}:Own"),
    "a submodule called network": trial(f"{HERE}:Wrapping"),
    "hand-made blocks": trial(f"{HERE}:HandMade", student={"cuts": ["conv", "sign"]}),
    "projectors kept": trial("mini_resnet_10_2", student={"projectors": "keep"}, **KD),
    "projectors folded": trial("mini_resnet_10_2", student={"projectors": "fold"}, **KD),
    "linear projectors": trial(
        "vit_t8",
        8,
        student={"projectors": "fold"},
        **(KD | {"teacher": WIDE | {"model": "vit_s8"}}),
    ),
    "group norm, eps": trial("mini_resnet_10_2", train={"batchnorm": {"group_norm": 2}}),
    "eps": trial("mini_resnet_10_2", train={"batchnorm": {"eps": 0.1}}),
    "sync": trial("mini_resnet_10_2", train={"workers": 2, "batchnorm": {"sync": True}}),
}


class Own(nn.Module):
    """Somebody's own network, one of whose BatchNorms stands alone."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(self.first(x))).relu().mean((2, 3)))


class Wrapping(nn.Module):
    """Its layers are in a submodule called `network`, one of which reads the version that its weights are of."""

    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *rest: Any) -> None:
            assert local.get("version") == 2
            super()._load_from_state_dict(state, prefix, local, *rest)

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.network = nn.Sequential(nn.Conv2d(in_channels, 8, 3), norms[0], nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3)
        self.add_module("1", norms[1])
        self.fc = Wrapping.Versioned(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        second = self.get_submodule("1")
        return self.fc(second(self.conv(self.network(x))).relu().mean((2, 3)))


class HandMade(Own):
    """Its blocks are given, one of them a module that the network does not hold."""

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.sum() > 0, x, -x)

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(self.first(x)))
        return self.fc(HandMade.Sign()(features).mean((2, 3)))

    def blocks_in_order(self) -> Sequence[tuple[str, nn.Module]]:
        conv = nn.Sequential(self.first, self.conv, self.norm)
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        return [("conv", conv), ("sign", HandMade.Sign()), ("pool", pool), ("fc", self.fc)]


class TwoFaced(Own):
    """It says something else as a program."""

    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1.001 if torch.compiler.is_exporting() else 1.0)

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.scale = TwoFaced.Scale()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(super().forward(x))


class Reading(TwoFaced):
    """It decides by what it sees, which no program can."""

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.scale = Reading.Sign()


def export(
    config: TrialConfig, folder: Path, formats: Sequence[Format], *, fold: bool = False
) -> Exported:
    weights = keep(config, folder / "kept.safetensors")
    (folder / "export").mkdir()
    return export_student(config, weights, folder / "export", formats, fold=fold)


def check(config: TrialConfig, folder: Path, formats: Sequence[Format], *, fold: bool) -> Exported:
    """Export, load each format, and compare it with the student; all three are told of each other's."""
    done = export(config, folder, formats, fold=fold)
    images = pictures_of(config)
    expected = logits_of(config, folder / "kept.safetensors", images)
    assert expected.std() > 0
    for form in formats:
        run = run_of(form, folder / "export")
        with torch.no_grad():
            for count in (1, 5):
                off = (run(images[:count]) - expected[:count]).abs().max()
                assert off <= AGREEMENT * expected.abs().max()
        assert done.differences[form] <= AGREEMENT * done.largest_logit
    return done


@pytest.mark.parametrize(("name", "fold"), [("mini_resnet", True), ("grey, am_softmax", False)])
def test_every_format_says_what_the_student_says(name: str, fold: bool, tmp_path: Path) -> None:
    check(FAMILIES[name], tmp_path, TOGETHER, fold=fold)


FOLDED = pytest.mark.parametrize("fold", [False, True], ids=["as trained", "folded"])


@pytest.mark.slow
@FOLDED
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_networks(name: str, fold: bool, tmp_path: Path) -> None:
    check(FAMILIES[name], tmp_path, TOGETHER, fold=fold)


@pytest.mark.slow
@FOLDED
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx(name: str, fold: bool, tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    onnx = pytest.importorskip("onnx")
    check(FAMILIES[name], tmp_path, ("onnx",), fold=fold)
    graph = onnx.load(tmp_path / "export" / "student.onnx").graph
    (taken,), (given,) = graph.input, graph.output
    assert (taken.name, given.name) == ("images", "logits")
    assert taken.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_what_was_exported_is_told(tmp_path: Path) -> None:
    config = trial("mini_resnet_10_2", student={"projectors": "fold"}, **KD)
    done = export(config, tmp_path, ("safetensors",), fold=True)
    assert done.splits == {"train": 1295, "val": 143, "test": 359}
    assert (done.norms, done.folded) == (12, 12)
    assert (done.compared, done.compared_split) == (64, "val")
    student = load_student(tmp_path / "export")
    assert done.parameters == sum(parameter.numel() for parameter in student.parameters())
    written = json.loads((tmp_path / "export" / "config.json").read_text())
    assert written["classes"] == [str(digit) for digit in range(10)]
    assert written["preprocessing"]["size"] == [8, 8]
    assert written["versions"]["torch"] == version("torch")
    assert written["network"]["folded"][0] == ["conv1", "bn1"]


def test_without_validation_pictures_it_is_compared_on_those_of_training(tmp_path: Path) -> None:
    config = trial("mini_resnet_10_2")
    without = config.data.model_copy(update={"val_fraction": 0.0})
    done = export(config.model_copy(update={"data": without}), tmp_path, ("safetensors",))
    assert (done.compared_split, done.splits["val"]) == ("train", 0)


@pytest.mark.slow
def test_the_program_holds_no_picture_and_needs_no_code_of_ours(tmp_path: Path) -> None:
    config = trial("mini_resnet_10_2")
    export(config, tmp_path, ("program",))
    (example,), _ = torch.export.load(tmp_path / "export" / "student.pt2").example_inputs
    assert not example.any()
    images = pictures_of(config)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; sys.modules |= {'trainable': None, 'study': None}\n"
        "run = torch.export.load('export/student.pt2').module()\n"
        "torch.save(run(torch.load('images.pt')).detach(), 'logits.pt')"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True, timeout=100)
    expected = logits_of(config, tmp_path / "kept.safetensors", images)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-5, atol=1e-5)


def test_what_says_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"student\.pt2: must give the trained student's logits"):
        export(trial(f"{HERE}:TwoFaced"), tmp_path, TOGETHER)


def test_a_network_that_is_no_program_can_still_be_had_as_weights(tmp_path: Path) -> None:
    config = trial(f"{HERE}:Reading")
    (tmp_path / "program").mkdir()
    with pytest.raises(ExportError, match="leave program and onnx out of --formats"):
        export(config, tmp_path / "program", ("program",))
    (tmp_path / "fold").mkdir()
    with pytest.raises(ExportError, match="leave out --fold"):
        export(config, tmp_path / "fold", ("safetensors",), fold=True)
    check(config, tmp_path, ("safetensors",), fold=False)


def test_a_missing_package_is_named_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        program.importlib.util, "find_spec", lambda name: name != "onnxscript" or None
    )
    with pytest.raises(
        InputError, match=r"onnx needs onnxscript; install it: pip .*kd-study\[onnx\]"
    ):
        export_student(
            trial("mini_resnet_10_2"), tmp_path / "none", tmp_path, ("onnx",), fold=False
        )


def test_weights_of_other_classes_are_refused(tmp_path: Path) -> None:
    weights: Any = keep(trial("mini_resnet_10_4"), tmp_path / "kept.safetensors")
    with pytest.raises(InputError, match="must fit the network"):
        export_student(trial("mini_resnet_10_2"), weights, tmp_path, ("safetensors",), fold=False)


def test_data_that_are_not_what_the_student_was_trained_on_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renamed class would go by another's name, and other pictures would move the mean that is subtracted."""
    monkeypatch.setenv("KD_STUDY_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "pets"
    for split in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                picture = Image.new("RGB", (8, 8), (40 + 90 * shade, 20 * number, 60 + number))
                picture.save(root / split / name / f"{number}.png")
    data = DataConfig(source="image_folder", root=str(root), image_size=8, val_fraction=0)
    config = trial("mini_resnet_10_2").model_copy(update={"data": data})
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"epochs": 1, "precision": "fp32"})}
    )
    run(TrialTask(config, tmp_path / "trial", None), lambda _: None, torch.device("cpu"))
    weights = best_student(tmp_path / "trial")
    assert load_trained(config, weights).data.classes == ("cat", "dog")

    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "kitten")
    with pytest.raises(InputError, match=r"with classes \['cat', 'dog'\].*got .*'kitten'"):
        load_trained(config, weights)
    for split in ("train", "test"):
        (root / split / "kitten").rename(root / split / "cat")
    assert load_trained(config, weights).data.classes == ("cat", "dog")

    Image.new("RGB", (8, 8), (255, 255, 255)).save(root / "train" / "cat" / "new.png")
    with pytest.raises(InputError, match=r"with mean .*bring that data back"):
        load_trained(config, weights)
