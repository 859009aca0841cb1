"""The paper's networks: Wide ResNets, ResNeXts, vision transformers and Swin transformers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision.models
from torch import Tensor, fx, nn
from torch.nn import functional as F

from trainable.errors import ConfigError
from trainable.networks import resnext, swin, vit, wrn
from trainable.networks.heads import DistilledHead
from trainable.networks.resnext import ResNeXt, build_resnext
from trainable.networks.swin import Swin, build_swin
from trainable.networks.vit import VisionTransformer, build_vit
from trainable.networks.wrn import WideResNet, build_wrn

SIZE = (16, 8)
"""Height and width of the tiny networks' pictures."""


def tiny_vit(channels: int = 3, *, depth: int = 5, distilled: bool = False) -> VisionTransformer:
    return VisionTransformer(
        width=16,
        heads=2,
        depth=depth,
        patch=4,
        image_size=SIZE,
        classes=5,
        channels=channels,
        distilled=distilled,
    )


def tiny_swin(channels: int = 3) -> Swin:
    return Swin(
        width=8,
        depths=(1, 2, 1, 1),
        heads=(1, 2, 2, 4),
        patch=2,
        window=2,
        classes=5,
        channels=channels,
    )


TINY: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "wrn": (lambda channels=3: WideResNet(10, 1, classes=5, channels=channels), wrn.CUTS),
    "resnext": (lambda channels=3: ResNeXt(11, 2, 4, classes=5, channels=channels), resnext.CUTS),
    "vit": (tiny_vit, vit.CUTS),
    "deit": (lambda channels=3: tiny_vit(channels, distilled=True), vit.CUTS),
    "swin": (tiny_swin, swin.CUTS),
}
OTHER_CUTS = {
    "wrn": ("conv1", "group1.0", "bn", "avgpool", "flatten"),
    "resnext": ("conv1", "bn1", "relu", "layer2.0", "flatten"),
    "vit": ("embedding", "group1.0", "group4", "norm", "pool"),
    "deit": ("embedding.projection", "group1.1", "group4"),
    "swin": ("features.0.1", "features.2", "features.3.0", "features.7", "permute", "flatten"),
}


