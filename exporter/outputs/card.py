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

from exporter.circuit import Circuit
from exporter.escaping import escape_controls, escape_markdown, quote_code, quote_yaml
from exporter.evidence.figures import Evaluation
from exporter.evidence.guarded import GuardFigures, describe_guard
from exporter.evidence.sentences import describe_sets
from exporter.graph.int8 import EVERYWHERE
from exporter.metrics.statistics import Accuracy
from exporter.outputs.manifest import ExportInfo, Manifest
from exporter.verify.figures import describe_mates

_LICENCES = {"bundled": "apache-2.0", "openai-community/gpt2": "mit", "smollm2": "apache-2.0"}
_CARD = Template("""\
---
library_name: onnx
pipeline_tag: $pipeline
tags: [circuit, mechanistic-interpretability, export-circuit]
$front---
# $task, from $name

The part of $name ($family) that does the task $task_code, as an ONNX model of its own: $components. Everything
else was replaced by $ablation$search. Weights: $weights. It is good for prompts such as

    $example

and not a language model for other text.

| prompts | n | accuracy, dense [95 %] | accuracy, this model [95 %] | KL from dense, nats | same top token |
|---|---|---|---|---|---|
$figures
$sentences
Parameters without embeddings: $parameters of $dense_parameters ($reduction). Hooked model, rewritten model and
$this_file give the same logits on $exact_prompts held-out prompts, to $exactness (allowed: $limit).
$export
$latency
## Run it
    python run.py $quoted

needs onnxruntime, numpy and tokenizers only. $command does the same. $length
$runtimes
## Origin
- Dense model: $name$revision, weights sha256 $sha256
- Licence of the dense model: $licence_text
- Task: $task_code, parameters $task_parameters
- `model.json` is the manifest: the circuit, every figure above, and the sha256 of every file here
- $versions
$notes""")


