"""Cutting any network at named modules: its forward is traced (torch.fx) and split where the cuts are.

Only the modules that a cut lies in are traced through; every other one is called as a whole, whatever it does
inside. Where tracing cannot go, a network's class names its blocks itself, in a method `blocks_in_order`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainable.errors import ConfigError, InputError, input_error
from trainable.networks.by_hand import HAND_MADE, in_a_row, is_by_hand

RESERVED = ("head", "method", "input", "label", "loss", "batchnorm", "ce", "kl", "feature")
"""The last block, a method's own parameters, and other places where something may not be finite."""

_FEW, _SHOWN = 4, 16
"""Of the names of submodules in an error: fewer are shown with what they hold, more are not shown."""


class Piece(nn.Module):
    """Part of a network's forward, from one tensor to one tensor.

    It runs the network's own modules: its parameters and buffers are theirs, wherever they are moved.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, which nn.Module does not look into
        code = graph.python_code("self")
        names: dict[str, Any] = dict(code.globals)
        # As fx.GraphModule does it, whose copies of buffers would not move along with the network.
        exec(_code(code.src), names)
        self._forward: Callable[[nn.Module, Tensor], Tensor] = names["forward"]
        called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        self.called = nn.ModuleList(network.get_submodule(name) for name in dict.fromkeys(called))
        self.read = nn.ParameterList(
            parameter
            for node in graph.nodes
            if (parameter := _parameter(network, node)) is not None
        )

    def forward(self, x: Tensor) -> Tensor:
        """What the network has made of `x` at the piece's end."""
        return self._forward(self._network[0], x)


@functools.cache
def _code(source: str) -> CodeType:
    """The same object for the same source: what torch.compile makes of one piece serves its likes."""
    return compile(source, "<piece>", "exec")


def split(
    network: nn.Module, cuts: Sequence[str], path: str, model_path: str
) -> tuple[tuple[nn.Module, ...], ...]:
    """The blocks between `cuts`, dotted names of submodules in order; the last layer stands alone in the last one.

    Each block is a sequence of modules to be applied one after the other, `len(cuts) + 1` in all.

    Raises:
        ConfigError: A cut is no place where one tensor holds all that later layers need, or the network cannot be
            traced; `path` names the cuts, and `model_path` the network.
    """
    root = _root(network, model_path)
    _check_names(root, cuts, path)
    inside = [*cuts, _last_module(root, model_path)]
    graph = _trace(root, inside, model_path)
    nodes = _cut_nodes(graph, cuts, path)
    levels = _levels(graph, nodes)
    _check_levels(graph, nodes, levels, path)
    output = next(node for node in graph.nodes if node.op == "output")
    begin = next(node for node in _behind(output) if node.op == "placeholder")
    end = output.args[0]
    if end in nodes:
        rule = "must name submodules before the last layer"
        raise _refusal(path, rule, str(end.target), "remove it: the last block ends there")
    blocks: list[tuple[nn.Module, ...]] = []
    for stop in nodes:
        blocks.append((Piece(root, _between(levels, begin, stop)),))
        begin = stop
    if not _is_layer(end):
        return (*blocks, (Piece(root, _between(levels, begin, end)),))
    neck = Piece(root, _between(levels, begin, end.args[0]))
    return (*blocks, (neck, root.get_submodule(end.target)))


def last_layer(network: nn.Module, path: str) -> str | None:
    """Name in `network` of the module whose output is the network's; None where that is no module's."""
    root = _root(network, path)
    name = _last_module(root, path)
    if name is None:
        return None
    last = root.get_submodule(name)
    return next((key for key, module in network.named_modules() if module is last), None)


def _root(network: nn.Module, path: str) -> nn.Module:
    """What is traced: the network, or its hand-made blocks in a row."""
    return in_a_row(network, path) if is_by_hand(network) else network


def _contexts() -> tuple[bool, ...]:
    """What a `with` block can change, of which a traced forward would know nothing."""
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


