"""Building blocks of sublayers: frozen parameters, affine maps, and norms."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def freeze(tensor: Tensor | None) -> nn.Parameter | None:
    """The tensor as a parameter that shares its storage and needs no gradient; None for None."""
    return None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W + b: x (..., in), W (in, out), b (out,) or None; returns (..., out)."""
    return functional.linear(x, weight.T, bias)


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang and Sennrich, arXiv 1910.07467) where `rms`.

    weight, bias: (d_model,), or None where they are folded into the weights that read the norm.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None = None, *, eps: float, rms: bool = False) -> None:
        super().__init__()
        self.weight = freeze(weight)  # (d_model,)
        self.bias = freeze(bias)  # (d_model,)
        self.eps = eps
        self.rms = rms

    def forward(self, x: Tensor) -> Tensor:
        """x, normalised: (..., d_model)."""
        if self.rms:
            return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def config(self) -> dict[str, Any]:
        """Settings that are not tensors, JSON-able: arguments of the constructor."""
        return {"eps": self.eps, "rms": self.rms}
