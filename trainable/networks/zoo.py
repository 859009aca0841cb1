"""A name → a network, and where it is cut into the paper's blocks (StableKD, appendix D)."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models
from torch import nn
from torch.nn.parameter import is_lazy

from trainable.config import HeadConfig
from trainable.errors import ConfigError, input_error, reason_of
from trainable.networks import resnet, resnext, swin, vit, wrn
from trainable.networks.heads import MARGIN, SCALE, AMSoftmax
from trainable.networks.tracing import last_layer


@dataclass(frozen=True)
class Pictures:
    """What a network must know of its pictures."""

    classes: int
    channels: int
    image_size: tuple[int, int]
    """Height and width in pixels."""


@dataclass(frozen=True)
class ZooNetwork:
    """A freshly built network."""

    network: nn.Module
    cuts: tuple[str, ...]
    """Where it is cut unless the config says otherwise."""


def build(
    name: str,
    pictures: Pictures,
    *,
    path: str,
    head: HeadConfig | None = None,
    distilled: bool = False,
) -> ZooNetwork:
    """Build the network `name` with fresh weights from torch's global generator.

    `distilled` gives a vision transformer DeiT's distillation token. `path` is the config path that gave the name,
    for the message of the ConfigError that one which cannot be built raises.
    """
    built = _build(name, pictures, path, distilled)
    if head is not None and head.name == "am_softmax":
        _put_am_softmax(built.network, head, path)
    return built


_Builder = Callable[[re.Match[str], Pictures, str], ZooNetwork]


def _build(name: str, pictures: Pictures, path: str, distilled: bool) -> ZooNetwork:
    match = re.fullmatch(r"vit_([ts])(\d+)", name)
    if match is not None:
        network = vit.build_vit(
            match[1],
            int(match[2]),
            image_size=pictures.image_size,
            classes=pictures.classes,
            channels=pictures.channels,
            distilled=distilled,
            path=path,
        )
        return ZooNetwork(network, vit.CUTS)
    if distilled:
        rule = "must be a vision transformer to have the distillation token of distill.method deit"
        raise input_error(ConfigError, path, rule, "use vit_t8, vit_s8, …", name)
    for pattern, builder in _NETWORKS.items():
        match = re.fullmatch(pattern, name)
        if match is not None:
            return builder(match, pictures, path)
    near = difflib.get_close_matches(name, _EXAMPLES, n=1)
    raise input_error(
        ConfigError,
        path,
        "must be a known network",
        (f"did you mean {near[0]}? " if near else "")
        + f"known are {', '.join(_KNOWN)}, torchvision:NAME, timm:NAME and package.module:factory",
        name,
    )


def _resnet(match: re.Match[str], pictures: Pictures, _: str) -> ZooNetwork:
    side = min(pictures.image_size)
    return ZooNetwork(
        resnet.build_resnet(match[0], pictures.classes, pictures.channels, side), resnet.CUTS
    )


def _mini_resnet(match: re.Match[str], pictures: Pictures, path: str) -> ZooNetwork:
    depth, width = int(match[1]), int(match[2])
    classes, channels = pictures.classes, pictures.channels
    return ZooNetwork(resnet.build_mini_resnet(depth, width, classes, channels, path), resnet.CUTS)


def _wrn(match: re.Match[str], pictures: Pictures, path: str) -> ZooNetwork:
    sizes = {"classes": pictures.classes, "channels": pictures.channels}
    return ZooNetwork(wrn.build_wrn(int(match[1]), int(match[2]), **sizes, path=path), wrn.CUTS)


def _resnext(match: re.Match[str], pictures: Pictures, path: str) -> ZooNetwork:
    depth, cardinality, width = (int(number) for number in match.groups())
    sizes = {"classes": pictures.classes, "channels": pictures.channels}
    network = resnext.build_resnext(depth, cardinality, width, **sizes, path=path)
    return ZooNetwork(network, resnext.CUTS)


def _swin(match: re.Match[str], pictures: Pictures, path: str) -> ZooNetwork:
    network = swin.build_swin(
        match[1],
        image_size=pictures.image_size,
        classes=pictures.classes,
        channels=pictures.channels,
        path=path,
    )
    return ZooNetwork(network, swin.CUTS)


def _from_torchvision(match: re.Match[str], pictures: Pictures, path: str) -> ZooNetwork:
    name, known = match[1], torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        remedy = (
            f"did you mean torchvision:{near[0]}?" if near else "see torchvision's documentation"
        )
        raise input_error(
            ConfigError, path, "must be a classifier of torchvision", remedy, match[0]
        )
    if pictures.channels != 3:
        rule = "torchvision's networks take three channels"
        raise input_error(ConfigError, path, rule, "set data.channels: 3", match[0])
    classes = pictures.classes
    make = functools.partial(torchvision.models.get_model, name, weights=None, num_classes=classes)
    return ZooNetwork(_made(make), ())


def _from_timm(match: re.Match[str], pictures: Pictures, path: str) -> ZooNetwork:
    try:
        import timm
    except ImportError as error:
        remedy = 'install it: pip install "kd-study[timm]"'
        raise input_error(ConfigError, path, "needs timm", remedy, match[0]) from error
    name = match[1]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        remedy = f"did you mean timm:{near[0]}?" if near else "see timm.list_models()"
        raise input_error(ConfigError, path, "must be a model of timm", remedy, match[0])
    sizes: dict[str, Any] = {"num_classes": pictures.classes, "in_chans": pictures.channels}
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        sizes["img_size"] = pictures.image_size
    return ZooNetwork(_made(lambda: timm.create_model(name, pretrained=False, **sizes)), ())


def _from_factory(match: re.Match[str], pictures: Pictures, path: str) -> ZooNetwork:
    """`package.module:factory`: called with those of the pictures' facts that its signature names."""
    factory = _imported(match, path)
    try:
        facts = {
            "num_classes": pictures.classes,
            "in_channels": pictures.channels,
            "image_size": pictures.image_size,
        }
        takes = inspect.signature(factory).parameters
        known = {name: fact for name, fact in facts.items() if name in takes}
        network = _made(lambda: factory(**known))
    except (Exception, SystemExit) as error:
        rule = f"must name a callable that gives a network ({reason_of(error)})"
        remedy = "correct it; it is given those of num_classes, in_channels and image_size it names"
        raise input_error(ConfigError, path, rule, remedy, match[0]) from error
    if not isinstance(network, nn.Module):
        rule = f"must give a torch.nn.Module, and gave {type(network).__name__}"
        raise input_error(ConfigError, path, rule, "return the network", match[0])
    if lazy := [name for name, value in network.named_parameters() if is_lazy(value)]:
        rule = f"must know the shapes of its parameters, and {lazy[0]} has none yet"
        remedy = "give its lazy layers the widths of what they take"
        raise input_error(ConfigError, path, rule, remedy, match[0])
    return ZooNetwork(network, ())


