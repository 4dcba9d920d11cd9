"""Weights that are kept elsewhere until they are needed: accelerate's offloaded modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn


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
