"""Weights that are kept elsewhere until they are needed: accelerate's offloaded modules.

A device map puts each part of a model on a device, in memory or on disk. Parts that are offloaded have
parameters on the meta device; accelerate's hooks bring their data for the length of a forward pass, and
`materialised` does for as long as anybody needs.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Literal

from torch import Tensor, nn

from exporter.errors import MissingRuntimeError

DeviceMap = Literal["auto"] | Mapping[str, int | str]
"""Which part of a model lives where: accelerate's map, from module names to devices, `cpu` or `disk`."""


def is_offloaded(module: nn.Module) -> bool:
    """Whether some of the module's parameters are not in memory."""
    return any(parameter.is_meta for parameter in module.parameters())


@contextmanager
def materialised(module: nn.Module) -> Iterator[None]:
    """Within the context, the module's parameters are in memory on the device that computes with them.

    Tensors taken from them stay valid afterwards.
    """
    if not is_offloaded(module):
        yield
        return
    from accelerate.utils import align_module_device

    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(align_module_device(part))
        yield


def iterate_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter with its data, once; an offloaded one is in memory only until the next is asked for."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        own = [(name, parameter) for name, parameter in module.named_parameters(recurse=False)]
        new = [name for name, parameter in own if id(parameter) not in seen]
        seen |= {id(parameter) for _, parameter in own}
        if not new:
            continue
        with materialised(module) if any(parameter.is_meta for _, parameter in own) else ExitStack():
            for name in new:
                yield f"{prefix}.{name}".lstrip("."), getattr(module, name)


def require_accelerate() -> None:
    """Raise MissingRuntimeError without accelerate, which reads device maps."""
    if find_spec("accelerate") is None:
        raise MissingRuntimeError("a device map needs accelerate, which is not installed; pip install accelerate")


class OffloadFolder:
    """Where accelerate writes what it offloads and cannot read from the checkpoint itself.

    `with OffloadFolder() as folder: model = ...; folder.belongs_to(model)`: it is removed with the model, or at
    once when there is none.
    """

    def __enter__(self) -> OffloadFolder:
        self.path = tempfile.mkdtemp(prefix="export-circuit-offload-")
        self._owned = False
        return self

    def __exit__(self, *_: object) -> None:
        if not self._owned:
            shutil.rmtree(self.path, ignore_errors=True)

    def belongs_to(self, model: nn.Module) -> None:
        """Keep the folder as long as the model lives."""
        self._owned = True
        weakref.finalize(model, shutil.rmtree, self.path, ignore_errors=True)
