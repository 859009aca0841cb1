"""A network's forward as a graph of operations, to be rewritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]
from torch.fx.experimental.proxy_tensor import make_fx

Forward = Callable[[Tensor], Sequence[Tensor]]


class Record:
    """Each operation of a forward as a node, none of them in place; weights are constants."""

    def __init__(self, forward: Forward, example: Tensor) -> None:
        plain = torch.func.functionalize(lambda x: tuple(forward(x)), remove="mutations")
        self.module: fx.GraphModule = make_fx(plain)(example)
        self._graph = self.module.graph
        self._graph.eliminate_dead_code()
        self._made = 0
        self._exact: dict[str, Tensor] = {}

    def is_of_inputs_alone(self) -> bool:
        """Whether each operation gives the same for the same input: none draws, or changes the network."""
        for node in self._graph.nodes:
            if isinstance(node.target, OpOverload):
                is_drawn = torch.Tag.nondeterministic_seeded in node.target.tags
                is_mutable = node.target._schema.is_mutable  # pyright: ignore[reportPrivateUsage]
                changes = is_mutable and any(n.op == "get_attr" for n in node.all_input_nodes)
                if is_drawn or changes:
                    return False
        return True

    def nodes(self) -> list[fx.Node]:
        """In the order of execution."""
        return list(self._graph.nodes)

    def value(self, node: fx.Node) -> Tensor:
        """Of a constant."""
        value = getattr(self.module, str(node.target))
        assert isinstance(value, Tensor)
        return value

    def exact(self, node: fx.Node) -> Tensor:
        """Of a constant in fp64, from before it was cast."""
        return self._exact.get(str(node.target), self.value(node)).double()

    def constant(self, before: fx.Node, value: Tensor, exact: Tensor | None = None) -> fx.Node:
        """A new one, in front of a node; `exact` is what it was cast from."""
        name = f"_made_{self._made}"
        self._made += 1
        self.module.register_buffer(name, value)
        if exact is not None:
            self._exact[name] = exact
        with self._graph.inserting_before(before):
            return self._graph.get_attr(name)

    def replace(self, node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Another operation in the place of one."""
        with self._graph.inserting_before(node):
            new = self._graph.call_function(target, args)
        new.meta = dict(node.meta)
        self.forward_to(node, new)

    def forward_to(self, node: fx.Node, other: fx.Node) -> None:
        """Who took the output of `node` takes that of the other."""
        node.replace_all_uses_with(other)
        self.remove(node)

    def remove(self, node: fx.Node) -> None:
        """One whose output nobody takes."""
        self._graph.erase_node(node)

    def finished(self) -> Forward:
        """The forward that the record has become."""
        module = self.module
        self._graph.eliminate_dead_code()
        read = {str(node.target) for node in self._graph.nodes if node.op == "get_attr"}
        for name in {n for n, _ in (*module.named_parameters(), *module.named_buffers())} - read:
            delattr(module, name)
        self._exact.clear()
        module.recompile()

        def run(x: Tensor) -> Sequence[Tensor]:
            # Casts are in the record: nothing is left to autocast.
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                return module(x)

        return run
