"""A frozen network's forward for pictures of one shape, in fewer kernels.

The forward is recorded operation by operation, whatever Python it is written in, and rewritten: what depends on
weights alone is computed once, BatchNorm goes into the convolution before it, and a convolution, the addition of a
shortcut and ReLU become one kernel, of cuDNN or oneDNN.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from trainable.memory import is_out_of_memory
from trainable.networks.folding import Convolution, Statistics, convolution_of, merged, pairs
from trainable.networks.record import Forward, Record

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
_log = logging.getLogger(__name__)

BOUND, ROUNDING = 1.5, 1e-4
"""A fused forward may be as many times as far from fp32 as the recorded one is, or this far where that is fp32."""

_LANES, _NARROW = 8, 4
"""Channels come in multiples of these in the convolutions that cuDNN fuses well; as few as a picture's it may, too."""


def kind_of(x: Tensor) -> Hashable:
    """What a fused forward depends on: shape, layout, type and device of its input, and autocast."""
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return x.shape, x.stride(), x.dtype, x.device, autocast


def fused(forward: Forward, example: Tensor) -> Forward | None:
    """`forward` of a network in eval mode, for inputs of the example's kind, whatever the example shows.

    None where nothing can be fused; want of memory, which passes, is raised. Outputs are those of `forward` to the
    rounding of its type: see BOUND.
    """
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    example = torch.empty_like(example).copy_(noise)
    try:
        with torch.no_grad():
            found = _rewritten(Record(forward, example), example)
            if found is None:
                return None
            off, bound = _judged(found, forward, example)
        if off <= bound:
            return found
        words = "what they say would be %.2g from fp32, where %.2g is allowed"
        _log.warning(f"the teacher's layers are not fused: {words}", off, bound)
    except Exception as error:  # whatever a network's own code raises at being recorded
        if is_out_of_memory(error):
            raise
        _log.warning("the teacher's layers are not fused: %s", str(error).partition("\n")[0])
    return None


def _rewritten(record: Record, example: Tensor) -> Forward | None:
    """None where nothing was joined, or where the record is not all that the forward does."""
    if not record.is_of_inputs_alone():
        return None
    with torch.autocast(example.device.type, enabled=False):
        _compute_constants(record)
        _fold(record)
        return record.finished() if _join(record, example) else None


def _compute_constants(record: Record) -> None:
    """What is made of constants alone is a constant, such as a weight cast to half precision."""
    for node in record.nodes():
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs or node.target is operator.getitem:
            continue
        if all(source.op == "get_attr" for source in inputs):
            args, kwargs = fx.map_arg((node.args, node.kwargs), record.value)
            value = node.target(*args, **kwargs)  # type: ignore[operator]
            if isinstance(value, Tensor):
                cast = record.value(inputs[0]) if node.target is aten._to_copy.default else None
                record.forward_to(node, record.constant(node, value, cast))


def _fold(record: Record) -> None:
    """Every BatchNorm that alone takes the output of a convolution goes into it, computed in fp64."""
    for before, norm, gamma, beta, mean, variance, eps in pairs(record):
        bias, gamma, beta = (
            None if node is None else record.exact(node) for node in (before.bias, gamma, beta)
        )
        statistics = Statistics(gamma, beta, record.exact(mean), record.exact(variance), eps)
        weight, shift = merged(record.exact(before.weight), bias, statistics)
        dtype = record.value(before.weight).dtype
        if _holds(dtype, weight) and _holds(dtype, shift):
            for index, value in enumerate((weight, shift), start=1):
                constant = record.constant(before.node, value.to(dtype), value)
                before.node.update_arg(index, constant)
            for output in list(norm.users):  # its first one: the others, dead, are gone
                record.forward_to(output, before.node)
            record.remove(norm)


def _join(record: Record, example: Tensor) -> int:
    """Convolution, addition and ReLU as one operation wherever they follow each other; how many there are."""
    ShapeProp(record.module).propagate(example)
    count = 0
    for relu in record.nodes():
        if relu.target is aten.relu.default:
            joinable, shortcut = _before(record, relu.all_input_nodes[0])
            if joinable is not None:
                bias = _joint_bias(record, joinable, shortcut)
                is_cuda = record.value(joinable.weight).is_cuda
                operation = _on_cuda if is_cuda else _on_cpu
                record.replace(relu, *operation(joinable, bias, shortcut))
                count += 1
    return count


