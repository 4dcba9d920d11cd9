"""The head of a GGUF file: its settings, and what tensors follow. Numbers in it are not trusted.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from exporter.errors import InputError
from exporter.files import open_regular
from exporter.loading.sources.gguf_tokenizer import LISTS

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 1 << 24  # a chat template has some kilobytes


@dataclass(frozen=True)
class GgufHeader:
    """The head of a GGUF file: settings (of most arrays their length only), tensors' shapes and types."""

    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    types: frozenset[str]

    @property
    def architecture(self) -> str:
        """GGUF's name of the architecture."""
        return str(self.settings["general.architecture"])

    def get(self, name: str, default: Any = None) -> Any:
        """A setting of the architecture."""
        return self.settings.get(f"{self.architecture}.{name}", default)


def read_header(path: Path) -> GgufHeader:
    """Read and check a file's head. Raises InputError: no GGUF, truncated, of an unknown version or tensor type."""
    try:
        with open_regular(path) as file:
            return _read_head(file, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"{path} is truncated or damaged; get it again") from error


def describe_types(header: GgufHeader) -> str:
    """The quantised kinds of a file's tensors, such as `Q4_1, Q8_0`, or its floats where there are none."""
    floats = {"F32", "F16", "BF16", "F64"}
    return ", ".join(sorted(header.types - floats) or sorted(header.types))


def _read_head(file: BinaryIO, path: Path) -> GgufHeader:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    if file.read(4) != _MAGIC:
        raise InputError(f"{path} is no GGUF file; give a .gguf file, or a checkpoint folder")
    version, n_tensors, n_settings = struct.unpack("<IQQ", file.read(20))
    if version not in _VERSIONS:
        raise InputError(f"{path} is GGUF version {version}, known: 2, 3 (little-endian); convert the model again")
    settings = {}
    for _ in range(min(n_settings, size)):
        name = _read_string(file)
        settings[name] = _read_value(file, size, keep=name in LISTS)
    shapes, types, end = {}, set(), 0
    for _ in range(min(n_tensors, size)):
        name = _read_string(file)
        (n_dims,) = struct.unpack("<I", file.read(4))
        shape = tuple(reversed(struct.unpack(f"<{min(n_dims, 9)}Q", file.read(8 * min(n_dims, 9)))))
        kind, offset = struct.unpack("<IQ", file.read(12))
        try:
            quantisation = GGMLQuantizationType(kind)
            block, n_bytes = GGML_QUANT_SIZES[quantisation]
        except (ValueError, KeyError):
            raise InputError(f"{path}: tensor {name} is of the unknown type {kind}; get the file again") from None
        shapes[name] = shape
        types.add(quantisation.name)
        end = max(end, offset + math.prod(shape) // block * n_bytes)
    alignment = settings.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path}: general.alignment is {alignment!r}; get the file again")
    start = -(-file.tell() // alignment) * alignment
    if start + end > size:
        raise InputError(f"{path} is truncated: it has {size} bytes and should have {start + end}; get it again")
    return GgufHeader(settings, shapes, frozenset(types))


def _read_string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    data = file.read(min(length, _LONGEST_STRING))
    if len(data) < length:
        raise struct.error("string ends early")
    return data.decode()


def _read_value(file: BinaryIO, size: int, *, keep: bool) -> Any:
    """A setting; of an array that is not kept only its length."""
    (kind,) = struct.unpack("<I", file.read(4))
    if kind == _STRING:
        return _read_string(file)
    if kind != _ARRAY:
        return _read_scalar(file, kind)
    kind, length = struct.unpack("<IQ", file.read(12))
    if length > size:
        raise struct.error("array is longer than the file")
    if not keep and kind in _SCALARS:
        file.seek(length * struct.calcsize(_SCALARS[kind]), io.SEEK_CUR)
        return length
    values = [_read_string(file) if kind == _STRING else _read_scalar(file, kind) for _ in range(length)]
    return values if keep else length


def _read_scalar(file: BinaryIO, kind: int) -> Any:
    if kind not in _SCALARS:
        raise struct.error("value of an unknown kind")
    return struct.unpack(_SCALARS[kind], file.read(struct.calcsize(_SCALARS[kind])))[0]
