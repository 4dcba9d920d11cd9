"""onnxruntime-genai generates with a bundle that keeps a past, whatever heads each layer has."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import EVEN, UNEVEN, Bundle, decode, make_bundle, make_dense, make_tokenizer, to_text
from tiny import VARIANTS
from tokenizers import processors
from waits import HANG

from exporter.circuit import Head
from exporter.runtime.generate import generate_greedy
from exporter.runtime.session import open_session

PROMPT = [3, 1, 4, 1, 5]


def generate(bundle: Bundle, *, max_length: int) -> list[int]:
    """What onnxruntime-genai says after the prompt."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(bundle.folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=max_length)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([PROMPT], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(map(int, generator.get_sequence(0)))[len(PROMPT) :]


@pytest.mark.parametrize("heads", [UNEVEN, EVEN, (Head(1, 2),), ()], ids=["uneven", "even", "one", "none"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_it_gives_the_rewritten_models_tokens(family: str, heads: tuple[Head, ...], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", family, heads=heads)
    found = generate(bundle, max_length=16)
    expected = decode(bundle.rewritten, PROMPT, 11)
    assert found == (expected[: expected.index(0)] if 0 in expected else expected)  # which it leaves out itself
    (ours,) = generate_greedy(open_session(bundle.folder / "model.onnx"), [PROMPT], max_new_tokens=11)
    assert ours.token_ids == expected


@pytest.mark.parametrize("heads", [UNEVEN, ()], ids=["uneven", "none"])
def test_it_runs_what_is_made_for_optimum(heads: tuple[Head, ...], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", heads=heads, targets=["optimum", "genai"])
    free = decode(bundle.rewritten, PROMPT, 11)
    assert generate(bundle, max_length=16) == (free[: free.index(0)] if 0 in free else free)


def test_it_stops_at_an_end_of_text(tmp_path: Path) -> None:
    model = make_dense()
    free = decode(make_bundle(tmp_path / "free", model=model).rewritten, PROMPT, 4)
    model.hf.generation_config.eos_token_id = [36, free[2]]
    found = generate(make_bundle(tmp_path / "b", model=model), max_length=16)
    assert found == free[: free.index(free[2])]


@pytest.mark.parametrize("family", VARIANTS)
def test_its_names_are_those_of_the_file(family: str, tmp_path: Path) -> None:
    """The documented names of genai_config.json, also where the package is not installed."""
    bundle = make_bundle(tmp_path / "b", family)
    model = json.loads((bundle.folder / "genai_config.json").read_text())["model"]
    decoder, session = model["decoder"], open_session(bundle.folder / model["decoder"]["filename"])
    layers = range(decoder["num_hidden_layers"])
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    names = [inputs["input_ids"], inputs["attention_mask"]]
    for layer in layers:
        names += [inputs["past_key_names"] % layer, inputs["past_value_names"] % layer]
    assert [value.name for value in session.get_inputs()] == names
    names = [outputs["logits"]]
    for layer in layers:
        names += [outputs["present_key_names"] % layer, outputs["present_value_names"] % layer]
    assert [value.name for value in session.get_outputs()] == names
    assert session.get_inputs()[2].shape[3] == decoder["head_size"]
    assert (model["context_length"], model["vocab_size"]) == (24, 37)


def test_the_cards_lines_run_and_begin_a_text_as_the_tokenizer_does(tmp_path: Path) -> None:
    """Its own tokenizer begins no text with a special token: the card's lines take the bundle's."""
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    tokenizer = make_tokenizer()
    first = processors.TemplateProcessing(single="w3 $A", special_tokens=[("w3", 3)])
    tokenizer.backend_tokenizer.post_processor = first
    bundle = make_bundle(tmp_path / "b", model=replace(make_dense(), tokenizer=tokenizer), targets=["genai"])
    card = (bundle.folder / "README.md").read_text()
    start = card.index("    import numpy, onnxruntime_genai")
    lines = [line[4:] for line in card[start:].splitlines() if line.startswith("    ")][:6]
    script = "\n".join(lines).replace("a prompt", to_text(PROMPT[1:]))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=bundle.folder, capture_output=True, text=True, timeout=HANG, check=False
    )
    expected = decode(bundle.rewritten, PROMPT, 19)
    expected = expected[: expected.index(0)] if 0 in expected else expected
    assert done.stdout.split() == to_text([*PROMPT, *expected]).split(), done.stderr


def test_prompts_of_one_length_share_a_batch(tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    bundle, prompts = make_bundle(tmp_path / "b", heads=UNEVEN), [PROMPT, [2, 6, 5, 3, 5]]
    model = genai.Model(str(bundle.folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=8, batch_size=2)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompts, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    for row, prompt in enumerate(prompts):
        assert list(map(int, generator.get_sequence(row)))[5:] == decode(bundle.rewritten, prompt, 3)
