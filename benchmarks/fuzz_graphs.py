"""Throw inputs at exported graphs: `python benchmarks/fuzz_graphs.py --draws 10000`.

Files of a tiny random model, of several forms, take batches from empty to three prompts, from no token to more than
the model has positions, ids out of range, masks of every shape and value, and keys and values of wrong lengths. Each
call must end in the network's own answer, in an exception, or with a guard that is false. A prompt's right answer is
the `CircuitModel`'s for its real tokens alone. It all runs in a process of its own, so that a crash is a finding, too.
Prints one JSON line: how many calls were answered, refused and marked by a guard; findings; versions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from exporter.graph.export import export_onnx
from exporter.graph.guards import GUARDS
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.runtime.session import Arrays, import_onnxruntime, open_session

VOCAB, POSITIONS, PINNED = 23, 8, 4
KNOWN = tuple(range(0, VOCAB, 2))
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": POSITIONS, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {
        "max_position_embeddings": POSITIONS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24,
    },
}  # fmt: skip
FORMS: dict[str, GraphOptions] = {
    "plain": GraphOptions(),
    "last": GraphOptions(logits="last"),
    "opening": GraphOptions(logits="last", length=PINNED, vocabulary=KNOWN, opening=KNOWN[:1]),
    "answers": GraphOptions(form="masked", logits="answers", answer_ids=(3, 7), vocabulary=KNOWN),
    "masked": GraphOptions(form="masked"),
    "past": GraphOptions(form="past"),
    "past_last": GraphOptions(form="past", logits="last", vocabulary=KNOWN),
    "int8": GraphOptions(form="masked", logits="last", precision="int8"),
    "int8_token": GraphOptions(form="past", precision="int8", scales="token"),
    "int8_ort": GraphOptions(logits="last", precision="int8", target="ort"),
}
# Of logits' size. By tensor, a prompt's answer depends on the others in the batch, by any number of roundings.
LIMITS = {("fp32", "tensor"): 1e-4, ("int8", "token"): 0.1, ("int8", "tensor"): np.inf}
_WILD = (VOCAB, -1, -VOCAB, -VOCAB - 1, 2**31, 2**32 + 1, 2**63 - 1, -(2**63))
_VALUES = (2, -1, 7, 2**40, -(2**63))


@dataclass
class Call:
    """One call of a file. ids (batch, pos); mask (batch, total); before: the real ids of earlier calls, (batch, past).

    fits: whether all shapes fit one another, so that the call may be answered.
    """

    ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    before: np.ndarray[Any, Any]
    past: Arrays = field(default_factory=dict)
    fits: bool = True


def make_model(family: str) -> CircuitModel:
    """A tiny random model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **SHAPES[family])
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    hf.requires_grad_(False)
    loaded = LanguageModel(name="random", revision=None, sha256="0" * 64, family=family, hf=hf, tokenizer=None)
    return loaded.dense


def draw_ids(rng: np.random.Generator, shape: tuple[int, int], *, options: GraphOptions, wild: bool) -> Any:
    """Token ids; `wild`: some out of range, or outside the file's vocabulary."""
    choices = np.array(options.vocabulary or range(VOCAB), np.int64)
    ids = rng.choice(choices, shape)
    if options.opening and rng.random() < 0.8:
        ids[:, : len(options.opening)] = options.opening[: shape[1]]
    if wild:
        odd = rng.choice(np.array([*_WILD, *range(VOCAB)], np.int64), shape)
        ids = np.where(rng.random(shape) < 0.2, odd, ids)
    return ids


