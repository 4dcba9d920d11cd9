"""Greedy decoding: every form gives the tokens that the rewritten model gives, and stops where it must."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import UNEVEN, decode
from tiers import as_slow, diagonal
from tiny import VARIANTS, make_model, make_prompts

from exporter.circuit import Ablation, Circuit, Head
from exporter.errors import InputError
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.generate import Generation, generate_greedy
from exporter.runtime.session import Form, open_session, read_form, read_max_length


def rewrite(
    family: str = "gpt2", *, heads: Sequence[Head] = UNEVEN, positions: int = 24, **circuit: object
) -> CircuitModel:
    shape = {} if family in ("gpt2", "gpt_neox") else {"num_key_value_heads": 2}
    model = make_model(family, n_layers=3, n_heads=4, positions=positions, **shape)
    settings = {"mlps": (1, 2), "ablation": Ablation(by="global")} | circuit
    return rewrite_model(model, Circuit(heads=tuple(heads), **settings), make_prompts(8, 6))


def generate(
    model: CircuitModel, folder: Path, form: Form, prompts: Sequence[Sequence[int]], **options: object
) -> list[Generation]:
    export_onnx(model, folder / "m.onnx", GraphOptions(form=form))
    session = open_session(folder / "m.onnx", threads=1)
    assert read_form(session) == form
    return generate_greedy(session, prompts, **options)


PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], list(range(1, 12))]


@pytest.mark.parametrize(("form", "family"), diagonal(("plain", "masked", "past"), tuple(VARIANTS)))
def test_every_form_gives_the_rewritten_models_tokens(form: Form, family: str, tmp_path: Path) -> None:
    """Prompts of several lengths in one batch, uneven heads, a layer without attention."""
    model = rewrite(family)
    found = generate(model, tmp_path, form, PROMPTS, max_new_tokens=6)
    assert [result.token_ids for result in found] == [decode(model, prompt, 6) for prompt in PROMPTS]
    assert {result.stopped for result in found} == {"max_new_tokens"}
    assert all(len(result.seconds) == 6 and min(result.seconds) > 0 for result in found)


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
@pytest.mark.parametrize("mlps", [(), (0, 2)])
def test_without_any_attention_left(form: Form, mlps: tuple[int, ...], tmp_path: Path) -> None:
    model = rewrite(heads=(), mlps=mlps)
    found = generate(model, tmp_path, form, PROMPTS, max_new_tokens=4)
    assert [result.token_ids for result in found] == [decode(model, prompt, 4) for prompt in PROMPTS]


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_stops_where_the_models_length_ends(form: Form, family: str, tmp_path: Path) -> None:
    """Each prompt for itself: the last token is the one after a sequence of the full length."""
    model = rewrite(family, positions=12)
    found = generate(model, tmp_path, form, PROMPTS, max_new_tokens=9)
    counts = [min(9, 12 - len(prompt) + 1) for prompt in PROMPTS]
    assert [result.token_ids for result in found] == [
        decode(model, prompt, n) for prompt, n in zip(PROMPTS, counts, strict=True)
    ]
    assert [result.stopped for result in found] == ["model length" if n < 9 else "max_new_tokens" for n in counts]


@pytest.mark.parametrize(("form", "align"), [("masked", "left"), ("masked", "right"), ("past", "left")])
def test_means_by_position_end_with_their_table(form: Form, align: str, tmp_path: Path) -> None:
    model = rewrite(ablation=Ablation(align=align))
    assert model.length == 6
    prompts = [[3, 1, 4], [9], list(range(6))]
    found = generate(model, tmp_path, form, prompts)
    assert [result.token_ids for result in found] == [decode(model, p, 7 - len(p)) for p in prompts]
    assert {result.stopped for result in found} == {"model length"}


def test_a_pinned_length_gives_one_token_and_takes_no_other_length(tmp_path: Path) -> None:
    model = rewrite(ablation=Ablation())
    (found,) = generate(model, tmp_path, "plain", [list(range(6))])
    assert (found.token_ids, found.stopped) == (decode(model, range(6), 1), "model length")
    for prompt in ([1, 2], list(range(7))):
        with pytest.raises(InputError, match=f"has {len(prompt)} tokens, and this model takes exactly 6; give a"):
            generate(model, tmp_path, "plain", [prompt])


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_a_stop_token_ends_one_prompt_and_not_the_others(form: Form, tmp_path: Path) -> None:
    model = rewrite()
    free = [decode(model, prompt, 6) for prompt in PROMPTS]
    stop = free[1][0]
    found = generate(model, tmp_path, form, PROMPTS, max_new_tokens=6, stop_ids=[stop])
    expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
    assert [result.token_ids for result in found] == expected
    assert [result.stopped for result in found] == ["stop token" if stop in ids else "max_new_tokens" for ids in free]
    assert len(expected[1]) == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt has no tokens"),
        ([1, 37], "token id 37 is none of this model's, which go from 0 to 36"),
        ([-1], "token id -1"),
        (list(range(25)), "has 25 tokens, and this model takes at most 24; shorten it"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_a_prompt_that_it_cannot_take_is_refused(prompt: list[int], message: str, form: Form, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        generate(rewrite(), tmp_path, form, [[1], prompt])


def test_no_new_tokens_are_refused_and_no_prompts_give_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 new tokens"):
        generate(rewrite(), tmp_path, "past", [[1]], max_new_tokens=0)
    assert generate(rewrite(), tmp_path, "past", []) == []


def test_a_file_says_how_long_a_sequence_it_takes(tmp_path: Path) -> None:
    for model, form, longest in [
        (rewrite(), "past", 24),
        (rewrite(ablation=Ablation()), "masked", 6),
        (rewrite(ablation=Ablation()), "plain", 6),
        (rewrite("llama", positions=9), "plain", 9),
    ]:
        export_onnx(model, tmp_path / "m.onnx", GraphOptions(form=form))
        assert read_max_length(open_session(tmp_path / "m.onnx")) == longest


def test_past_that_counts_from_the_last_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not fit a growing sequence; use --align left"):
        export_onnx(rewrite(ablation=Ablation(align="right")), tmp_path / "m.onnx", GraphOptions(form="past"))
    export_onnx(
        rewrite(ablation=Ablation(by="global", align="right")), tmp_path / "m.onnx", GraphOptions(form="past")
    )  # nothing counts from an end
    assert np.isfinite(generate_greedy(open_session(tmp_path / "m.onnx"), [[1]])[0].seconds).all()


@pytest.mark.parametrize("form", [as_slow("plain"), "past"])
def test_the_bundled_models_every_component_says_what_transformers_says(
    form: Form, bundled: LanguageModel, tmp_path: Path
) -> None:
    prompt = bundled.tokenizer.encode("<|endoftext|>The Maven Zippers Cuff (")
    expected = bundled.hf.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False
    )[0, len(prompt) :].tolist()
    (found,) = generate(bundled.dense, tmp_path, form, [prompt], max_new_tokens=12, stop_ids=[50256])
    assert found.token_ids == expected
