"""Models spread by a device map: a layer's weights are there when asked for, and gone afterwards."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import put_nan
from tiny import hook_surgery

from exporter.errors import InputError, MissingRuntimeError
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel, load_model
from exporter.loading.offload import is_offloaded, iterate_parameters, materialised
from exporter.rewrite.surgery import rewrite_model
from exporter.search.find import find_circuit
from exporter.tasks.dataset import Dataset
from exporter.verify.oracle import hooked_logits

Save = Callable[..., Path]
IDS = torch.arange(10)[None]


def device_map(*layers: str) -> dict[str, int | str]:
    """Each layer where it is said, and all else in memory."""
    outer: dict[str, int | str] = dict.fromkeys(
        ("transformer.wte", "transformer.wpe", "transformer.drop", "transformer.ln_f", "lm_head"), "cpu"
    )
    return outer | {f"transformer.h.{layer}": place for layer, place in enumerate(layers)}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["stored as float32", "stored as bfloat16"])
def folder(request: pytest.FixtureRequest, save_gpt2: Save) -> Path:
    return save_gpt2(n_layer=3, dtype=request.param)


def block(model: LanguageModel, layer: int) -> Any:
    return model.hf.transformer.h[layer]


def test_a_layer_is_there_within_the_context_and_gone_after_it(folder: Path) -> None:
    plain = load_model(folder)
    model = load_model(folder, device_map=device_map("cpu", "disk", "disk"))
    assert [is_offloaded(block(model, layer)) for layer in range(3)] == [False, True, True]
    for layer in range(3):
        wanted = dict(block(plain, layer).named_parameters())
        with materialised(block(model, layer)):
            found = dict(block(model, layer).named_parameters())
            assert {tensor.dtype for tensor in found.values()} == {torch.float32}
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
            kept = [parameter.data for parameter in found.values()]
        assert is_offloaded(block(model, layer)) == (layer > 0)
        # what was taken stays
        assert all(torch.equal(tensor, other) for tensor, other in zip(kept, wanted.values(), strict=True))
    assert not is_offloaded(block(model, 0))
    assert model.sha256 == plain.sha256


def test_a_layer_is_gone_after_an_error_too(folder: Path) -> None:
    model = load_model(folder, device_map=device_map("cpu", "disk", "cpu"))
    with pytest.raises(KeyError), materialised(block(model, 1)):
        raise KeyError
    assert is_offloaded(block(model, 1))


def test_the_models_own_forward_pass_gives_the_same_logits(folder: Path) -> None:
    plain = load_model(folder)
    model = load_model(folder, device_map=device_map("disk", "cpu", "disk"))
    torch.testing.assert_close(model.hf(IDS).logits, plain.hf(IDS).logits)
    assert is_offloaded(block(model, 0))


def test_every_parameter_comes_once_with_its_data(folder: Path) -> None:
    plain = load_model(folder)
    model = load_model(folder, device_map=device_map("cpu", "disk", "disk"))
    wanted = dict(plain.hf.named_parameters())
    names = []
    for name, tensor in iterate_parameters(model.hf):
        assert torch.equal(tensor, wanted[name])
        names.append(name)
    assert sorted(names) == sorted(wanted)  # the tied unembedding is the embedding


def test_a_narrow_model_becomes_float32_layer_by_layer(folder: Path) -> None:
    plain = load_model(folder)
    model = load_model(folder, device_map=device_map("cpu", "disk", "disk"), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    model = model.to_float32()
    assert is_offloaded(block(model, 1))
    torch.testing.assert_close(model.hf(IDS).logits, plain.hf(IDS).logits)


def test_auto_places_all_of_a_small_model(folder: Path) -> None:
    model = load_model(folder, device_map="auto")
    assert not is_offloaded(model.hf)
    torch.testing.assert_close(model.hf(IDS).logits.cpu(), load_model(folder).hf(IDS).logits)


def test_an_offloaded_model_is_exported_as_one_in_memory(folder: Path, tmp_path: Path) -> None:
    """Every stage that reads a step's weights brings them in, also where prompts have an opening that is computed."""
    plain, model = load_model(folder), load_model(folder, device_map=device_map("disk", "cpu", "disk"))
    options = GraphOptions(logits="last", vocabulary=tuple(range(30)), length=5, opening=(3, 4))
    for name, chosen in (("all", GraphOptions()), ("opening", options)):
        for kind, dense in (("plain", plain.dense), ("offloaded", model.dense)):
            export_onnx(dense, tmp_path / f"{kind}.onnx", chosen)
        assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "offloaded.onnx").read_bytes(), name
    assert [is_offloaded(block(model, layer)) for layer in range(3)] == [True, False, True]


def test_nothing_is_said_and_no_folder_stays(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    capfd.readouterr()
    model = load_model(folder, device_map=device_map("cpu", "disk", "cpu"))
    assert capfd.readouterr() == ("", "")
    assert len(list(scratch.iterdir())) == 1
    del model
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_nan_in_an_offloaded_layer_is_found(save_gpt2: Save) -> None:
    folder = save_gpt2()
    put_nan(folder)
    with pytest.raises(InputError, match=r"transformer\.h\.0\.ln_1\.bias holds NaN"):
        load_model(folder, device_map=device_map("disk", "cpu"))


def test_a_map_that_does_not_fit_is_refused(save_gpt2: Save) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(save_gpt2(), device_map={"": "nowhere"})


def test_without_accelerate_it_says_what_to_install(save_gpt2: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingRuntimeError, match="pip install accelerate"):
        load_model(save_gpt2(), device_map="auto")


@pytest.mark.gpu
def test_layers_on_a_gpu_in_memory_and_on_disk(folder: Path) -> None:
    plain = load_model(folder)
    places = device_map("cuda:0", "cpu", "disk") | dict.fromkeys(
        ("transformer.wte", "transformer.wpe", "lm_head", "transformer.ln_f", "transformer.drop"), "cuda:0"
    )
    model = load_model(folder, device_map=places)
    torch.testing.assert_close(model.hf(IDS.cuda()).logits.cpu(), plain.hf(IDS).logits, rtol=1e-4, atol=1e-4)
    for layer in range(3):
        with materialised(block(model, layer)):
            for name, tensor in block(model, layer).named_parameters():
                assert tensor.device.type == "cuda"
                assert torch.equal(tensor.cpu(), dict(block(plain, layer).named_parameters())[name])
    assert [is_offloaded(block(model, layer)) for layer in range(3)] == [False, True, True]


def test_the_search_and_the_rewriting_bring_layers_in_as_they_need_them(folder: Path) -> None:
    """The same circuit, trace and logits as with the whole model in memory; afterwards the layers are gone again."""
    plain = load_model(folder)
    model = load_model(folder, device_map=device_map("disk", "cpu", "disk"))
    sets = [Dataset(torch.randint(30, (n, 5), generator=torch.Generator().manual_seed(n)), IDS[0, :n]) for n in (8, 9)]
    options = {"alpha": 4e-7, "ablation": "mean"}
    found, expected = (find_circuit(m, *sets, **options) for m in (model, plain))
    assert found == expected
    assert 0 < len(found.heads) + len(found.mlps) < 9, "some go, some stay"
    logits, same = (rewrite_model(m, found, sets[0])(sets[1].input_ids) for m in (model, plain))
    assert torch.equal(logits, same)
    assert [is_offloaded(block(model, layer)) for layer in range(3)] == [True, False, True]
    hooked = hooked_logits(model, hook_surgery(model, found, sets[0]), sets[1].input_ids)
    torch.testing.assert_close(logits, hooked, rtol=1e-4, atol=1e-4)
