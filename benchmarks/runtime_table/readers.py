"""The runtimes of the table: each answers the prompts of every case, or says why it does not.

A runtime that is not installed raises MissingError, with what to install. One that cannot take a form gives a reason
instead of answers: that of the bundle's target where there is one, else its own message.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.outputs.targets import TARGETS
from runtime_table.cases import Arrays, Case

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
MODULES = ROOT / "tests" / "js" / "node_modules"
Given = list[int] | str
"""For each prompt the place of the highest logit; or why there is none."""


class MissingError(Exception):
    """The runtime is not installed; says what to install."""


def split_batches(case: Case) -> list[list[list[int]]]:
    """A case's prompts as one batch where they have one length or are padded, else each alone."""
    together = case.shape.form != "plain" or len({len(prompt) for prompt in case.prompts}) == 1
    return [case.prompts] if together else [[prompt] for prompt in case.prompts]


def find_places(logits: np.ndarray[Any, Any]) -> list[int]:
    """Of logits (batch, pos, vocab) or (batch, class): the highest one's place, after each prompt."""
    last = logits[:, -1] if logits.ndim == 3 else logits
    return [int(place) for place in last.argmax(-1)]


def answer_each(cases: Sequence[Case], run: Callable[[Case], list[int]], target: str = "onnxruntime") -> list[Given]:
    """Every case by itself; what is raised, or what the target refuses, is the reason."""
    given: list[Given] = []
    for case in cases:
        try:
            given.append(TARGETS[target].refuse(case.shape) or run(case))
        except MissingError:
            raise
        except Exception as error:  # whatever a runtime raises is what the table says
            given.append(f"fails: {type(error).__name__}: {error}")
    return given


def run_python(cases: Sequence[Case]) -> list[Given]:
    """ONNX Runtime in Python."""
    import onnxruntime

    def run(case: Case) -> list[int]:
        session = onnxruntime.InferenceSession(str(case.graph), providers=["CPUExecutionProvider"])
        found = [session.run(["logits"], case.feed(batch))[0] for batch in split_batches(case)]
        return [place for logits in found for place in find_places(logits)]

    return answer_each(cases, run)


def run_openvino(cases: Sequence[Case]) -> list[Given]:
    """OpenVINO on the CPU."""
    try:
        import openvino
    except ImportError:
        raise MissingError("pip install 'export-circuit[runtimes]'") from None

    def run(case: Case) -> list[int]:
        compiled = openvino.Core().compile_model(str(case.graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = [compiled(case.feed(batch))["logits"] for batch in split_batches(case)]
        return [place for logits in found for place in find_places(np.asarray(logits))]

    return answer_each(cases, run)


def run_genai(cases: Sequence[Case]) -> list[Given]:
    """onnxruntime-genai; it masks nothing, so that prompts are given one by one."""
    try:
        import onnxruntime_genai as genai
    except ImportError:
        raise MissingError("pip install 'export-circuit[genai]'") from None

    def run(case: Case) -> list[int]:
        model, found = genai.Model(str(case.folder)), []
        for prompt in case.prompts:
            parameters = genai.GeneratorParams(model)
            parameters.set_search_options(do_sample=False, max_length=len(prompt) + 1)
            generator = genai.Generator(model, parameters)
            generator.append_tokens(np.array([prompt], np.int32))
            generator.generate_next_token()
            found.append(int(generator.get_sequence(0)[-1]))
        return found

    return answer_each(cases, run, "genai")


def run_c(cases: Sequence[Case]) -> list[Given]:
    """The bundle's own program, compiled here against the Python wheel's library."""
    import onnxruntime

    named = os.environ.get("EXPORT_CIRCUIT_ORT_INCLUDE", "/usr/include/onnxruntime")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if shutil.which("cc") is None or library is None or not (Path(named) / "onnxruntime_c_api.h").is_file():
        raise MissingError("needs cc, and onnxruntime_c_api.h in the folder EXPORT_CIRCUIT_ORT_INCLUDE")

    with tempfile.TemporaryDirectory(prefix="export-circuit-") as scratch:
        (Path(scratch) / "libonnxruntime.so.1").symlink_to(library)
        program = Path(scratch) / "run"
        linked = [str(Path(scratch) / "libonnxruntime.so.1"), f"-Wl,-rpath,{scratch}"]

        def run(case: Case) -> list[int]:
            source = case.folder / "c" / "run.c"
            subprocess.run(["cc", "-std=c11", f"-I{named}", str(source), *linked, "-o", str(program)], check=True)
            found = []
            for prompt in case.prompts:
                command = [str(program), str(case.folder), *map(str, prompt)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip())
                token = int(done.stdout.split("\t")[0])
                known = case.shape.manifest.export.answer_ids
                found.append(known.index(token) if known else token)
            return found

        return answer_each(cases, run, "c")


def run_optimum(cases: Sequence[Case], python: str) -> list[Given]:
    """Optimum, in the environment that it needs."""
    if not Path(python).is_file():
        raise MissingError("make .venv-optimum/.installed")
    reasons = [TARGETS["optimum"].refuse(case.shape) for case in cases]
    calls = [[str(case.folder), _name_kind(case), split_batches(case)] for case in cases]
    asked = [call for call, reason in zip(calls, reasons, strict=True) if reason is None]
    found = iter(_call([python, str(HERE / "their_optimum.py")], asked))
    return [next(found) if reason is None else reason for reason in reasons]


def _name_kind(case: Case) -> str:
    if case.shape.manifest.export.labels:
        return "classes"
    return "past" if case.shape.kv_heads else "anew"


def run_node(cases: Sequence[Case]) -> list[Given]:
    """onnxruntime-node."""
    if (node := shutil.which("node")) is None or not (MODULES / "onnxruntime-node").is_dir():
        raise MissingError("needs Node; make node-modules")
    calls, owners = [], []
    for place, case in enumerate(cases):
        for batch in split_batches(case):
            calls.append([str(case.graph), to_json(case.feed(batch))])
            owners.append(place)
    found = _call([node, str(HERE / "node.mjs"), str(MODULES), str(HERE / "graph.js")], calls)
    return join(found, owners, len(cases))


def join(found: Sequence[Given], owners: Sequence[int], n: int) -> list[Given]:
    """What the calls gave, put together by the case that each is of."""
    given: list[Given] = []
    for place in range(n):
        parts = [one for one, owner in zip(found, owners, strict=True) if owner == place]
        errors = [part for part in parts if isinstance(part, str)]
        places = [number for part in parts if not isinstance(part, str) for number in part]
        given.append(f"fails: {errors[0]}" if errors else places)
    return given


def to_json(feeds: Arrays) -> dict[str, Any]:
    """Arrays as graph.js takes them."""
    return {
        name: {"type": str(array.dtype), "dims": list(array.shape), "data": array.reshape(-1).tolist()}
        for name, array in feeds.items()
    }


def _call(command: list[str], calls: list[Any]) -> list[Given]:
    done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise MissingError(f"{Path(command[0]).name} failed: {done.stderr.strip().splitlines()[-1][:200]}")
    found: list[Given] = json.loads(done.stdout.splitlines()[-1])
    return found
