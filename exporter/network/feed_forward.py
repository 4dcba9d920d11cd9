"""MLPs, plain and gated, and the two sites of each: the MLP as a whole, and its hidden units.

The sublayer is called FeedForward, since `MLP` is the component in a circuit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from exporter.circuit import MLP, Circuit, Neuron
from exporter.network.norm import Norm, affine, freeze
from exporter.network.positions import Positions
from exporter.network.sites import Site

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class FeedForward(nn.Module):
    """A two-layer MLP; with W_gate, a gated one (Shazeer, arXiv 2002.05202): act(x W_gate) * (x W_in).

    `units` are the original indices of its hidden units (default: the MLP is whole).
    W_in, W_gate: (d_model, d_mlp). W_out: (d_mlp, d_model). b_in, b_gate: (d_mlp,) or None. b_out: (d_model,) or None.
    """

    kind = "mlp"
    letter = "m"
    attends = False
    out_bias_name = "b_out"
    out_weight_name = "W_out"
    inputs = (("W_in", "b_in"), ("W_gate", "b_gate"))
    tensor_names = ("W_in", "b_in", "W_out", "b_out", "W_gate", "b_gate")

    def __init__(
        self,
        norm: Norm,
        tensors: Mapping[str, Tensor | None],
        *,
        layer: int,
        activation: str,
        units: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.activation = activation
        for name in self.tensor_names:
            self.register_parameter(name, freeze(tensors.get(name)))
        self.units = tuple(range(self.d_mlp)) if units is None else units

    W_in: nn.Parameter
    b_in: nn.Parameter | None
    W_out: nn.Parameter
    b_out: nn.Parameter | None
    W_gate: nn.Parameter | None
    b_gate: nn.Parameter | None

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """The sublayer's own tensors by name, without those of its norm."""
        return {name: getattr(self, name) for name in self.tensor_names}

    @property
    def name(self) -> str:
        """The sublayer's short name, such as `m3` for the MLP of layer 3."""
        return f"{self.letter}{self.layer}"

    @property
    def d_mlp(self) -> int:
        """Number of hidden units."""
        return self.W_in.shape[1]

    @property
    def out_bias(self) -> nn.Parameter | None:
        """The bias of the output, b_out."""
        return self.b_out

    def forward(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """What the sublayer adds to the residual x: (batch, pos, d_model), or (batch, n_last, d_model)."""
        return self.project(self.hidden(x if n_last is None else x[:, -n_last:]))

    def hidden(self, x: Tensor) -> Tensor:
        """Activations of the hidden units, gate included, of a residual: (..., d_model) to (..., d_mlp)."""
        x = self.norm(x)
        activation = ACTIVATIONS[self.activation]
        hidden = affine(x, self.W_in, self.b_in)  # (batch, pos, d_mlp)
        if self.W_gate is None:
            hidden = activation(hidden)
        else:
            hidden = activation(affine(x, self.W_gate, self.b_gate)) * hidden
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        """The output, b_out included: (..., d_mlp) to (..., d_model)."""
        return affine(hidden, self.W_out, self.b_out)

    def config(self) -> dict[str, Any]:
        """Settings that are not tensors, JSON-able: arguments of the constructor."""
        whole = self.units == tuple(range(self.d_mlp))
        return {"layer": self.layer, "activation": self.activation, **({} if whole else {"units": list(self.units)})}

    def rebuild(
        self, tensors: Mapping[str, Tensor | None], *, norm: Norm | None = None, scale: float | None = None
    ) -> FeedForward:
        """A copy with other tensors and, where given, another norm. An MLP has no scale: `scale` must be None."""
        assert scale is None
        return FeedForward(norm or self.norm, tensors, layer=self.layer, activation=self.activation, units=self.units)

    def site_for(self, circuit: Circuit) -> Site:
        """The site whose units the circuit keeps or removes: neurons if it lists this layer's, else the whole MLP."""
        return MLPSite(self) if circuit.neurons_of(self.layer) is None else NeuronSite(self)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site; the first is the one that a search over heads and MLPs uses."""
        return (MLPSite(self), NeuronSite(self))

    def count_flops(self, n_prompts: int, pos: int, length: int) -> int:
        """FLOPs of the matrix products over `pos` positions."""
        del length
        return 2 * n_prompts * pos * sum(p.numel() for p in self.parameters() if p.ndim == 2)

    def count_pattern_flops(self, n_prompts: int, pos: int, length: int) -> int:
        """Those of them that no weight takes part in: none."""
        del n_prompts, pos, length
        return 0

    def count_activations(self, pos: int, length: int, share: float) -> int:
        """How many activation values are read and written for one prompt, at `pos` positions."""
        del length, share
        d_model, d_mlp = self.W_in.shape
        return pos * (7 * d_model + 4 * d_mlp)


class MLPSite(Site):
    """An MLP as a whole: the activation is its output, (batch, pos, d_model), bias included."""

    kind = "mlp"

    def __init__(self, mlp: FeedForward) -> None:
        super().__init__(mlp.layer, (0,))
        self.mlp = mlp

    @property
    def bias(self) -> None:
        """None: b_out is part of the MLP's output, and removed with it."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(d_model,)."""
        return (self.mlp.W_out.shape[1],)

    def component(self, unit: int) -> MLP:
        """The MLP."""
        del unit
        return MLP(self.layer)

    def kept(self, circuit: Circuit) -> tuple[int, ...]:
        """(0,) if the circuit keeps the MLP, else ()."""
        return self.units if circuit.keeps(MLP(self.layer)) else ()

    def read(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """The output: (batch, pos, d_model)."""
        output: Tensor = self.mlp(x, at, n_last=n_last, opening=opening)
        return output

    def project(self, activations: Tensor) -> Tensor:
        """The activations themselves, which are the output: (batch, pos, d_model)."""
        return activations

    def change(self, unit: int, activations: Tensor, table: Tensor, at: Positions) -> Tensor:
        """replacement of the output - output: (batch, pos, d_model)."""
        del unit
        return at.pick(table) - activations

    def contribution(self, units: tuple[int, ...], table: Tensor) -> Tensor:
        """The table itself, (pos or 1, d_model), in float64."""
        del units
        return table.double()

    def keep(self, units: tuple[int, ...]) -> FeedForward:
        """The MLP itself."""
        del units
        return self.mlp


class NeuronSite(Site):
    """The hidden units of an MLP: activations are `FeedForward.hidden`, (batch, pos, d_mlp), gate included."""

    kind = "neurons"

    def __init__(self, mlp: FeedForward) -> None:
        super().__init__(mlp.layer, mlp.units)
        self.mlp = mlp

    def places(self, units: tuple[int, ...]) -> list[int]:
        """Where some units stand among those that are here."""
        place_of = {unit: place for place, unit in enumerate(self.units)}
        return [place_of[unit] for unit in units]

    @property
    def bias(self) -> Tensor | None:
        """b_out."""
        return self.mlp.b_out

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(d_mlp,)."""
        return (len(self.units),)

    def component(self, unit: int) -> Neuron:
        """The hidden unit."""
        return Neuron(self.layer, unit)

    def kept(self, circuit: Circuit) -> tuple[int, ...]:
        """The hidden units that the circuit keeps, ascending."""
        units = circuit.neurons_of(self.layer)
        if units is None:
            return self.units if circuit.keeps(MLP(self.layer)) else ()
        return units

    def read(self, x: Tensor, at: Positions, *, n_last: int | None = None, opening: Tensor | None = None) -> Tensor:
        """Activations of the hidden units: (batch, pos, d_mlp)."""
        del at, opening
        return self.mlp.hidden(x if n_last is None else x[:, -n_last:])

    def project(self, activations: Tensor) -> Tensor:
        """The MLP's output, b_out included."""
        return self.mlp.project(activations)

    def change(self, unit: int, activations: Tensor, table: Tensor, at: Positions) -> Tensor:
        """(replacement of the activation - activation) * W_out of one hidden unit: (batch, pos, d_model)."""
        place = self.places((unit,))
        return (at.pick(table[:, place]) - activations[..., place]) * self.mlp.W_out[place[0]]

    def contribution(self, units: tuple[int, ...], table: Tensor) -> Tensor:
        """Activations @ W_out, over the given units: (pos or 1, d_model) float64."""
        places = self.places(units)
        W_out = self.mlp.W_out[places].double()
        return table[:, places].to(W_out) @ W_out

    def keep(self, units: tuple[int, ...]) -> FeedForward:
        """The sublayer with these hidden units only: columns of W_in and W_gate, rows of W_out."""
        if units == self.units:
            return self.mlp
        chosen = self.places(units)
        tensors = {
            name: tensor
            if tensor is None or name == "b_out"
            else tensor[chosen]
            if name == "W_out"
            else tensor[..., chosen]
            for name, tensor in self.mlp.tensors.items()
        }
        mlp = self.mlp
        return FeedForward(mlp.norm, tensors, layer=mlp.layer, activation=mlp.activation, units=units)