def _before(record: Record, node: fx.Node) -> tuple[Convolution | None, fx.Node | None]:
    """The convolution that a kernel can have together with the ReLU after `node`, and the shortcut between them."""
    if node.target is not aten.add.Tensor:
        return _joinable(record, node), None
    inputs = node.all_input_nodes
    if len(inputs) != 2 or node.kwargs or len(node.users) > 1:
        return None, None
    one, other = (source.meta["tensor_meta"] for source in inputs)
    if one.shape != other.shape or one.dtype != other.dtype:
        return None, None
    found = [_joinable(record, source, narrow=False) for source in inputs]
    place = 0 if found[0] is not None else 1
    return found[place], inputs[1 - place]


def _joinable(record: Record, node: fx.Node, *, narrow: bool = True) -> Convolution | None:
    """A convolution that a kernel can have together with ReLU, if `narrow` is true one of a picture's channels, too."""
    found = convolution_of(node)
    if found is None or not found.is_taken_once or len(found.stride) != 2:
        return None
    weight = record.value(found.weight)
    if not weight.is_cuda:
        is_fit = _takes(weight.dtype)
    else:
        is_half = weight.dtype in (torch.float16, torch.bfloat16)
        is_fit = is_half and found.groups == 1 and not weight.shape[0] % _LANES
        if is_fit and weight.shape[1] % _LANES:
            is_fit = narrow and weight.shape[1] <= _NARROW and _is_fused(found, weight)
    return found if is_fit else None


def _is_fused(narrow: Convolution, weight: Tensor) -> bool:
    """Whether cuDNN has such a convolution together with ReLU, which is tried."""
    of_x = narrow.x.meta["tensor_meta"]
    x = torch.empty_strided(of_x.shape, of_x.stride, dtype=weight.dtype, device=weight.device)
    settings = (narrow.stride, narrow.padding, narrow.dilation, narrow.groups)
    try:
        aten.cudnn_convolution_relu.default(
            x.zero_(), weight, weight.new_zeros(len(weight)), *settings
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def _takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN has convolutions of such weights for this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    is_supported = dtype == torch.bfloat16 and mkldnn._is_mkldnn_bf16_supported()
    return is_supported or dtype == torch.float32


def _joint_bias(record: Record, convolution: Convolution, shortcut: fx.Node | None) -> fx.Node:
    """The bias of a convolution, and with it that of one in the shortcut, which alone would be a kernel more."""
    weight = record.value(convolution.weight)
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if convolution.bias is not None:
        bias += record.exact(convolution.bias)
    other = convolution_of(shortcut)
    if other is not None and other.is_taken_once and other.bias is not None:
        bias += record.exact(other.bias)
        other.node.update_arg(2, None)
    return record.constant(convolution.node, bias.to(weight.dtype))


Operation = tuple[Callable[..., Any], tuple[Any, ...]]


def _on_cuda(c: Convolution, bias: fx.Node, shortcut: fx.Node | None) -> Operation:
    shape = (c.stride, c.padding, c.dilation, c.groups)
    if shortcut is None:
        return aten.cudnn_convolution_relu.default, (c.x, c.weight, bias, *shape)
    return aten.cudnn_convolution_add_relu.default, (c.x, c.weight, shortcut, 1.0, bias, *shape)


def _on_cpu(c: Convolution, bias: fx.Node, shortcut: fx.Node | None) -> Operation:
    shape, relu = (c.padding, c.stride, c.dilation, c.groups), ("relu", [], "")
    if shortcut is None:
        return mkldnn._convolution_pointwise.default, (c.x, c.weight, bias, *shape, *relu)
    args = (c.x, shortcut, c.weight, bias, *shape, "add", 1.0, *relu)
    return mkldnn._convolution_pointwise.binary, args


def _holds(dtype: torch.dtype, values: Tensor) -> bool:
    """Whether the type has these to its full precision: fp16 ends at 65504 and is coarse under 6e-5."""
    error = (values.to(dtype).double() - values).norm()
    return bool(error <= torch.finfo(dtype).eps * values.norm())


def _judged(found: Forward, forward: Forward, example: Tensor) -> tuple[float, float]:
    """How far the fused forward is from fp32, and how far it may be, given how far the recorded one is."""
    recorded = exact = forward(example)
    if torch.is_autocast_enabled(example.device.type):
        with torch.autocast(example.device.type, enabled=False):
            exact = forward(example)
    bound = max(BOUND * distance(recorded, exact), ROUNDING)
    return distance(found(example), exact), bound


def distance(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Of logits and of features at each cut: root mean square of the difference ÷ that of the values; the largest.

    NaN where one is.
    """
    pairs = zip(outputs, exact, strict=True)
    found = [_norm(one.float() - two) / _norm(two).clamp_min(1e-12) for one, two in pairs]
    return float(torch.stack(found).amax())


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64)
