"""A pre-norm decoder-only transformer that holds only what a circuit keeps.

The residual stream starts as token embedding, plus position embedding where the family has one, and
passes through a list of *steps* (see `sublayers`). A dense model is the same thing with every component
present and no constants, so search, rewriting and export know this class only.
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

from exporter.circuit import Align
from exporter.errors import InputError
from exporter.positions import Positions, Rotary, place_tokens
from exporter.sublayers import MLP, Attention, Norm, Step, Sublayer, freeze, run_to_last

_FORMAT = 2
_CONFIG, _WEIGHTS = "circuit_model.json", "circuit_model.safetensors"


class CircuitModel(nn.Module):
    """Token ids in, next-token logits out, through whatever steps are left.

    W_E: (vocab, d_model). W_pos: (pos, d_model), or None; `rotary` turns queries and keys instead. W_U: (vocab,
    d_model), the same tensor as W_E when tied. `max_length` is the longest sequence that positions are known
    for. `length` is the number of rows of constants that differ by position, which bounds the sequence, too;
    None where there are none. They are read from the end that `align` names.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        W_E: Tensor,
        final_norm: Norm,
        max_length: int,
        W_pos: Tensor | None = None,
        rotary: Rotary | None = None,
        W_U: Tensor | None = None,
        length: int | None = None,
        align: Align = "left",
    ) -> None:
        super().__init__()
        self.W_E = nn.Parameter(W_E.detach(), requires_grad=False)
        self.W_pos = freeze(W_pos)
        self.rotary = rotary
        self.steps = cast("Sequence[Step]", nn.ModuleList(steps))  # ModuleList is not generic
        self.final_norm = final_norm
        self.W_U = self.W_E if W_U is None else nn.Parameter(W_U.detach(), requires_grad=False)
        self.max_length = max_length
        self.length = length
        self.align = align

    W_pos: nn.Parameter | None

    @property
    def dense(self) -> CircuitModel:
        """Itself: whoever takes a model with a `dense` takes a CircuitModel, too."""
        return self

    @property
    def tied(self) -> bool:
        """Whether embedding and unembedding are one tensor."""
        return self.W_U is self.W_E

    def replace(self, **changes: Any) -> CircuitModel:
        """The same model with some of the constructor's arguments changed; shares every other tensor."""
        known: dict[str, Any] = {
            "steps": list(self.steps),
            "W_E": self.W_E,
            "W_pos": self.W_pos,
            "rotary": self.rotary,
            "final_norm": self.final_norm,
            "W_U": None if self.tied else self.W_U,
            "max_length": self.max_length,
            "length": self.length,
            "align": self.align,
        }
        return CircuitModel(**(known | changes))

    def sublayers(self) -> Iterator[Sublayer]:
        """Every sublayer, from the input to the output."""
        for step in self.steps:
            yield from step.sublayers

    def place(self, input_ids: Tensor, mask: Tensor | None = None, *, length: int | None = None) -> Positions:
        """Where the tokens of (batch, pos) prompts stand; `mask`, (batch, pos) bool, is False at padding on the left.

        `length` is that of tables by position other than the model's own. Raises InputError for prompts that
        are too long.
        """
        length, pos = length or self.length, input_ids.shape[1]
        if self.length is not None and pos > self.length:
            raise InputError(f"this circuit was made for prompts of {self.length} tokens, not {pos}")
        if pos > self.max_length:
            raise InputError(f"prompts of {pos} tokens are longer than the model's {self.max_length} positions")
        return place_tokens(
            (input_ids.shape[0], pos),
            mask=mask,
            rotary=self.rotary,
            length=length,
            align=self.align,
            device=input_ids.device,
        )

    def embed(self, input_ids: Tensor, at: Positions) -> Tensor:
        """The residual before the first step: (batch, pos) int64 -> (batch, pos, d_model)."""
        x = functional.embedding(input_ids, self.W_E)
        return x if self.W_pos is None else x + functional.embedding(at.ids, self.W_pos)

    def unembed(self, x: Tensor) -> Tensor:
        """Logits of a residual: (..., d_model) -> (..., vocab)."""
        return functional.linear(self.final_norm(x.to(self.W_U.device)), self.W_U)

    @torch.inference_mode()
    def answer_logits(self, input_ids: Tensor, mask: Tensor | None = None, n_steps: int = 1) -> Tensor:
        """Logits at the last positions only: (batch, pos) -> (batch, n_steps, vocab).

        Computes other positions only where they are read.
        """
        at = self.place(input_ids, mask)
        return self.unembed(run_to_last(self.steps, self.embed(input_ids, at), at, last=n_steps))

    def next_token_logits(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits at the last position only: (batch, pos) -> (batch, vocab)."""
        return self.answer_logits(input_ids, mask)[:, -1]

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits at every position: (batch, pos) int64 -> (batch, pos, vocab)."""
        at = self.place(input_ids, mask)
        x = self.embed(input_ids, at)
        for step in self.steps:
            x = step.load()(x, at)
        return self.unembed(x)

    @torch.inference_mode()
    def keys_values(self, input_ids: Sequence[int], *, length: int) -> dict[int, tuple[Tensor, Tensor]]:
        """What each layer's attention reads of the first tokens of prompts of `length`: keys and values.

        Both are (kv_head, token, d_head), by layer.
        """
        at = self.place(torch.zeros(1, length, dtype=torch.int64)).split_opening(len(input_ids)).opening
        assert at is not None
        x = self.embed(torch.tensor([list(input_ids)]), at)  # (1, token, d_model)
        found = {}
        for step in self.steps:
            for sublayer in step.sublayers:
                if isinstance(sublayer, Attention):
                    k, v = sublayer.keys_values(sublayer.norm(x), at)  # (1, kv_head, token, d_head)
                    found[sublayer.layer] = k[0], v[0]
            x = step(x, at)
        return found

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
            "align": self.align,
            "max_length": self.max_length,
            "rotary": None if self.rotary is None else {"scale": self.rotary.scale},
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
            norm = Norm(own.get("norm.weight"), own.get("norm.bias"), **entry["norm"])
            settings = {key: value for key, value in entry.items() if key not in ("kind", "norm")}
            if entry["kind"] == Attention.kind:
                built.append(Attention(norm, own, **(settings | {"heads": tuple(entry["heads"])})))
            else:
                built.append(MLP(norm, own, **settings))
        steps.append(Step(built, tensors.get(f"steps.{index}.constant")))
    rotary = config["rotary"]
    return CircuitModel(
        steps,
        W_E=tensors["W_E"],
        W_pos=tensors.get("W_pos"),
        rotary=None if rotary is None else Rotary(tensors["rotary.inv_freq"], **rotary),
        final_norm=Norm(tensors.get("final_norm.weight"), tensors.get("final_norm.bias"), **config["final_norm"]),
        W_U=tensors.get("W_U"),
        max_length=config["max_length"],
        length=config["length"],
        align=config["align"],
    )
