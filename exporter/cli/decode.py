"""`export-circuit run`: what an exported model says after a prompt, or which class it gives one.

It needs onnxruntime and tokenizers only; a bundle is decoded without torch and transformers in memory.
"""

from __future__ import annotations

import json

import typer

from exporter.cli import options as opts
from exporter.errors import UsageError


def run(
    path: opts.DecodablePath,
    prompt: opts.Prompt = None,
    text: opts.PromptText = None,
    max_new_tokens: opts.MaxNewTokens = 20,
    as_json: opts.TextAsJson = False,
) -> None:
    """Decode greedily with an exported model, and print what follows the prompt; of a classifier, its class.

    Example: [bold]export-circuit run folder/ "The Chief Executive Officer (C"[/bold]
    """
    from exporter.cli.screen import make_errors, print_text
    from exporter.runtime.prompting import open_decoder

    if (prompt is None) == (text is None):
        raise UsageError("give a prompt, or --text with what the task's template is put around; one of the two")
    decoder = open_decoder(path)
    prompt = decoder.reader.fill(text or "") if prompt is None else prompt
    if decoder.labels is None:
        completion = decoder.complete(prompt, max_new_tokens=max_new_tokens)
        found, text, warnings = completion.to_json(), completion.text, completion.warnings
    else:
        given = decoder.classify(prompt)
        found, text, warnings = given.to_json(), given.label, given.warnings
    make_errors().say(*(f"export-circuit: warning: {warning}" for warning in warnings))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        print_text(text)
