"""run.py of a bundle: greedy decoding, or the class of a text, in 15 lines for the form at hand, without this package.

It is a template that is filled in, so that it shows what a caller of the file has to do and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from exporter.files.names import GENERATION, RUNNER
from exporter.graph.guards import GUARDS, TEXT_GUARDS
from exporter.graph.options import Form
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.optimum import make_generation_config
from exporter.outputs.targets.target import BundleTarget, Contents
from exporter.tasks.template import Template as PromptTemplate

_HEAD = """\
# python run.py "a prompt" prints $what; needs onnxruntime, numpy and tokenizers.
${usage}import pathlib, sys, numpy as np, onnxruntime, tokenizers
folder = pathlib.Path(__file__).absolute().parent
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
model = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
${reading}ids = new = tokenizer.encode($text).ids
"""
_USAGE = '# python run.py --text "a text" puts the template of the task\'s prompts around it first.\n'
_FILLED = "text = $prefix + sys.argv[2] + $suffix if sys.argv[1] == '--text' else sys.argv[1]\n"
_FRAMED = """\
text, prefix, suffix = sys.argv[-1], $prefix, $suffix  # the tokenizer puts these around a text: never twice
if text.startswith(prefix) and text.endswith(suffix): text = text[len(prefix) : len(text) - len(suffix)]
"""
_CHECK = 'if not $least <= len(ids) <= $longest: sys.exit(f"the prompt has {len(ids)} tokens, not $allowed")\n'
_PAST = """\
past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in model.get_inputs() if "past" in i.name}
for _ in range(min(20, $longest + 1 - len(ids))):
    feeds = {"input_ids": np.array([new]), "attention_mask": np.ones((1, len(ids)), np.int64)$positions}
    out = dict(zip((o.name for o in model.get_outputs()), model.run(None, feeds | past)))
${guarded}    past, new = {name: out[name.replace("past_key_values", "present")] for name in past}, [$token]
    ids = ids + new
"""
_ANEW = """\
for _ in range(min(20, $longest + 1 - len(ids))):
    out = dict(zip((o.name for o in model.get_outputs()), model.run(None, {$feeds})))
${guarded}    new = [$token]
    ids = ids + new
"""
_CLASS = """\
out = dict(zip((o.name for o in model.get_outputs()), model.run(None, {$feeds})))
${guarded}print($labels[int(out["logits"][0].argmax())])
"""
_TAIL = """\
    if new[0] in $stop_ids: break
print(tokenizer.decode(ids))
"""


def write_runner(shape: BundleShape) -> Contents:
    """The script, for the graph's own outputs; and what `export-circuit run` reads the stop tokens from."""
    outputs = shape.manifest.onnx.outputs
    script = render_runner(
        shape.form,
        longest=shape.max_length,
        stop_ids=shape.stop_ids,
        pinned=shape.pinned,
        keeps_past=bool(shape.kv_heads),
        positions="position_ids" in shape.inputs,
        answers="answer_token_ids" in outputs,
        guards=[name for name in GUARDS if name in outputs],
        labels=shape.manifest.export.labels,
        template=shape.manifest.export.template,
        framed=shape.framed,
    )
    return {RUNNER: script, GENERATION: make_generation_config(shape)}


def render_runner(
    form: Form,
    *,
    longest: int,
    stop_ids: Sequence[int],
    pinned: bool,
    keeps_past: bool = True,
    positions: bool = False,
    answers: bool = False,
    guards: Sequence[str] = (),
    labels: Sequence[str] = (),
    template: PromptTemplate | None = None,
    framed: bool = False,
) -> str:
    """The script.

    `longest` is how many tokens the model takes at most, `pinned` whether always so many; `keeps_past` whether a model
    with past has an attention left to keep one for, and `positions` whether it asks for position_ids; `answers` whether
    its logits are those of some tokens alone; `guards` are outputs that are false for a prompt that it was not made
    for; `labels` are a classifier's classes; `template` is the text around a user's in each prompt, which the tokenizer
    adds where it is `framed`.
    """
    token = 'int(out["logits"][0, -1].argmax())'
    feeds = '"input_ids": np.array([ids])'
    if form != "plain":
        feeds += ', "attention_mask": np.ones((1, len(ids)), np.int64)'
    body = _CLASS if labels else (_PAST if form == "past" and keeps_past else _ANEW) + _TAIL
    reading = (
        ""
        if template is None
        else Template(_FRAMED if framed else _FILLED).substitute(
            prefix=repr(template.prefix), suffix=repr(template.suffix)
        )
    )
    return Template(_HEAD + _CHECK + body).substitute(
        usage="" if template is None else _USAGE,
        reading=reading,
        text="sys.argv[1]" if template is None else "text",
        what="its class" if labels else "it with the likeliest text after it",
        labels=list(labels),
        longest=longest,
        least=longest if pinned else 1,
        allowed=longest if pinned else f"1 to {longest}",
        feeds=feeds,
        positions=', "position_ids": np.arange(len(ids))[None, -len(new):]' if positions else "",
        token=f'int(out["answer_token_ids"][{token}])' if answers else token,
        guarded="".join(_check_guard(name, generates=not labels) for name in guards),
        stop_ids=tuple(stop_ids),
    )


def _check_guard(name: str, *, generates: bool) -> str:
    """The statement for a guard that is false: nothing is said of such a prompt; what was generated before is.

    A guard of prompts is asked at the first call alone.
    """
    refusal = f'sys.exit("{GUARDS[name]}")'
    if not generates:
        return f'if not out["{name}"].all(): {refusal}\n'
    if name not in TEXT_GUARDS:
        return f'    if new is ids and not out["{name}"].all(): {refusal}\n'
    ended = f'print("it ends here: {GUARDS[name]}", file=sys.stderr); break'
    return f'    if not out["{name}"].all(): new is ids and {refusal}; {ended}\n'


def describe_onnxruntime(shape: BundleShape) -> str:
    """Five lines of Python; of a model with past run.py is as short as it gets."""
    export = shape.manifest.export
    if shape.form == "past":
        return ""
    mask = "" if shape.form == "plain" else ', "attention_mask": np.ones_like(ids)'
    outputs, names = (
        ("logits, answers", '"logits", "answer_token_ids"') if export.logits == "answers" else ("(logits,)", '"logits"')
    )
    place = "logits[0, -1].argmax()"
    if export.labels:
        said = 'json.load(open("config.json"))["id2label"][str(logits[0].argmax())]'
    else:
        said = f"tokenizer.decode([int({f'answers[{place}]' if export.logits == 'answers' else place})])"
    return (
        "With ONNX Runtime in Python, in this folder:\n\n"
        "    import json, numpy as np, onnxruntime, tokenizers\n"
        '    tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")\n'
        "    ids = np.array([tokenizer.encode(text).ids])\n"
        f'    {outputs} = onnxruntime.InferenceSession("model.onnx").run([{names}], {{"input_ids": ids{mask}}})\n'
        f"    print({said})\n"
    )


ONNXRUNTIME = BundleTarget(write_runner, describe=describe_onnxruntime)