def draw_call(rng: np.random.Generator, session: Any, options: GraphOptions) -> Call:
    """Any call."""
    batch, pos = int(rng.choice([0, 1, 2, 3])), int(rng.choice([0, 1, 1, 2, 3, 4, POSITIONS, POSITIONS + 1, 13]))
    if options.length is not None and rng.random() < 0.8:
        pos = PINNED
    n_past = int(rng.choice([0, 0, 1, 2, 4])) if options.form == "past" else 0
    ids = draw_ids(rng, (batch, pos), options=options, wild=rng.random() < 0.3)
    before = draw_ids(rng, (batch, n_past), options=options, wild=False)
    mask = np.ones((batch, n_past + pos), np.int64)
    if rng.random() < 0.5:  # padding on the left, or anywhere
        first = rng.integers(0, n_past + pos + 1, (batch, 1))
        left = rng.random() < 0.7
        mask[:] = np.arange(n_past + pos) >= first if left else rng.random(mask.shape) < 0.5
    call = Call(ids, mask, before, make_past(session, before, mask[:, :n_past]))
    if rng.random() < 0.3:
        call.mask = np.where(mask == 0, 0, rng.choice(np.array([1, *_VALUES]), mask.shape))
    if options.form != "plain" and rng.random() < 0.3:
        shape = (int(rng.integers(0, 4)), int(rng.integers(0, 14))) if rng.random() < 0.5 else (batch, 1)
        call.fits &= shape == call.mask.shape
        call.mask = call.mask if shape == call.mask.shape else np.ones(shape, np.int64)
    if call.past and rng.random() < 0.3:
        damage_past(rng, call)
    return call


