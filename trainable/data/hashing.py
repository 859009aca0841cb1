"""Random bits as a pure function of integers, so that no draw depends on the draws before it.

The finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators", with Stafford's variant 13 constants), on Python integers and NumPy arrays. Unlike
NumPy's generators it is ours to keep stable from version to version.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
"""2⁶⁴ / φ, odd: the increment of SplitMix64's counter."""
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)

Purpose = Literal[
    "order", "augment", "split", "verify", "noise", "subset", "picture", "mix", "balance"
]
_PURPOSES: dict[Purpose, int] = {
    "order": 1,
    "augment": 2,
    "split": 3,
    "verify": 4,
    "noise": 5,
    "subset": 6,
    "picture": 7,
    "mix": 8,
    "balance": 9,
}
_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """One 64-bit word with its bits well mixed; a bijection of the words."""
    value &= _MASK
    value = ((value ^ (value >> SHIFTS[0])) * MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> SHIFTS[1])) * MULTIPLIERS[1]) & _MASK
    return value ^ (value >> SHIFTS[2])


def stream_key(purpose: Purpose, *numbers: int) -> int:
    """A 64-bit word for a stream of draws, e.g. `stream_key("order", seed, epoch)`."""
    key = mix(_PURPOSES[purpose] * GOLDEN)
    for number in numbers:
        key = mix(key + (number + 1) * GOLDEN)
    return key


def draws(key: int, count: int) -> npt.NDArray[np.uint64]:
    """The first `count` words of the stream `key`, (count,): word i is a function of (key, i)."""
    counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    value = counter + np.uint64(key)
    value = (value ^ (value >> np.uint64(SHIFTS[0]))) * np.uint64(MULTIPLIERS[0])
    value = (value ^ (value >> np.uint64(SHIFTS[1]))) * np.uint64(MULTIPLIERS[1])
    return value ^ (value >> np.uint64(SHIFTS[2]))


def permutation(key: int, count: int) -> npt.NDArray[np.int64]:
    """The numbers 0 .. count − 1 in the order of their draws, (count,)."""
    return np.argsort(draws(key, count), kind="stable").astype(np.int64, copy=False)
