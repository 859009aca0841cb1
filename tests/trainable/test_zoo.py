"""Networks by name, from this project and from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainable.config import HeadConfig
from trainable.errors import ConfigError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, output_shapes
from trainable.networks.heads import AMSoftmax, DistilledHead
from trainable.networks.zoo import build

PICTURES = Pictures(10, 3, (32, 32))
PAPER = {
    "wrn_16_8": (128, 256, 512),
    "wrn_40_2": (32, 64, 128),
    "resnext20_32x4d": (256, 512, 1024),
    "resnext38_32x4d": (256, 512, 1024),
    "vit_t8": (65,) * 4,
    "vit_s16": (65,) * 4,
    "swin_t": (16, 8, 4, 2),
    "swin_s": (16, 8, 4, 2),
}
"""First number of the shape at each cut."""
ELSEWHERE = {
    "torchvision:mobilenet_v3_large": ("features.6",),
    "torchvision:regnet_y_400mf": ("trunk_output.block2",),
    "timm:vit_tiny_patch16_224": ("blocks.5", "norm"),
    "timm:swin_tiny_patch4_window7_224": ("layers.1",),
    "timm:efficientnet_b0": ("blocks.3",),
}


@pytest.mark.parametrize("name", PAPER)
def test_networks_of_the_paper_have_its_cuts(name: str) -> None:
    with torch.device("meta"):
        built = build(name, PICTURES, path="student.model")
        shapes = output_shapes(BlockNetwork(built.network, built.cuts), PICTURES)
    assert [shape[0] for shape in shapes] == [*PAPER[name], 10]


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_networks_from_elsewhere_are_cut_where_the_config_says(name: str, device: str) -> None:
    pictures = Pictures(7, 3, (64, 64))
    with torch.device(device):
        built = build(name, pictures, path="student.model")
        assert built.cuts == ()
        network = BlockNetwork(built.network, ELSEWHERE[name])
        assert output_shapes(network, pictures)[-1] == (7,)
    assert {p.device.type for p in network.parameters()} == {device}


def test_timm_takes_grey_pictures() -> None:
    pictures = Pictures(7, 1, (32, 32))
    network = build("timm:resnet18", pictures, path="student.model").network.eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_fresh_weights_follow_from_torchs_generator() -> None:
    for name in ("torchvision:squeezenet1_1", "timm:mobilenetv3_small_100"):
        first, second = (state_of(name) for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)


def state_of(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return build(name, PICTURES, path="student.model").network.state_dict()


OWN = """
import torch
from torch import nn

def small(num_classes, image_size):
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, num_classes))

def all_of_it(**facts):
    raise RuntimeError(sorted(facts))

def broken(in_channels):
    raise RuntimeError("no such thing as\\n a free lunch")

def number():
    return 7

def depths():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, [int(x.item()) for x in torch.linspace(10, 20, 3)][0]))

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("middle", torch.Tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1))
        self.fc = nn.Linear(3, 10)

    def forward(self, x):
        return self.fc((x - self.middle).mean((2, 3)))

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def leaves():
    raise SystemExit(3)

