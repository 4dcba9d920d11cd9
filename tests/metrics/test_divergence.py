"""KL: right to 1e-6 of float64 and never negative, whatever the logits are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from tiny import VARIANTS, make_prompts, models
from torch import Tensor

from exporter.evidence.evaluate import evaluate_circuit
from exporter.loading.load import LanguageModel
from exporter.metrics import divergence
from exporter.metrics.divergence import KLTarget, kl_divergence, log_probabilities
from exporter.network.model import CircuitModel
from exporter.rewrite.surgery import rewrite_model
from exporter.search.find import search_circuit
from exporter.tasks.dataset import Dataset

MOST = 1e-6  # nats


def expect(W_U: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """KL by its definition, in float64: (answer, d_model) and (..., answer, d_model) to (..., answer)."""
    log_p, log_q = ((x @ W_U.double().T).log_softmax(-1) for x in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """The mean over answers to 1e-6; thousands of nats to as many digits."""
    apart = (found.mean(-1) - expected.mean(-1)).abs()
    assert (apart <= MOST * (expected.mean(-1) / 100).clamp(min=1)).all(), apart.max()
    assert (found >= 0).all()


# --- where all logits are at hand


def test_by_hand() -> None:
    p, q = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log()
    assert float(kl_divergence(p, q)) == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4), abs=1e-7)
    assert float(kl_divergence(q, p)) == pytest.approx(0.5 * math.log(0.625) + 0.5 * math.log(2.5), abs=1e-7)
    certain = torch.tensor([0.0, -torch.inf])
    assert float(kl_divergence(certain, q)) == pytest.approx(math.log(2), abs=1e-12)
    assert float(kl_divergence(certain, certain)) == 0.0
    assert float(kl_divergence(q, certain)) == math.inf
    for broken in (torch.tensor([torch.nan, 0.0]), torch.tensor([torch.inf, 0.0])):
        assert kl_divergence(q, broken).isnan() and kl_divergence(broken, q).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("vocab", "scale"), [(2, 1.0), (50_257, 1.0), (50_257, 30.0), (50_257, 3000.0)])
def test_of_logits_it_is_that_of_float64(dtype: torch.dtype, vocab: int, scale: float) -> None:
    """A change of the logits by a constant changes no distribution; the same ones are 0 apart, and not nearly so."""
    torch.manual_seed(0)
    p = (scale * torch.randn(2, 3, vocab)).to(dtype)
    q = (p + 0.1 * scale * torch.randn(2, 3, vocab)).to(dtype)
    log_p, log_q = (x.double().log_softmax(-1) for x in (p, q))
    found = kl_divergence(p, q)
    torch.testing.assert_close(found, (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-12, atol=1e-12)
    assert (kl_divergence(p, p) == 0).all()
    shifted = kl_divergence(p, p.double() + 7)
    assert shifted.dtype == torch.float64 and (shifted >= 0).all() and (shifted < 1e-11).all()


def test_rows_are_taken_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = torch.randn(5, 2, 9), torch.randn(5, 2, 9)
    whole = kl_divergence(p, q)
    monkeypatch.setattr(divergence, "_WIDE_NUMBERS", 30)
    assert torch.equal(kl_divergence(p, q), whole)


def test_what_float32_makes_of_50_000_logits() -> None:
    """Why: its probabilities do not sum to 1, and a KL is off by that, times what it is multiplied by."""
    logits = 5 * torch.randn(100, 50_257, generator=torch.Generator().manual_seed(0))
    narrow = float((logits.log_softmax(-1).double().exp().sum(-1) - 1).abs().max())
    wide = float((log_probabilities(logits).exp().sum(-1) - 1).abs().max())
    assert narrow > 1e-6 and wide < 1e-12


def test_the_evaluation_of_a_model_against_itself_is_zero_and_against_a_near_one_right() -> None:
    """Two tables of 50,257 logits, of which the second is a thousandth off: its KL is about 1e-6."""
    generator = torch.Generator().manual_seed(0)
    table = 10 * torch.randn(20, 1, 50_257, generator=generator)
    near = table + 1e-3 * torch.randn(20, 1, 50_257, generator=generator)
    data = Dataset(torch.arange(20)[:, None], torch.zeros(20, dtype=torch.int64))
    same = evaluate_circuit(lambda ids, *_: table[ids[:, 0]], lambda ids, *_: table[ids[:, 0]], data)
    assert same.kl == 0.0
    found = evaluate_circuit(lambda ids, *_: table[ids[:, 0]], lambda ids, *_: near[ids[:, 0]], data).kl
    assert found == pytest.approx(float(kl_divergence(table, near).mean()), rel=1e-9)
    assert 1e-8 < found < 1e-6


# --- where a search asks for many


def draw_residuals(
    vocab: int, d_model: int, n: int, *, scale: float, change: float, common: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """W_U, and two sets of normalised residuals: logits of `scale`, of which a share changes.

    `common` is what the change adds to all logits alike, as ablations do in trained models.
    """
    generator = torch.Generator().manual_seed(seed)
    along = torch.nn.functional.normalize(torch.randn(d_model, generator=generator), dim=0)
    W_U = torch.randn(vocab, d_model, generator=generator) / d_model**0.5
    W_U += (1 - W_U @ along)[:, None] * along  # every token reads 1 of what lies along
    p = scale * torch.randn(n, d_model, generator=generator).double()
    q = p + change * scale * torch.randn(2, n, d_model, generator=generator) + common * along
    return W_U, p, q


@settings(max_examples=examples(150))
@given(
    vocab=st.sampled_from([2, 7, 37, 300, 2049, 5000]),
    d_model=st.sampled_from([2, 9, 64]),
    n=st.integers(1, 6),
    scale=st.sampled_from([0.1, 1.0, 5.0, 30.0, 300.0]),
    change=st.sampled_from([0.0, 1e-5, 1e-3, 0.03, 0.3, 2.0]),
    common=st.sampled_from([0.0, 0.0, 30.0, -100.0, 400.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**16),
)
def test_of_residuals_it_is_that_of_float64(
    vocab: int, d_model: int, n: int, scale: float, change: float, common: float, dtype: torch.dtype, seed: int
) -> None:
    drawn = draw_residuals(vocab, d_model, n, scale=scale, change=change, common=common, seed=seed)
    W_U, p, q = drawn[0].to(dtype), drawn[1], drawn[2]
    target = KLTarget.of(W_U, p)
    assert_near(target.kl(q), expect(W_U, p, q))
    assert (target.measure(q) > -MOST).all()  # what is clamped is rounding


@pytest.mark.parametrize("seed", range(3))
def test_answers_beyond_what_float32_holds_hide_no_others(seed: int) -> None:
    """Exponentials of some answers overflow or vanish; those beside them are judged as ever."""
    W_U, p, q = draw_residuals(37, 2, 6, scale=30.0, change=2.0, common=0.0, seed=seed)
    q[0, ::2] += 5000 * torch.nn.functional.normalize(q[0, ::2], dim=-1)
    q[1, 1::2] -= 900 * torch.nn.functional.normalize(p[1::2], dim=-1)
    assert_near(KLTarget.of(W_U, p).kl(q), expect(W_U, p, q))


@pytest.mark.parametrize(
    ("scale", "change", "common"),
    [
        (0.5, 0.01, 0.0),  # nearly uniform over the vocabulary
        (5.0, 0.3, 0.0),
        (10.0, 0.1, -80.0),
        (30.0, 0.1, 30.0),  # nearly certain, and so is the other
        (100.0, 1.0, 0.0),  # certain of something else
    ],
)
def test_of_a_large_vocabulary(scale: float, change: float, common: float) -> None:
    W_U, p, q = draw_residuals(50_257, 48, 4, scale=scale, change=change, common=common, seed=1)
    target = KLTarget.of(W_U, p)
    assert_near(target.kl(q), expect(W_U, p, q))
    for one in range(4):  # and each answer alone, so that nothing averages out
        alone = KLTarget.of(W_U, p[one : one + 1])
        assert_near(alone.kl(q[:, one : one + 1]), expect(W_U, p[one], q[:, one])[:, None])


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("vocab", [2, 37, 50_257])
def test_what_is_the_same_is_nothing_apart(vocab: int, scale: float) -> None:
    W_U, p, _ = draw_residuals(vocab, 32, 4, scale=scale, change=0, common=0, seed=2)
    found = KLTarget.of(W_U, p).kl(torch.stack([p, p]))
    assert found.shape == (2, 4)
    assert (found >= 0).all() and (found < 2e-7).all()


def test_nonsense_is_not_taken_for_nothing() -> None:
    W_U, p, q = draw_residuals(37, 9, 2, scale=1, change=1, common=0, seed=0)
    q[0, 0] = torch.nan
    found = KLTarget.of(W_U, p).kl(q)
    assert found[0, 0].isnan() and found[1].isfinite().all()


# --- in a search


@settings(max_examples=examples(40))
@given(
    model=models(tuple(VARIANTS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    length=st.integers(2, 6),
    steps=st.integers(1, 3),
    padded=st.booleans(),
    gain=st.sampled_from([1.0, 1.0, 20.0]),
)
def test_every_decision_of_a_search_is_by_the_kl_of_float64(
    model: LanguageModel, dtype: torch.dtype, length: int, steps: int, padded: bool, gain: float
) -> None:
    """From the same residuals: what the search computes below them is the model's own arithmetic."""
    steps = min(steps, length - 1)
    sets = [make_prompts(n, length, seed=n, padded=padded, steps=steps) for n in (9, 12)]
    dense = narrow(model, dtype, gain)
    expected: list[float] = []
    search_kl = KLTarget.kl

    def kl(self: KLTarget, normed: Tensor) -> Tensor:
        expected.extend(expect(self.W_U, self.normed, normed).mean(-1).tolist())
        return search_kl(self, normed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KLTarget, "kl", kl)
        _, record = search_circuit(dense, *sets, alpha=0.01)
    stored = [step.kl_without for step in record.trace]
    assert min(stored) >= 0 and (record.kl or 0) >= 0
    for found in stored:  # in groups of candidates, some are computed that are not decided on
        assert min(abs(found - one) / max(1, one / 100) for one in expected) < MOST


def narrow(model: LanguageModel, dtype: torch.dtype, gain: float) -> CircuitModel:
    """The dense model with a larger final norm, in another precision."""
    dense = model.dense
    final_norm = type(dense.final_norm)(
        dense.final_norm.weight * gain,  # type: ignore[operator]  # every family has one
        dense.final_norm.bias,
        eps=dense.final_norm.eps,
        rms=dense.final_norm.rms,
    )
    return dense.replace(final_norm=final_norm).to(dtype)


@settings(max_examples=examples(25))
@given(model=models(tuple(VARIANTS)), steps=st.integers(1, 2), padded=st.booleans())
def test_the_search_and_the_evaluation_say_the_same_of_a_circuit(
    model: LanguageModel, steps: int, padded: bool
) -> None:
    """One by changes of residuals, the other by all logits of the rewritten model; both in float32 below."""
    sets = [make_prompts(n, 5, seed=n, padded=padded, steps=steps) for n in (9, 20)]
    circuit, record = search_circuit(model, *sets, alpha=0.02)
    rewritten = rewrite_model(model, circuit, sets[0])
    found = evaluate_circuit(model.dense.answer_logits, rewritten.answer_logits, sets[1])
    assert record.kl == pytest.approx(found.kl, abs=5e-6)
