"""Cutting networks that know nothing of cuts."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F

from trainable import tasks
from trainable.config import TrialConfig
from trainable.errors import ConfigError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import (
    Pictures,
    check_all_is_read,
    check_embedding,
    check_own_blocks,
    output_shapes,
)
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.tracing import RESERVED

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PICTURES = Pictures(10, 3, (32, 32))
CUTS = {
    "mobilenet_v3_small": ("features.3", "features.8", "avgpool"),
    "densenet121": ("features.denseblock2", "features.transition3"),
    "vgg11_bn": ("features.8", "features.9", "classifier.1"),
    "shufflenet_v2_x0_5": ("stage2", "stage3"),
    "convnext_tiny": ("features.1", "features.5.2"),
    "swin_t": ("features.1.0", "features.5", "norm"),
    "squeezenet1_1": ("features.5",),
    "regnet_y_400mf": ("stem", "trunk_output.block2"),
}


def test_a_network_that_was_cut_is_freed_with_its_last_reference() -> None:
    """Not when Python next looks for cycles: it may fill a GPU."""
    network = torchvisions("squeezenet1_1")
    gc.collect()
    gc.disable()
    try:
        cut = BlockNetwork(network, CUTS["squeezenet1_1"])
        with pytest.raises(ConfigError):
            BlockNetwork(network, ("nowhere",))
        kept = weakref.ref(network)
        del cut, network
        assert kept() is None
    finally:
        gc.enable()


def torchvisions(name: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=7)


@pytest.mark.parametrize("name", CUTS)
def test_blocks_of_any_network_are_the_network(name: str) -> None:
    whole = torchvisions(name).eval()
    network = BlockNetwork(copy.deepcopy(whole), CUTS[name]).eval()
    assert network.names == (*CUTS[name], "head")
    with torch.no_grad():
        assert torch.equal(network(IMAGES), whole(IMAGES))
        for index, feature in enumerate(network.features(IMAGES)):
            assert torch.equal(feature, network.run(IMAGES, 0, index + 1)), network.names[index]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121"])
def test_training_changes_the_network_as_it_changes_the_undivided_one(name: str) -> None:
    whole = torchvisions(name)
    network = BlockNetwork(copy.deepcopy(whole), CUTS[name])
    for module in (whole, network):
        torch.manual_seed(1)  # dropout
        module.train()(IMAGES).square().mean().backward()
    theirs = dict(whole.named_parameters())
    for key, parameter in network.network.named_parameters():
        assert torch.equal(parameter.grad, theirs[key].grad), key  # type: ignore[arg-type]
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(b, buffers[key]) for key, b in network.network.named_buffers())


@pytest.mark.parametrize("name", CUTS)
def test_every_parameter_is_in_one_block(name: str) -> None:
    network = BlockNetwork(torchvisions(name), CUTS[name])
    found = [id(p) for _, parameters in network.block_parameters() for p in parameters]
    assert sorted(found) == sorted(id(p) for p in network.parameters())
    assert all(parameters for _, parameters in network.block_parameters())


class Own(nn.Module):
    """Reads a parameter and a buffer of its own between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.scale = nn.Parameter(torch.full((1, 4, 1, 1), 2.0))
        self.register_buffer("shift", torch.ones(1, 5, 1, 1))
        self.fc = nn.Linear(5, 10)

    def forward(self, x: Tensor, scale: float = 3.0) -> Tensor:
        x = F.relu(self.first(x), inplace=True) * self.scale * scale
        x = self.second(x) + self.get_buffer("shift")
        return self.fc(x.mean((2, 3)))


def test_what_a_forward_reads_itself_is_read_where_the_network_has_it() -> None:
    network = BlockNetwork(Own(), ("first", "second"))
    before = network(IMAGES)
    network.network.shift.data = torch.zeros(1, 5, 1, 1)  # type: ignore[union-attr]
    network.network.scale.data.mul_(0.5)  # type: ignore[union-attr, operator]
    network.double()
    assert torch.equal(network(IMAGES.double()), network.network(IMAGES.double()))
    assert not torch.allclose(network(IMAGES.double()).float(), before)
    network.network.register_buffer("shift", torch.full((1, 5, 1, 1), 7.0).double())
    assert torch.equal(network(IMAGES.double()), network.network(IMAGES.double()))
    parameters = dict(network.block_parameters())
    assert [p is network.network.scale for p in parameters["second"]].count(True) == 1


