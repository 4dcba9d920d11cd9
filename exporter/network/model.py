"""A pre-norm decoder-only transformer that holds only what a circuit keeps.

The residual stream starts as token embedding, plus position embedding where the family has one, and
passes through a list of *steps* (see `exporter.network.step`). A dense model is a CircuitModel with every
component and no constants, so search, rewriting and export handle this class only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from exporter.checks import require_type, take_integer
from exporter.circuit import Align, Circuit, GraphShape
from exporter.errors import InputError
from exporter.files import read_json, require_regular
from exporter.network.attention import Attention
from exporter.network.feed_forward import FeedForward
from exporter.network.norm import Norm, freeze
from exporter.network.positions import Positions, Rotary, place_tokens
from exporter.network.shape import read_shape
from exporter.network.step import Step, Sublayer, run_to_last

_FORMAT = 2
_CONFIG, _WEIGHTS = "circuit_model.json", "circuit_model.safetensors"


class CircuitModel(nn.Module):
    """Token ids in, next-token logits out, through the steps that a circuit keeps.

    W_E: (vocab, d_model). W_pos: (pos, d_model), or None for rotary or no position embedding. W_U: (vocab, d_model);
    None ties it to W_E. `max_length`: the longest sequence, in tokens, that the position embedding covers.
    `length`: rows of the steps' constants that differ by position, (length, d_model), which bounds the sequence, too;
    None without such constants. `align`: whether their rows count from the first token (left) or the last (right).
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
        """The model itself, so that a CircuitModel is a `HasDense`."""
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

    @property
    def shape(self) -> GraphShape:
        """The sizes that tell which components a circuit can name."""
        return read_shape(self.steps, d_model=self.W_E.shape[1])

    def check_circuit(self, circuit: Circuit) -> None:
        """Raises InputError: the circuit names components that this dense model lacks."""
        shape = self.shape
        circuit.check_fits(n_layers=shape.n_layers, n_heads=shape.n_heads, d_mlp=shape.d_mlp or 0)

    def place(self, input_ids: Tensor, mask: Tensor | None = None, *, length: int | None = None) -> Positions:
        """Positions of (batch, pos) int64 prompts; `mask`, (batch, pos) bool, is False at padding on the left.

        `length`: rows of the tables by position that are read with these positions. Default: the model's own `length`;
        give it for other tables (means that are being recorded, replacements of a search). Raises InputError: prompts
        that are too long, token ids out of range, wrong shapes or dtypes.
        """
        self._check_ids(input_ids, mask)
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

    def _check_ids(self, input_ids: Tensor, mask: Tensor | None) -> None:
        """Raise InputError unless input_ids are (batch, pos) int64 ids of this vocabulary, and mask fits them."""
        require_type("input_ids", input_ids, Tensor)
        require_type("mask", mask, Tensor, type(None))
        if input_ids.ndim != 2 or input_ids.dtype != torch.int64 or 0 in input_ids.shape:
            raise InputError(f"input_ids must be (batch, pos) int64, not {tuple(input_ids.shape)} {input_ids.dtype}")
        if mask is not None and (mask.shape != input_ids.shape or mask.dtype != torch.bool):
            shape = tuple(input_ids.shape)
            raise InputError(f"mask must be bool and {shape} as input_ids, not {tuple(mask.shape)} {mask.dtype}")
        low, high = (int(bound) for bound in input_ids.aminmax())
        if low < 0 or high >= len(self.W_E):
            outside = low if low < 0 else high
            raise InputError(f"input_ids has token {outside}, and this model's go from 0 to {len(self.W_E) - 1}")

    def embed(self, input_ids: Tensor, at: Positions) -> Tensor:
        """The residual before the first step, at the positions `at`: the last of (batch, pos) int64 token ids."""
        x = functional.embedding(input_ids[:, -at.pos :], self.W_E)  # (batch, pos, d_model)
        return x if self.W_pos is None else x + functional.embedding(at.ids, self.W_pos)

    def unembed(self, x: Tensor) -> Tensor:
        """Logits of a residual: (..., d_model) -> (..., vocab)."""
        return functional.linear(self.final_norm(x.to(self.W_U.device)), self.W_U)

    @torch.inference_mode()
    def answer_logits(self, input_ids: Tensor, mask: Tensor | None = None, n_steps: int = 1) -> Tensor:
        """Logits at the last positions only: (batch, pos) -> (batch, n_steps, vocab).

        After the last attention, only these positions are computed. Raises InputError as `place` does, and for an
        n_steps that is not from 1 to pos.
        """
        at = self.place(input_ids, mask)
        take_integer("n_steps", n_steps, least=1, most=input_ids.shape[1])
        at = at.crop(n_steps)
        return self.unembed(run_to_last(self.steps, self.embed(input_ids, at), at, n_last=n_steps))

    def next_token_logits(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits at the last position only: (batch, pos) -> (batch, vocab). Raises InputError as `place` does."""
        return self.answer_logits(input_ids, mask)[:, -1]

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits at every position: (batch, pos) int64 -> (batch, pos, vocab). Raises InputError as `place` does."""
        at = self.place(input_ids, mask)
        x = self.embed(input_ids, at)
        for step in self.steps:
            x = step.load()(x, at)
        return self.unembed(x)

    @torch.inference_mode()
    def keys_values(self, input_ids: Sequence[int], *, length: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of `input_ids`, the opening of prompts of `length` tokens: by layer, for attention layers.

        Both are (kv_head, token, d_head), keys rotated. Raises InputError: `length` is too long for the model.
        """
        at = self.place(torch.zeros(1, length, dtype=torch.int64)).split_opening(len(input_ids)).opening
        assert at is not None
        x = self.embed(torch.tensor([list(input_ids)]), at)  # (1, token, d_model)
        found = {}
        for step in map(Step.load, self.steps):
            for sublayer in step.sublayers:
                if isinstance(sublayer, Attention):
                    k, v = sublayer.keys_values(sublayer.norm(x), at)  # (1, kv_head, token, d_head)
                    found[sublayer.layer] = k[0], v[0]
            x = step(x, at)
        return found

    def count_parameters(self) -> int:
        """Parameters of the sublayers and the final norm: all but W_E, W_pos, W_U and the steps' constants.

        Of a dense or a sliced model (`slice_model`) this is the usual count of non-embedding parameters, `size` in
        manifests. Models from `fold_model` and `rewrite_model` have fewer: the sublayers' norms are folded into the
        weights that follow them, and biases of values (without rotary or key norm, also of keys) are gone.
        """
        counted = [*self.sublayers(), self.final_norm]
        return sum(tensor.numel() for module in counted for tensor in module.parameters())

    def count_constants(self) -> int:
        """How many values the steps' constants hold."""
        return sum(step.constant.numel() for step in self.steps if step.constant is not None)

    def config(self) -> dict[str, Any]:
        """Settings that are not tensors, JSON-able: layers, heads, activations, norms."""
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
        """This model if it is on the device already, else a copy there; this model is not moved."""
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
        """Read what `save` wrote; needs neither transformers nor the original model.

        Raises InputError: files are missing, damaged, incomplete or of another format.
        """
        folder = Path(folder)
        try:
            config = read_json(folder / _CONFIG)
            with safe_open(require_regular(folder / _WEIGHTS), framework="pt") as file:
                # clone into torch-aligned memory: on other alignments, kernels may round differently
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise InputError(
                f"cannot load a circuit model from {folder} ({error}); give a folder that CircuitModel.save wrote"
            ) from error
        if config.get("format") != _FORMAT:
            raise InputError(f"{folder / _CONFIG} has format {config.get('format')!r}; this version reads {_FORMAT}")
        try:
            return _build(config, tensors)
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{folder} is not a complete circuit model: {error!r}; save it again") from error


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CircuitModel:
    """A CircuitModel from its config and its tensors by state-dict name."""
    steps = []
    for index, sublayers in enumerate(config["steps"]):
        built: list[Sublayer] = []
        for place, entry in enumerate(sublayers):
            prefix = f"steps.{index}.sublayers.{place}."
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            norm = Norm(own.get("norm.weight"), own.get("norm.bias"), **entry["norm"])
            settings: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in entry.items()
                if key not in ("kind", "norm")
            }
            if entry["kind"] == Attention.kind:
                built.append(Attention(norm, own, **settings))
            else:
                built.append(FeedForward(norm, own, **settings))
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
