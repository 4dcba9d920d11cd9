"""run.py of a bundle: greedy decoding in 15 lines for the form at hand, without this package.

It is a template that is filled in, so that it shows what a caller of the file has to do and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from exporter.graph_options import Form

_HEAD = """\
# python run.py "a prompt" prints it with the likeliest text after it; needs onnxruntime, numpy and tokenizers.
import pathlib, sys, numpy as np, onnxruntime, tokenizers
folder = pathlib.Path(__file__).resolve().parent
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
model = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
ids = new = tokenizer.encode(sys.argv[1]).ids
"""
_CHECK = 'if not $least <= len(ids) <= $longest: sys.exit(f"the prompt has {len(ids)} tokens, not $allowed")\n'
_PAST = """\
past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in model.get_inputs()[2:]}
for _ in range(min(20, $longest + 1 - len(ids))):
    feeds = {"input_ids": np.array([new]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    logits, *rest = model.run(None, feeds | past)$known
    past, new = dict(zip(past, rest)), [$token]
    ids = ids + new
"""
_ANEW = """\
for _ in range(min(20, $longest + 1 - len(ids))):
    logits, *rest = model.run(None, {$feeds})$known
    new = [$token]
    ids = ids + new
"""
_TAIL = """\
    if new[0] in $stop_ids: break
print(tokenizer.decode(ids))
"""


def render_runner(
    form: Form,
    *,
    longest: int,
    stop_ids: Sequence[int],
    pinned: bool,
    keeps_past: bool = True,
    answers: bool = False,
    vocabulary: bool = False,
) -> str:
    """The script.

    `longest` is how many tokens the model takes, `pinned` whether no fewer; `keeps_past` whether a model with past has
    an attention left to keep one for; `answers` whether its logits are those of some tokens alone, `vocabulary`
    whether it knows some tokens alone.
    """
    token = "int(logits[0, -1].argmax())"
    first = "len(past)" if form == "past" and keeps_past else "0"  # among the outputs after the logits
    feeds = '"input_ids": np.array([ids])'
    if form != "plain":
        feeds += ', "attention_mask": np.ones((1, len(ids)), np.int64)'
    body = _PAST if form == "past" and keeps_past else _ANEW
    return Template(_HEAD + _CHECK + body + _TAIL).substitute(
        longest=longest,
        least=longest if pinned else 1,
        allowed=longest if pinned else f"1 to {longest}",
        feeds=feeds,
        token=f"int(rest[{first}][{token}])" if answers else token,
        known='; rest[-1].all() or sys.exit("this model does not know all tokens of the text")' if vocabulary else "",
        stop_ids=tuple(stop_ids),
    )