constant = 3
"""

NOT_TO_BE_IMPORTED = {
    "program": (
        "import sys\n\nsys.exit(7)\n",
        ["SystemExit: 7 at ", "program.py, line 3", "__main__"],
    ),
    "arguments": (
        "import argparse\nargparse.ArgumentParser().parse_args(['--lr'])\n",
        ["SystemExit: 2 at ", "arguments.py, line 2", "__main__"],
    ),
    "broken": ("x = 1\nx / 0\n", ["ZeroDivisionError: division by zero at ", "broken.py, line 2"]),
    "unwritten": ("def f(:\n", ["SyntaxError: ", "(unwritten.py, line 1)"]),
    "lacking": (
        "\nimport no_such_package.part\n",
        ["No module named 'no_such_package'", "lacking.py, line 2", "install no_such_package, or"],
    ),
}
"""What files hold, and what is said of them."""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_networks").mkdir()
    (tmp_path / "own_networks" / "nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_networks.nets"


def test_a_factory_gets_the_facts_that_it_names(own: str) -> None:
    network = build(f"{own}:small", Pictures(4, 3, (8, 6)), path="student.model").network
    assert network(torch.zeros(2, 3, 8, 6)).shape == (2, 4)


def test_a_factory_whose_buffers_are_on_no_device_of_choice_can_be_looked_at(own: str) -> None:
    pictures = Pictures(10, 3, (8, 8))
    with torch.device("meta"):
        built = build(f"{own}:Centred", pictures, path="student.model")
        assert output_shapes(BlockNetwork(built.network, ()), pictures) == ((10,),)


def test_a_factory_that_reads_values_can_be_looked_at_without_weights(own: str) -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        built = build(f"{own}:depths", Pictures(10, 3, (8, 8)), path="student.model")
    assert {p.device.type for p in built.network.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{own}:broken", ["(RuntimeError: no such thing as)", "correct it"]),
        ("{own}:number", ["torch.nn.Module", "int"]),
        ("{own}:constant", ["callable"]),
        ("{own}:absent", ["own_networks.nets has no absent", "define it there"]),
        ("{own}:smal", ["own_networks.nets has no smal", "did you mean own_networks.nets:small?"]),
        ("{own}:lazy", ["shapes of its parameters, and 1.weight has none yet", "lazy layers"]),
        ("{own}:leaves", ["must name a callable that gives a network (SystemExit: 3)"]),
        ("nowhere.at.all:net", ["No module named 'nowhere'", "PYTHONPATH"]),
        ("nets.py:net", ["No module named 'nets", "write it without .py"]),
        ("torchvision:resnet19", ["classifier of torchvision", "torchvision:resnet18"]),
        ("torchvision:deeplabv3_resnet50", ["classifier of torchvision"]),
        ("timm:resnet18dd", ["model of timm", "timm:resnet18d?"]),
        ("vit_m8", ["known are", "vit_tDEPTH"]),
        ("wrn_15_2", ["6n + 4"]),
    ],
)
def test_what_cannot_be_built_is_refused(own: str, name: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name.format(own=own), PICTURES, path="student.model")
    text = str(caught.value)
    assert text.startswith("student.model: ")
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", NOT_TO_BE_IMPORTED)
def test_a_file_that_cannot_be_imported_is_refused_with_its_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it would end the process without a word, as a training script that reads its arguments does."""
    source, words = NOT_TO_BE_IMPORTED[name]
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        build(f"{name}:net", PICTURES, path="teacher.model")
    text = str(caught.value)
    assert text.startswith("teacher.model: must name a module that can be imported, which raised ")
    assert f"got '{name}:net'" in text
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_torchvisions_networks_take_colours() -> None:
    with pytest.raises(ConfigError, match=r"data\.channels: 3"):
        build("torchvision:resnet18", Pictures(10, 1, (32, 32)), path="student.model")


@pytest.mark.parametrize("name", ["vit_t8", "wrn_10_1", "timm:mobilenetv3_small_100"])
def test_a_linear_head_anywhere_can_be_am_softmax(name: str) -> None:
    head = HeadConfig(name="am_softmax", margin=0.5)
    built = build(name, PICTURES, path="student.model", head=head)
    network = BlockNetwork(built.network, built.cuts).eval()
    assert isinstance(network.head, AMSoftmax)
    images = torch.randn(2, 3, 32, 32)
    assert network.network(images).abs().max() <= 30


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:convnext_atto"])
def test_where_there_is_no_linear_head_am_softmax_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.model: must end in a linear layer"):
        build(name, PICTURES, path="teacher.model", head=HeadConfig(name="am_softmax"))


def test_the_distillation_token_is_for_vision_transformers() -> None:
    network = build("vit_t8", PICTURES, path="student.model", distilled=True).network
    assert isinstance(BlockNetwork(network, ("norm",)).head, DistilledHead)
    with pytest.raises(ConfigError, match="deit"):
        build("resnet18", PICTURES, path="student.model", distilled=True)
    own = HeadConfig(name="am_softmax")
    with pytest.raises(ConfigError, match="linear layer"):
        build("vit_t8", PICTURES, path="student.model", head=own, distilled=True)