def test_a_copy_is_a_network_of_its_own() -> None:
    network = BlockNetwork(Own(), ("first",))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin(IMAGES).abs().max() == 0
    assert network(IMAGES).abs().max() > 0


def test_nothing_overwrites_what_a_cut_has_handed_out() -> None:
    network = BlockNetwork(Own(), ("first",))
    first, _ = network.features(IMAGES)
    assert first.min() < 0


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.down(x)
        joined = self.up(self.deep(shallow).relu() + shallow)
        return self.fc(joined.mean((2, 3)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.conv(x)).mean((2, 3)))


class Branching(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc((x if x.sum() > 0 else -x).mean((2, 3)))


class Dropping(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(self.conv(x).mean((2, 3)), 0.5, self.training))


class Parallel(UNet):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.down(x) + self.deep(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "cuts", "words"),
    [
        (UNet, ("down", "deep"), ["past deep goes down, too"]),
        (UNet, ("deep",), ["past deep goes down, too"]),
        (UNet, ("deep", "down"), ["the network's order", "down, deep"]),
        (UNet, ("sideways",), ["submodules of UNet", "sideways", "down, deep, up, fc"]),
        (UNet, ("up", "up"), ["once", "up, up"]),
        (Twice, ("conv",), ["called 2 times"]),
        (Parallel, ("down",), ["past down goes"]),
        (Parallel, ("down", "deep"), ["order"]),
    ],
)
def test_a_cut_that_cannot_be_is_refused(
    network: type[nn.Module], cuts: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        BlockNetwork(network(), cuts, "teacher.cuts")
    text = str(caught.value)
    assert text.startswith("teacher.cuts: ")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("cuts", [(), ("conv",)])
@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Branching, "Branching's forward cannot be traced"),
        (Dropping, "Dropping's own forward is another one in training"),
    ],
)
def test_a_network_that_cannot_be_traced_is_refused_under_its_own_name(
    network: type[nn.Module], words: str, cuts: tuple[str, ...]
) -> None:
    """Not under that of cuts, which perhaps nobody has given: it would be refused with any."""
    with pytest.raises(ConfigError) as caught:
        BlockNetwork(network(), cuts, "student.cuts", "teacher.model")
    text = str(caught.value)
    assert text.startswith(f"teacher.model: {words}")
    assert "change its forward, give its class a method blocks_in_order() → [(name" in text


class Silent(Twice):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.conv(x)
        return self.fc(x.mean((2, 3)))


class Exact(Twice):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=not torch.is_autocast_enabled("cpu")):
            x = self.conv(x)
        return self.fc(x.mean((2, 3)))


class Constant(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0]))


class Pair(Twice):
    def forward(self, x: Tensor) -> Any:
        x = self.conv(x).mean((2, 3))
        return self.fc(x), x


class Hooked(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


class Patched(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda x: self.fc(self.conv(x).mean((2, 3)))  # type: ignore[assignment]


class Foreign(Twice):
    def blocks_in_order(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv", nn.Conv2d(3, 3, 1)
        yield "fc", self.fc


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Silent, "gradients or autocast"),
        (Exact, "gradients or autocast"),
        (Constant, "register it as a buffer"),
        (Pair, "logits alone"),
        (Hooked, "hooks"),
        (Patched, "forward of its instance"),
        (Foreign, "conv with weight, bias"),
    ],
)
def test_what_blocks_could_not_do_as_the_network_does_is_refused(
    network: type[nn.Module], words: str
) -> None:
    built = network()
    with pytest.raises(ConfigError, match=words):
        BlockNetwork(built, ("conv",))
    assert not [name for name in vars(built) if "constant" in name]


def test_a_cut_at_the_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="before the last layer, got 'fc'"):
        BlockNetwork(UNet(), ("up", "fc"))