class _Tracer(fx.Tracer):
    """Traces through the given modules alone."""

    proxy_buffer_attributes = True

    def __init__(self, opened: Collection[str]) -> None:
        super().__init__()
        self._opened = opened
        self._contexts = _contexts()

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        try:
            return super().trace(*args, **kwargs)
        finally:
            # A tracer lives on in cycles of its own; the network, which may fill a GPU, must not.
            self.root = nn.Module()
            self.submodule_paths = None
            self.tensor_attrs.clear()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self._contexts:
            raise RuntimeError("it switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del m
        return module_qualified_name not in self._opened


def _trace(root: nn.Module, inside: Sequence[str | None], path: str) -> fx.Graph:
    """The forward of `root` down to the modules `inside`; ConfigError if it has none that can be traced."""
    if "forward" in vars(root) or vars(root)["_forward_hooks"] or vars(root)["_forward_pre_hooks"]:
        rule = f"{_kind(root)} has hooks or a forward of its instance, which tracing does not see"
        raise _refusal(path, rule, None)
    parts = [name.split(".") for name in inside if name is not None]
    opened = {".".join(part[:length]) for part in parts for length in range(1, len(part))}
    mode, options = root.training, _options(root)
    try:
        training, evaluating = (
            _Tracer(opened).trace(root.train(is_on), options) for is_on in (True, False)
        )
    except Exception as error:  # whatever the network's own code raises at a stand-in for a tensor
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _refusal(
            path, f"{_kind(root)}'s forward cannot be traced ({reason})", None
        ) from error
    finally:
        root.train(mode)
    if constants := [name for name in vars(root) if name.startswith("_tensor_constant")]:
        for name in constants:  # the tracer has left them there
            delattr(root, name)
        rule = f"{_kind(root)}'s forward makes a tensor of its own"
        raise _refusal(path, rule, None, "register it as a buffer")
    if str(training) != str(evaluating):
        rule = f"{_kind(root)}'s own forward is another one in training than in evaluation"
        raise _refusal(path, rule, None)
    output = next(node for node in training.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise _refusal(path, f"{_kind(root)}'s forward must return the logits alone", None)
    if sum(node.op == "placeholder" for node in _behind(output)) != 1:
        raise _refusal(path, f"{_kind(root)}'s forward must take one tensor", None)
    return training


def _last_module(root: nn.Module, path: str) -> str | None:
    output = next(node for node in _trace(root, (), path).nodes if node.op == "output").args[0]
    if not _is_layer(output):
        return None
    name, module = str(output.target), root.get_submodule(str(output.target))
    while isinstance(module, nn.Sequential) and len(module):
        last = list(dict(module.named_children()))[-1]
        name, module = f"{name}.{last}", module.get_submodule(last)
    return name


def _is_layer(node: Any) -> bool:
    """Whether this is a module called with one tensor."""
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and len(node.args) == 1
        and isinstance(node.args[0], fx.Node)
        and not node.kwargs
    )


def _check_names(root: nn.Module, cuts: Sequence[str], path: str) -> None:
    known = {name for name, _ in root.named_modules() if name}
    unknown = [cut for cut in cuts if cut not in known]
    if unknown:
        rule = f"must name submodules of {_kind(root)}"
        remedy = f"choose from {_places(root)}"
        if path == "student.cuts":
            remedy += "; where the networks' names differ, give the teacher its own in teacher.cuts"
        raise _refusal(path, rule, ", ".join(unknown), remedy)
    if reserved := [cut for cut in cuts if cut in RESERVED]:
        rule = f"must not name a block {' or '.join(RESERVED)}, as others are called"
        raise _refusal(path, rule, reserved[0], "cut after another module")
    if len(set(cuts)) < len(cuts):
        raise _refusal(path, "must name each cut once", ", ".join(cuts), "remove the double")


def _cut_nodes(graph: fx.Graph, cuts: Sequence[str], path: str) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    for cut in cuts:
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == cut]
        if len(calls) != 1:
            rule = "must name modules that a forward calls once as modules of its own"
            got = f"{cut}, which is called {len(calls)} times"
            raise _refusal(path, rule, got, "cut after another module")
        nodes += calls
    return nodes


