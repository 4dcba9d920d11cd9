"""Weights in 8 bits: how they are stored, and on which processors ONNX Runtime adds their products exactly.

Read in MLAS, ONNX Runtime's kernels (`platform.cpp` chooses one for a processor), and run on AVX2: with int8 weights an
x86 processor without VNNI adds the products of two neighbours in 16 bits (`vpmaddubsw`), where 255 * 127 * 2 = 64,770
becomes 32,767. With uint8 weights it widens both factors to 16 bits first, and adds in 32 (`vpmaddwd`). VNNI, AMX, ARM
(with weights above -128) and WebAssembly add in 32 bits whatever the weights. A file may be exported on one processor
and served on another, so the default is exact on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

EVERYWHERE = "all"
MIDDLE = 128  # the zero point of symmetric values stored as uint8


@dataclass(frozen=True)
class StoredWeights:
    """Symmetric weights from -largest to largest, stored with `zero` added, as uint8 where that is above 0.

    processors: those on which the sums are exact, `EVERYWHERE` or in words.
    """

    largest: int
    zero: int
    processors: str


STORED: dict[str, StoredWeights] = {
    "uint8": StoredWeights(127, MIDDLE, EVERYWHERE),
    "int7": StoredWeights(64, 0, EVERYWHERE),  # 255 * 64 * 2 = 32,640 fits into 16 bits
    "int8": StoredWeights(127, 0, "ARM, and x86 with VNNI or AMX"),
}
"""By `GraphOptions.weight_type`. Signed weights have the fastest kernels on processors with VNNI and AMX."""