def make_past(session: Any, before: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Arrays:
    """Keys and values of earlier calls, by the file itself; empty for a file without past."""
    inputs = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    past: Arrays = {
        value.name: np.zeros((len(before), value.shape[1], 0, value.shape[3]), np.float32) for value in inputs
    }
    if not inputs or not before.size:
        return {
            name: np.zeros((*old.shape[:2], before.shape[1], old.shape[3]), np.float32) for name, old in past.items()
        }
    names = [name.replace("past_key_values", "present") for name in past]
    found = session.run(names, {"input_ids": before, "attention_mask": mask, **past})
    return dict(zip(past, found, strict=True))


def damage_past(rng: np.random.Generator, call: Call) -> None:
    """Give some keys and values another length, or another number of rows."""
    for name in rng.choice(list(call.past), rng.integers(1, len(call.past) + 1), replace=False):
        old = call.past[name]
        axis = 2 if rng.random() < 0.8 or not old.shape[2] else 0  # an empty past of any number of rows is none
        shape = list(old.shape)
        shape[axis] = int(rng.integers(0, 6))
        call.past[name] = np.zeros(shape, np.float32)
        call.fits &= tuple(shape) == old.shape
        if tuple(shape) == old.shape:
            call.past[name] = old


def answer_alone(session: Any, real: np.ndarray[Any, Any], model: CircuitModel, options: GraphOptions) -> Any:
    """The right logits for one prompt's tokens: (token, vocab or answer). In int8, what the file says to them alone."""
    if options.precision == "fp32":
        logits = model(torch.from_numpy(real[None].copy()))[0].numpy()
        return logits[:, list(options.answer_ids)] if options.answer_ids else logits
    feeds = {"input_ids": real[None], **make_past(session, real[None, :0], real[None, :0])}
    feeds |= {} if options.form == "plain" else {"attention_mask": np.ones_like(real[None])}
    return session.run(["logits"], feeds)[0][0]


def judge(call: Call, outputs: Arrays, session: Any, model: CircuitModel, options: GraphOptions) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    logits = outputs["logits"]
    if not call.fits and logits.size:
        return "shapes that do not fit were answered"
    if not np.isfinite(logits).all() or logits.shape[0] != len(call.ids):
        return f"logits that are not finite, or of shape {logits.shape}"
    guards = np.all([outputs[name] for name in GUARDS if name in outputs] or [np.ones(len(call.ids), bool)], axis=0)
    known, n_past = options.vocabulary or range(VOCAB), call.before.shape[1]
    for row, (ids, mask) in enumerate(zip(np.concatenate([call.before, call.ids], 1), call.mask != 0, strict=True)):
        if options.form == "plain":
            mask = np.ones_like(mask)
        own, real = mask[n_past:], ids[mask]
        bad = not set(real.tolist()) <= set(known) or ids[: len(options.opening)].tolist() != list(options.opening)
        if not guards[row]:
            if not bad:
                return f"a guard is false for a known prompt, row {row}"
            continue
        if bad:
            return f"tokens that the file does not know were answered, row {row}"
        if not own.any():
            continue  # padding alone: any finite answer
        if len(real) > model.max_length:
            return f"{len(real)} tokens were answered by a model of {model.max_length} positions"
        found = logits[row][own] if options.logits == "all" else logits[row][[-1]][own[-1:]]
        if not len(found):
            continue  # the last position is padding
        expected = answer_alone(session, real, model, options)[-len(found) :]
        limit = LIMITS[options.precision, options.scales] * max(1.0, np.abs(expected).max(initial=0))
        if np.abs(found - expected).max(initial=0) > limit:
            return f"the answer is off by {np.abs(found - expected).max():.3g}, row {row}"
    return None


def must_answer(call: Call, model: CircuitModel, options: GraphOptions) -> bool:
    """Whether a call has nothing that a file may refuse."""
    pinned = options.length in (None, call.ids.shape[1])
    ids = call.ids if options.vocabulary is None else np.zeros(1)
    fits = call.fits and pinned and call.ids.shape[1] > 0
    total = call.before.shape[1] + call.ids.shape[1]
    return fits and total <= model.max_length and bool(((ids >= 0) & (ids < VOCAB)).all())


def try_calls(folder: Path, draws: int, seed: int) -> dict[str, Any]:
    """Draw calls, make them, judge what they give. `folder/now` names the draw that a crash is of."""
    models = {family: make_model(family) for family in SHAPES}
    sessions = {}
    for family, model in models.items():
        for form, options in FORMS.items():
            export_onnx(model, folder / f"{family}.{form}.onnx", options)
            sessions[family, form] = open_session(folder / f"{family}.{form}.onnx", threads=1)
    import_onnxruntime().set_default_logger_severity(4)
    counts: Counter[str] = Counter()
    findings: list[str] = []
    for index in range(draws):
        rng = np.random.default_rng((seed, index))
        family, form = list(sessions)[int(rng.integers(len(sessions)))]
        (folder / "now").write_text(f"draw {index} of seed {seed}, {family} {form}", encoding="utf-8")
        session, options, model = sessions[family, form], FORMS[form], models[family]
        call = draw_call(rng, session, options)
        feeds = {"input_ids": call.ids, **call.past}
        feeds |= {} if options.form == "plain" else {"attention_mask": call.mask}
        names = [value.name for value in session.get_outputs() if not value.name.startswith("present")]
        try:
            outputs = dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            wrong = f"refused: {error!s:.120}" if must_answer(call, model, options) else None
            counts["refused"] += 1
        else:
            wrong = judge(call, outputs, session, model, options)
            marked = any(not outputs[name].all() for name in GUARDS if name in outputs)
            counts["marked by a guard" if marked else "answered"] += 1
        if wrong is not None:
            findings.append(f"draw {index}, {family} {form}, ids {call.ids.shape}, mask {call.mask.shape}: {wrong}")
    return {"draws": draws, "seed": seed, **counts, "findings": findings}


def fuzz(draws: int, seed: int) -> dict[str, Any]:
    """`try_calls` in a process of its own; a crash is a finding."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--draws", str(draws), "--seed", str(seed), "--within", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found
        now = Path(folder, "now")
        where = now.read_text(encoding="utf-8") if now.exists() else "the start"
        crash = f"the process ended with {done.returncode} at {where}: {done.stderr[-300:]}"
        return {"draws": draws, "seed": seed, "findings": [crash]}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.within is not None:
        print(json.dumps(try_calls(args.within, args.draws, args.seed)))
        return 0
    found = fuzz(args.draws, args.seed)
    print(json.dumps(found | {"onnxruntime": import_onnxruntime().__version__}))
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
