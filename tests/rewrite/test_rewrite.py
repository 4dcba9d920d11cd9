"""Rewriting: sizes to the parameter, and what each pass must leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import all_heads, make_model, make_prompts
from transformers import GPT2Config, GPT2LMHeadModel

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import InputError
from exporter.loading.families import FAMILIES
from exporter.network.attention import Attention
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.rewrite.surgery import Surgery, plan_surgery, rewrite_model, slice_model


@pytest.fixture(scope="module")
def gpt2_small() -> CircuitModel:
    """GPT-2 Small's shape with a small vocabulary: the embeddings do not count."""
    with torch.device("meta"):
        hf = GPT2LMHeadModel(GPT2Config(vocab_size=100, bos_token_id=0, eos_token_id=0))
    hf = hf.to_empty(device="cpu").requires_grad_(False)
    for parameter in hf.parameters():
        parameter.normal_(std=0.02)
    hf.tie_weights()
    return FAMILIES["gpt2"].build_dense(hf)


TWO_HEADS = (Head(7, 10), Head(9, 1))


@pytest.mark.parametrize(
    ("heads", "mlps", "size"),
    [
        pytest.param(tuple(Head(i, j) for i in range(12) for j in range(12)), range(12), 85_056_000, id="dense"),
        pytest.param(TWO_HEADS, range(12), 57_087_360, id="two heads, all MLPs"),
        pytest.param(TWO_HEADS, (8, 9, 10), 14_571_648, id="two heads, three MLPs"),
        pytest.param((), (), 1_536, id="nothing"),
    ],
)
def test_sizes_of_gpt2_small(gpt2_small: CircuitModel, heads: tuple[Head, ...], mlps: range, size: int) -> None:
    circuit = Circuit(heads=heads, mlps=tuple(mlps), ablation="zero")
    assert slice_model(gpt2_small, plan_surgery(gpt2_small, circuit, make_prompts(2, 3))).count_parameters() == size


def test_what_is_counted_after_folding_is_what_is_held() -> None:
    """Folds take norms' gains and biases, and biases of projections, into weights; a sliced model has them still."""
    model = make_model(n_layers=2, n_heads=2, d_head=4, d_mlp=12)
    circuit = Circuit(heads=(Head(0, 1), Head(1, 0)), mlps=(1,), ablation="zero")
    sliced = slice_model(model.dense, plan_surgery(model, circuit, make_prompts(6, 5)))
    attention = 2 * 8 + 3 * (8 * 4 + 4) + 4 * 8 + 8  # norm; q, k, v of one head with biases; output with its bias
    mlp = 2 * 8 + (8 * 12 + 12) + (12 * 8 + 8)
    assert sliced.count_parameters() == 2 * attention + mlp + 2 * 8
    folded = rewrite_model(model, circuit, make_prompts(6, 5))
    gone = 2 * (2 * 8 + 4 + 4) + 2 * 8  # gains and biases of three norms, and b_K and b_V of two heads
    assert folded.count_parameters() == sliced.count_parameters() - gone


def test_constants_are_counted_apart() -> None:
    model = make_model(n_layers=2, n_heads=2, d_head=4)
    patching = make_prompts(6, 5)
    circuit = Circuit(heads=(Head(0, 0), Head(1, 0), Head(1, 1)), mlps=(0, 1))
    sliced = slice_model(model.dense, plan_surgery(model, circuit, patching))
    assert sliced.count_constants() == 5 * 8  # one head is gone: one table of (pos, d_model)
    dense = Circuit(heads=all_heads(model), mlps=(0, 1))
    assert slice_model(model.dense, plan_surgery(model, dense, patching)).count_constants() == 0


def test_empty_sublayers_are_dropped_and_constants_merged() -> None:
    model = make_model(n_layers=3, n_heads=2, d_head=4)
    patching = make_prompts(6, 5)
    by_position = rewrite_model(model, Circuit(heads=(Head(1, 0),), mlps=(2,)), patching)
    assert [(s.kind, s.layer) for s in by_position.sublayers()] == [("attention", 1), ("mlp", 2)]
    assert [None if step.constant is None else tuple(step.constant.shape) for step in by_position.steps] == [
        (5, 8)
    ] * 1 + [None]
    assert by_position.W_pos.shape == (5, 8)
    everywhere = rewrite_model(model, Circuit(heads=(Head(1, 0),), mlps=(2,), ablation=Ablation(by="global")), patching)
    assert all(step.constant is None for step in everywhere.steps)  # vectors went into output biases
    assert everywhere.W_pos.shape == model.dense.W_pos.shape


def test_nothing_is_left_of_norms_scale_and_attention_biases() -> None:
    folded = fold_model(make_model().dense)
    for sublayer in folded.sublayers():
        assert sublayer.norm.weight is None
        assert sublayer.norm.bias is None
        if isinstance(sublayer, Attention):
            assert sublayer.scale == 1.0
            assert sublayer.b_K is None
            assert sublayer.b_V is None


def test_folding_again_changes_nothing() -> None:
    once = rewrite_model(make_model(), Circuit(heads=(Head(0, 1),), mlps=(1,)), make_prompts(6, 5))
    again = fold_model(once)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in once.state_dict().items())


def test_the_dense_model_shares_storage_with_the_hugging_face_model() -> None:
    model = make_model()
    storages = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    assert {p.untyped_storage().data_ptr() for p in model.dense.parameters()} == storages


@pytest.mark.parametrize("circuit", [Circuit(heads=(Head(2, 0),), mlps=()), Circuit(heads=(), mlps=(5,))])
def test_a_circuit_of_another_model_is_refused(circuit: Circuit) -> None:
    with pytest.raises(InputError, match=r"but the model has layers 0\.\.1"):
        rewrite_model(make_model(), circuit, make_prompts(2, 3))


def test_zero_ablation_before_and_after_value_biases_are_folded() -> None:
    """Ours removes the whole of a head; where b_V has been moved into b_O, its part of it stays (docs/ablation.md)."""
    z = torch.tensor([[2.0, 3.0]])  # (pos, head) with d_head 1, value biases included
    b_V, W_O, b_O = torch.tensor([0.5, 1.5]), torch.tensor([[1.0, 10.0], [100.0, 1000.0]]), torch.tensor([7.0, 7.0])
    ours = (z * torch.tensor([1.0, 0.0])) @ W_O + b_O
    torch.testing.assert_close(ours, torch.tensor([[9.0, 27.0]]))  # 2 * (1, 10) + (7, 7)
    folded = ((z - b_V) * torch.tensor([1.0, 0.0])) @ W_O + (b_O + b_V @ W_O)
    torch.testing.assert_close(folded, torch.tensor([[159.0, 1527.0]]))  # and 1.5 * (100, 1000) of the zeroed head
    model = make_model(n_layers=1, n_heads=2, d_head=4)
    attention = next(s for s in model.dense.sublayers() if isinstance(s, Attention))
    zeroed = attention.project(torch.zeros(1, 3, 2, 4))  # (batch, pos, head, d_head)
    torch.testing.assert_close(zeroed, attention.b_O.expand(1, 3, 8))


def test_a_surgery_is_saved_to_the_same_bytes(tmp_path: Path) -> None:
    surgery = plan_surgery(make_model(), Circuit((Head(0, 1),), (1,)), make_prompts(4, 5))
    for number in range(8):  # an order that is drawn anew would differ in one of them
        surgery.save(tmp_path / str(number))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert Surgery.load(tmp_path / "0").sha256 == surgery.sha256
