"""`export-circuit run`: what an exported model says after a prompt.

It needs onnxruntime and tokenizers only; a bundle is decoded without torch and transformers in memory.
"""

from __future__ import annotations

import json

import typer

from exporter.cli import options as opts


def run(
    path: opts.DecodablePath,
    prompt: opts.Prompt,
    max_new_tokens: opts.MaxNewTokens = 20,
    as_json: opts.TextAsJson = False,
) -> None:
    """Decode greedily with an exported model, and print what follows the prompt.

    Example: [bold]export-circuit run folder/ "The Chief Executive Officer (C"[/bold]
    """
    from exporter.cli.screen import make_errors, print_text
    from exporter.runtime.prompting import open_decoder

    completion = open_decoder(path).complete(prompt, max_new_tokens=max_new_tokens)
    make_errors().say(*(f"export-circuit: warning: {warning}" for warning in completion.warnings))
    if as_json:
        typer.echo(json.dumps(completion.to_json(), indent=1))
    else:
        print_text(completion.text)
