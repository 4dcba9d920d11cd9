"""Does the regression test catch a slow-down of 20 %, and nothing else? Many runs, on a quiet and on a busy machine.

GPT-2 Small's shape with random weights, the circuit of two heads and three MLPs, prompts of 11 tokens (see
`test_inference`). An extra MLP is planted in the circuit's graph, wide enough to cost about 20 % of its time; what
it really costs is measured. Then `export-circuit bench` and the fixture `circuit_benchmark` judge the unchanged and
the slower file over and over against one baseline, by times alone (the gate `time`: the proxies would make it
trivial; they are shown apart). Busy is: another process burns a core for 0.1 to 1 s, half of the time.

    python benchmarks/regression_campaign.py --folder /tmp/campaign prepare
    python benchmarks/regression_campaign.py --folder /tmp/campaign run command quiet   # and fixture, and busy

Each piece takes some minutes (--runs 10: half of that) and adds its counts to benchmarks/results/regression.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slow_down import plant_mlp

from exporter.bench.baseline import describe_machine
from exporter.bench.proxies import count_proxies
from exporter.bench.workload import BoundModel, choose_workload
from exporter.evidence.latency import Effort, compare_calls, count_cores

LENGTH, BATCH, SECONDS = 11, 1, 10.0
RESULTS = Path(__file__).parent / "results" / "regression.json"
MODELS = {"unchanged": "circuit.onnx", "slower": "slow.onnx"}
PLUGIN = "exporter.pytest_plugin"

TEST = """
def test_latency(circuit_benchmark):
    circuit_benchmark({model!r}, baseline="baseline.json", max_regression="10%", gate="time",
                      batch={batch}, length={length}, seconds={seconds})
"""

BURN = """
import random, time
rng = random.Random(0)
while True:
    end = time.perf_counter() + rng.uniform(0.1, 1.0)
    while time.perf_counter() < end:
        pass
    time.sleep(rng.uniform(0.1, 1.0))
"""


def build(folder: Path) -> None:
    """Write dense.onnx and circuit.onnx."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from exporter.circuit import Circuit, Head
    from exporter.graph.export import export_onnx
    from exporter.loading.families import FAMILIES
    from exporter.rewrite.surgery import rewrite_model
    from exporter.tasks.dataset import Dataset

    torch.manual_seed(0)
    dense = FAMILIES["gpt2"].build_dense(GPT2LMHeadModel(GPT2Config()).requires_grad_(False))
    prompts = torch.randint(50257, (32, LENGTH), generator=torch.Generator().manual_seed(0))
    circuit = Circuit(heads=(Head(7, 10), Head(9, 1)), mlps=(8, 9, 10))
    export_onnx(dense, folder / "dense.onnx")
    export_onnx(rewrite_model(dense, circuit, Dataset(prompts, prompts[:, 0].contiguous())), folder / "circuit.onnx")


def measure_cost(folder: Path) -> tuple[float, tuple[float, float]]:
    """How much slower slow.onnx is than circuit.onnx, as a share, with its 95 % interval."""
    models = [BoundModel(folder / name, threads=count_cores()) for name in ("slow.onnx", "circuit.onnx")]
    workload = choose_workload(models, length=LENGTH).repeat(BATCH)
    slow, circuit = (model.bind(workload) for model in models)
    found = compare_calls(slow, circuit, Effort(rounds=25, seconds=40, precision=0.01))
    low, high = found.interval()
    return found.ratio - 1, (low - 1, high - 1)


