"""The model card of a bundle: what the model is, how good it is, how to run it, what it must not be taken for.

Every number comes from the manifest, with its interval and the number of prompts behind it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from string import Template

from exporter.evaluate import Accuracy, Evaluation
from exporter.graph_options import Form
from exporter.manifest import ExportInfo, Manifest

_LICENCES = {"bundled": "apache-2.0", "openai-community/gpt2": "mit", "smollm2": "apache-2.0"}
_CARD = Template("""\
---
library_name: onnx
pipeline_tag: text-generation
tags: [circuit, mechanistic-interpretability, export-circuit]
$front---
# $task, from $name

The part of $name ($family) that does the task `$task`, as an ONNX model of its own: $components. Everything
else was replaced by $ablation$search. It is good for prompts such as

    $example

and not a language model for other text.

| prompts | n | accuracy, dense [95 %] | accuracy, this model [95 %] | KL from dense, nats | same top token |
|---|---|---|---|---|---|
$figures

Parameters without embeddings: $parameters of $dense_parameters ($reduction). Hooked model, rewritten model and
$this_file give the same logits on $exact_prompts held-out prompts, to $exactness (allowed: $limit).
$export
$latency
## Run it
    python run.py $quoted

needs onnxruntime, numpy and tokenizers only. `export-circuit run . $quoted` does the same. $length
$optimum
$genai
## Origin
- Dense model: $name$revision, weights sha256 `$sha256`
- Licence of the dense model: $licence_text
- Task: `$task`, parameters `$task_parameters`
- `model.json` is the manifest: the circuit, every figure above, and the sha256 of every file here
- $versions
$notes""")


def render_card(manifest: Manifest, form: Form, *, kv_heads: Sequence[int], max_length: int, example: str) -> str:
    """README.md. `kv_heads` has the key/value heads of each attention sublayer whose past is kept."""
    circuit, model, size, exact = manifest.get_circuit(), manifest.model, manifest.size, manifest.exactness
    licence = find_licence(model.name)
    pinned = isinstance(manifest.onnx.inputs["input_ids"][1], int)
    means = f"its mean {'at each position' if circuit.mean == 'position' else 'over all positions'}"
    return _CARD.substitute(
        front=_front_matter(model.name, licence),
        licence_text=licence or "not known to the exporter; see where the model comes from",
        task=Path(manifest.task.name).name,
        name=model.name,
        family=model.family,
        components=f"{_count(len(circuit.heads), 'attention head')} and {_count(len(circuit.mlps), 'MLP')}",
        ablation=f"{means} on prompts of the task" if circuit.ablation == "mean" else "zero",
        search="" if circuit.alpha is None else f", by a greedy search with threshold {circuit.alpha:g} nats",
        example=example.replace("\n", "\n    "),
        quoted=shlex.quote(example.replace("\n", " ")),
        figures="\n".join(_row(name, found) for name, found in {"held out": manifest.test, **manifest.ood}.items()),
        parameters=f"{size.circuit:,}",
        dense_parameters=f"{size.dense:,}",
        reduction=f"{-size.reduction:+.1%}",
        exact_prompts=exact.prompts,
        exactness=f"{max(exact.hooked_vs_rewritten, exact.rewritten_vs_onnx):.1e}",
        limit=f"{exact.limit:.1e}",
        latency="".join(
            f"\nLatency at batch {found.batch}, {found.threads} CPU threads: {found.circuit * 1e3:.2f} ms; dense, "
            f"exported the same way: {found.dense * 1e3:.2f} ms ({found.speedup:.2f} x, 95 % interval "
            f"{found.speedup_ci95[0]:.2f} to {found.speedup_ci95[1]:.2f}).\n"
            for found in manifest.latency
        ),
        length=_say_length(max_length, pinned=pinned),
        export=_say_export(manifest.export),
        this_file="this ONNX file" if manifest.export.precision == "fp32" else "this ONNX file's graph in fp32",
        optimum="" if manifest.export.logits == "answers" else _say_optimum(form, kv_heads, pinned=pinned),
        genai="\nonnxruntime-genai reads this folder (`genai_config.json`).\n"
        if form == "past" and manifest.export.logits != "answers"
        else "",
        revision="" if model.revision is None else f", revision `{model.revision}`",
        sha256=model.sha256,
        task_parameters=json.dumps(manifest.task.parameters),
        versions=", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        notes="".join(f"- {note}\n" for note in manifest.notes),
    )


def find_licence(name: str) -> str | None:
    """The licence of a dense model as the hub writes it: known by name, or said by the card in its folder."""
    if name in _LICENCES:
        return _LICENCES[name]
    card = Path(name) / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def _front_matter(name: str, licence: str | None) -> str:
    """The lines that the hub reads of where the model comes from."""
    lines = [] if licence is None else [f"license: {licence}"]
    if "/" in name and not Path(name).exists():
        lines.append(f"base_model: {name}")
    return "".join(f"{line}\n" for line in lines)


def _say_length(max_length: int, *, pinned: bool) -> str:
    if pinned:
        return f"Prompts have exactly {max_length} tokens, and one token follows."
    return f"Prompt and text together have at most {max_length} tokens."


def _say_export(export: ExportInfo) -> str:
    """What the file leaves out, and how it answers."""
    where = {"all": "at every position", "last": "at the last position", "answers": "at the last position"}
    logits = f"Logits are given {where[export.logits]}"
    if export.logits == "answers":
        logits += f", for {len(export.answer_ids)} answers, whose tokens are the output `answer_token_ids`"
    parts = [logits + "."]
    if export.vocabulary is not None:
        parts.append(
            f"It knows {export.vocabulary:,} tokens; for a prompt with another one its output `in_vocabulary` is "
            "false, and the logits mean nothing."
        )
    served = export.served
    parts.append(
        f"In {export.precision} the file itself is right on {served.accuracy.accuracy:.1%} of {served.n} held-out "
        f"prompts and answers like the circuit in fp32 on {served.agreement:.1%}."
    )
    if export.batch_dependent:
        parts.append("A prompt's logits depend slightly on the others in its batch (one scale for all activations).")
    return " ".join(parts)


def _say_optimum(form: Form, kv_heads: Sequence[int], *, pinned: bool) -> str:
    if len(set(kv_heads)) > 1:
        counts = ", ".join(map(str, kv_heads))
        return (
            f"\nOptimum cannot generate with it: it makes the past of every layer alike, and these have {counts} heads."
        )
    if pinned:
        return "\nOptimum computes logits with it (`use_cache=False`), but cannot generate with a pinned length."
    use_cache = bool(kv_heads)
    return f"\nWith Optimum: `ORTModelForCausalLM.from_pretrained(folder, use_cache={use_cache})`."


def _row(name: str, found: Evaluation) -> str:
    figures = f"{_interval(found.dense)} | {_interval(found.circuit)} | {found.kl:.3f} | {found.agreement:.1%}"
    return f"| {name} | {found.n} | {figures} |"


def _interval(found: Accuracy) -> str:
    low, high = found.ci95
    return f"{found.accuracy:.1%} [{low:.1%}, {high:.1%}]"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
