"""Optimum, in an environment of its own: [folder, kind, batches of prompts] each; places or an error of each.

kind: "classes", or of a language model whether it keeps a past.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSequenceClassification


def answer(folder: str, kind: str, batches: list[list[list[int]]]) -> list[int]:
    """The highest logit's place: of a class, or of the token that generation gives."""
    classes, past = kind == "classes", kind == "past"
    model: Any
    if classes:
        model = ORTModelForSequenceClassification.from_pretrained(folder)
    else:
        model = ORTModelForCausalLM.from_pretrained(folder, use_cache=past)
    found: list[int] = []
    for prompts in batches:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        if classes:
            found += model(input_ids=ids, attention_mask=mask).logits.argmax(-1).tolist()
        else:
            found += model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)[:, -1].tolist()
    return found


def main() -> None:
    """Answer every call; the last line of what is printed is JSON."""
    found: list[object] = []
    for folder, kind, batches in json.load(sys.stdin):
        try:
            found.append(answer(folder, kind, batches))
        except Exception as error:  # whatever a runtime raises is what the table says
            found.append(f"fails: {type(error).__name__}: {error}")
    print("\n" + json.dumps(found))


main()
