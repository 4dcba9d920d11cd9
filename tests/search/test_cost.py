"""The cost model: FLOPs by hand, and plans that fit."""

from __future__ import annotations

import pytest
from tiny import all_heads, make_model

from exporter.circuit import Circuit, Head
from exporter.errors import InputError
from exporter.search.cost import count_once_flops, count_search_bytes, count_search_flops
from exporter.search.memory import plan_memory

N, T = 10, 5


def test_flops_of_sublayers_by_hand() -> None:
    """d = 8, two heads of 4, m = 32: q, k, v and out are four products with d x d, scores and z two with T x T."""
    attention, mlp = list(make_model(n_layers=1, n_heads=2, d_head=4).dense.sublayers())
    assert mlp.count_flops(N, T, T) == 2 * (2 * N * T * 8 * 32)
    assert attention.count_flops(N, T, T) == 4 * (2 * N * T * 8 * 8) + 2 * (2 * N * 2 * T * T * 4)
    # for the answer position alone, keys and values are still needed everywhere
    last = 2 * (2 * N * 8 * 8) + 2 * (2 * N * T * 8 * 8) + 2 * (2 * N * 2 * T * 4)
    assert attention.count_flops(N, 1, T) == last


def test_flops_of_a_search_by_hand() -> None:
    """One layer: two heads that run the MLP at the answer position, an MLP that runs nothing, three unembeddings."""
    dense = make_model(n_layers=1, n_heads=2, d_head=4).dense
    unembedding, mlp = 2 * N * 37 * 8, 2 * (2 * N * 8 * 32)
    assert count_search_flops(dense, Circuit(heads=(), mlps=()), N, T) == 3 * unembedding + 2 * mlp


def test_flops_paid_once_by_hand() -> None:
    """The means on M prompts, the dense pass twice, each head through W_O, the dense logits and P @ W_U."""
    n_patching = 7
    attention, mlp = list(make_model(n_layers=1, n_heads=2, d_head=4).dense.sublayers())
    passes = [s.count_flops(n, T, T) for s in (attention, mlp) for n in (n_patching, N, N)]
    by_hand = sum(passes) + 2 * N * T * 8 * 8 + 2 * (2 * N * 37 * 8)
    assert count_once_flops(make_model(n_layers=1, n_heads=2, d_head=4).dense, n_patching, N, T) == by_hand


@pytest.mark.parametrize(("chunk", "n_chunks"), [(N, 1), (4, 3)])
def test_bytes_of_a_search_by_hand(chunk: int, n_chunks: int) -> None:
    """Two layers, one head of the upper attention survives: it is what the lower layer's candidates run."""
    dense = make_model(n_layers=2, n_heads=2, d_head=4).dense
    weights, activations = count_search_bytes(dense, Circuit(heads=(Head(1, 0),), mlps=()), N, T, chunk=chunk)
    mlp = (8 * 32 + 32) + (32 * 8 + 8) + 2 * 8  # with biases, and the norm's gain and bias
    half_attention = (4 * (8 * 8 + 8) + 2 * 8) // 2
    # in each layer two heads run its MLP; in the lower one three candidates run the surviving head
    assert weights == 4 * n_chunks * (4 * mlp + 3 * half_attention + 6 * 37 * 8)
    last, everywhere = 7 * 8 + 4 * 32, T * (7 * 8 + 4 * 32)
    # norm, q, k and v read and write T positions; of the one head of 4, q and z at the last, k and v at all
    head = 5 * T * 8 + 4 * 8 + 4 * (1 + T) * 4
    assert activations == 4 * N * (2 * last + 2 * everywhere + 3 * head + 6 * 7 * 37)


def test_more_survivors_cost_more() -> None:
    model = make_model(n_layers=3, n_heads=2)
    circuits = [
        Circuit(heads=(), mlps=()),
        Circuit(heads=(), mlps=(2,)),
        Circuit(heads=(Head(2, 0),), mlps=(2,)),
        Circuit(heads=all_heads(model), mlps=(0, 1, 2)),
    ]
    flops = [count_search_flops(model.dense, circuit, N, T) for circuit in circuits]
    assert flops == sorted(flops)
    assert len(set(flops)) == 4


def test_less_memory_means_recomputing_and_then_fewer_prompts_at_once() -> None:
    dense = make_model(n_layers=4, n_heads=4, d_head=9).dense
    limits = [2**20 * mebibytes for mebibytes in (400, 157, 153)]
    plans = [plan_memory(dense, 5000, 12, limit) for limit in limits]
    assert [plan.keep_every for plan in plans] == [1, 2, 2]
    assert plans[0].chunk == plans[1].chunk == 128
    assert 16 <= plans[2].chunk < 128
    assert all(plan.bytes <= limit for plan, limit in zip(plans, limits, strict=True))
    with pytest.raises(InputError, match="raise --memory-limit"):
        plan_memory(dense, 5000, 12, 2**20 * 70)
