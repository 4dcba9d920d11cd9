"""Each metric by hand, and what must hold for all logits."""

from __future__ import annotations

import importlib
import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples

from exporter.cli import options as opts
from exporter.errors import InputError
from exporter.metrics import METRICS, SEARCHED, Answers, measure
from exporter.metrics.calibration import find_ece
from exporter.tasks.dataset import Dataset

DENSE, CIRCUIT = [0.5, 0.2, 0.2, 0.1], [0.1, 0.3, 0.2, 0.4]


def answer(circuit: list[float], dense: list[float], answers: list[int], choices: list[int] | None = None) -> Answers:
    """One prompt with these probabilities, and an arbitrary number added to the logits."""
    logits = [torch.tensor(p, dtype=torch.float64).log()[None, None] + 3 for p in (circuit, dense)]
    choice_ids = None if choices is None else torch.tensor([choices])
    return Answers(
        Dataset(torch.zeros(1, 2, dtype=torch.long), torch.tensor([answers]), choice_ids=choice_ids), *logits
    )


def compute(name: str, *args: object) -> float:
    return float(METRICS[name](answer(*args)))  # type: ignore[arg-type]


def test_divergences_by_hand() -> None:
    pairs = list(zip(DENSE, CIRCUIT, strict=True))
    kl, back = sum(p * math.log(p / q) for p, q in pairs), sum(q * math.log(q / p) for p, q in pairs)
    js = sum(p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q)) for p, q in pairs) / 2
    assert compute("kl", CIRCUIT, DENSE, [0]) == pytest.approx(kl)
    assert compute("reverse_kl", CIRCUIT, DENSE, [0]) == pytest.approx(back)
    assert compute("js", CIRCUIT, DENSE, [0]) == pytest.approx(js)
    assert compute("js", [1, 0], [0, 1], [0]) == pytest.approx(math.log(2))
    assert compute("reverse_kl", [1, 0], [0.5, 0.5], [0]) == pytest.approx(math.log(2))


def test_several_right_answers_are_one_event() -> None:
    """Tokens 0 and 1 are right, 1 twice: dense gives them .7, the circuit .4."""
    right = [0, 1, 1, -1]
    expected = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    assert compute("answer_kl", CIRCUIT, DENSE, right) == pytest.approx(expected)
    assert compute("answer_kl", [0.6, 0.1, 0.3, 0.0], DENSE, right) == pytest.approx(0, abs=1e-12)
    assert compute("probability_difference", CIRCUIT, DENSE, right) == pytest.approx(0.4 - 0.6)
    assert compute("reference_probability_difference", CIRCUIT, DENSE, right) == pytest.approx(0.7 - 0.3)
    assert compute("logit_difference", CIRCUIT, DENSE, right) == pytest.approx(math.log(0.3 / 0.4))
    assert compute("brier", CIRCUIT, DENSE, right) == pytest.approx((1 - 0.4) ** 2 + 0.2**2 + 0.4**2)
    assert compute("reference_brier", CIRCUIT, DENSE, right) == pytest.approx(0.3**2 + 0.2**2 + 0.1**2)
    assert compute("confidence", CIRCUIT, DENSE, right) == pytest.approx(0.4)  # token 3, which is wrong
    assert compute("reference_confidence", CIRCUIT, DENSE, right) == pytest.approx(0.7)  # one of the right ones


def test_choices_are_all_that_is_wrong() -> None:
    """Tokens 1 and 2 are the choices, 1 is right; token 3, the likeliest of all, is not asked for."""
    given = (CIRCUIT, DENSE, [1], [2, 1, 2, -1])
    assert compute("logit_difference", *given) == pytest.approx(math.log(0.3 / 0.2))
    assert compute("probability_difference", *given) == pytest.approx(0.3 - 0.2)  # of the whole vocabulary
    assert compute("brier", *given) == pytest.approx(2 * 0.4**2)  # .6 and .4 among the choices
    assert compute("confidence", *given) == pytest.approx(0.6)
    assert compute("answer_kl", *given) == pytest.approx(0.2 * math.log(0.2 / 0.3) + 0.8 * math.log(0.8 / 0.7))
    assert compute("logit_difference", CIRCUIT, DENSE, [1], [1]) == 0.0  # nothing wrong to choose


def test_answers_of_several_tokens() -> None:
    """The first prompt has two answer positions, the second one; the mean is over those, confidence is a product."""
    p = torch.tensor([[[0.8, 0.2], [0.4, 0.6]], [[0.9, 0.1], [0.7, 0.3]]], dtype=torch.float64)
    steps = torch.tensor([[[0], [0]], [[-1], [1]]])
    found = measure([Answers(Dataset(torch.zeros(2, 3, dtype=torch.long), steps), p.log(), p.flip(-1).log())])
    assert found["brier"].tolist() == pytest.approx([(2 * 0.2**2 + 2 * 0.6**2) / 2, 2 * 0.7**2])
    assert found["confidence"].tolist() == pytest.approx([0.8 * 0.6, 0.7])
    expected = [(math.log(4) + math.log(2 / 3)) / 2, math.log(3 / 7)]
    assert found["logit_difference"].tolist() == pytest.approx(expected)
    assert found["reference_logit_difference"].tolist() == pytest.approx([-value for value in expected])
    kls = [0.6 * math.log(4), 0.2 * math.log(3 / 2), 0.4 * math.log(7 / 3)]
    for name in ("kl", "reverse_kl", "answer_kl"):  # of two tokens all three are the same here
        assert found[name].tolist() == pytest.approx([(kls[0] + kls[1]) / 2, kls[2]])


