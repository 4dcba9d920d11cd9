"""A fixed list of jobs, and what each gives: circuit, trace, figures, and the hash of every file.

    python benchmarks/reference_jobs.py before.json            # write it
    python benchmarks/reference_jobs.py after.json --against before.json

A change that is to leave behaviour as it is gives the same on the same machine (hashes depend on how its kernels
round). Times, versions and paths are left out. The jobs run as a user's do, each a process of its own: some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from exporter import Manifest

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "models" / "bundled"
FEW = ("--patching-prompts", "40", "--selection-prompts", "40", "--test-prompts", "60")
FILE_TASK = ROOT / "exporter" / "tasks" / "examples" / "agreement.jsonl"
PAPER = ("--preset", "paper") if find_spec("exporter.search.rules") else ()  # before presets there was no other search
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "starcoder2")
LEFT_OUT = ("seconds", "latency", "versions", "notes")
JOBS: dict[str, tuple[str, ...]] = {
    **{task: ("--task", task) for task in ("acronym", "greater-than", "ioi")},
    "zero": ("--task", "acronym", "--ablation", "zero", *FEW),
    "global": ("--task", "acronym", "--mean", "global", *FEW),
    "right": ("--task", "acronym", "--align", "right", *FEW),
    "no-mlps": ("--task", "acronym", "--no-mlps", *FEW),
    "letters": ("--task", "acronym", "--letters", "3", *FEW),
    "padded": ("--task", FILE_TASK.name, "--patching-prompts", "124", "--alpha", "0.02", "--force"),
    "with-past": ("--task", "acronym", "--with-past", *FEW),
    "past-zero": ("--task", "ioi", "--with-past", "--ablation", "zero", *FEW),
    "answers": ("--task", "greater-than", "--logits", "answers", "--vocab", "task", *FEW),
    "all-logits": ("--task", "ioi", "--logits", "all", *FEW),
    "int8": ("--task", "greater-than", "--precision", "int8", "--target", "ort"),
    "int8-token": ("--task", "acronym", "--precision", "int8", "--int8-scales", "token"),
    "fp16": ("--task", "acronym", "--precision", "fp16", *FEW),
    "external-data": ("--task", "acronym", "--external-data", *FEW),
    "bundle": ("--task", "acronym", "--bundle", "bundle", *FEW),
    **{
        family: ("--task", "acronym", "--model", family, "--alpha", "0.01", "--logits", "all", *FEW)
        for family in FAMILIES
    },
}


def make_model(family: str, folder: Path) -> None:
    """A tiny random checkpoint with the bundled tokenizer."""
    torch.manual_seed(0)
    vocab_size = json.loads((BUNDLED / "config.json").read_text())["vocab_size"]
    common: dict[str, Any] = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        shape = {"n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
    else:
        shape = {"max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        shape |= {"intermediate_size": 48, **({} if family == "gpt_neox" else {"num_key_value_heads": 2})}
        shape |= {"head_dim": 8} if family == "qwen3" else {}
    more = {"sliding_window": None} if family in ("mistral", "starcoder2") else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **shape, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for file in BUNDLED.glob("*token*.json"):
        shutil.copy(file, folder)


def describe(manifest: Path) -> dict[str, Any]:
    """What a job has given; raises FileNotFoundError where it gave nothing."""
    found = json.loads(manifest.read_text())
    Manifest.from_json(manifest.read_text())  # it is read as it was written
    return {key: value for key, value in found.items() if key not in LEFT_OUT}


def run(arguments: tuple[str, ...], folder: Path, *, processes: int = 1) -> dict[str, Any]:
    """One job from the folder that has the models; its manifest."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *start, "-m", "exporter", *arguments, *PAPER, "--quiet", "--force"]
    if "--bundle" not in arguments:
        command += ["--out", "m.onnx"]
    done = subprocess.run(_with_model(command), cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        return {"exit": done.returncode, "stderr": done.stderr.strip().splitlines()[-1:]}
    if "--bundle" in arguments:
        return describe(folder / "bundle" / "model.json")
    return describe(folder / "m.json")


def run_killed(arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The same, killed in its search after a few decisions and resumed."""
    command = _with_model(
        [sys.executable, "-m", "exporter", *arguments, *PAPER, "--out", "m.onnx", "--force", "--quiet"]
    )
    journal = folder / "m.onnx.journal"
    process = subprocess.Popen(command, cwd=folder, env=_environment())
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert journal.exists(), "the search was over before it could be killed"
    return run((*arguments, "--resume"), folder)


def _with_model(command: list[str]) -> list[str]:
    return command if "--model" in command else [*command, "--model", "bundled"]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def compare(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Each place where two results differ, as `job.field: before -> after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from compare(before.get(key, "(none)"), after.get(key, "(none)"), f"{where}.{key}".lstrip("."))
    elif before != after:
        yield f"{where}: {str(before)[:70]} -> {str(after)[:70]}"


def main() -> None:
    """Run the jobs; exit 1 where they give something else than the file to hold them against."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", nargs="*", help="some jobs by name")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(FILE_TASK, folder)
        for family in FAMILIES:
            make_model(family, folder / family)
        for job, arguments in JOBS.items():
            if not options.only or job in options.only:
                results[job] = run(arguments, folder)
                print(job, results[job].get("exit", "ok"), flush=True)
        if not options.only:
            results["two-processes"] = run(JOBS["acronym"], folder, processes=2)
            results["resumed"] = run_killed(JOBS["acronym"], folder)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.against:
        before = json.loads(options.against.read_text())
        lines = list(compare({job: before[job] for job in results}, results))
        print("\n".join(lines) or "equal")
        sys.exit(bool(lines))


if __name__ == "__main__":
    main()
