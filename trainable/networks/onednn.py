"""A fault of oneDNN's on CPUs, and what is computed in its place.

The weight's gradient of a 1×1 convolution with a stride, of pictures that lie channels last, takes a workspace for the
channels that there are, and is written there in blocks of 8 of them (with AVX2) or 16 (with AVX-512). Of fewer the
gradient is wrong, and what lies behind in memory is overwritten: github.com/uxlfoundation/oneDNN/issues/6035, seen in
torch 2.11 and 2.14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, library

_OPERATION = "convolution_backward"
_BLOCK = 16
_KERNELS = library.Library("aten", "IMPL")
"""What is put there holds as long as this is."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of the pictures, the weight and the bias, as far as they are wanted."""


def mend() -> None:
    """Once: have this process compute such gradients in another way, of networks of the project or not."""
    kernel = library.get_kernel(f"aten::{_OPERATION}", "CPU")

    def backward(
        keys: Any,
        of_y: Tensor,
        x: Tensor,
        weight: Tensor,
        biases: Sequence[int] | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
        wanted: Sequence[bool],
    ) -> Gradients:
        def of(x: Tensor, stride: Sequence[int], wanted: Sequence[bool]) -> Gradients:
            numbers = (stride, padding, dilation, transposed, output_padding, groups)
            found: Gradients = kernel.call_boxed(keys, of_y, x, weight, biases, *numbers, wanted)
            return found

        is_strided = max(stride) > 1 and max(padding) == 0 and not transposed
        is_bad = x.shape[1] < _BLOCK and is_strided and max(weight.shape[2:]) == 1
        if not (wanted[1] and is_bad):
            return of(x, stride, wanted)
        of_x = of(x, stride, [True, False, False])[0] if wanted[0] else None
        steps = [*stride] if len(stride) > 1 else [*stride] * (x.dim() - 2)
        # What the weight meets, and no more.
        met = x[(..., *(slice(None, None, step) for step in steps))].clone()
        return of_x, *of(met, [1] * len(steps), [False, *wanted[1:]])[1:]

    _KERNELS.impl(_OPERATION, backward, "CPU", with_keyset=True)
