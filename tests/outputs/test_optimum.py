"""Optimum loads what is exported (the environment of the extra `optimum`; see `make test-optimum`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bundles import EVEN, UNEVEN, decode, make_bundle, to_text
from tiny import VARIANTS, make_model, make_prompts
from transformers import AutoTokenizer

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import InputError
from exporter.graph.export import export_onnx
from exporter.graph.options import Form, GraphOptions
from exporter.rewrite.surgery import rewrite_model

ort_models = pytest.importorskip("optimum.onnxruntime", reason="needs the extra 'optimum' and transformers 4.57")


@pytest.mark.parametrize("mean", ["position", "global"])
def test_it_loads_and_computes_the_same(mean: str, tmp_path: Path) -> None:
    model = make_model(positions=32)
    rewritten = rewrite_model(
        model, Circuit(heads=(Head(0, 1),), mlps=(1,), ablation=Ablation(by=mean)), make_prompts(8, 5)
    )
    export_onnx(rewritten, tmp_path / "model.onnx")
    model.hf.config.save_pretrained(tmp_path)
    loaded = ort_models.ORTModelForCausalLM.from_pretrained(tmp_path, use_cache=False, use_io_binding=False)
    prompts = make_prompts(3, 5, seed=4).input_ids
    logits = loaded(input_ids=prompts, attention_mask=torch.ones_like(prompts)).logits
    torch.testing.assert_close(logits, rewritten(prompts), rtol=1e-4, atol=1e-4)


def generate(folder: Path, prompt: list[int], n: int, *, use_cache: bool, use_io_binding: bool) -> list[int]:
    """What Optimum says after a prompt, end of text or not."""
    model = ort_models.ORTModelForCausalLM.from_pretrained(folder, use_cache=use_cache, use_io_binding=use_io_binding)
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": n, "do_sample": False, "eos_token_id": None, "use_cache": use_cache}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("use_io_binding", [False, True])
@pytest.mark.parametrize(
    ("form", "heads"), [("plain", UNEVEN), ("masked", UNEVEN), ("past", EVEN), ("past", ())], ids=str
)
@pytest.mark.parametrize("family", VARIANTS)
def test_it_generates_with_every_form_that_it_supports(
    family: str, form: Form, heads: tuple[Head, ...], use_io_binding: bool, tmp_path: Path
) -> None:
    bundle, prompt = make_bundle(tmp_path / "b", family, form, heads=heads), [3, 1, 4, 1, 5]
    use_cache = form == "past" and len(heads) > 0
    found = generate(bundle.folder, prompt, 6, use_cache=use_cache, use_io_binding=use_io_binding)
    assert found == decode(bundle.rewritten, prompt, 6)


def test_it_generates_with_padding_on_the_left(tmp_path: Path) -> None:
    for form, heads in (("masked", UNEVEN), ("past", EVEN)):
        bundle = make_bundle(tmp_path / form, "llama", form, heads=heads)
        model = ort_models.ORTModelForCausalLM.from_pretrained(bundle.folder, use_cache=form == "past")
        found = model.generate(
            torch.tensor([[3, 1, 4, 1, 5], [0, 0, 0, 2, 6]]),
            attention_mask=torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]),
            max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=form == "past",
        )  # fmt: skip
        assert found[:, 5:].tolist() == [decode(bundle.rewritten, prompt, 5) for prompt in ([3, 1, 4, 1, 5], [2, 6])]


def test_it_cannot_generate_with_layers_that_differ_and_the_card_says_so(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", form="past", heads=UNEVEN)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        generate(bundle.folder, [3, 1, 4], 2, use_cache=True, use_io_binding=False)
    assert "Optimum cannot generate with it" in (bundle.folder / "README.md").read_text()
    own = GraphOptions(form="past", logits="last")
    with pytest.raises(InputError, match="--for optimum makes the past of every layer alike"):
        make_bundle(tmp_path / "c", form="past", heads=UNEVEN, graph=own, targets=["optimum"])


@contextmanager
def record(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What Optimum and transformers warn of goes to `caplog`."""
    loggers = [logging.getLogger(name) for name in ("optimum", "transformers")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("heads", [EVEN, UNEVEN, ()], ids=["alike", "unlike", "none"])
@pytest.mark.parametrize("family", VARIANTS)
def test_what_is_made_for_it_generates_without_an_argument_or_a_warning(
    family: str, heads: tuple[Head, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Layers with unlike numbers of heads, or with none, and prompts of several lengths in a batch included."""
    bundle, prompts = make_bundle(tmp_path / "b", family, heads=heads, targets=["optimum"]), ([3, 1, 4, 1, 5], [2, 6])
    with record(caplog), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ort_models.ORTModelForCausalLM.from_pretrained(bundle.folder)
        tokenizer = AutoTokenizer.from_pretrained(bundle.folder)
        inputs = tokenizer([to_text(prompt) for prompt in prompts], padding=True, return_tensors="pt")
        found = model.generate(**inputs, max_new_tokens=5, eos_token_id=None)[:, 5:].tolist()
    assert found == [decode(bundle.rewritten, prompt, 5) for prompt in prompts]
    assert [entry.message for entry in caplog.records] == []


def test_it_stops_by_itself_where_the_bundle_says(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", form="plain")
    model = ort_models.ORTModelForCausalLM.from_pretrained(bundle.folder, use_cache=False)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    found = model.generate(ids, attention_mask=torch.ones_like(ids))[0, 5:].tolist()
    free = decode(bundle.rewritten, [3, 1, 4, 1, 5], 20)  # one behind a prompt of the longest length
    assert found == (free[: free.index(0) + 1] if 0 in free else free)


@pytest.mark.parametrize("form", ["plain", "past"])
def test_a_prompt_as_long_as_the_model_knows_is_followed_by_one_token(form: Form, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", form=form, heads=EVEN, ablation=Ablation(), targets=["optimum"])
    model = ort_models.ORTModelForCausalLM.from_pretrained(bundle.folder, use_cache=form == "past")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    found = model.generate(ids, attention_mask=torch.ones_like(ids))[0, 6:].tolist()
    assert found == decode(bundle.rewritten, ids[0].tolist(), 1)


@pytest.mark.parametrize(("form", "heads"), [("plain", UNEVEN), ("masked", UNEVEN), ("past", EVEN)])
def test_what_is_not_made_for_it_loads_without_a_warning_but_for_positions(
    form: Form, heads: tuple[Head, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The graph counts positions by the mask; Optimum calls a model that does not ask for them a legacy one."""
    bundle = make_bundle(tmp_path / "b", form=form, heads=heads)
    with record(caplog):
        ort_models.ORTModelForCausalLM.from_pretrained(bundle.folder, use_cache=form == "past")
    assert ["no `position_ids` input" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("form", ["plain", "masked"])
def test_a_classifier_runs_in_transformers_own_pipeline(form: Form, family: str, tmp_path: Path) -> None:
    from transformers import pipeline

    graph = GraphOptions(form=form, logits="classes", answer_ids=(7, 3, 5), labels=("seven", "three", "five"))
    bundle = make_bundle(tmp_path / "b", family, form, graph=graph, targets=["optimum"])
    model = ort_models.ORTModelForSequenceClassification.from_pretrained(bundle.folder)
    tokenizer = AutoTokenizer.from_pretrained(bundle.folder)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    prompts = [[3, 1, 4, 1, 5, 9], [2, 6], [7]]
    found = classify([to_text(prompt) for prompt in prompts], batch_size=3 if form == "masked" else 1)
    for prompt, one in zip(prompts, found, strict=True):
        logits = bundle.rewritten.next_token_logits(torch.tensor([prompt]))[0, [7, 3, 5]].softmax(-1)
        assert one["label"] == graph.labels[int(logits.argmax())]
        assert one["score"] == pytest.approx(float(logits.max()), abs=1e-4)


def test_answers_alone_are_refused_since_it_would_take_them_for_other_tokens(tmp_path: Path) -> None:
    graph = GraphOptions(logits="answers", answer_ids=(7, 3, 5))
    with pytest.raises(InputError, match="takes each logit for the token of its number"):
        make_bundle(tmp_path / "b", form="plain", graph=graph, targets=["optimum"])


def test_it_finds_the_bundles_own_file_among_others(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", form="plain", targets=["optimum", "triton"])
    assert generate(bundle.folder, [3, 1], 3, use_cache=False, use_io_binding=False) == decode(
        bundle.rewritten, [3, 1], 3
    )