def test_the_names_of_other_blocks_are_no_cuts() -> None:
    network = nn.Sequential()
    for name in (*RESERVED, "fc"):
        network.add_module(name, nn.Linear(4, 4))
    for name in RESERVED:
        with pytest.raises(ConfigError, match=f"must not name a block head or .*got '{name}'"):
            BlockNetwork(network, (name,))


def test_a_network_that_goes_sideways_can_be_cut_where_it_does_not() -> None:
    network = BlockNetwork(UNet(), ("up",))
    assert torch.equal(network(IMAGES), network.network(IMAGES))


class HandMade(Branching):
    """Its blocks are given, where tracing cannot go."""

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    def blocks_in_order(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv", self.conv
        yield "sign", HandMade.Sign()
        yield "pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        yield "fc", self.fc


def test_hand_made_blocks_go_where_tracing_cannot() -> None:
    network = BlockNetwork(HandMade(), ("conv", "sign"))
    assert network.names == ("conv", "sign", "head")
    assert network.head is network.network.fc
    for images in (IMAGES, -IMAGES):
        torch.testing.assert_close(network(images), network.network(images))
        assert torch.equal(network.network.fc(network.embed(images)), network(images))
    assert set(network.network.state_dict()) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


def by_hand(
    blocks: Callable[[HandMade], Any], forward: Callable[[HandMade, Tensor], Any] | None = None
) -> type[HandMade]:
    """A network whose method gives these blocks."""
    own = {"forward": HandMade.forward if forward is None else forward, "blocks_in_order": blocks}
    return type("Mine", (HandMade,), own)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ("conv fc", "must be a method without arguments, got 'str'"),
        (lambda self, width: [("fc", self.fc)], r"without arguments that gives pairs \(TypeError"),
        (lambda self: 1 / 0, r"gives pairs \(ZeroDivisionError: division by zero\)"),
        (lambda self: None, "that gives pairs .*not iterable"),
        (lambda self: [self.conv, self.fc], "must give pairs, got 'Conv2d'"),
        (lambda self: {"fc": self.fc}, "must give pairs, got 'fc'"),
        (lambda self: ["ab"], "must give pairs, got 'ab'"),
        (lambda self: (("a", len) for _ in range(2)), r"got '\(a, builtin_function_or_method\)'"),
        (lambda self: [(self.fc, "fc")], r"a name and a torch\.nn\.Module, got '\(Linear, fc\)'"),
        (lambda self: [("a.b", self.fc)], "without dots, .* got 'a.b'; choose another name"),
        (lambda self: [("conv", self.conv), ("conv", self.fc)], "each block once, .* got 'conv'"),
        (lambda self: [("append", self.fc)], "attribute of a module, got 'append'"),
        (lambda self: [], "must give one block or more, got 'none'"),
    ],
)
def test_blocks_that_are_none_are_refused_with_their_form(blocks: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^teacher\.model: Mine\.blocks_in_order .*{words}"):
        BlockNetwork(by_hand(blocks)(), (), "student.cuts", "teacher.model")


@pytest.mark.parametrize(
    ("leaves_out", "words"),
    [
        ("sign", r"must give what the forward gives, .* got 'logits that are 1\d\d\.\d % off"),
        ("pool", r"blocks of blocks_in_order must take pictures of 3×32×32 \(RuntimeError: mat1"),
        ("fc", r"got '\(3,\) of a picture, and \(10,\) of the forward'; let blocks_in_order give"),
        ("", None),
    ],
)
def test_blocks_that_are_not_the_forward_are_refused(leaves_out: str, words: str | None) -> None:
    mine = by_hand(lambda self: [b for b in HandMade.blocks_in_order(self) if b[0] != leaves_out])

    def make() -> BlockNetwork:
        network = mine()
        with torch.no_grad():
            network.conv.bias.fill_(-4)  # so that there is something to be turned round
        return BlockNetwork(network, ("conv",))

    if words is None:
        check_own_blocks(make, PICTURES)
        return
    with pytest.raises(ConfigError, match=rf"^student\.model: Mine.*{words}"):
        check_own_blocks(make, PICTURES)


class Pooling(Twice):
    """Its blocks are given, though tracing could go there as well."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))

    def blocks_in_order(self) -> list[tuple[str, nn.Module]]:
        pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        return [("conv", self.conv), ("pool", pool), ("fc", self.fc)]


class Lying(Pooling):
    """Its blocks leave out a nonlinearity."""

    def blocks_in_order(self) -> list[tuple[str, nn.Module]]:
        conv, (_, pool), fc = super().blocks_in_order()
        return [conv, ("pool", pool[1:]), fc]


@pytest.mark.parametrize("place", ["student", "teacher"])
def test_a_study_does_not_begin_with_blocks_that_are_not_the_forward(
    place: str, make_config: Callable[..., TrialConfig]
) -> None:
    config = make_config(**{place: {"model": f"{__name__}:Lying", "cuts": ["conv"]}})
    data = tasks.inspect_data(config)
    describe = tasks.describe_student if place == "student" else tasks.describe_teacher
    with pytest.raises(
        ConfigError, match=rf"^{place}\.model: Lying\.blocks_in_order must give what"
    ):
        describe(config, data)
    true = make_config(**{place: {"model": f"{__name__}:Pooling", "cuts": ["conv"]}})
    assert [block.name for block in describe(true, data).blocks] == ["conv", "head"]


def test_a_last_layer_that_begins_as_zeros_hides_nothing() -> None:
    def make() -> BlockNetwork:
        network = by_hand(Restless.blocks_in_order)()
        nn.init.zeros_(network.fc.weight)
        nn.init.constant_(network.conv.bias, -4)
        return BlockNetwork(network, ())

    with pytest.raises(ConfigError, match="% off"):
        check_own_blocks(make, PICTURES)


def test_a_forward_that_gives_more_than_the_logits_is_compared_by_them() -> None:
    def both(self: HandMade, x: Tensor) -> Any:
        return {"features": self.conv(x), "logits": HandMade.forward(self, x)}

    mine = by_hand(HandMade.blocks_in_order, both)
    check_own_blocks(lambda: BlockNetwork(mine(), ("conv",)), PICTURES)


def test_no_network_is_to_blame_for_memory() -> None:
    def full(self: HandMade, x: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8")

    mine = by_hand(HandMade.blocks_in_order, full)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
        check_own_blocks(lambda: BlockNetwork(mine(), ("conv",)), PICTURES)


def test_comparing_blocks_draws_no_number_that_another_would_be_given() -> None:
    def noisy(self: HandMade, x: Tensor) -> Tensor:
        return HandMade.forward(self, x + torch.rand_like(x))

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    mine = by_hand(lambda self: [("noise", Noise()), *HandMade.blocks_in_order(self)], noisy)
    torch.manual_seed(3)
    check_own_blocks(lambda: BlockNetwork(mine(), ("conv",)), PICTURES)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


class Overwriting(UNet):
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    def __init__(self) -> None:
        super().__init__()
        self.deep = Overwriting.Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(self.deep(self.down(x))).mean((2, 3)))


def test_a_layer_that_overwrites_a_cut_is_found_by_its_block() -> None:
    with pytest.raises(ConfigError, match=r"student\.cuts: .* in place.* block deep"):
        output_shapes(BlockNetwork(Overwriting(), ("down", "deep")), Pictures(10, 3, (32, 32)))


class Restless(HandMade):
    """Its blocks hold a layer that behaves otherwise in training, and that the network does not hold."""

    def blocks_in_order(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv", self.conv
        yield "drop", nn.Sequential(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        yield "fc", self.fc


def test_hand_made_blocks_follow_the_mode() -> None:
    network = BlockNetwork(Restless().eval(), ("conv",)).train()
    assert not torch.equal(network(IMAGES), network(IMAGES))
    assert torch.equal(network.eval()(IMAGES), network(IMAGES))
    teacher = FrozenTeacher(BlockNetwork(Restless(), ("conv",)))
    assert torch.equal(teacher.train()(IMAGES).logits, teacher(IMAGES).logits)


def test_a_wrong_number_of_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.model: must give 7 logits.*got \(10,\)"):
        output_shapes(BlockNetwork(UNet(), ("up",)), Pictures(7, 3, (32, 32)))


class Wasteful(UNet):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


def test_parameters_that_no_forward_uses_are_named() -> None:
    with pytest.raises(ConfigError, match=r"student\.model: .*2 unused, the first spare\.weight"):
        check_all_is_read(BlockNetwork(Wasteful(), ("up",)))
    wasteful = Wasteful()
    wasteful.spare.requires_grad_(False)
    check_all_is_read(BlockNetwork(wasteful, ("up",)))


def test_an_embedding_is_a_vector() -> None:
    pictures = Pictures(10, 3, (32, 32))
    check_embedding(BlockNetwork(UNet(), ("up",)), pictures)
    for network in (torchvisions("squeezenet1_1"), Whole()):
        with pytest.raises(ConfigError, match=r"data\.unseen_classes needs .* a vector"):
            check_embedding(BlockNetwork(network, ()), pictures)


class Whole(nn.Module):
    """Its last layer pools itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classify = nn.Conv2d(3, 3, 3), Whole.Head()

    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.conv(x))