def seeded(name: str, seed: int = 0, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return TINY[name][0](channels=channels)


def pictures(batch: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, *SIZE, generator=torch.Generator().manual_seed(1))


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


class CutTracer(fx.Tracer):
    """Traces only what a cut lies within."""

    def __init__(self, cuts: tuple[str, ...]) -> None:
        super().__init__()
        self.containers = {
            ".".join(parts[:n])
            for parts in (cut.split(".") for cut in cuts)
            for n in range(1, len(parts))
        }

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.containers


def traced(network: nn.Module, cuts: tuple[str, ...]) -> fx.GraphModule:
    return fx.GraphModule(network, CutTracer(cuts).trace(network))


# ------------------------------------------------------------------------------------------- every network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TINY)
def test_pictures_become_logits(name: str, channels: int) -> None:
    logits = seeded(name, channels=channels)(pictures(3, channels))
    assert logits.shape == (3, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("which", ["default", "other"])
@pytest.mark.parametrize("name", TINY)
def test_a_trace_is_cut_clean_through(name: str, which: str) -> None:
    """At a cut the module's output is all that later nodes take of what came before."""
    network = seeded(name).eval()
    cuts = TINY[name][1] if which == "default" else OTHER_CUTS[name]
    graph = traced(network, cuts)
    assert torch.equal(graph(pictures()), network(pictures()))
    nodes = list(graph.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    called = [node.target for node in nodes if node.op == "call_module"]
    assert [target for target in called if target in cuts] == list(cuts)
    for cut in (node for node in nodes if node.target in cuts):
        later = nodes[position[cut] + 1 :]
        taken = {arg for node in later for arg in node.all_input_nodes}
        before = {arg for arg in taken if position[arg] < position[cut] and arg.op != "get_attr"}
        assert before == set(), cut.target


@pytest.mark.parametrize("name", TINY)
def test_the_head_is_the_last_thing_called(name: str) -> None:
    cuts = TINY[name][1]
    nodes = list(traced(seeded(name), cuts).graph.nodes)
    assert nodes[-1].op == "output"
    assert nodes[-1].args[0] is nodes[-2]
    assert nodes[-2].target in ("fc", "head")
    between = [node.target for node in nodes[nodes.index(_node(nodes, cuts[-1])) + 1 : -2]]
    network = seeded(name)
    assert not any(list(network.get_submodule(target).parameters()) for target in between)


def _node(nodes: list[fx.Node], target: str) -> fx.Node:
    return next(node for node in nodes if node.target == target)


@pytest.mark.parametrize("name", TINY)
def test_a_cut_keeps_what_it_handed_out(name: str) -> None:
    """No later layer may overwrite a feature in place."""
    network, kept = seeded(name), []
    for cut in (*TINY[name][1], *OTHER_CUTS[name]):
        network.get_submodule(cut).register_forward_hook(
            lambda _module, _inputs, output, cut=cut: kept.append((cut, output, output.clone()))
        )
    network(pictures())
    assert len(kept) == len((*TINY[name][1], *OTHER_CUTS[name]))
    for cut, feature, copy in kept:
        assert torch.equal(feature, copy), cut


@pytest.mark.parametrize("name", TINY)
def test_fresh_weights_follow_from_the_global_seed(name: str) -> None:
    first, again, other = (seeded(name, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", TINY)
def test_a_training_forward_draws_no_random_numbers(name: str) -> None:
    network = seeded(name).train()
    before = torch.get_rng_state()
    first = network(pictures())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network(pictures()), first)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_learns(name: str) -> None:
    network = seeded(name)
    F.cross_entropy(network(pictures()), torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", TINY)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    network, labels = seeded(name), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(network(pictures()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[3] < losses[0]


@pytest.mark.parametrize("name", TINY)
def test_shapes_need_no_memory(name: str) -> None:
    with torch.device("meta"):
        network = seeded(name)
        assert all(tensor.is_meta for tensor in network.state_dict().values())
        assert network(torch.empty(2, 3, *SIZE)).shape == (2, 5)


@pytest.mark.parametrize("name", TINY)
def test_bf16_autocast_stays_near_fp32(name: str) -> None:
    network = seeded(name)
    expected = network(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(pictures())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0.05)
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["wrn", "resnext"])
def test_a_forward_counts_as_one_batch_in_every_batchnorm(name: str) -> None:
    network = seeded(name).train()
    network(pictures())
    tracked = [b for key, b in network.named_buffers() if key.endswith("num_batches_tracked")]
    assert tracked
    assert all(count == 1 for count in tracked)


# -------------------------------------------------------------------------------------------- Wide ResNets


def wrn_parameters(depth: int, width: int, classes: int) -> int:
    n = (depth - 4) // 6
    total, inputs = 9 * 3 * 16, 16
    for outputs in (16 * width, 32 * width, 64 * width):
        for block in range(n):
            norms = 2 * inputs + 2 * outputs
            shortcut = inputs * outputs if block == 0 and inputs != outputs else 0
            total += norms + 9 * inputs * outputs + 9 * outputs**2 + shortcut
            inputs = outputs
    return total + 2 * inputs + inputs * classes + classes


@pytest.mark.parametrize(
    ("depth", "width", "published"),
    [(16, 2, 0.7), (16, 8, 11.0), (16, 10, 17.1), (28, 10, 36.5), (40, 2, 2.2), (40, 4, 8.9)],
)
def test_wrn_parameters_are_those_published(depth: int, width: int, published: float) -> None:
    """In millions, on CIFAR-10: Zagoruyko and Komodakis 2016, tables 4 and 5; StableKD, table 6."""
    with torch.device("meta"):
        ten, hundred = (
            parameters_of(build_wrn(depth, width, classes=c, channels=3, path=""))
            for c in (10, 100)
        )
    assert ten == wrn_parameters(depth, width, 10)
    assert hundred == wrn_parameters(depth, width, 100)
    assert round(ten / 1e6, 1) == published


@pytest.mark.parametrize("width", [1, 2])
def test_wrn_is_the_papers_written_out(width: int) -> None:
    """Without modules; at width 1 the first group has no shortcut to convolve."""
    torch.manual_seed(0)
    network = WideResNet(16, width, classes=5, channels=3)
    network(pictures())  # running statistics that are not those of a fresh layer
    network.eval()
    w = network.state_dict()

    def norm(x: Tensor, at: str) -> Tensor:
        mean, var = w[f"{at}.running_mean"], w[f"{at}.running_var"]
        y = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return (y * w[f"{at}.weight"][:, None, None] + w[f"{at}.bias"][:, None, None]).clamp(min=0)

    x = F.conv2d(pictures(), w["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for block in (0, 1):
            at, stride = f"group{group}.{block}", 2 if group > 1 and block == 0 else 1
            active = norm(x, f"{at}.bn1")
            y = F.conv2d(active, w[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, f"{at}.bn2"), w[f"{at}.conv2.weight"], padding=1)
            if block == 0 and not (group == 1 and width == 1):
                x = F.conv2d(active, w[f"{at}.shortcut.weight"], stride=stride)
            x = x + y
    expected = norm(x, "bn").mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    torch.testing.assert_close(network(pictures()), expected, atol=1e-5, rtol=1e-5)


def test_wrn_gives_its_last_features_at_64_times_its_width_normalised_and_rectified() -> None:
    """What table 6's projectors go between."""
    network, seen = build_wrn(16, 2, classes=5, channels=3, path=""), []
    network.get_submodule(wrn.CUTS[-1]).register_forward_hook(lambda *args: seen.append(args[2]))
    network(torch.randn(2, 3, 32, 32))
    assert seen[0].shape == (2, 128, 8, 8)
    assert seen[0].min() == 0


@pytest.mark.parametrize("name", ["wrn", "resnext"])
def test_convolutions_start_as_he_et_al_have_it(name: str) -> None:
    for module in seeded(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


@pytest.mark.parametrize(("depth", "width"), [(15, 2), (4, 2), (16, 0)])
def test_a_depth_that_no_wrn_has_is_refused(depth: int, width: int) -> None:
    with pytest.raises(ConfigError, match=rf"student\.model: .*6n \+ 4.*wrn_{depth}_{width}"):
        build_wrn(depth, width, classes=5, channels=3, path="student.model")


# ------------------------------------------------------------------------------------------------ ResNeXts


def resnext_parameters(depth: int, cardinality: int, base_width: int, classes: int) -> int:
    total, inputs = 9 * 3 * 64 + 2 * 64, 64
    for stage, outputs in enumerate((256, 512, 1024)):
        width = cardinality * base_width * 2**stage
        for bottleneck in range((depth - 2) // 9):
            path = width // cardinality
            total += inputs * width + cardinality * 9 * path**2 + width * outputs
            total += 2 * (width + width + outputs)
            total += inputs * outputs + 2 * outputs if bottleneck == 0 else 0
            inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("shape", "published"),
    [((20, 32, 4), None), ((38, 32, 4), None), ((29, 8, 64), 34.4), ((29, 16, 64), 68.1)],
)
def test_resnext_parameters_are_those_published(
    shape: tuple[int, int, int], published: float | None
) -> None:
    """In millions, rounded down, for those that Xie et al. 2017 count in table 7."""
    with torch.device("meta"):
        count = parameters_of(build_resnext(*shape, classes=10, channels=3, path=""))
    assert count == resnext_parameters(*shape, 10)
    assert published is None or int(count / 1e5) / 10 == published


def test_the_depth_of_a_resnext_counts_its_convolutions_and_its_linear_layer() -> None:
    for depth in (20, 38):
        with torch.device("meta"):
            network = build_resnext(depth, 32, 4, classes=5, channels=3, path="")
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        shortcuts = 3
        assert len(layers) - shortcuts == depth


def test_resnext_features_double_in_width_as_they_halve_in_size() -> None:
    with torch.device("meta"):
        network, seen = build_resnext(20, 32, 4, classes=5, channels=3, path=""), []
        for cut in resnext.CUTS:
            network.get_submodule(cut).register_forward_hook(lambda *args: seen.append(args[2]))
        network(torch.empty(2, 3, 32, 32))
    assert [tuple(f.shape[1:]) for f in seen] == [(256, 32, 32), (512, 16, 16), (1024, 8, 8)]


def test_a_resnext_bottleneck_is_a_sum_over_paths() -> None:
    """x + Σ_i T_i(x), equation 2, with a path for each of the C groups."""
    torch.manual_seed(0)
    network = ResNeXt(20, 2, 4, classes=5, channels=3).eval()
    block = network.layer2.get_submodule("1")
    first, second, third = (block.state_dict()[f"conv{i}.weight"] for i in (1, 2, 3))
    x = torch.randn(2, 512, 4, 4)
    total = torch.zeros_like(x)
    for path in range(2):
        mine = slice(8 * path, 8 * path + 8)
        y = F.conv2d(x, first[mine]) / math.sqrt(1 + 1e-5)
        y = F.conv2d(y.relu(), second[mine], padding=1) / math.sqrt(1 + 1e-5)
        total += F.conv2d(y.relu(), third[:, mine])
    expected = (x + total / math.sqrt(1 + 1e-5)).relu()
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(21, 32, 4), (2, 32, 4), (20, 0, 4), (20, 32, 0)])
def test_a_depth_that_no_resnext_has_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"student\.model: .*9n \+ 2.*resnext\d+_\d+x\d+d"):
        build_resnext(*shape, classes=5, channels=3, path="student.model")


# ------------------------------------------------------------------------------------ vision transformers


def build_vit_for(size: str, depth: int, side: int, **others: bool) -> VisionTransformer:
    with torch.device("meta"):
        return build_vit(
            size,
            depth,
            classes=1000,
            channels=3,
            image_size=(side, side),
            path="student.model",
            **others,
        )


def vit_parameters(width: int, depth: int, patch: int, side: int, tokens: int) -> int:
    embedding = 3 * patch**2 * width + width
    positions = tokens * width + (tokens + (side // patch) ** 2) * width
    attention, mlp = 4 * width**2 + 4 * width, 8 * width**2 + 5 * width
    layers = depth * (attention + mlp + 4 * width)
    return embedding + positions + layers + 2 * width + tokens * 1000 * (width + 1)


@pytest.mark.parametrize(("size", "width"), [("t", 192), ("s", 384)])
@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize(("side", "patch"), [(32, 4), (224, 16)])
def test_vit_parameters_are_as_derived(
    size: str, width: int, depth: int, side: int, patch: int
) -> None:
    plain = build_vit_for(size, depth, side)
    distilled = build_vit_for(size, depth, side, distilled=True)
    assert parameters_of(plain) == vit_parameters(width, depth, patch, side, tokens=1)
    assert parameters_of(distilled) == vit_parameters(width, depth, patch, side, tokens=2)


@pytest.mark.parametrize(
    ("size", "distilled", "published"),
    [("t", False, 5717416), ("t", True, 5910800), ("s", False, 22050664), ("s", True, 22436432)],
)
def test_vits_of_depth_12_have_the_parameters_of_deit(
    size: str, distilled: bool, published: int
) -> None:
    """The authors' checkpoints at 224 pixels; Touvron et al. 2021, table 1, rounds them to 5M and 22M."""
    assert parameters_of(build_vit_for(size, 12, 224, distilled=distilled)) == published


def test_vit_is_torchvisions_with_the_same_weights() -> None:
    theirs = torchvision.models.VisionTransformer(16, 4, 5, 2, 16, 64, num_classes=5).eval()
    torch.manual_seed(0)
    mine = VisionTransformer(
        width=16, heads=2, depth=5, patch=4, image_size=(16, 16), classes=5, channels=3
    )
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    names = {
        "embedding.projection": "conv_proj",
        "embedding.tokens": "class_token",
        "embedding.positions": "encoder.pos_embedding",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attention.qkv.": "self_attention.in_proj_",
        "attention.projection": "self_attention.out_proj",
        "mlp.2": "mlp.3",
        "head": "heads.head",
    }
    layers = [f"group{g}.{i}" for g, count in enumerate((2, 1, 1, 1), 1) for i in range(count)]
    weights = {}
    for key, value in mine.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        for index, layer in enumerate(layers):
            key = key.replace(f"{layer}.", f"encoder.layers.encoder_layer_{index}.")
        weights["encoder.ln" + key[4:] if key.startswith("norm.") else key] = value
    theirs.load_state_dict(weights)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(mine(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_vit_starts_as_deit_does() -> None:
    torch.manual_seed(0)
    network = build_vit("t", 4, classes=100, channels=3, image_size=(32, 32), path="")
    for key, parameter in network.named_parameters():
        if "projection" in key and "embedding" in key:
            continue
        if "norm" in key:
            assert (parameter == (1 if key.endswith("weight") else 0)).all(), key
        elif key.endswith("bias"):
            assert not parameter.any(), key
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), key


@pytest.mark.parametrize(
    ("depth", "counts"), [(4, "1111"), (8, "2222"), (10, "3322"), (16, "4444")]
)
def test_layers_are_shared_out_equally_over_four_blocks(depth: int, counts: str) -> None:
    network = build_vit_for("t", depth, 32)
    groups = [network.group1, network.group2, network.group3, network.group4]
    assert [len(group) for group in groups] == [int(count) for count in counts]


@pytest.mark.parametrize(
    ("size", "patch"),
    [((8, 8), 4), ((32, 32), 4), ((60, 64), 4), ((64, 64), 8), ((120, 120), 8), ((128, 160), 16)],
)
def test_a_vits_patches_grow_with_the_picture(size: tuple[int, int], patch: int) -> None:
    with torch.device("meta"):
        network = build_vit("t", 4, classes=5, channels=3, image_size=size, path="")
        assert network.embedding.projection.kernel_size == (patch, patch)
        assert network.embedding.positions.shape[1] == 1 + size[0] * size[1] // patch**2
        assert network(torch.empty(2, 3, *size)).shape == (2, 5)


def test_the_vits_last_default_feature_is_normalised() -> None:
    network, seen = tiny_vit(), []
    network.get_submodule(vit.CUTS[-1]).register_forward_hook(lambda *args: seen.append(args[2]))
    network(pictures())
    assert seen[0].shape == (4, 1 + 4 * 2, 16)
    torch.testing.assert_close(seen[0].var(-1, unbiased=False), torch.ones(4, 9), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("size", "depth", "side", "words"),
    [
        ("t", 3, 32, ["depth >= 4", "vit_t3"]),
        ("b", 12, 32, ["t or s", "vit_b12"]),
        ("t", 8, 30, ["multiples", "(30, 30)", "data.image_size to 32"]),
        ("t", 8, 225, ["multiples", "(225, 225)", "data.image_size to 240"]),
    ],
)
def test_what_no_vit_can_be_is_refused(size: str, depth: int, side: int, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_vit_for(size, depth, side)
    assert all(word in str(caught.value) for word in ["student.model", *words])


def test_a_distilled_head_reads_a_token_each_and_infers_by_the_mean() -> None:
    torch.manual_seed(0)
    head, tokens = DistilledHead(16, 5), torch.randn(4, 9, 16)
    first = tokens[:, 0] @ head.classifier.weight.T + head.classifier.bias
    second = tokens[:, 1] @ head.distillation.weight.T + head.distillation.bias
    label, teacher = head.both(tokens)
    torch.testing.assert_close(label, first)
    torch.testing.assert_close(teacher, second)
    torch.testing.assert_close(head(tokens), (first + second) / 2)


def test_a_distilled_vit_gives_its_head_both_tokens() -> None:
    network, seen = tiny_vit(distilled=True).eval(), []
    network.norm.register_forward_hook(lambda *args: seen.append(args[2]))
    logits = network(pictures())
    assert seen[0].shape == (4, 2 + 4 * 2, 16)
    assert isinstance(network.head, DistilledHead)
    assert torch.equal(network.head(seen[0]), logits)
    label, teacher = network.head.both(seen[0])
    assert not torch.allclose(label, teacher)


# -------------------------------------------------------------------------------------- Swin transformers


def build_swin_for(size: str, side: int, *, classes: int = 1000, channels: int = 3) -> Swin:
    with torch.device("meta"):
        return build_swin(
            size,
            classes=classes,
            channels=channels,
            image_size=(side, side),
            path="student.model",
        )


@pytest.mark.parametrize("size", ["t", "s"])
def test_torchvisions_swin_weights_fit_at_224_pixels(size: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"swin_{size}", weights=None)
    mine = build_swin_for(size, 224)
    shapes = [
        {key: value.shape for key, value in network.state_dict().items()}
        for network in (mine, theirs)
    ]
    assert shapes[0] == shapes[1]
    published = torchvision.models.get_model_weights(f"swin_{size}")["IMAGENET1K_V1"]
    assert parameters_of(mine) == published.meta["num_params"]


@pytest.mark.parametrize(("size", "third"), [("t", 6), ("s", 18)])
@pytest.mark.parametrize(("side", "patch", "window"), [(32, 2, 4), (224, 4, 7)])
def test_swin_parameters_are_as_derived(
    size: str, third: int, side: int, patch: int, window: int
) -> None:
    total = 3 * patch**2 * 96 + 96 + 2 * 96
    for stage, depth in enumerate((2, 2, third, 2)):
        width, heads = 96 * 2**stage, 3 * 2**stage
        bias_table = (2 * window - 1) ** 2 * heads
        total += depth * (12 * width**2 + 13 * width + bias_table)
        merging = 2 * 4 * width + 4 * width * 2 * width
        total += merging if stage < 3 else 2 * width + width * 100 + 100
    assert parameters_of(build_swin_for(size, side, classes=100)) == total


@pytest.mark.parametrize(
    ("side", "patch", "window"),
    [(8, 2, 4), (32, 2, 4), (64, 4, 4), (128, 4, 4), (160, 4, 5), (224, 4, 7), (384, 4, 12)],
)
def test_a_swins_window_is_as_wide_as_its_last_map(side: int, patch: int, window: int) -> None:
    network = build_swin_for("t", side)
    assert network.get_submodule("features.0.0").kernel_size == (patch, patch)
    assert network.get_submodule("features.7.1.attn").window_size == [window, window]
    assert network(torch.empty(2, 3, side, side, device="meta")).shape == (2, 1000)


def test_swin_features_are_those_of_its_four_stages() -> None:
    network, seen = build_swin_for("t", 32, channels=1), []
    for cut in swin.CUTS:
        network.get_submodule(cut).register_forward_hook(lambda *args: seen.append(args[2]))
    network(torch.empty(2, 1, 32, 32, device="meta"))
    assert [tuple(feature.shape[1:]) for feature in seen] == [
        (16, 16, 96),
        (8, 8, 192),
        (4, 4, 384),
        (2, 2, 768),
    ]


@pytest.mark.parametrize(
    ("size", "side", "words"),
    [
        ("b", 32, ["swin_t or swin_s", "swin_b"]),
        ("t", 31, ["patches of 2", "(31, 31)", "data.image_size to 32"]),
        ("s", 66, ["patches of 4", "data.image_size to 68"]),
    ],
)
def test_what_no_swin_can_be_is_refused(size: str, side: int, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_swin_for(size, side)
    assert all(word in str(caught.value) for word in ["student.model", *words])
