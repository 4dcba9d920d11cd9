"""Where contestants are made, checked and timed: one case at a time, its files in a folder that goes with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from exporter.errors import ExactnessError
from exporter.graph.description import describe_onnx
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.runtime.session import PROVIDERS, has_provider, open_session
from exporter.verify.precision import evaluate_file, require_precision
from inference import footprint, optimum_export
from inference.blocks import Pace, Times, compare, time_in_blocks
from inference.cases import Case, load_case
from inference.matrix import CONTESTANTS, ON_CUDA, Comparison, Contestant, Provider
from inference.roofline import GemmRate, measure_bandwidth, measure_gemm, pick_bandwidth, shares
from inference.runners import Runner, UnavailableError, make_runner
from inference.work import Work, count_work

Figures = dict[str, Any]
# Answers in lower precision are near where the likeliest one is the same for so many prompts, or where the mean error
# of logits is such a share of their range: with random weights, whose likeliest tokens are close, rounding alone
# changes some. It tells rounding from nonsense; both figures are in the results.
AGREEMENT = 0.9
ERROR = 0.1


@dataclass
class Race:
    """One comparison: who took part and how fast, and who could not, or gave wrong answers, and why."""

    key: str
    runners: dict[str, Runner] = field(default_factory=dict)
    calls: dict[str, Callable[[], Any]] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    absent: dict[str, Exception] = field(default_factory=dict)
    others: float = 0.0  # the share of the machine that other processes used meanwhile, at most


class Workbench:
    """Holds one case's models and files, and what was measured of the machine.

    `optimum_python` is an interpreter that has Optimum; None for none.
    """

    def __init__(self, folder: Path, *, optimum_python: Path | None, pace: Pace) -> None:
        self.folder, self.optimum_python, self.pace = folder, optimum_python, pace
        self.known_case: Case | None = None
        self.race: Race | None = None
        self.gemm: dict[tuple[str, int], GemmRate] = {}
        self.bandwidth: dict[int, dict[int, float]] = {}
        self.empty: dict[str, Any] | None = None

    def case(self, name: str) -> Case:
        """The case of that name; the one before it goes, with its files."""
        if self.known_case is None or self.known_case.name != name:
            self.close()
            self.known_case = load_case(name)
            self.expected: dict[bool, torch.Tensor] = {}
        return self.known_case

    def close(self) -> None:
        """Forget the case and remove its files."""
        self.known_case = self.race = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    # --- the machine

    def threads(self, asked: int) -> int:
        """As many as are asked for; 0 is one for each core."""
        return asked or len(os.sched_getaffinity(0))

    def gemm_rate(self, precision: str, threads: int, **shapes: Any) -> GemmRate:
        """The machine's best rate, measured once; ON_CUDA is that of the device."""
        key = (precision, threads)
        if key not in self.gemm:
            self.gemm[key] = measure_gemm(precision, threads, **shapes)
        return self.gemm[key]

    def read_bandwidth(self, threads: int, **sizes: Any) -> dict[int, float]:
        """Bytes a second by array size, measured once; ON_CUDA is that of the device."""
        if threads not in self.bandwidth:
            self.bandwidth[threads] = measure_bandwidth(threads, **sizes)
        return self.bandwidth[threads]

    # --- files

    def file(self, case: Case, contestant: Contestant) -> Path | None:
        """The contestant's file, written when it is first asked for; None for PyTorch. Raises UnavailableError."""
        if not contestant.in_onnx:
            return None
        plain = replace(contestant, label="", io_binding=False, graph=False, name="")
        key = "-".join(str(value) for value in vars(plain).values() if value != "")
        path = self.folder / key / "model.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if contestant.engine == "optimum":
                self._export_by_optimum(case, path)
            elif contestant.engine == "quantize_dynamic":
                self._quantize(case, path)
            else:
                self._export(case, contestant, path)
                self._require_written(case, contestant, path)
        return path

    def _export(self, case: Case, contestant: Contestant, path: Path) -> None:
        options = GraphOptions(
            logits=contestant.logits,
            answer_ids=case.answer_ids if contestant.logits == "answers" else (),
            vocabulary=case.vocabulary if contestant.task else None,
            opening=case.opening if contestant.task else (),
            precision=contestant.precision,
            target=contestant.target,
            scales=contestant.scales,
            external_data=contestant.external_data,
        )
        export_onnx(case.dense if contestant.dense else case.small, path, options)

    def _require_written(self, case: Case, contestant: Contestant, path: Path) -> None:
        """Raise UnavailableError for a circuit's file that the main job would not leave: it has no figures."""
        is_half = contestant.precision in ("fp16", "bf16")
        if contestant.dense or case.test is None or (is_half and not has_provider("cuda")):
            return
        session = open_session(path, provider="cuda" if is_half else "cpu")
        try:
            served = evaluate_file(session, case.small, case.test)
            require_precision(served, GraphOptions(precision=contestant.precision, scales=contestant.scales))
        except ExactnessError as error:
            path.unlink()
            raise UnavailableError(f"the main job refuses this file: {error}") from error

    def _export_by_optimum(self, case: Case, path: Path) -> None:
        if self.optimum_python is None:
            raise UnavailableError("no environment with Optimum; `make bench-optimum` sets one up")
        checkpoint = path.parent / "checkpoint"
        case.hf.save_pretrained(checkpoint)
        command = [str(self.optimum_python), optimum_export.__file__, str(checkpoint), str(path.parent)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        if done.returncode or not path.exists():
            raise UnavailableError(f"Optimum's export failed: {done.stderr.strip().splitlines()[-1:]}")
        shutil.rmtree(checkpoint)

    def _quantize(self, case: Case, path: Path) -> None:
        dense = self.file(case, CONTESTANTS["cpu"]["dense"])
        assert dense is not None
        quantize(dense, path)

    def describe_file(self, case: Case, contestant: Contestant) -> Figures:
        """Bytes, sidecar included, and nodes."""
        path = self.file(case, contestant)
        if path is None:
            return {}
        n_bytes = sum(part.stat().st_size for part in path.parent.iterdir() if part.is_file())
        return {"bytes": n_bytes, "nodes": describe_onnx(path).nodes}

    def measure_footprint(self, case: Case, contestant: Contestant, *, batch: int, provider: Provider) -> Figures:
        """Session creation, first inference and peak memory above an empty ONNX Runtime process's, in a fresh one."""
        path = self.file(case, contestant)
        assert path is not None
        if self.empty is None:
            self.empty = _run_footprint()
        prompts = self.folder / "prompts.npy"
        np.save(prompts, case.prompts[:batch].numpy())
        found = _run_footprint(path, prompts, self.threads(0), PROVIDERS[provider])
        for name in ("peak_bytes_one", "peak_bytes_many"):
            found[f"above_{name}"] = found[name] - self.empty[name]
        return found | {"batch": batch} | self.describe_file(case, contestant)

    # --- answers

    def check(self, case: Case, contestant: Contestant, logits: np.ndarray) -> Figures:
        """Hold a contestant's (batch, ...) logits at the answer position against PyTorch's.

        Raises AssertionError when they differ in fp32. Where precision is lower, "near" says whether they are the same
        but for rounding: int8 loses the answers of some models, and that is a result, not a mistake in the suite.
        """
        expected = self._expect(case, contestant.dense)[: len(logits)].numpy()
        if contestant.logits == "answers":
            expected = expected[:, list(case.answer_ids)]
        assert logits.shape == expected.shape
        difference = np.abs(logits - expected)
        agreement = float((logits.argmax(-1) == expected.argmax(-1)).mean())
        if contestant.exact:
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(expected).max() / 10))
        near = agreement >= AGREEMENT or (difference.mean(-1) <= ERROR * np.ptp(expected, axis=-1)).all()
        return {"max_error": float(difference.max()), "agreement": agreement, "near": bool(near)}

    def _expect(self, case: Case, dense: bool) -> torch.Tensor:
        """Logits of all prompts by the CircuitModel in PyTorch: (prompt, vocab)."""
        if dense not in self.expected:
            model = case.dense if dense else case.small
            torch.set_num_threads(self.threads(0))
            parts = [model.next_token_logits(part) for part in case.prompts.split(32)]
            self.expected[dense] = torch.cat(parts)
        return self.expected[dense]

    # --- time

    def compete(self, comparison: Comparison) -> Race:
        """Let the contestants that are there take turns; the last comparison is remembered."""
        if self.race is not None and self.race.key == comparison.key:
            return self.race
        self.race = None  # its sessions go before the next ones come
        case, threads = self.case(comparison.case), self.threads(comparison.threads)
        race = Race(comparison.key)
        ids = case.prompts[: comparison.batch].numpy()
        for name in comparison.contestants:
            contestant = CONTESTANTS[comparison.provider][name]
            try:
                path = self.file(case, contestant)
                runner = make_runner(contestant, path, case.hf, provider=comparison.provider, threads=threads)
                call = runner.bind(ids)
                self.check(case, contestant, runner.last_logits(call()))
            except (UnavailableError, AssertionError) as error:
                race.absent[name] = error
                continue
            race.runners[name], race.calls[name] = runner, call
        rates = self._gemm_rates(ON_CUDA if comparison.provider == "cuda" else threads)
        products = {f"gemm {precision}": rate.call for precision, rate in rates.items()}
        times, race.others = time_in_blocks(race.calls | products, self.pace)
        race.figures = {name: self._figures(comparison, name, times, rates) for name in race.calls}
        self.race = race
        return race

    def _gemm_rates(self, threads: int) -> dict[str, GemmRate]:
        return {precision: rate for (precision, n), rate in self.gemm.items() if n == threads}

    def _figures(
        self, comparison: Comparison, name: str, times: dict[str, Times], rates: dict[str, GemmRate]
    ) -> Figures:
        """One contestant's percentiles, ratio to the first, and shares of the machine."""
        contestant, own = CONTESTANTS[comparison.provider][name], times[name]
        ratio, low, high = compare(times[comparison.contestants[0]], own)
        work = self.count_work(self.case(comparison.case), contestant, comparison.batch)
        found = own.percentiles() | {
            "prompts_per_s": round(comparison.batch / own.median, 1),
            "speedup": round(ratio, 3),
            "speedup_ci95": [round(low, 3), round(high, 3)],
            "flops": work.flops,
            "needed_bytes": work.bytes,
        }
        if (rate := rates.get(contestant.precision)) is not None:
            # the best product's rate between the contestants, at the machine's pace of that minute, as with all ratios
            gemm = rate.flops / times[f"gemm {contestant.precision}"].median
            cuda = comparison.provider == "cuda"
            bandwidth = self.read_bandwidth(ON_CUDA if cuda else self.threads(comparison.threads))
            found |= shares(work, own.median, gemm, pick_bandwidth(bandwidth, work.bytes))
            found["share_of_best_gemm"] = round(work.flops / own.median / max(gemm, rate.rate), 4)
            found["gemm_gflops_per_s"] = round(gemm / 1e9, 1)
        return found

    def count_work(self, case: Case, contestant: Contestant, batch: int) -> Work:
        """The work that its answers need."""
        return count_work(
            case.dense if contestant.dense else case.small,
            batch,
            case.prompts.shape[1],
            logits=contestant.logits,
            n_answers=len(case.answer_ids) if contestant.logits == "answers" else None,
            opening=len(case.opening) if contestant.task else 0,
            precision=contestant.precision,
        )


def quantize(dense: Path, path: Path) -> None:
    """ONNX Runtime's own dynamic quantisation of a file of ours, products by the unembedding included.

    It turns a Gemm into a MatMul by transposing the weight in place, which spoils a tied embedding: so we do that.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(dense)
    weights = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        transposed = [attribute for attribute in node.attribute if attribute.name == "transB" and attribute.i]
        if node.op_type == "Gemm" and transposed and len(node.input) == 2:
            array = onnx.numpy_helper.to_array(weights[node.input[1]]).T.copy()
            name = f"{node.input[1]}.transposed"
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            node.op_type, node.input[1] = "MatMul", name
            del node.attribute[:]
    del model.graph.value_info[:]
    untied = path.with_suffix(".untied")
    onnx.save(model, untied)
    quantize_dynamic(untied, path, weight_type=QuantType.QInt8, per_channel=True)
    untied.unlink()


def _run_footprint(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, footprint.__file__, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