def prepare(folder: Path) -> dict[str, Any]:
    """The three files, the width that costs 20 %, and the baseline."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "circuit.onnx").exists():
        build(folder)
    width = 7680
    for _ in range(4):  # cost grows with the width, by and large
        plant_mlp(folder / "circuit.onnx", folder / "slow.onnx", width)
        cost, interval = measure_cost(folder)
        print(f"width {width} costs {cost:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]")
        if abs(cost - 0.2) < 0.015:
            break
        width = round(width * 0.2 / max(0.1, cost) / 128) * 128
    else:
        raise SystemExit("no width costs 20 %: the machine is too busy to tell; prepare again")
    options = ("--batch", BATCH, "--length", LENGTH, "--update-baseline")
    done = bench(folder, "circuit.onnx", *options, "--seconds", 40)
    assert done.returncode == 0, done.stderr
    shapes = {"input_ids": (BATCH, LENGTH)}
    proxies = {key: asdict(count_proxies(folder / name, shapes)) for key, name in MODELS.items()}
    by_proxies = {key: bench(folder, name, "--gate", "proxies") for key, name in MODELS.items()}
    return {
        "planted": {"width": width, "cost": round(cost, 4), "ci95": [round(end, 4) for end in interval]},
        "baseline": json.loads((folder / "baseline.json").read_text()),
        "proxies": proxies,
        "proxies_alone": {
            key: {"exit_code": done.returncode, "stderr": done.stderr} for key, done in by_proxies.items()
        },
    }


def bench(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """One run of the command against the baseline, with JSON on its standard output."""
    command = [sys.executable, "-m", "exporter", "bench", *map(str, arguments), "--baseline", "baseline.json", "--json"]
    if "--update-baseline" in arguments:
        command += ["--against", "dense.onnx"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def judge_by_command(folder: Path, model: str) -> dict[str, Any]:
    """One verdict of `export-circuit bench`."""
    done = bench(folder, model, "--batch", BATCH, "--length", LENGTH, "--max-regression", "10%", "--gate", "time",
                 "--seconds", SECONDS)  # fmt: skip
    assert done.returncode in (0, 5), done.stderr
    (found,) = json.loads(done.stdout)["batches"]
    return {"flagged": done.returncode == 5, **pick(found)}


def judge_by_fixture(folder: Path, model: str) -> dict[str, Any]:
    """One verdict of pytest with the fixture."""
    test = folder / "test_latency.py"
    test.write_text(TEST.format(model=model, batch=BATCH, length=LENGTH, seconds=SECONDS))
    known = {entry.value for entry in entry_points(group="pytest11")}
    plugin = () if PLUGIN in known else ("-p", PLUGIN)
    command = [sys.executable, "-m", "pytest", *plugin, "-q", "-p", "no:cacheprovider", test.name]
    done = subprocess.run([*command, "--benchmark-json=found.json"], cwd=folder, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0 or "RegressionError" in done.stdout, done.stdout
    (found,) = json.loads((folder / "found.json").read_text())["benchmarks"]
    return {"flagged": done.returncode == 1, **pick(found["extra_info"])}


def pick(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one run."""
    return {
        "speedup": round(found["speedup"], 4),
        "ci95": [round(end, 4) for end in found["ci95"]],
        "bar": round(found["bar"], 4),
        "rounds": found["rounds"],
        "clear": found["place"] != "across",
    }


@contextmanager
def burn(*, busy: bool) -> Iterator[None]:
    """Within the context another process burns a core, half of the time."""
    if not busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", BURN]) as process:
        try:
            yield
        finally:
            process.kill()


def run(folder: Path, way: str, machine: str, n_runs: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """Judge both files in turn, `n_runs` times each; counts of an earlier piece are added to."""
    judge = {"command": judge_by_command, "fixture": judge_by_fixture}[way]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MODELS} if before is None else before["runs"]
    with burn(busy=machine == "busy"):
        for _ in range(n_runs):
            for name, file in MODELS.items():
                start = time.perf_counter()
                verdict = judge(folder, file)
                found[name].append(verdict | {"seconds": round(time.perf_counter() - start, 1)})
    summary = {name: summarize(rows) for name, rows in found.items()}
    print(f"{way}, {machine}: {summary}")
    return {"summary": summary, "runs": found}


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often it was flagged, and how the estimates scatter."""
    low, median, high = np.quantile([row["speedup"] for row in rows], [0, 0.5, 1]).round(3).tolist()
    return {
        "flagged": sum(row["flagged"] for row in rows),
        "of": len(rows),
        "clear": sum(row["clear"] for row in rows),  # the interval decided, not the estimate
        "speedup": {"min": low, "median": median, "max": high},
        "seconds_a_run": round(float(np.median([row["seconds"] for row in rows])), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the models lie between the pieces (1.5 GB)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("prepare")
    running = parts.add_parser("run")
    running.add_argument("way", choices=("command", "fixture"))
    running.add_argument("machine", choices=("quiet", "busy"))
    running.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(RESULTS.parents[2]), os.environ.get("PYTHONPATH"))))
    folder = options.folder.resolve()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.part == "prepare":
        settings = {"batch": BATCH, "length": LENGTH, "seconds": SECONDS, "max_regression": 0.1, "gate": "time"}
        results = {"machine": describe_machine(), "settings": settings, **prepare(folder)}
    else:
        key = f"{options.way}, {options.machine}"
        results[key] = run(folder, options.way, options.machine, options.runs, results.get(key))
    options.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
