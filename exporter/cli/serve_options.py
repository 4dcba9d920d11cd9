"""The options of `export-circuit serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from exporter.cli.arguments import take_file, take_flag, take_name, take_value

LIMITS_PANEL = "Limits"
_MOST_PORT = 65535

ServedFolder = Annotated[Path, take_file("A bundle folder, which export-circuit --bundle wrote.")]
Host = Annotated[str, take_name("The address to listen on; 0.0.0.0 for every network.")]
Port = Annotated[int, typer.Option(help="The port; 0 for a free one.", min=0, max=_MOST_PORT, metavar="N")]
FallbackKind = Annotated[
    Literal["none", "dense"],
    take_value("What answers a prompt that the circuit is not made for: an error, or the dense model, marked."),
]
FallbackModel = Annotated[str | None, take_name("Where the dense model is now. Default: where it came from.")]
MaxBatch = Annotated[
    int, take_value("Prompts in one call of the runtime; 1 batches nothing.", panel=LIMITS_PANEL, least=1, metavar="N")
]
MaxWait = Annotated[
    float,
    take_value("How long a call waits for clients that were just answered.", panel=LIMITS_PANEL, least=0, metavar="MS"),
]
MaxQueue = Annotated[
    int,
    take_value("Prompts that may wait; a request beyond is refused (503).", panel=LIMITS_PANEL, least=1, metavar="N"),
]
MaxPrompts = Annotated[int, take_value("Prompts of one request.", panel=LIMITS_PANEL, least=1, metavar="N")]
Timeout = Annotated[float, take_value("From a request to its answer (504).", panel=LIMITS_PANEL, metavar="SECONDS")]
ServingThreads = Annotated[
    int | None,
    take_value("Threads of ONNX Runtime. Default: the container's quota.", panel=LIMITS_PANEL, least=1, metavar="N"),
]
LogRequests = Annotated[bool, take_flag("--log-requests", "A line in the log for each request; never its prompts.")]