def test_ece_by_hand() -> None:
    """Two bins: (0, .5] with confidences .2 and .5, one of them right; (.5, 1] with .9 twice, both right."""
    found = find_ece(torch.tensor([0.2, 0.5, 0.9, 0.9]), torch.tensor([0.0, 1.0, 1.0, 1.0]), n_bins=2)
    assert found == pytest.approx(2 / 4 * (0.5 - 0.35) + 2 / 4 * (1 - 0.9))
    assert find_ece(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])) == 0.5  # the ends have a bin, too


@settings(max_examples=examples(60))
@given(seed=st.integers(0, 2**16), spread=st.floats(0.1, 30), choices=st.booleans(), steps=st.integers(1, 3))
def test_what_holds_for_all_logits(seed: int, spread: float, choices: bool, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, vocab = 7, 11
    logits = spread * torch.randn(2, n, steps, vocab, generator=generator)
    answers = torch.randint(-1, vocab, (n, steps, 3), generator=generator)
    answers[..., 0] = answers[..., 0].clamp(min=0)
    choice_ids = torch.cat([answers[:, -1, :1], torch.randint(vocab, (n, 4), generator=generator)], 1)
    prompts = Dataset(torch.zeros(n, 5, dtype=torch.long), answers, choice_ids=choice_ids if choices else None)
    found = measure([Answers(prompts, *logits)])
    assert all(values.shape == (n,) and values.dtype == torch.float64 for values in found.values())
    assert all(values.isfinite().all() for values in found.values())
    assert (found["answer_kl"] <= found["kl"] + 1e-9).all()  # data processing inequality
    assert (found["js"] <= math.log(2) + 1e-12).all() and (
        found["js"] <= (found["kl"] + found["reverse_kl"]) / 4 + 1e-9
    ).all()
    for name, low, high in (("brier", 0, 2), ("confidence", 0, 1), ("probability_difference", -1, 1)):
        assert (low - 1e-9 <= found[name]).all() and (found[name] <= high + 1e-9).all()
    turned = measure([Answers(prompts, *logits.flip(0))])
    for one, other in (("kl", "reverse_kl"), ("reverse_kl", "kl"), ("js", "js"), ("brier", "reference_brier")):
        torch.testing.assert_close(found[one], turned[other], rtol=1e-9, atol=1e-9)
    if steps == 1 and not choices:
        assert ((found["logit_difference"] > 0) == found["accuracy"].bool()).all()
    same = measure([Answers(prompts, logits[0], logits[0])])
    assert all((same[name] < 1e-12).all() for name in ("kl", "reverse_kl", "js", "answer_kl"))


def test_parts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 9, 1, 13, generator=torch.Generator().manual_seed(0))
    given = Answers(Dataset(torch.zeros(9, 2, dtype=torch.long), torch.arange(9)), *logits)
    whole = measure([given])
    monkeypatch.setattr("exporter.metrics.answers._NUMBERS", 30)
    assert len(list(given.split())) == 5
    parts = measure([given])
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-12, atol=1e-14)


def test_prompts_without_a_right_answer_are_refused_where_one_is_needed() -> None:
    labelled = torch.tensor([True, False])
    prompts = Dataset(torch.zeros(2, 2, dtype=torch.long), torch.tensor([1, -1]), labelled=labelled)
    logits = torch.randn(2, 2, 1, 5, generator=torch.Generator().manual_seed(0))
    found = measure([Answers(prompts, *logits)], ("kl", "reverse_kl", "js", "agreement"))
    assert all(values.isfinite().all() for values in found.values())
    for name in ("accuracy", "answer_kl", "logit_difference", "probability_difference", "brier", "confidence"):
        with pytest.raises(InputError, match="1 of 2 prompts have no right answer"):
            measure([Answers(prompts, *logits)], (name,))


def test_the_command_line_knows_every_metric_that_a_search_can_go_by() -> None:
    assert set(typing.get_args(typing.get_args(opts.MetricName)[0])) == set(SEARCHED)


def test_the_table_of_metrics_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(root / "benchmarks")
    script: Any = importlib.import_module("metric_table")
    stored = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    text = script.PAGE.read_text(encoding="utf-8")
    assert text.split(script.START)[1].split(script.END)[0].strip() == script.render_table(stored).strip()
    assert {row["metric"] for row in stored["rows"]} <= set(SEARCHED)
