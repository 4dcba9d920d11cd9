"""`export-circuit run`: what an exported model says after a prompt.

It needs onnxruntime and tokenizers only; a bundle is decoded without torch and transformers in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def run(
    path: Annotated[Path, typer.Argument(help="A bundle folder, or an ONNX file that export-circuit wrote.")],
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate, at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: text, token ids, seconds for each.")] = False,
) -> None:
    """Decode greedily with an exported model, and print what follows the prompt.

    Example: [bold]export-circuit run folder/ "The Chief Executive Officer (C"[/bold]
    """
    from exporter.prompting import open_decoder

    found = open_decoder(path).complete(prompt, max_new_tokens=max_new_tokens)
    typer.echo(json.dumps(found.to_json(), indent=1) if as_json else found.text)
