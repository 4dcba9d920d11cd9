"""The model card of a bundle: what the model is, how good it is, how to run it, what it must not be taken for.

Every number comes from the manifest, with its interval and the number of prompts behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from exporter.circuit import Circuit
from exporter.escaping import escape_controls, escape_markdown, quote_code, quote_shell
from exporter.evidence.figures import Evaluation
from exporter.evidence.guarded import GuardFigures, describe_guard
from exporter.evidence.sentences import describe_sets
from exporter.graph.int8 import EVERYWHERE
from exporter.metrics.statistics import Accuracy
from exporter.outputs.front_matter import find_licence, render_front_matter
from exporter.outputs.manifest import ExportInfo, Manifest
from exporter.outputs.provenance import describe_failings, describe_making
from exporter.tasks.template import Template as PromptTemplate
from exporter.verify.figures import describe_mates

_CARD = Template("""\
$front
# $task, from $name

The part of $name ($family) that does the task $task_code, as an ONNX model of its own: $components. Everything
else was replaced by $ablation. It is good for prompts such as

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
## How it was made
$making

## Where it fails
$failings

## Run it
    python run.py $quoted

needs onnxruntime, numpy and tokenizers only. $command does the same. $length
$template
$runtimes
## Origin
- Dense model: $name$revision, weights sha256 $sha256
- Licence of the dense model: $licence_text
- Task: $task_code, parameters $task_parameters
- `model.json` is the manifest: the circuit, every figure above, and the sha256 of every file here
- $versions
$notes""")


def render_card(
    manifest: Manifest, *, max_length: int, example: str, runtimes: Sequence[str] = (), framed: bool = False
) -> str:
    """README.md. `runtimes` are paragraphs of Markdown on how to run it, beside run.py.

    framed: whether the bundle's tokenizer puts the task's template around a text.
    """
    # names, prompts and notes come from files: none of them may end a table, a code block or the lines for the hub
    template = manifest.export.template
    quoted = quote_shell(example)
    if template is not None and template.fits(example):
        quoted = f"--text {quote_shell(template.cut(example))}"
    ends_options = "-- " if example.startswith("-") and not quoted.startswith("--text ") else ""
    command = f"export-circuit run . {ends_options}{quoted}"
    circuit, model = manifest.get_circuit(), manifest.model
    pinned = isinstance(manifest.onnx.inputs["input_ids"][1], int)
    means = f"its mean {'at each position' if circuit.ablation.by == 'position' else 'over all positions'}"
    return _CARD.substitute(
        front=render_front_matter(manifest),
        task=escape_markdown(Path(manifest.task.name).name),
        task_code=quote_code(Path(manifest.task.name).name),
        name=escape_markdown(_name_model(model.name)),
        family=escape_markdown(model.family),
        components=_name_components(circuit),
        ablation=f"{means} on prompts of the task" if circuit.ablation.kind == "mean" else "zero",
        making=describe_making(manifest),
        failings=describe_failings(manifest),
        template="" if template is None else _say_template(template, framed=framed),
        example="\n    ".join(escape_controls(line, keep="\t") for line in example.splitlines()),
        quoted=quoted,
        command=quote_code(command),
        length=_say_length(max_length, pinned=pinned),
        export=_say_export(manifest.export, manifest.guard),
        this_file="this ONNX file" if manifest.export.precision == "fp32" else "this ONNX file's graph in fp32",
        runtimes="".join(f"\n{text}\n" for text in runtimes),
        **_fill_figures(manifest),
        **_fill_origin(manifest),
    )


def _fill_figures(manifest: Manifest) -> dict[str, str]:
    """What was measured: answers, sizes, exactness, latency."""
    size, exact = manifest.size, manifest.exactness
    return {
        "figures": "\n".join(
            _row(name, figures) for name, figures in {"held out": manifest.test, **manifest.ood}.items()
        ),
        "sentences": "".join(f"\n{escape_markdown(text)}.\n" for text in describe_sets(manifest.test, manifest.ood)),
        "parameters": f"{size.circuit:,}",
        "dense_parameters": f"{size.dense:,}",
        "reduction": f"{-size.reduction:+.1%}",
        "exact_prompts": str(exact.prompts),
        "exactness": f"{max(exact.hooked_vs_rewritten, exact.rewritten_vs_onnx):.1e}",
        "limit": f"{exact.limit:.1e}",
        "latency": "".join(
            f"\nLatency at batch {timed.batch}, {timed.threads} CPU threads: {timed.circuit * 1e3:.2f} ms; dense, "
            f"exported the same way: {timed.dense * 1e3:.2f} ms ({timed.speedup:.2f} x, 95 % interval "
            f"{timed.speedup_ci95[0]:.2f} to {timed.speedup_ci95[1]:.2f}).\n"
            for timed in manifest.latency
        ),
    }


def _fill_origin(manifest: Manifest) -> dict[str, str]:
    """Where the model comes from, and what it was made with."""
    model, licence = manifest.model, find_licence(manifest.model.name)
    return {
        "licence_text": escape_markdown(licence or "not known to the exporter; see where the model comes from"),
        "revision": "" if model.revision is None else f", revision {quote_code(model.revision)}",
        "sha256": quote_code(model.sha256),
        "task_parameters": quote_code(json.dumps(_hide_folder(manifest.task.parameters))),
        "versions": escape_markdown(", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        "notes": "".join(f"- {escape_markdown(note)}\n" for note in _list_notes(manifest)),
    }


def _name_components(circuit: Circuit) -> str:
    heads, mlps = _count(len(circuit.heads), "attention head"), _count(len(circuit.mlps), "MLP")
    if not circuit.neurons:
        return f"{heads} and {mlps}"
    return f"{heads}, {mlps} and {_count(circuit.n_neurons, 'neuron')} of {_count(len(circuit.neurons), 'other MLP')}"


def _name_model(name: str) -> str:
    """The dense model's name; of a folder or a file without the folders that it is in."""
    return Path(name).name if Path(name).exists() else name


def _hide_folder(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A task's parameters; of a file's path the name alone."""
    return {key: Path(value).name if key == "path" else value for key, value in parameters.items()}


def _list_notes(manifest: Manifest) -> list[str]:
    """The manifest's notes, which name a task's file without its folder here."""
    path = str(manifest.task.parameters.get("path", ""))
    return [note.replace(path, Path(path).name) if path else note for note in manifest.notes]


def _say_template(template: PromptTemplate, *, framed: bool) -> str:
    """What stands around a user's text in every prompt, and who puts it there."""
    around = f"Every prompt is {quote_code(template.prefix)}, a text, and {quote_code(template.suffix)}. "
    if framed:
        return (
            around + "The tokenizer in this folder puts both there itself: give it, and pipelines that use it, the "
            "text alone, for a whole prompt would have them twice."
        )
    return (
        around + "The tokenizer does not put them there: `--text` does, and where another program reads the "
        "tokenizer, give it whole prompts."
    )


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
