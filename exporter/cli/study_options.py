"""The options of the commands about several circuits: convert, roc, sweep and compare (see `options`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from exporter.cli.arguments import take_file, take_flag, take_name, take_path, take_value

# convert, roc
AnyCircuit = Annotated[Path, take_file("A circuit (JSON), a manifest, or a graph file of EAP-IG or MIB.")]
Format = Annotated[
    Literal["circuit", "eap-ig", "hooks"],
    take_value("circuit: ours. eap-ig: the graph file of EAP-IG, MIB and circuitkit. hooks: of TransformerLens."),
]
ConvertedOut = Annotated[Path, take_path("The .json file to write.")]
Known = Annotated[str, take_name("A published circuit (ioi, greater-than, acronym), or a file as the first one.")]
Plot = Annotated[Path | None, take_path("Draw the curve into this .png or .svg file.")]

# sweep
SweptTask = Annotated[str, take_name("A name from `export-circuit tasks`, or a .jsonl or .csv file.")]
SweepOut = Annotated[Path | None, take_path("The .json file to write, with .csv, .svg and .png beside it.")]
Alphas = Annotated[
    str | None,
    take_value("Thresholds in nats, with commas. Default: twelve from 0.005 to 0.2.", metavar="NATS"),
]
Budgets = Annotated[
    str | None,
    take_value(
        "Budgets instead, with commas: max-params=10%,max-params=5% (or min-accuracy, max-kl).", metavar="BOUNDS"
    ),
]
SweepSeeds = Annotated[int, take_value("How many seeds, from 0 on.", least=1, metavar="N")]
SweptAblations = Annotated[str, take_value("mean, zero, or mean,zero.", metavar="KINDS")]
SweptMlps = Annotated[
    Literal["searched", "kept", "both"], take_value("Search MLPs too, keep all of them, or each in turn.")
]
SweepHeal = Annotated[
    Literal["none", "refit", "distil"], take_value("Of budgets: how what stays is healed, as in the main command.")
]
Workers = Annotated[
    int | None,
    take_value("Processes of one thread each, with equal results. Default: one for each core.", least=1, metavar="N"),
]
ResumeSweep = Annotated[bool, take_flag("--resume", "Go on from the journal of a killed sweep, and keep it on Ctrl-C.")]
ForceSweep = Annotated[bool, take_flag("--force", "Overwrite existing outputs; take a task that the model fails at.")]
SweepAsJson = Annotated[bool, take_flag("--json", "Print the sweep as JSON, and nothing else, on stdout.")]

# compare
Only = Annotated[str | None, take_value("Contestants to run, with commas. Default: all.", metavar="NAMES")]
ComparedSizes = Annotated[
    str, take_value("Shares of the dense model's parameters to cut to, with commas.", metavar="SHARES")
]
ComparisonOut = Annotated[
    Path | None,
    take_path("The .json file to write, with .csv, .svg and .png beside it; contestants in it are not run again."),
]
ComparedThreads = Annotated[
    int | None, take_value("Threads of ONNX Runtime. Default: one for each core.", least=1, metavar="N")
]
ForceComparison = Annotated[bool, take_flag("--force", "Start over, whatever --out holds.")]