def _imported(match: re.Match[str], path: str) -> Any:
    """What a dotted path names; a file that is a program, too, may end the process that imports it."""
    try:
        module = importlib.import_module(match[1])
    except (Exception, SystemExit) as error:  # whatever a person's own code raises
        rule, remedy = _import_problem(error, match[1])
        raise input_error(ConfigError, path, rule, remedy, match[0]) from error
    if hasattr(module, match[2]):
        return getattr(module, match[2])
    known = [name for name, value in vars(module).items() if callable(value)]
    near = difflib.get_close_matches(match[2], known, n=1)
    rule = f"must be package.module:factory, and {match[1]} has no {match[2]}"
    remedy = f"did you mean {match[1]}:{near[0]}?" if near else "define it there"
    raise input_error(ConfigError, path, rule, remedy, match[0])


def _import_problem(error: BaseException, module: str) -> tuple[str, str]:
    """Rule and remedy of a module that cannot be imported."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{module}.".startswith(f"{missing}."):
        remedy = "check the path, and that its folder is on PYTHONPATH or the current one"
        if module.endswith(".py"):
            remedy = "write it without .py, with dots for slashes"
        return f"must be package.module:factory ({reason_of(error)})", remedy
    frames = traceback.extract_tb(error.__traceback__)
    inside = next((frame for frame in frames if frame.name == "<module>"), None)
    where = "" if inside is None else f" at {inside.filename}, line {inside.lineno}"
    rule = f"must name a module that can be imported, which raised {reason_of(error)}{where}"
    if missing is not None:
        return rule, f"install {missing}, or put its folder on PYTHONPATH"
    return rule, "correct it; what runs it as a program belongs under if __name__ == '__main__'"


def _made(make: Callable[[], Any]) -> Any:
    """What somebody else's code makes; where it reads values of tensors, it cannot do so of shapes alone."""
    is_meta = torch.get_default_device().type == "meta"
    try:
        made = make()
        # Some ways to make a tensor do not ask for the default device.
        return made.to("meta") if is_meta and isinstance(made, nn.Module) else made
    except (RuntimeError, TypeError):
        if not is_meta:
            raise
    with torch.random.fork_rng(), torch.device("cpu"):
        return make().to("meta")


_NETWORKS: Mapping[str, _Builder] = {
    r"resnet(?:18|34|50|101)": _resnet,
    r"mini_resnet_(\d+)_(\d+)": _mini_resnet,
    r"wrn_(\d+)_(\d+)": _wrn,
    r"resnext(\d+)_(\d+)x(\d+)d": _resnext,
    r"swin_([ts])": _swin,
    r"torchvision:(\w+)": _from_torchvision,
    r"timm:([\w.]+)": _from_timm,
    r"(\w+(?:\.\w+)*):(\w+)": _from_factory,
}
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
_FAMILIES = ("mini_resnet_DEPTH_WIDTH", "wrn_DEPTH_WIDTH", "resnextDEPTH_CARDINALITYxWIDTHd")
_KNOWN = (*_RESNETS, *_FAMILIES, "vit_tDEPTH", "vit_sDEPTH", "swin_t", "swin_s")
_TRANSFORMERS = ("vit_t8", "vit_t16", "vit_s8", "vit_s16", "swin_t", "swin_s")
_EXAMPLES = (*_RESNETS, "mini_resnet_10_16", "wrn_40_2", "resnext20_32x4d", *_TRANSFORMERS)


def _put_am_softmax(network: nn.Module, config: HeadConfig, path: str) -> None:
    name = last_layer(network, path)
    linear = None if name is None else network.get_submodule(name)
    if name is None or not isinstance(linear, nn.Linear):
        rule = "must end in a linear layer, which the head am_softmax replaces"
        raise input_error(ConfigError, path, rule, "use another network, or the linear head")
    head = AMSoftmax(
        linear.in_features,
        linear.out_features,
        MARGIN if config.margin is None else config.margin,
        SCALE if config.scale is None else config.scale,
    )
    network.set_submodule(name, head)
