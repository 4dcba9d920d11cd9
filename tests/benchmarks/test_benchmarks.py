"""The inference benchmarks' own logic: what is counted, merged, judged and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference import roofline
from inference.bars import check_bars
from inference.blocks import Pace, Times, compare, time_in_blocks
from inference.cases import collect_answers, find_opening, load_case
from inference.matrix import CASES, CONTESTANTS, REFERENCE, plan_comparisons, plan_footprints
from inference.records import Results, find, read_runs
from inference.roofline import measure_gemm, pick_bandwidth, shares
from inference.runners import BoundRunner, OnnxRunner, UnavailableError
from inference.tables import render_page, render_summary
from inference.work import Work, count_work
from inference.workbench import Workbench, quantize
from tiny import make_model

from exporter.circuit import Circuit, Head
from exporter.graph.export import export_onnx
from exporter.loading.load import LanguageModel
from exporter.rewrite.surgery import rewrite_model
from exporter.tasks import load_task
from exporter.tasks.task import SplitSizes


def make_circuit(*, mlps: tuple[int, ...]) -> Any:
    """One head (width 4) in layer 1 of a model of width 8, MLPs of width 16, a vocabulary of 37."""
    from tiny import make_prompts

    circuit = Circuit(heads=(Head(1, 0),), mlps=mlps)
    return rewrite_model(make_model(n_layers=3, d_mlp=16), circuit, make_prompts(4, 5))


def test_flops_by_hand() -> None:
    model = make_circuit(mlps=(0, 2))  # MLP 0, then the head, then MLP 2
    mlp, unembedding = 2 * 2 * 8 * 16, 2 * 8  # FLOPs at one position, and for each row
    keys, queries, pattern = 2 * 8 * (4 + 4), 2 * 8 * (4 + 4), 4 * 5 * 4  # a query attends to all 5
    everything = 5 * (2 * mlp + keys + queries + pattern + 37 * unembedding)
    last = 5 * (mlp + keys) + queries + pattern + mlp + 37 * unembedding
    assert count_work(model, 3, 5).flops == 3 * everything
    assert count_work(model, 3, 5, logits="last").flops == 3 * last
    answers = count_work(model, 3, 5, logits="answers", n_answers=7)
    assert answers.flops == 3 * (last - 30 * unembedding)
    opened = count_work(model, 3, 5, logits="answers", n_answers=7, opening=2)
    assert opened.flops == answers.flops - 3 * 2 * (mlp + keys)


def test_bytes_by_hand() -> None:
    model = make_circuit(mlps=(2,))
    weights = sum(p.numel() for s in model.sublayers() for p in s.parameters())
    read = weights + 7 * 8 + 3 * 5 * 8  # unembedding rows, embedding rows
    fp32 = count_work(model, 3, 5, logits="answers", n_answers=7)
    int8 = count_work(model, 3, 5, logits="answers", n_answers=7, precision="int8")
    assert fp32.bytes == 4 * read + 4 * 3 * 7
    assert int8.bytes == read + 4 * 3 * 7
    assert int8.intensity > fp32.intensity


def test_a_model_without_attention_computes_one_position() -> None:
    from tiny import make_prompts

    model = rewrite_model(make_model(d_mlp=16), Circuit(heads=(), mlps=(0,)), make_prompts(4, 5))
    assert count_work(model, 1, 5, logits="last").flops == 2 * 2 * 8 * 16 + 2 * 37 * 8


def test_shares_of_the_machine() -> None:
    work = Work(flops=1000, bytes=100)  # 10 FLOPs a byte
    assert shares(work, 1.0, 4000.0, 1000.0) == {"share_of_gemm": 0.25, "share_of_roofline": 0.25}
    assert shares(work, 1.0, 4000.0, 200.0) == {"share_of_gemm": 0.25, "share_of_roofline": 0.5}
    bandwidth = {10: 3.0, 100: 2.0, 1000: 1.0}
    assert [pick_bandwidth(bandwidth, size) for size in (5, 10, 11, 1001)] == [3.0, 3.0, 2.0, 1.0]


def test_the_best_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "time_calls", partial(roofline.time_calls, seconds=0.005))
    rate = measure_gemm("fp32", 1, rows=(4, 8), matrices=((16, 16),))
    assert rate.shape[1:] == (16, 16)
    assert rate.flops == 2 * rate.shape[0] * 16 * 16
    assert rate.peak >= rate.rate > 0
    assert np.asarray(rate.call()).size == rate.shape[0] * 16


def test_blocks_alternate() -> None:
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    times, _ = time_in_blocks(calls, Pace(blocks=2, seconds=0, least=2, most=2, others=1.0))
    block = ["a"] * 3 + ["b"] * 3  # one warm-up each
    assert seen == ["a", "a", "b", "b", *block, *block]
    assert [len(b) for b in times["a"].blocks] == [2, 2]


def test_disturbed_rounds_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shares_of_others = iter([0.5, 0.0, 0.3, 0.05])
    monkeypatch.setattr("inference.blocks.Others.share", lambda self: next(shares_of_others))
    n_calls: list[int] = []
    pace = Pace(blocks=2, seconds=0, least=1, most=1)
    times, worst = time_in_blocks({"a": lambda: n_calls.append(1)}, pace)
    assert worst == 0.05
    assert len(times["a"].blocks) == 2
    assert len(n_calls) == 2 + 4 * 2  # a round is a warm-up and a call; the fourth was the second quiet one


def test_a_machine_that_is_never_quiet_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    shares_of_others = iter([0.5, 0.2, 0.3, 0.4, 0.6, 0.7])
    monkeypatch.setattr("inference.blocks.Others.share", lambda self: next(shares_of_others))
    times, worst = time_in_blocks({"a": lambda: None}, Pace(blocks=2, seconds=0, least=1, most=1))
    assert worst == 0.3
    assert len(times["a"].blocks) == 2


def test_ratio_and_percentiles() -> None:
    slow, fast = Times([[4.0, 4.0], [4.2, 4.2], [3.8, 3.8]]), Times([[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]])
    ratio, low, high = compare(slow, fast)
    assert ratio == pytest.approx(2.0)
    assert 1.9 <= low <= 2.0 <= high <= 2.1
    assert compare(slow, slow) == (1.0, 1.0, 1.0)
    found = Times([[k / 1000 for k in range(1, 102)]]).percentiles()
    assert found == {"p50_ms": 51.0, "p90_ms": 91.0, "p95_ms": 96.0, "p99_ms": 100.0, "calls": 101}


def test_the_matrix_names_what_there_is() -> None:
    for size in ("smoke", "full"):
        planned = plan_comparisons(size)
        assert len({comparison.key for comparison in planned}) == len(planned)
        for comparison in planned:
            assert comparison.contestants[0] == "dense"
            assert set(comparison.contestants) <= set(CONTESTANTS[comparison.provider])
            assert comparison.case in CASES[size]
        assert {case for case, _, _ in plan_footprints(size)} == set(CASES[size])
    assert {c.batch for c in plan_comparisons("full") if c.case == REFERENCE} == {1, 8, 32, 128}


def test_an_opening_leaves_a_position() -> None:
    assert find_opening(torch.tensor([[5, 6, 7], [5, 6, 8]])) == (5, 6)
    assert find_opening(torch.tensor([[5, 6, 7], [4, 6, 7]])) == ()
    assert find_opening(torch.tensor([[5, 6, 7], [5, 6, 7]])) == (5, 6)


def test_answers_of_a_task(bundled: LanguageModel) -> None:
    assert bundled.tokenizer is not None
    data = load_task("greater-than", bundled.tokenizer, sizes=SplitSizes(5, 5, 20, 5))
    answers = collect_answers(data)
    assert list(answers) == sorted(set(answers))
    assert set(data.test.answer_ids.flatten().tolist()) - {-1} <= set(answers)


# --- what they run


def test_bound_outputs_are_the_same(tmp_path: Path) -> None:
    case = load_case("tiny")
    export_onnx(case.small, tmp_path / "m.onnx")
    ids = case.prompts[:3].numpy()
    plain = OnnxRunner(tmp_path / "m.onnx", provider="cpu", threads=1)
    bound = BoundRunner(tmp_path / "m.onnx", provider="cpu", threads=1)
    results = [runner.last_logits(runner.bind(ids)()) for runner in (plain, bound)]
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(results[0], case.small.next_token_logits(case.prompts[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_quantized_dense_keeps_its_embedding(tmp_path: Path) -> None:
    case = load_case("tiny")
    export_onnx(case.dense, tmp_path / "dense.onnx")
    quantize(tmp_path / "dense.onnx", tmp_path / "int8.onnx")
    runner = OnnxRunner(tmp_path / "int8.onnx", provider="cpu", threads=1)
    logits = runner.last_logits(runner.bind(case.prompts[:8].numpy())())
    expected = case.dense.next_token_logits(case.prompts[:8]).numpy()
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.99
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "dense.onnx").stat().st_size / 2


def test_wrong_answers_are_refused(tmp_path: Path) -> None:
    bench = Workbench(tmp_path / "case", optimum_python=None, pace=Pace())
    case, dense = bench.case("tiny"), CONTESTANTS["cpu"]["dense"]
    right = case.dense.next_token_logits(case.prompts[:4]).numpy()
    assert bench.check(case, dense, right)["agreement"] == 1.0
    with pytest.raises(AssertionError):
        bench.check(case, dense, right + 0.01)
    int8 = replace(dense, precision="int8")
    assert bench.check(case, int8, right + 0.01)["max_error"] == pytest.approx(0.01, rel=1e-3)
    assert not bench.check(case, int8, right[::-1])["near"]


def test_footprint_in_a_fresh_process(tmp_path: Path) -> None:
    bench = Workbench(tmp_path / "case", optimum_python=None, pace=Pace())
    bench.close()
    found = bench.measure_footprint(bench.case("tiny"), CONTESTANTS["cpu"]["dense"], batch=8, provider="cpu")
    assert found["peak_bytes_many"] >= found["peak_bytes_one"] > 10 * 2**20
    assert 0 < found["above_peak_bytes_one"] < 100 * 2**20
    assert found["session_ms"] > 0 and found["first_ms"] > 0
    with pytest.raises(UnavailableError, match="bench-optimum"):
        bench.file(bench.case("tiny"), CONTESTANTS["cpu"]["dense-optimum"])


# --- results

MEDIANS = {"dense": 20.0, "dense-int8": 12.0, "dense-int8-ort": 8.0, "eager": 80.0, "answers": 1.0, "int8": 0.25}
FILES = {"answers": 210e6, "task": 60e6, "task-int8": 18e6}


def write_run(path: Path, *, cpu: str = "Some CPU", medians: dict[str, float] = MEDIANS) -> Path:
    """A run as pytest-benchmark writes it."""
    where = {"case": REFERENCE, "provider": "cpu"}
    described = {"heads": 2, "head_layers": 2, "mlps": 3, "parameters_dense": 100, "parameters_circuit": 10, "pos": 11}
    described |= {"opening": 0, "answers": 100, "vocabulary": 500}
    entries: list[dict[str, Any]] = [
        {"kind": "gemm", "precision": "fp32", "threads": 2, "gflops_per_s": 100.0, "best_call_gflops_per_s": 110.0}
        | {"engine": "torch", "shape": [32, 8, 8]},
        {"kind": "bandwidth", "threads": 2, "gb_per_s": {"1048576": 50.0, "4194304": 20.0}},
    ]
    for batch in (1, 32):
        entries += [
            {"kind": "latency", **where, "contestant": name, "batch": batch, "threads": 2, "describes": described}
            | {f"p{p}_ms": batch * ms for p in (50, 90, 95, 99)}
            | {"calls": 20, "speedup": medians["dense"] / ms, "speedup_ci95": [1.0, 2.0], "prompts_per_s": 5.0}
            | {
                "flops": 10**9,
                "needed_bytes": 10**8,
                "share_of_gemm": 0.8,
                "share_of_roofline": 0.9,
                "share_of_best_gemm": 0.7,
                "others_share": 0.05,
            }
            | {"max_error": 1e-6, "agreement": 1.0, "near": True}
            for name, ms in medians.items()
        ]
    entries += [
        {"kind": "footprint", **where, "contestant": name, "bytes": size, "nodes": 45, "batch": 32}
        | {"session_ms": 50.0, "first_ms": 2.0, "above_peak_bytes_one": 2 * size, "above_peak_bytes_many": 3 * size}
        for name, size in FILES.items()
    ]
    machine = {"cpu": cpu, "cores": 2, "memory_gib": 8, "os": "Linux", "optimum": False, "versions": {"torch": "2.0"}}
    run = {
        "machine_info": {"export_circuit": machine},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"extra_info": entry, "stats": {"median": 0.001}} for entry in [{}, *entries]],
    }
    path.write_text(json.dumps(run), encoding="utf-8")
    return path


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return read_runs([write_run(tmp_path / "run.json")])


def test_later_runs_replace_earlier_ones(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a.json")
    second = write_run(tmp_path / "b.json", medians={"dense": 30.0})
    merged = read_runs([first, second])
    assert len(merged["latency"]) == 2 * len(MEDIANS)
    medians = {name: find(merged["latency"], contestant=name, batch=1) for name in ("dense", "int8")}
    assert [record and record["p50_ms"] for record in medians.values()] == [30.0, 0.25]
    assert merged["machine"]["cpu"] == "Some CPU" and merged["date"] == "2026-01-02"
    with pytest.raises(ValueError, match="was measured on"):
        read_runs([first, write_run(tmp_path / "c.json", cpu="Other CPU")])


def test_bars_are_judged(results: Results) -> None:
    bars = {bar.name: bar for bar in check_bars(results)}
    passed = {name: (bar.value, bar.passed) for name, bar in bars.items()}
    assert passed["fp32, last position and answers, against dense, batch 1"] == (20.0, True)
    assert passed["int8 against dense, batch 32"] == (80.0, True)
    assert passed["int8 against dense int8, batch 1"] == (32.0, True)  # against the faster of the two
    assert passed["fp32 against PyTorch eager, batch 1"] == (80.0, True)
    assert passed["nodes in fp32"] == (45.0, True)
    assert passed["share of the GEMM rate in fp32, batch 32"] == (80.0, False)
    assert passed["share of the best GEMM rate of the run in fp32, batch 32"] == (70.0, False)
    assert passed["file with the task's vocabulary, fp32"] == (60.0, True)
    assert passed["file with the task's vocabulary, int8"] == (18.0, False)
    assert passed["peak memory, fp32, one file, batch 1"] == (2.0, True)
    assert passed["peak memory, fp32, one file, batch 32"] == (3.0, False)
    assert passed["peak memory, fp32, external data, batch 1"] == (None, None)


def test_nothing_measured_passes_nothing(results: Results) -> None:
    empty = results | {"latency": [], "footprint": []}
    assert {bar.passed for bar in check_bars(empty)} == {None}


def test_the_page_shows_what_was_measured(results: Results) -> None:
    page = render_page(results, check_bars(results))
    assert "Some CPU, 2 cores, 8 GiB, torch 2.0, 2026-01-02" in page
    assert "| share of the GEMM rate in fp32, batch 32 | at least 85 % | 80 % | **no** |" in page
    assert "| peak memory, fp32, external data, batch 1 | at most 2.5 x file | – | not measured |" in page
    assert (
        "| circuit, answers | 32 | 32 | 32 | 32 | 20 | 1 | 20 x [1, 2] | 5 | 1,000.0 | 100.0 | 80% | 70% | 90% |"
        in page
    )
    assert "| circuit, answers, task vocabulary | 60.0 | 45 | 50 | 2.00 | 120 | 180 | 3.00 |" in page


def test_the_summary_has_a_row_for_each_circuit(results: Results) -> None:
    summary = render_summary(results)
    assert "| gpt2-reference: 2 heads, 3 MLPs | 20 / 640 ms | – / – ms (– / – x) | 1 / 32 ms (20 / 20 x) |" in summary
    assert summary.count("\n| gpt2") == 1


def test_plots_are_drawn(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'bench'")
    from inference.plots import COLOURS, draw_all

    written = draw_all(results, tmp_path)
    assert {file.suffix for file in written} == {".svg", ".png"}
    assert all(file.stat().st_size > 5000 for file in written)
    assert set(COLOURS) == set(CONTESTANTS["cpu"])
    assert "Some CPU" in (tmp_path / "inference_latency.svg").read_text(encoding="utf-8")