def test_a_network_for_other_pictures_is_refused_with_its_own_words() -> None:
    with pytest.raises(ConfigError, match=r"student\.model: must take pictures of 1×32×32"):
        output_shapes(BlockNetwork(Own(), ("first",)), Pictures(10, 1, (32, 32)))


class Raising(UNet):
    class Layer(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def forward(self, x: Tensor) -> Tensor:
            raise self.error

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.up = Raising.Layer(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("a"), r"\(KeyError: 'a'\); correct it or choose another network"),
        (AssertionError(), r"\(AssertionError\); correct it"),
        (ZeroDivisionError("division by zero"), r"\(ZeroDivisionError: division by zero\)"),
    ],
)
def test_whatever_a_network_raises_at_a_picture_is_one_message(
    error: Exception, words: str
) -> None:
    told = rf"^teacher\.model: must take pictures of 3×32×32 {words}"
    with pytest.raises(ConfigError, match=told):
        output_shapes(BlockNetwork(Raising(error), (), model_path="teacher.model"), PICTURES)
    with pytest.raises(MemoryError):
        output_shapes(BlockNetwork(Raising(MemoryError()), ()), PICTURES)


class Pairs(UNet):
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pairs.Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pair(self.down(x))[0].mean((2, 3)))


def test_a_cut_where_no_tensor_is_given_is_refused() -> None:
    told = r"^student\.cuts: must be cut where one tensor is given, got block pair, which gives a tuple"
    with pytest.raises(ConfigError, match=told):
        output_shapes(BlockNetwork(Pairs(), ("down", "pair")), PICTURES)
    output_shapes(BlockNetwork(Pairs(), ("down",)), PICTURES)
    last = nn.Sequential(nn.Flatten(), Pairs.Layer())
    with pytest.raises(
        ConfigError, match=r"^student\.model: must give the logits alone, got block h"
    ):
        output_shapes(BlockNetwork(last, ()), PICTURES)


def test_a_network_that_looks_at_values_is_told_not_to() -> None:
    with torch.device("meta"):
        network = BlockNetwork(HandMade(), ("conv",))
        with pytest.raises(
            ConfigError, match=r"student\.model: must not look at values .* torch\.wh"
        ):
            output_shapes(network, PICTURES)


def test_a_network_with_nothing_to_train_is_refused() -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    for network in (UNet().requires_grad_(False), Pool()):
        with pytest.raises(ConfigError, match=r"student\.model: must have parameters to train"):
            check_all_is_read(BlockNetwork(network, ()))
    assert output_shapes(BlockNetwork(Pool(), ()), Pictures(3, 3, (8, 8))) == ((3,),)


def test_logits_of_no_layer_have_no_head_and_no_embedding() -> None:
    network = BlockNetwork(torchvisions("squeezenet1_1"), ("features.5",))
    assert network.head is None
    with pytest.raises(ValueError, match="embedding"):
        network.embed(IMAGES)
