"""Integer references in numpy of how processors add the products of uint8 activations and 8-bit weights.

Written from the instructions' definitions: VNNI's and ARM's dot products add in 32 bits. Without them, x86 kernels of
uint8 with int8 multiply and add neighbouring pairs with vpmaddubsw, whose sums are 16-bit and saturate; those of uint8
with uint8 widen both to 16 bits and take vpmaddwd, whose sums are 32-bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def sum_wide(x: Array, x_zero: int, weights: Array, zero: int) -> Array:
    """(x - x_zero) @ (weights - zero) in 32 bits: (row, out) of x (row, in) uint8 and weights (in, out)."""
    return (x.astype(np.int32) - x_zero) @ (weights.astype(np.int32) - zero)


def sum_in_pairs(x: Array, x_zero: int, weights: Array, zero: int) -> Array:
    """The same on x86 with AVX2 or AVX512, without VNNI.

    The kernels multiply the stored numbers, and take the zero points' share off afterwards.
    """
    x, stored = x.astype(np.int32), weights.astype(np.int32)
    if len(stored) % 2:  # they pad with zeros
        x, stored = np.pad(x, ((0, 0), (0, 1))), np.pad(stored, ((0, 1), (0, 0)))
    pairs = x[:, 0::2, None] * stored[None, 0::2] + x[:, 1::2, None] * stored[None, 1::2]  # (row, pair, out)
    if weights.dtype == np.int8:
        pairs = pairs.clip(-(2**15), 2**15 - 1)
    sums = pairs.sum(axis=1)
    n = len(weights)
    return sums - zero * x.sum(axis=1, keepdims=True) - x_zero * stored.sum(axis=0, keepdims=True) + n * x_zero * zero