def render_card(manifest: Manifest, *, max_length: int, example: str, runtimes: Sequence[str] = ()) -> str:
    """README.md. `runtimes` are paragraphs of Markdown on how to run it, beside run.py."""
    # names, prompts and notes come from files: none of them may end a table, a code block or the lines for the hub
    quoted = shlex.quote(escape_controls(" ".join(example.splitlines()), keep="\t"))
    circuit, model, size, exact = manifest.get_circuit(), manifest.model, manifest.size, manifest.exactness
    licence, record = find_licence(model.name), manifest.get_record()
    pinned = isinstance(manifest.onnx.inputs["input_ids"][1], int)
    means = f"its mean {'at each position' if circuit.ablation.by == 'position' else 'over all positions'}"
    return _CARD.substitute(
        pipeline="text-classification" if manifest.export.labels else "text-generation",
        front=_front_matter(model.name, licence),
        licence_text=escape_markdown(licence or "not known to the exporter; see where the model comes from"),
        task=escape_markdown(Path(manifest.task.name).name),
        task_code=quote_code(Path(manifest.task.name).name),
        name=escape_markdown(model.name),
        family=escape_markdown(model.family),
        components=_name_components(circuit),
        ablation=f"{means} on prompts of the task" if circuit.ablation.kind == "mean" else "zero",
        search="" if record.order == "given" else f" ({escape_markdown(record.search)})",
        weights=escape_markdown(record.weights),
        example="\n    ".join(escape_controls(line, keep="\t") for line in example.splitlines()),
        quoted=quoted,
        command=quote_code(f"export-circuit run . {quoted}"),
        figures="\n".join(_row(name, figures) for name, figures in {"held out": manifest.test, **manifest.ood}.items()),
        sentences="".join(f"\n{escape_markdown(text)}.\n" for text in describe_sets(manifest.test, manifest.ood)),
        parameters=f"{size.circuit:,}",
        dense_parameters=f"{size.dense:,}",
        reduction=f"{-size.reduction:+.1%}",
        exact_prompts=exact.prompts,
        exactness=f"{max(exact.hooked_vs_rewritten, exact.rewritten_vs_onnx):.1e}",
        limit=f"{exact.limit:.1e}",
        latency="".join(
            f"\nLatency at batch {timed.batch}, {timed.threads} CPU threads: {timed.circuit * 1e3:.2f} ms; dense, "
            f"exported the same way: {timed.dense * 1e3:.2f} ms ({timed.speedup:.2f} x, 95 % interval "
            f"{timed.speedup_ci95[0]:.2f} to {timed.speedup_ci95[1]:.2f}).\n"
            for timed in manifest.latency
        ),
        length=_say_length(max_length, pinned=pinned),
        export=_say_export(manifest.export, manifest.guard),
        this_file="this ONNX file" if manifest.export.precision == "fp32" else "this ONNX file's graph in fp32",
        runtimes="".join(f"\n{text}\n" for text in runtimes),
        revision="" if model.revision is None else f", revision {quote_code(model.revision)}",
        sha256=quote_code(model.sha256),
        task_parameters=quote_code(json.dumps(manifest.task.parameters)),
        versions=escape_markdown(", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        notes="".join(f"- {escape_markdown(note)}\n" for note in manifest.notes),
    )


def _name_components(circuit: Circuit) -> str:
    heads, mlps = _count(len(circuit.heads), "attention head"), _count(len(circuit.mlps), "MLP")
    if not circuit.neurons:
        return f"{heads} and {mlps}"
    return f"{heads}, {mlps} and {_count(circuit.n_neurons, 'neuron')} of {_count(len(circuit.neurons), 'other MLP')}"


def find_licence(name: str) -> str | None:
    """The licence of a dense model as the hub writes it: known by name, or said by the card in its folder."""
    if name in _LICENCES:
        return _LICENCES[name]
    card = Path(name) / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    licence = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
    return licence[1] if licence else None


def _front_matter(name: str, licence: str | None) -> str:
    """The lines that the hub reads of where the model comes from."""
    lines = [] if licence is None else [f"license: {quote_yaml(licence)}"]
    if "/" in name and not Path(name).exists():
        lines.append(f"base_model: {quote_yaml(name)}")
    return "".join(f"{line}\n" for line in lines)


def _say_length(max_length: int, *, pinned: bool) -> str:
    if pinned:
        return f"Prompts have exactly {max_length} tokens, and one token follows."
    return f"Prompt and text together have at most {max_length} tokens."


def _say_export(export: ExportInfo, guard: GuardFigures | None) -> str:
    """What the file leaves out, and how it answers."""
    logits = f"Logits are given {'at every position' if export.logits == 'all' else 'at the last position'}"
    if export.labels:
        logits += f", for {len(export.labels)} classes: {escape_markdown(', '.join(export.labels))}"
    elif export.answer_ids:
        logits += f", for {len(export.answer_ids)} answers, whose tokens are the output `answer_token_ids`"
    parts = [logits + "."]
    if export.vocabulary is not None:
        parts.append(
            f"It knows {export.vocabulary:,} tokens; for a prompt with another one its output `in_vocabulary` is "
            "false, and the logits mean nothing."
        )
    if guard is not None:
        told = escape_markdown(describe_guard(guard))
        parts.append(f"Its output `in_scope` is false for a prompt that is not of its task: {told}.")
    served = export.served
    parts.append(
        f"In {export.precision} the file itself is right on {served.accuracy.accuracy:.1%} of {served.n} held-out "
        f"prompts and answers like the circuit in fp32 on {served.agreement:.1%}."
    )
    if export.in_fp32:
        names = escape_markdown(", ".join(export.in_fp32))
        parts.append(f"Of its parts {names} stayed in fp32: in int8 they lost more than the budget allows.")
    if export.batch_dependent:
        parts.append("A prompt's logits depend slightly on the others in its batch (one scale for all activations).")
    if served.mates is not None:
        parts.append(f"{served.mates.n} held-out prompts, {describe_mates(served.mates)}.")
    if export.processors == EVERYWHERE:
        parts.append("Its int8 sums are exact on every processor that ONNX Runtime is made for.")
    elif export.processors is not None:
        parts.append(
            f"**Its int8 sums are exact on {export.processors}**; elsewhere they saturate, and answers are wrong."
        )
    return " ".join(parts)


def _row(name: str, test: Evaluation) -> str:
    figures = f"{_interval(test.dense)} | {_interval(test.circuit)} | {test.kl:.3f} | {test.agreement:.1%}"
    return f"| {escape_markdown(name)} | {test.n} | {figures} |"


def _interval(measured: Accuracy) -> str:
    low, high = measured.ci95
    return f"{measured.accuracy:.1%} [{low:.1%}, {high:.1%}]"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
