"""A teacher's outputs for many pictures, as arrays in a file and back."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainable.data.cache import Arrays
from trainable.networks.teacher import Handed, TeacherOutputs, as_given

Bytes = npt.NDArray[np.uint8]
_UPLOADED = 4096
"""Pictures whose outputs are copied to the device at a time."""
_DTYPES = {str(t): t for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


class Layout(NamedTuple):
    """How one of the outputs lies in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    """For one picture, in the order in which it lies there."""
    channels_last: bool
    """Whether that is (height, width, channels)."""

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """That of a batch (B, …)."""
        is_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        lying = tensor.permute(0, 2, 3, 1) if is_last else tensor
        return cls(tensor.dtype, tuple(lying.shape[1:]), is_last)

    @classmethod
    def parsed(cls, text: str) -> Layout:
        """What `text` was made of; KeyError or ValueError for another text."""
        dtype, shape, is_last = json.loads(text)
        return cls(_DTYPES[dtype], tuple(shape), is_last)

    def text(self) -> str:
        """For a file."""
        return json.dumps([str(self.dtype), self.shape, self.channels_last])

    @property
    def size(self) -> int:
        """Bytes for one picture."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def to_bytes(self, tensor: Tensor) -> Bytes:
        """(B, …) → (B, size)."""
        lying = tensor.permute(0, 2, 3, 1) if self.channels_last else tensor
        return lying.reshape(len(tensor), -1).contiguous().view(torch.uint8).cpu().numpy()

    def from_flat(self, flat: Tensor) -> Tensor:
        """(B, numbers of one picture) → (B, …)."""
        lying = flat.view(len(flat), *self.shape)
        return lying.permute(0, 3, 1, 2) if self.channels_last else lying


class Answers:
    """A teacher's outputs by the numbers of the views of pictures (`Feed.row`).

    On a CPU they are gathered from the memory-mapped file. A CUDA device holds all of them, so that an update which
    gathers some can be captured. They lie in memory as the teacher gave them: what reads them rounds alike.
    """

    def __init__(self, arrays: Arrays, device: torch.device) -> None:
        """`arrays` are a column for each output, the logits last, and its layout among the facts."""
        self._columns: list[_Mapped | _Resident] = []
        for name, stored in arrays.columns.items():
            layout, is_cuda = Layout.parsed(arrays.facts[name]), device.type == "cuda"
            column = _Resident(stored, layout, device) if is_cuda else _Mapped(stored, layout)
            self._columns.append(column)

    def __call__(self, rows: Tensor, handed: Handed = as_given) -> TeacherOutputs:
        """int64 (B,) → what the teacher said; features only where they were kept."""
        *features, logits = handed([column.gathered(rows) for column in self._columns])
        return TeacherOutputs(tuple(features), logits)


class _Mapped:
    """One of the outputs, in the file that all processes of the node share."""

    def __init__(self, stored: Bytes, layout: Layout) -> None:
        self._stored, self._layout = stored, layout

    def gathered(self, rows: Tensor) -> Tensor:
        """int64 (B,) → (B, …)."""
        copied = torch.from_numpy(self._stored[rows.numpy()])
        return self._layout.from_flat(copied.view(self._layout.dtype))


class _Resident:
    """One of the outputs, on the device; nothing waits for it."""

    def __init__(self, stored: Bytes, layout: Layout, device: torch.device) -> None:
        self._layout = layout
        there = torch.empty(stored.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(stored), _UPLOADED):
            part = stored[start : start + _UPLOADED].copy()
            there[start : start + len(part)] = torch.from_numpy(part)
        self._flat = there.view(layout.dtype)

    def gathered(self, rows: Tensor) -> Tensor:
        """int64 (B,) → (B, …)."""
        return self._layout.from_flat(self._flat[rows])
