"""Tiny random GPT-2 models, circuits and prompts, for algebra."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from exporter.circuit import Circuit, Head
from exporter.dataset import Dataset
from exporter.loading import LanguageModel

VOCAB = 37


def make_model(
    *,
    n_layers: int = 2,
    n_heads: int = 2,
    d_head: int = 4,
    d_mlp: int | None = None,
    positions: int = 12,
    activation: str = "gelu_new",
    tied: bool = True,
    seed: int = 0,
    **config: object,
) -> LanguageModel:
    """A tiny GPT-2 whose every tensor, biases and norms too, is random."""
    torch.manual_seed(seed)
    hf = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=positions,
            n_embd=n_heads * d_head,
            n_layer=n_layers,
            n_head=n_heads,
            n_inner=d_mlp,
            activation_function=activation,
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",  # as load_model has it; transformers 4.57's sdpa ignores the scale options
            **config,
        )
    ).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return LanguageModel(
        name="tiny", revision=None, sha256="0" * 64, family="gpt2", hf=hf.requires_grad_(False), tokenizer=None
    )


def make_prompts(n: int, length: int, *, seed: int = 0) -> Dataset:
    """Random prompts with random answers."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (n, length + 1), generator=generator)
    return Dataset(ids[:, :-1].contiguous(), ids[:, -1].contiguous())


def all_heads(model: LanguageModel) -> tuple[Head, ...]:
    """Every head of a GPT-2."""
    config = model.hf.config
    return tuple(Head(layer, index) for layer in range(config.n_layer) for index in range(config.n_head))


@dataclass(frozen=True, eq=False)
class Case:
    """A model, a circuit in it, prompts for its means, and prompts to try it on."""

    model: LanguageModel
    circuit: Circuit
    patching: Dataset
    input_ids: Tensor


@st.composite
def models(draw: st.DrawFn) -> LanguageModel:
    """GPT-2s of all shapes: odd sizes, few or many heads, deep or flat, tied or not."""
    return make_model(
        n_layers=draw(st.integers(1, 4)),
        n_heads=draw(st.integers(1, 4)),
        d_head=draw(st.integers(3, 9)),
        d_mlp=draw(st.none() | st.integers(1, 40)),
        activation=draw(st.sampled_from(["gelu_new", "gelu", "relu", "silu"])),
        tied=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
        scale_attn_weights=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
    )


@st.composite
def circuits(draw: st.DrawFn, model: LanguageModel) -> Circuit:
    """Circuits of all kinds: empty, full, whole layers gone, single components, anything."""
    heads, mlps = all_heads(model), tuple(range(model.hf.config.n_layer))
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
    return Circuit(
        heads=tuple(kept_heads),
        mlps=tuple(kept_mlps),
        ablation=draw(st.sampled_from(["mean", "zero"])),
        mean=draw(st.sampled_from(["position", "global"])),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any model, any circuit, any batch; another length than the patching set's where it is free."""
    model = draw(models())
    circuit = draw(circuits(model))
    length, batch, seed = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(0, 2**16))
    patching = make_prompts(draw(st.integers(1, 70)), length, seed=seed)
    free_length = length if circuit.fixed_length else draw(st.integers(1, 12))
    return Case(model, circuit, patching, make_prompts(batch, free_length, seed=seed + 1).input_ids)
