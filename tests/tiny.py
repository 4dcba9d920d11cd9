"""Tiny random models of every family, circuits and prompts, for algebra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from exporter.circuit import Ablation, Circuit, Head
from exporter.loading.families import FAMILIES
from exporter.loading.load import LanguageModel
from exporter.rewrite.surgery import SHIFT, Surgery
from exporter.tasks.dataset import Dataset
from exporter.verify.oracle import record_replacements

VOCAB = 37


def make_model(
    family: str = "gpt2",
    *,
    n_layers: int = 2,
    n_heads: int = 2,
    d_head: int = 4,
    d_mlp: int | None = None,
    positions: int = 12,
    activation: str | None = None,
    tied: bool = True,
    seed: int = 0,
    **config: object,
) -> LanguageModel:
    """A tiny model whose every tensor, biases and norms too, is random."""
    torch.manual_seed(seed)
    width = n_heads * d_head
    common = {"vocab_size": VOCAB, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        shape = {"n_positions": positions, "n_embd": width, "n_layer": n_layers, "n_head": n_heads, "n_inner": d_mlp}
        shape["activation_function"] = activation or "gelu_new"
    else:
        shape = {"max_position_embeddings": positions, "hidden_size": width, "num_hidden_layers": n_layers}
        shape |= {"num_attention_heads": n_heads, "intermediate_size": d_mlp or 3 * width}
        shape["hidden_act"] = activation or ("gelu" if family == "gpt_neox" else "silu")
        if family != "gpt_neox":
            shape |= {"num_key_value_heads": n_heads, "head_dim": d_head}
        if family == "mistral":
            shape["sliding_window"] = None
    # eager as load_model has it; transformers 4.57's sdpa ignores GPT-2's scale options
    full = AutoConfig.for_model(family, **(common | shape | config))
    hf = AutoModelForCausalLM.from_config(full, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return LanguageModel(
        name="tiny", revision=None, sha256="0" * 64, family=family, hf=hf.requires_grad_(False), tokenizer=None
    )


def make_prompts(
    n: int, length: int, *, seed: int = 0, padded: bool = False, steps: int = 1, unlabelled: bool = False
) -> Dataset:
    """Random prompts with random answers; `padded` makes them differ in length, the longest being first.

    `unlabelled` takes the answers of every other prompt, beginning with the first.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (n, length + 1), generator=generator)
    answers = ids[:, None, None, -1].expand(-1, steps, -1).contiguous()  # (prompt, step, 1)
    mask = None
    if padded and length > steps:
        n_pad = torch.randint(length - steps + 1, (n,), generator=generator)
        n_pad[0] = 0
        mask = torch.arange(length) >= n_pad[:, None]
        if steps > 1:
            answers[n // 2 :, 0] = -1  # some have one step less
    labelled = torch.ones(n, dtype=torch.bool)
    if unlabelled:
        labelled[::2] = False
        answers[~labelled] = -1
    return Dataset(ids[:, :-1].contiguous(), answers if steps > 1 else answers[:, 0], mask=mask, labelled=labelled)


def all_heads(model: LanguageModel) -> tuple[Head, ...]:
    """Every head of a model."""
    family = FAMILIES[model.family]
    n_layers, n_heads = family.n_layers(model.hf), family.n_heads(model.hf)
    return tuple(Head(layer, index) for layer in range(n_layers) for index in range(n_heads))


def strategy_llama(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    """Grouped queries, biases, and every scaling of rotary embeddings."""
    group = draw(st.sampled_from([1, 2, 3]))
    shape = shape | {"d_head": 2 * draw(st.integers(2, 4)), "n_heads": group * draw(st.integers(1, 2))}
    scaling = draw(st.sampled_from(ROPE_SCALINGS))
    return shape | {
        "num_key_value_heads": shape["n_heads"] // group,
        **({"rope_scaling": dict(scaling)} if scaling else {}),
    }


ROPE_SCALINGS: list[dict[str, Any] | None] = [
    None,
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
]


def _gpt2(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    return shape | {
        "scale_attn_weights": draw(st.booleans()),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
    }


def _llama(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    biases = {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    return strategy_llama(draw, shape) | biases


def _gpt_neox(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    return shape | {
        "d_head": 4 * draw(st.integers(1, 3)),
        "rotary_pct": draw(st.sampled_from([0.5, 1.0])),
        "use_parallel_residual": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
    }


def _starcoder2(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    return strategy_llama(draw, shape) | {"use_bias": draw(st.booleans())}


# One entry for each family: what of its configuration is drawn beside the common shape.
VARIANTS: dict[str, Callable[[st.DrawFn, dict[str, Any]], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": strategy_llama,
    "qwen2": strategy_llama,
    "qwen3": strategy_llama,
    "gpt_neox": _gpt_neox,
    "starcoder2": _starcoder2,
}


@dataclass(frozen=True, eq=False)
class Case:
    """A model, a circuit in it, prompts for its means, and prompts to try it on."""

    model: LanguageModel
    circuit: Circuit
    patching: Dataset
    prompts: Dataset


@st.composite
def models(draw: st.DrawFn, families: tuple[str, ...] = tuple(VARIANTS)) -> LanguageModel:
    """Models of all families and shapes: odd sizes, few or many heads, deep or flat, tied or not."""
    family = draw(st.sampled_from(families))
    shape: dict[str, Any] = {
        "n_layers": draw(st.integers(1, 4)),
        "n_heads": draw(st.integers(1, 4)),
        "d_head": draw(st.integers(3, 9)),
        "d_mlp": draw(st.none() | st.integers(1, 40)),
        "activation": draw(st.sampled_from(["gelu_new", "gelu", "relu", "silu"])),
        "tied": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }
    return make_model(family, **VARIANTS[family](draw, shape))


@st.composite
def circuits(draw: st.DrawFn, model: LanguageModel) -> Circuit:
    """Circuits of all kinds: empty, full, whole layers gone, single components, anything."""
    heads, mlps = all_heads(model), tuple(range(model.hf.config.num_hidden_layers))
    some_heads = st.lists(st.sampled_from(heads), unique=True)
    some_mlps = st.lists(st.sampled_from(mlps), unique=True)
    layer = st.sampled_from(mlps)
    kept_heads, kept_mlps = draw(
        st.one_of(
            st.tuples(some_heads, some_mlps),
            st.just(((), ())),
            st.just((heads, mlps)),
            layer.map(lambda gone: ([h for h in heads if h.layer != gone], [m for m in mlps if m != gone])),
            st.sampled_from(heads).map(lambda head: ([head], ())),
            layer.map(lambda mlp: ((), [mlp])),
        )
    )
    d_mlp = next(s.d_mlp for s in model.dense.sublayers() if s.kind == "mlp")
    some_neurons = st.lists(st.integers(0, d_mlp - 1), unique=True)
    parts = draw(st.just({}) | st.dictionaries(layer, some_neurons))
    return Circuit(
        heads=tuple(kept_heads),
        mlps=tuple(m for m in kept_mlps if m not in parts),
        ablation=draw(ablations()),
        neurons=parts,
    )


@st.composite
def edits(draw: st.DrawFn, model: LanguageModel, circuit: Circuit, length: int) -> dict[str, torch.Tensor]:
    """Some tensors of what stays, and shifts of any sublayer, all random."""
    dense, generator = model.dense, torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    shapes: dict[str, tuple[int, ...]] = {}
    for sublayer in dense.sublayers():
        site = sublayer.site_for(circuit)
        units = site.kept(circuit)
        kept = site.keep(units).tensors if units else {}
        shapes |= {f"{sublayer.name}.{name}": tuple(t.shape) for name, t in kept.items() if t is not None}
        by_position = circuit.fixed_length and draw(st.booleans())
        width = dense.W_E.shape[1]
        shapes[f"{sublayer.name}.{SHIFT}"] = (length, width) if by_position else (width,)
    names = draw(st.lists(st.sampled_from(sorted(shapes)), unique=True, min_size=1))
    return {name: 0.5 * torch.randn(shapes[name], generator=generator) for name in names}


def ablations() -> st.SearchStrategy[Ablation]:
    """Every ablation that counts positions from the first token."""
    kinds, by = st.sampled_from(["mean", "zero"]), st.sampled_from(["position", "global"])
    return st.builds(Ablation, kinds, by)


def hook_surgery(
    model: LanguageModel, circuit: Circuit, patching: Dataset, edits: Mapping[str, torch.Tensor] | None = None
) -> Surgery:
    """A surgery with the means that the oracle records."""
    neurons = [layer for layer, _ in circuit.neurons]
    replacements = record_replacements(model, patching, ablation=circuit.ablation, neurons=neurons)
    return Surgery(circuit, replacements, edits or {})


def realign(circuit: Circuit, align: str) -> Circuit:
    """The circuit with positions counted from an end."""
    return replace(circuit, ablation=replace(circuit.ablation, align=align))


@st.composite
def cases(draw: st.DrawFn, *, padded: bool | None = False, families: tuple[str, ...] = tuple(VARIANTS)) -> Case:
    """Any model, any circuit, any batch; another length than the patching set's where it is free.

    `padded`: prompts of several lengths; None draws that, too.
    """
    model = draw(models(families))
    circuit = draw(circuits(model))
    padded = draw(st.booleans()) if padded is None else padded
    if padded:
        circuit = realign(circuit, draw(st.sampled_from(["left", "right"])))
    length, batch, seed = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(0, 2**16))
    patching = make_prompts(draw(st.integers(1, 70)), length, seed=seed, padded=padded)
    free_length = length if circuit.fixed_length else draw(st.integers(1, 12))
    return Case(model, circuit, patching, make_prompts(batch, free_length, seed=seed + 1, padded=padded))
