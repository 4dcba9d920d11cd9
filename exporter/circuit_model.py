"""A pre-norm decoder-only transformer that holds only what a circuit keeps.

The residual stream starts as token embedding + position embedding and passes through a list of
*steps*. A step reads the residual once: each of its sublayers (attention or MLP, of its own width)
normalises it, computes, and adds its output back; a constant may be added along with them. A dense
model is the same thing with every component present and no constants, so search, rewriting and
export know this class only. Weights are stored (in, out), `x @ W`, heads side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from exporter.errors import InputError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}

_FORMAT = 1
_CONFIG, _WEIGHTS = "circuit_model.json", "circuit_model.safetensors"


def _frozen(tensor: Tensor | None) -> nn.Parameter | None:
    """The tensor as a parameter that shares its storage and never trains."""
    return None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


class Norm(nn.Module):
    """LayerNorm; without gain and bias once those are folded into what follows."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> None:
        super().__init__()
        self.weight = _frozen(weight)  # (d_model,)
        self.bias = _frozen(bias)  # (d_model,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x, normalised: (..., d_model)."""
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"eps": self.eps}


class Attention(nn.Module):
    """Causal self-attention over some of a layer's heads; `heads` are their original indices.

    W_Q, W_K, W_V: (d_model, head * d_head). W_O: (head * d_head, d_model). b_Q, b_K, b_V:
    (head * d_head,) or None. b_O: (d_model,) or None.
    """

    kind = "attention"

    def __init__(
        self, norm: Norm, tensors: Mapping[str, Tensor | None], *, layer: int, heads: tuple[int, ...], scale: float
    ) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.heads = heads
        self.scale = scale
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            self.register_parameter(name, _frozen(tensors.get(name)))

    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    W_O: nn.Parameter
    b_Q: nn.Parameter | None
    b_K: nn.Parameter | None
    b_V: nn.Parameter | None
    b_O: nn.Parameter | None

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.W_Q.shape[1] // len(self.heads)

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_O."""
        return self.b_O

    def z(self, x: Tensor, *, last: bool = False) -> Tensor:
        """What each head reads from the residual x (batch, pos, d_model): (batch, pos, head, d_head).

        With `last`, only at the last position, which attends to all: (batch, 1, head, d_head).
        """
        x = self.norm(x)
        q = self._split(_affine(x[:, -1:] if last else x, self.W_Q, self.b_Q))
        k = self._split(_affine(x, self.W_K, self.b_K))
        v = self._split(_affine(x, self.W_V, self.b_V))
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=not last, scale=self.scale)
        return z.transpose(1, 2)  # (batch, pos, head, d_head)

    def _split(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (len(self.heads), self.d_head))  # (batch, pos, head, d_head)
        return x.transpose(1, 2)  # (batch, head, pos, d_head)

    def project(self, z: Tensor) -> Tensor:
        """The heads' joint output, b_O included: (batch, pos, d_model)."""
        return _affine(z.flatten(-2), self.W_O, self.b_O)

    def forward(self, x: Tensor, *, last: bool = False) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, 1, d_model) with `last`."""
        return self.project(self.z(x, last=last))

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"layer": self.layer, "heads": list(self.heads), "scale": self.scale}


class MLP(nn.Module):
    """A two-layer MLP. W_in: (d_model, d_mlp), W_out: (d_mlp, d_model), biases or None."""

    kind = "mlp"

    def __init__(self, norm: Norm, tensors: Mapping[str, Tensor | None], *, layer: int, activation: str) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.activation = activation
        for name in ("W_in", "b_in", "W_out", "b_out"):
            self.register_parameter(name, _frozen(tensors.get(name)))

    W_in: nn.Parameter
    b_in: nn.Parameter | None
    W_out: nn.Parameter
    b_out: nn.Parameter | None

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_out."""
        return self.b_out

    def forward(self, x: Tensor, *, last: bool = False) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, 1, d_model) with `last`."""
        x = x[:, -1:] if last else x
        hidden = ACTIVATIONS[self.activation](_affine(self.norm(x), self.W_in, self.b_in))  # (batch, pos, d_mlp)
        return _affine(hidden, self.W_out, self.b_out)

    def config(self) -> dict[str, Any]:
        """What the tensors do not say."""
        return {"layer": self.layer, "activation": self.activation}


Sublayer = Attention | MLP


class Step(nn.Module):
    """Sublayers that read the same residual, and a constant that is added with their outputs.

    constant: (d_model,), or (pos, d_model) where it differs by position, or None.
    """

    def __init__(self, sublayers: list[Sublayer], constant: Tensor | None = None) -> None:
        super().__init__()
        self.sublayers = cast("Sequence[Sublayer]", nn.ModuleList(sublayers))  # ModuleList is not generic
        self.constant = _frozen(constant)

    @property
    def attends(self) -> bool:
        """Whether the step reads other positions."""
        return any(isinstance(sublayer, Attention) for sublayer in self.sublayers)

    def forward(self, x: Tensor, *, last: bool = False) -> Tensor:
        """The residual after the step: (batch, pos, d_model), or (batch, 1, d_model) with `last`.

        A step that does not attend may be given the last position alone.
        """
        out = x[:, -1:] if last else x
        if self.constant is not None:
            out = out + (self.constant[-1] if last and self.constant.ndim == 2 else self.constant)
        for sublayer in self.sublayers:
            out = out + sublayer(x, last=last)
        return out


class CircuitModel(nn.Module):
    """Token ids in, next-token logits out, through whatever steps are left.

    W_E: (vocab, d_model). W_pos: (pos, d_model). W_U: (vocab, d_model), the same tensor as W_E when
    tied. `length` pins the sequence length (a circuit whose constants differ by position); None
    leaves it free up to W_pos's rows.
    """

    def __init__(
        self,
        steps: list[Step],
        *,
        W_E: Tensor,
        W_pos: Tensor,
        final_norm: Norm,
        W_U: Tensor | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__()
        self.W_E = nn.Parameter(W_E.detach(), requires_grad=False)
        self.W_pos = nn.Parameter(W_pos.detach(), requires_grad=False)
        self.steps = cast("Sequence[Step]", nn.ModuleList(steps))  # ModuleList is not generic
        self.final_norm = final_norm
        self.W_U = self.W_E if W_U is None else nn.Parameter(W_U.detach(), requires_grad=False)
        self.length = length

    @property
    def dense(self) -> CircuitModel:
        """Itself: whoever takes a model with a `dense` takes a CircuitModel, too."""
        return self

    @property
    def tied(self) -> bool:
        """Whether embedding and unembedding are one tensor."""
        return self.W_U is self.W_E

    @property
    def max_length(self) -> int:
        """The longest sequence that the position table allows."""
        return self.W_pos.shape[0]

    def replace(self, *, steps: list[Step], W_pos: Tensor | None = None, length: int | None = None) -> CircuitModel:
        """The same model around other steps; shares every tensor that is not given."""
        return CircuitModel(
            steps,
            W_E=self.W_E,
            W_pos=self.W_pos if W_pos is None else W_pos,
            final_norm=self.final_norm,
            W_U=None if self.tied else self.W_U,
            length=self.length if length is None else length,
        )

    def sublayers(self) -> Iterator[Sublayer]:
        """Every sublayer, from the input to the output."""
        for step in self.steps:
            yield from step.sublayers

    def embed(self, input_ids: Tensor) -> Tensor:
        """The residual before the first step: (batch, pos) int64 -> (batch, pos, d_model)."""
        pos = input_ids.shape[1]
        if self.length is not None and pos != self.length:
            raise InputError(f"this circuit was made for prompts of {self.length} tokens, not {pos}")
        if pos > self.max_length:
            raise InputError(f"prompts of {pos} tokens are longer than the model's {self.max_length} positions")
        return functional.embedding(input_ids, self.W_E) + self.W_pos[:pos]

    def unembed(self, x: Tensor) -> Tensor:
        """Logits of a residual: (..., d_model) -> (..., vocab)."""
        return functional.linear(self.final_norm(x), self.W_U)

    @torch.inference_mode()
    def next_token_logits(self, input_ids: Tensor) -> Tensor:
        """Logits at the last position only: (batch, vocab). Computes other positions only where they are read."""
        return self.unembed(run_to_last(self.steps, self.embed(input_ids)))

    @torch.inference_mode()
    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits at every position: (batch, pos) int64 -> (batch, pos, vocab)."""
        x = self.embed(input_ids)
        for step in self.steps:
            x = step(x)
        return self.unembed(x)

    def count_parameters(self) -> int:
        """Non-embedding parameters: all but W_E, W_pos, W_U and the constants (DESIGN section 4)."""
        counted = [*self.sublayers(), self.final_norm]
        return sum(tensor.numel() for module in counted for tensor in module.parameters())

    def count_constants(self) -> int:
        """Numbers held in the constants between the steps."""
        return sum(step.constant.numel() for step in self.steps if step.constant is not None)

    def save(self, folder: str | Path) -> None:
        """Write `circuit_model.safetensors` and `circuit_model.json` into a folder, made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self.tied:
            del tensors["W_U"]
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
        config = {
            "format": _FORMAT,
            "length": self.length,
            "final_norm": self.final_norm.config(),
            "steps": [
                [{"kind": s.kind, "norm": s.norm.config(), **s.config()} for s in step.sublayers] for step in self.steps
            ],
        }
        (folder / _CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> CircuitModel:
        """Read what `save` wrote; needs neither transformers nor the original model. Raises InputError."""
        folder = Path(folder)
        try:
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            with safe_open(folder / _WEIGHTS, framework="pt") as file:
                # cloned into memory that is aligned as torch aligns it, or kernels may round differently
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"cannot load a circuit model from {folder} ({error}); give a folder that CircuitModel.save wrote"
            ) from error
        if config.get("format") != _FORMAT:
            raise InputError(f"{folder / _CONFIG} has format {config.get('format')!r}; this version reads {_FORMAT}")
        try:
            return _build(config, tensors)
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{folder} is not a complete circuit model: {error!r}; save it again") from error


class HasDense(Protocol):
    """A loaded language model, or a dense CircuitModel itself."""

    @property
    def dense(self) -> CircuitModel:
        """The model with every component."""


def run_to_last(steps: Sequence[Step], x: Tensor) -> Tensor:
    """The last position's residual after some steps: (batch, pos, d_model) -> (batch, d_model).

    From the last step that attends on, only the last position is computed; where none attends, x may
    hold the last position alone.
    """
    reads_all = max((index for index, step in enumerate(steps) if step.attends), default=-1)
    for index, step in enumerate(steps):
        x = step(x, last=index >= reads_all)
    return x[:, -1]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight.T, bias)


def _build(config: dict[str, Any], tensors: dict[str, Tensor]) -> CircuitModel:
    """A CircuitModel from its config and its tensors by state-dict name."""
    steps = []
    for index, sublayers in enumerate(config["steps"]):
        built: list[Sublayer] = []
        for place, entry in enumerate(sublayers):
            prefix = f"steps.{index}.sublayers.{place}."
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            norm = Norm(own.get("norm.weight"), own.get("norm.bias"), eps=entry["norm"]["eps"])
            if entry["kind"] == Attention.kind:
                heads = tuple(entry["heads"])
                built.append(Attention(norm, own, layer=entry["layer"], heads=heads, scale=entry["scale"]))
            else:
                built.append(MLP(norm, own, layer=entry["layer"], activation=entry["activation"]))
        steps.append(Step(built, tensors.get(f"steps.{index}.constant")))
    return CircuitModel(
        steps,
        W_E=tensors["W_E"],
        W_pos=tensors["W_pos"],
        final_norm=Norm(
            tensors.get("final_norm.weight"), tensors.get("final_norm.bias"), eps=config["final_norm"]["eps"]
        ),
        W_U=tensors.get("W_U"),
        length=config["length"],
    )
