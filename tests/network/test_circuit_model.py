"""CircuitModel: parity with the Hugging Face model, and its file format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, make_model, make_prompts, models

from exporter.errors import InputError
from exporter.network.model import CircuitModel


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(15))
@given(data=st.data(), length=st.integers(1, 12), seed=st.integers(0, 99))
def test_dense_equals_the_hugging_face_model(family: str, data: st.DataObject, length: int, seed: int) -> None:
    model = data.draw(models((family,)))
    ids = make_prompts(3, length, seed=seed).input_ids
    longest = model.dense.max_length  # a scaling may end before the positions do
    expected = model.hf(ids[:, :longest]).logits
    found = model.dense(ids[:, :longest])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.dense.next_token_logits(ids[:, :longest]), found[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", VARIANTS)
@settings(max_examples=examples(15))
@given(data=st.data(), length=st.integers(2, 12), seed=st.integers(0, 99))
def test_padding_order_and_batch_change_no_answer(family: str, data: st.DataObject, length: int, seed: int) -> None:
    model = data.draw(models((family,)))
    dense, prompts = model.dense, make_prompts(4, min(length, model.dense.max_length), seed=seed, padded=True)
    together = dense.answer_logits(prompts.input_ids, prompts.mask, 2)
    everywhere = dense(prompts.input_ids, prompts.mask)
    torch.testing.assert_close(together, everywhere[:, -2:], rtol=1e-4, atol=1e-4)
    order = torch.tensor([2, 0, 3, 1])
    mask = None if prompts.mask is None else prompts.mask[order]
    shuffled = dense.answer_logits(prompts.input_ids[order], mask, 2)
    torch.testing.assert_close(shuffled, together[order], rtol=1e-4, atol=1e-4)
    for row in range(4):
        n_real = prompts.length if prompts.mask is None else int(prompts.mask[row].sum())
        ids = prompts.input_ids[row : row + 1, -n_real:]
        alone = dense.next_token_logits(ids)
        torch.testing.assert_close(alone[0], together[row, -1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(everywhere[row, -n_real:], model.hf(ids).logits[0], rtol=1e-4, atol=1e-4)


def test_an_untied_model_keeps_both_embeddings(tmp_path: Path) -> None:
    for tied in (True, False):
        model = make_model(tied=tied).dense
        assert model.tied is tied
        model.save(tmp_path)
        assert CircuitModel.load(tmp_path).tied is tied


def test_it_loads_without_transformers(tmp_path: Path) -> None:
    make_model().dense.save(tmp_path)
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch; from exporter.network.model import CircuitModel\n"
        f"print(CircuitModel.load({str(tmp_path)!r})(torch.tensor([[1, 2]])).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1, 2, 37])"


def test_prompts_that_are_too_long_are_refused() -> None:
    with pytest.raises(InputError, match="13 tokens are longer than the model's 12 positions"):
        make_model().dense(make_prompts(1, 13).input_ids)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "circuit_model.json").unlink(), "cannot load a circuit model"),
        (lambda folder: (folder / "circuit_model.json").write_text("{"), "cannot load a circuit model"),
        (lambda folder: (folder / "circuit_model.json").write_text('{"format": 99}'), "this version reads 2"),
        (lambda folder: (folder / "circuit_model.safetensors").write_bytes(b"x" * 20), "cannot load a circuit model"),
        (lambda folder: drop_field(folder, "steps"), "not a complete circuit model"),
    ],
)
def test_damaged_files_are_refused(damage: object, message: str, tmp_path: Path) -> None:
    make_model().dense.save(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        CircuitModel.load(tmp_path)


def drop_field(folder: Path, field: str) -> None:
    config = json.loads((folder / "circuit_model.json").read_text())
    del config[field]
    (folder / "circuit_model.json").write_text(json.dumps(config))


def test_families_refuse_what_the_model_cannot_compute() -> None:
    with pytest.raises(InputError, match="unknown activation 'tanh'"):
        _ = make_model(activation="tanh").dense
    with pytest.raises(InputError, match="cross-attention"):
        _ = make_model(add_cross_attention=True).dense
