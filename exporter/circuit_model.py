"""A pre-norm decoder-only transformer that holds only what a circuit keeps.

The residual stream starts as token embedding + position embedding and passes through a list of
*steps* (see `sublayers`). A dense model is the same thing with every component present and no
constants, so search, rewriting and export know this class only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from exporter.errors import InputError
from exporter.sublayers import MLP, Attention, Norm, Step, Sublayer, run_to_last

_FORMAT = 1
_CONFIG, _WEIGHTS = "circuit_model.json", "circuit_model.safetensors"


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

    def config(self) -> dict[str, Any]:
        """What the tensors do not say: layers, heads, activations, norms."""
        return {
            "format": _FORMAT,
            "length": self.length,
            "final_norm": self.final_norm.config(),
            "steps": [
                [{"kind": s.kind, "norm": s.norm.config(), **s.config()} for s in step.sublayers] for step in self.steps
            ],
        }

    def on_device(self, device: torch.device | str) -> CircuitModel:
        """The model on a device: itself where it is there, else a copy; this one stays where it is."""
        if self.W_E.device == torch.device(device):
            return self
        tensors = {name: tensor.to(device) for name, tensor in self.state_dict().items()}
        if self.tied:
            del tensors["W_U"]
        return _build(self.config(), tensors)

    def save(self, folder: str | Path) -> None:
        """Write `circuit_model.safetensors` and `circuit_model.json` into a folder, made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self.tied:
            del tensors["W_U"]
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
        (folder / _CONFIG).write_text(json.dumps(self.config(), indent=1) + "\n", encoding="utf-8")

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


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CircuitModel:
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
