"""The computational graph that EAP-IG, the MIB benchmark and circuitkit store: its nodes, its edges and their names.

A node is what adds to the residual stream: the token embedding (`input`), a query head (`a9.h6`) or an MLP (`m9`); the
last one, `logits`, only reads. An edge goes from each node to each later one. A head reads the residual three times,
for queries, keys and values, so that it has three edges from each earlier node: `m3->a9.h6<q>`. Names and order are
those of `eap/graph.py` (github.com/hannamw/EAP-IG). Heads are query heads, also where they share keys and values:
those projects ungroup them (`ungroup_grouped_query_attention` of TransformerLens).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.checks import require_type, take_integer
from exporter.errors import InputError

INPUT, LOGITS = "input", "logits"
OWN_KEY = "export_circuit"
"""What only we know of a circuit: its ablation, and the hidden units of MLPs that are kept in part.

The key `neurons` of these files means dimensions of a node's output, (d_model,), not hidden units.
"""


@dataclass(frozen=True)
class GraphShape:
    """Sizes of a model, under the names that the `cfg` of a graph file has.

    n_heads: query heads of a layer. d_mlp: hidden units of an MLP; None where a file does not say. parallel_attn_mlp:
    whether a layer's MLP reads the same residual as its heads. Raises InputError: no whole numbers.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int | None = None
    parallel_attn_mlp: bool = False

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model"):
            take_integer(f"cfg's {name}", getattr(self, name))
        if self.d_mlp is not None:
            take_integer("cfg's d_mlp", self.d_mlp)
        require_type("cfg's parallel_attn_mlp", self.parallel_attn_mlp, bool)

    @property
    def n_nodes(self) -> int:
        """How many nodes there are, without `logits`."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_edges(self) -> int:
        """How many edges there are, from the sizes alone."""
        # the nodes before a layer, summed over all layers
        before = self.n_layers + (self.n_heads + 1) * self.n_layers * (self.n_layers - 1) // 2
        same_layer = 0 if self.parallel_attn_mlp else self.n_layers * self.n_heads
        return (3 * self.n_heads + 1) * before + same_layer + self.n_nodes

    def nodes(self) -> list[str]:
        """The names of all nodes but `logits`, in the order of the forward pass."""
        return [INPUT] + [name for layer in range(self.n_layers) for name in (*self._heads(layer), f"m{layer}")]

    def edges(self) -> Iterator[tuple[str, str, str]]:
        """All edges: their name, the node that writes, the node that reads."""
        stream = [INPUT]
        for layer in range(self.n_layers):
            heads, mlp = self._heads(layer), f"m{layer}"
            for source in stream:
                yield from ((f"{source}->{head}<{x}>", source, head) for head in heads for x in "qkv")
            before_mlp = stream if self.parallel_attn_mlp else stream + heads
            yield from ((f"{source}->{mlp}", source, mlp) for source in before_mlp)
            stream = [*stream, *heads, mlp]
        yield from ((f"{source}->{LOGITS}", source, LOGITS) for source in stream)

    def to_json(self) -> dict[str, Any]:
        """The `cfg` of a graph file."""
        sizes = {"n_layers": self.n_layers, "n_heads": self.n_heads, "d_model": self.d_model}
        d_mlp = {} if self.d_mlp is None else {"d_mlp": self.d_mlp}
        return sizes | d_mlp | {"parallel_attn_mlp": self.parallel_attn_mlp}

    @classmethod
    def from_json(cls, data: Any) -> GraphShape:
        """Read a `cfg`; ignores other fields. Raises InputError."""
        if not isinstance(data, Mapping):
            raise InputError(f"cfg must be an object with n_layers, n_heads and d_model, not {type(data).__name__}")
        if missing := [name for name in ("n_layers", "n_heads", "d_model") if name not in data]:
            raise InputError(f"cfg has no {missing[0]}; it needs n_layers, n_heads and d_model")
        return cls(
            n_layers=data["n_layers"],
            n_heads=data["n_heads"],
            d_model=data["d_model"],
            d_mlp=data.get("d_mlp"),
            parallel_attn_mlp=data.get("parallel_attn_mlp", False),
        )

    def _heads(self, layer: int) -> list[str]:
        return [f"a{layer}.h{head}" for head in range(self.n_heads)]
