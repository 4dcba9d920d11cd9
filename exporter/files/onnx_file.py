"""Read an ONNX file that somebody else may have made: the graph, and where its weights lie beside it.

A graph names the files of its weights. A name that leads out of the graph's own folder, or to a pipe or a device,
is refused here, before a runtime opens it. Links are followed, as hub caches need it: what a link leads to is read
as numbers, and nothing else becomes of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from exporter.errors import InputError
from exporter.files.reading import open_regular, read_steadily, require_regular

_MOST_BYTES = 2**31  # protobuf reads no more


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A graph without the weights that lie beside it; `weights` are those files, `bytes` and `sha256` the graph's."""

    path: Path
    proto: onnx.ModelProto = field(repr=False)
    bytes: int
    sha256: str
    weights: tuple[Path, ...]

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata_props."""
        return {prop.key: prop.value for prop in self.proto.metadata_props}


def read_onnx(path: str | Path) -> OnnxFile:
    """Read a graph and check what it says of its weights. Raises InputError for anything that is no such file."""
    return read_steadily(path, lambda: _read(Path(path)))


def read_external(tensor: TensorProto, folder: Path) -> bytes:
    """The bytes of one tensor that lies beside the graph, of a file that `read_onnx` has taken."""
    location = _Location.of(tensor)
    with open_regular(folder / location.name) as file:
        file.seek(location.offset)
        return file.read(location.length)


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's numbers lie in a file beside the graph."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def count_bytes(tensor: TensorProto) -> int:
    """How many bytes the tensor's numbers take as ONNX stores them raw."""
    numbers = math.prod(map(int, tensor.dims))
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):  # two in a byte
        return math.ceil(numbers / 2)
    return numbers * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _read(path: Path) -> OnnxFile:
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise InputError(f"no file {str(path)!r}; give an ONNX file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(content) == _MOST_BYTES:
        raise InputError(f"{path} has 2 GiB or more, which no ONNX file has; give the graph, not its weights")
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf raises errors of its own, which share no public base
        raise InputError(f"{path} is not a readable ONNX file ({_first_line(error)})") from error
    if not proto.graph.node and not proto.graph.output:  # protobuf parses many texts that are no ONNX
        raise InputError(f"{path} is not a readable ONNX file (it has no graph)")
    digest = hashlib.sha256(content).hexdigest()
    return OnnxFile(path, proto, len(content), digest, tuple(_check_weights(path, proto)))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:120]


@dataclass(frozen=True)
class _Location:
    """Where a tensor's bytes lie: `length` of them from `offset` on."""

    name: str
    offset: int
    length: int

    @classmethod
    def of(cls, tensor: TensorProto) -> _Location:
        """Raises ValueError for an entry that is no number, or is missing or negative."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        wanted = count_bytes(tensor)
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", wanted))
        if offset < 0 or length != wanted:
            raise ValueError(f"{tensor.name} has {length} bytes from {offset} on, and needs {wanted}")
        return cls(entries.get("location", ""), offset, length)


def _check_weights(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """The files that hold weights, sorted; raises InputError for one that cannot be, is missing or too short."""
    ends: dict[str, int] = {}
    for tensor in iterate_tensors(proto):
        if is_external(tensor):
            try:
                location = _Location.of(tensor)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} says nonsense of its weights ({str(error)[:100]}); export it again"
                ) from error
            ends[location.name] = max(ends.get(location.name, 0), location.offset + location.length)
    for name, end in ends.items():
        if not name or name != Path(name).name or name in (".", "..") or any(sign in name for sign in "\\\0"):
            raise InputError(
                f"{path} wants its weights from {ascii(name)[:80]}, which is no file beside it; it is not opened"
            )
        beside = path.with_name(name)
        missing = not beside.exists()
        if missing or require_regular(beside).stat().st_size < end:
            what = "is not there" if missing else "is too short"
            raise InputError(
                f"{path} has its weights in {name}, which {what}; put the two side by side, or export again"
            )
    return [path.with_name(name) for name in sorted(ends)]


def iterate_tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor in a message, wherever it stands: in sub-graphs, attributes and functions, too."""
    for description, value in message.ListFields():
        if description.message_type is None:
            continue
        is_one = hasattr(value, "ListFields")
        for part in [value] if is_one else value:
            if isinstance(part, TensorProto):
                yield part
            elif hasattr(part, "ListFields"):
                yield from iterate_tensors(part)