def _levels(graph: fx.Graph, cuts: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """The block of each node that depends on the input: one more after each cut that its value went through."""
    levels: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            levels[node] = 0
        before = [levels[i] + (i in cuts) for i in node.all_input_nodes if i in levels]
        if before:
            levels[node] = max(before)
    return levels


def _check_levels(
    graph: fx.Graph, cuts: Sequence[fx.Node], levels: dict[fx.Node, int], path: str
) -> None:
    output = next(node for node in graph.nodes if node.op == "output")
    places = [levels[node] for node in cuts]
    names = [str(node.target) for node in cuts]
    if places != list(range(len(cuts))) or levels[output] != len(cuts):
        before = sorted(names, key=lambda name: places[names.index(name)])
        rule = "must be in the network's order, one after the other on the way to the logits"
        raise _refusal(path, rule, ", ".join(names), f"the order is {', '.join(before)}")
    crossing = {
        _name(source): names[levels[source] + (source in cuts)]
        for node in graph.nodes
        for source in node.all_input_nodes
        if node in levels and source in levels
        if levels[node] > levels[source] + (source in cuts)
    }
    if crossing:
        rule = (
            "must be places where one tensor holds all that later layers need, but past "
            + ", ".join(f"{cut} goes {source}, too" for source, cut in crossing.items())
        )
        raise _refusal(path, rule, ", ".join(names), "cut where nothing goes past")


def _between(levels: dict[fx.Node, int], begin: fx.Node, end: fx.Node) -> fx.Graph:
    """The graph that makes `end` of `begin`."""
    graph = fx.Graph()
    copies = {begin: graph.placeholder("x")}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node, copy)
            if node.kwargs.get("inplace"):  # it could overwrite what a cut has handed out
                copies[node].update_kwarg("inplace", False)
        return copies[node]

    for node in _needed(begin, end, levels):
        copy(node)
    graph.output(copy(end))
    return graph


def _needed(begin: fx.Node, end: fx.Node, levels: dict[fx.Node, int]) -> Iterator[fx.Node]:
    """What `end` is made of after `begin`, in the order of execution."""
    needed = _behind(end, begin)
    return (node for node in begin.graph.nodes if node in needed and node in levels)


def _behind(end: fx.Node, begin: fx.Node | None = None) -> set[fx.Node]:
    """`end` and what it is made of; nothing of `begin` or before."""
    found, open_ = set[fx.Node](), [end]
    while open_:
        node = open_.pop()
        if node is not begin and node not in found:
            found.add(node)
            open_ += node.all_input_nodes
    return found


def _options(root: nn.Module) -> dict[str, Any]:
    """What a forward takes beside its first argument has the value that it has by default."""
    parameters = inspect.signature(root.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _parameter(network: nn.Module, node: fx.Node) -> nn.Parameter | None:
    if node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(network.get_submodule(owner), name)
    return value if isinstance(value, nn.Parameter) else None


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _kind(root: nn.Module) -> str:
    return type(root).__name__


def _places(root: nn.Module) -> str:
    """The outermost modules, and where they are few what they hold."""
    names = [name for name, _ in root.named_children()]
    if len(names) < _FEW:
        names = [name for name, _ in root.named_modules() if name.count(".") == 1] or names
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _refusal(path: str, rule: str, got: str | None, remedy: str | None = None) -> InputError:
    if remedy is None:
        method = f"{HAND_MADE}() → [(name, module), …]"
        remedy = f"change its forward, give its class a method {method}, or choose another"
    return input_error(ConfigError, path, rule, remedy, got)
