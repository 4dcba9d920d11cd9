"""Every option and argument of every command: its type, its help text, and the panel of --help that shows it.

A command names them in its signature and gives the defaults. Those of the main command are the fields of
`ExportOptions` in `cli.export`; those of commands about several circuits are in `study_options`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from exporter.cli.arguments import take_file, take_flag, take_name, take_names, take_path, take_value

TASK_PANEL, CIRCUIT_PANEL, FILE_PANEL, RUNNING_PANEL = "Task and model", "Circuit", "Exported file", "Running"

# Of several commands
AsJson = Annotated[bool, take_flag("--json", "Print JSON.")]
AsJsonOnly = Annotated[bool, take_flag("--json", "Print JSON, and nothing else, on stdout.")]
DenseModel = Annotated[str | None, take_name("Where the dense model is now. Default: where it came from.")]
OwnFile = Annotated[Path, take_file("An ONNX file that export-circuit wrote.")]

# The main command: what people need first
Task = Annotated[
    str | None, take_name("What the model shall do: a name from `export-circuit tasks`, or a .jsonl or .csv file.")
]
Model = Annotated[
    str,
    take_name(
        "A checkpoint folder, a .gguf file, a hub name, 'bundled', 'smollm2', or 'auto': GPT-2 Small, else bundled."
    ),
]
Out = Annotated[Path | None, take_path("The ONNX file to write; its manifest goes beside it.")]
Bundle = Annotated[Path | None, take_path("A folder to write: model, tokenizer, configuration, card and run.py.")]
For = Annotated[
    list[str] | None,
    take_names(
        "--for",
        "What the bundle is for: onnxruntime, optimum, genai, ...; several may be given. Default: what fits of these.",
        panel=FILE_PANEL,
    ),
]
Alpha = Annotated[
    float | None,
    take_value("KL threshold per step, in nats. Default: the task's own.", panel=CIRCUIT_PANEL, metavar="NATS"),
]
MetricName = Annotated[
    Literal[
        "accuracy",
        "agreement",
        "kl",
        "reverse_kl",
        "js",
        "answer_kl",
        "logit_difference",
        "probability_difference",
        "brier",
    ],
    take_value("What the greedy search keeps near dense; alpha is in its unit.", panel=CIRCUIT_PANEL),
]
Preset = Annotated[
    Literal["deploy", "paper"] | None,
    take_value(
        "deploy: as small as the budget allows, by heads and neurons, healed. paper: greedy with alpha, original "
        "weights. Default: deploy, or paper with --alpha.",
    ),
]
MinAccuracy = Annotated[
    str | None,
    take_value(
        "Budget: 99% of the dense model's accuracy, -1pt (a point below it), or 0.95. Default of deploy: -1pt.",
        metavar="SHARE",
    ),
]
CircuitFile = Annotated[
    Path | None, take_path("Export this circuit (JSON, or a manifest) without a search.", panel=CIRCUIT_PANEL)
]
Precision = Annotated[
    Literal["fp32", "int8", "fp16", "bf16"],
    take_value("Numbers of the file: int8 for CPUs, fp16 or bf16 for CUDA; gated on the test set."),
]
Force = Annotated[bool, take_flag("--force", "Overwrite an existing output; take a task that the model fails at.")]
DryRun = Annotated[bool, take_flag("--dry-run", "Check everything, say what would be done, write nothing.")]
ManifestAsJson = Annotated[bool, take_flag("--json", "Print the manifest, and nothing else, on stdout.")]

# The main command: task and model
Revision = Annotated[str | None, take_name("Branch, tag or commit of a hub model.", panel=TASK_PANEL)]
TaskTemplate = Annotated[
    str | None,
    take_value(
        "Of a file: its prompts with a slot for the user's text, 'Review: {text} Verdict:'. Of ioi: 'all' or 'paper'.",
        panel=TASK_PANEL,
    ),
]
Letters = Annotated[
    int | None, take_value("Of the task acronym: how many to predict, 1 or 3.", panel=TASK_PANEL, metavar="N")
]
Seed = Annotated[int, take_value("Seed of the task's sets.", panel=TASK_PANEL, least=0, metavar="N")]
PatchingPrompts = Annotated[
    int | None,
    take_value(
        "Prompts that means are taken on, and healing learns from. Default: 1000 to 3000; of paper 250; all of a file.",
        panel=TASK_PANEL,
        least=1,
        metavar="N",
    ),
]
SelectionPrompts = Annotated[int, take_value("Prompts that the search reads.", panel=TASK_PANEL, least=1, metavar="N")]
TestPrompts = Annotated[
    int, take_value("Held-out prompts for the final figures.", panel=TASK_PANEL, least=1, metavar="N")
]

# The main command: the circuit
MaxParams = Annotated[
    str | None,
    take_value("Budget: 3% of the dense model's parameters, or a number.", panel=CIRCUIT_PANEL, metavar="SHARE"),
]
MaxKl = Annotated[
    float | None, take_value("Budget: KL(dense || circuit) on the selection set.", panel=CIRCUIT_PANEL, metavar="NATS")
]
MaxLatency = Annotated[
    float | None,
    take_value("Budget: milliseconds of a call of the file, measured here.", panel=CIRCUIT_PANEL, metavar="MS"),
]
LatencyBatch = Annotated[
    int, take_value("Of --max-latency-ms: prompts in a call.", panel=CIRCUIT_PANEL, least=1, metavar="N")
]
LatencyThreads = Annotated[
    int | None,
    take_value("Of --max-latency-ms: threads. Default: one for each core.", panel=CIRCUIT_PANEL, least=1, metavar="N"),
]
HealKind = Annotated[
    Literal["none", "refit", "distil"],
    take_value(
        "With a budget, after each cut: train what stays (distil), solve its output projections again (refit), or "
        "keep the original weights (none).",
        panel=CIRCUIT_PANEL,
    ),
]
TeacherKind = Annotated[
    Literal["dense", "labels", "both"],
    take_value("What is learnt: the dense model's answers, the task's right ones, or both.", panel=CIRCUIT_PANEL),
]
AblationKind = Annotated[
    Literal["mean", "zero"] | None,
    take_value("What replaces a removed component. Default: mean.", panel=CIRCUIT_PANEL),
]
Mean = Annotated[
    Literal["position", "global"] | None,
    take_value(
        "Means by position (fixed prompt length), or over all (free length). Default: position.", panel=CIRCUIT_PANEL
    ),
]
Align = Annotated[
    Literal["left", "right"] | None,
    take_value("Count positions from the first token, or the last. Default: left.", panel=CIRCUIT_PANEL),
]
Mlps = Annotated[bool, take_flag("--mlps/--no-mlps", "Search MLPs too, or keep all of them.", panel=CIRCUIT_PANEL)]

# The main command: the exported file
Report = Annotated[
    bool, take_flag("--report", "Write a page for reading beside the manifest: model.html.", panel=FILE_PANEL)
]
WithPast = Annotated[
    bool,
    take_flag("--with-past", "Keep keys and values between calls, for generating token by token.", panel=FILE_PANEL),
]
Logits = Annotated[
    Literal["all", "last", "answers", "classes"],
    take_value(
        "Give logits at all positions, at the last one, or there for the task's answers alone, "
        "as a language model or as a classifier.",
        panel=FILE_PANEL,
    ),
]
Vocab = Annotated[
    Literal["full", "task"],
    take_value(
        "Keep all embeddings, or those of the task's tokens; the file tells of prompts with others.", panel=FILE_PANEL
    ),
]
Int8Scales = Annotated[
    Literal["tensor", "token"] | None,
    take_value(
        "In int8: a scale for the whole batch, or for each token, so that prompts do not meet.", panel=FILE_PANEL
    ),
]
Int8Weights = Annotated[
    Literal["uint8", "int7", "int8"],
    take_value(
        "In int8: how weights are stored; uint8 and int7 are exact everywhere, int8 with VNNI or on ARM.",
        panel=FILE_PANEL,
    ),
]
Target = Annotated[
    Literal["portable", "ort"],
    take_value("Standard operators, or ONNX Runtime's own where they win.", panel=FILE_PANEL),
]
ExternalData = Annotated[
    bool,
    take_flag("--external-data", "Write the weights into a file of their own, to be memory-mapped.", panel=FILE_PANEL),
]

Opset = Annotated[
    Literal["20", "17"],
    take_value("Version of ONNX's operators; 17 for runtimes that know no later one.", panel=FILE_PANEL),
]
Guard = Annotated[
    bool,
    take_flag("--guard", "Have the file say when a prompt is not of its task (output in_scope).", panel=FILE_PANEL),
]

# The main command: running
MemoryLimit = Annotated[
    float | None,
    take_value(
        "GiB that the search may hold beside the model. Default: half of what is free.",
        panel=RUNNING_PANEL,
        metavar="GIB",
    ),
]
Device = Annotated[Literal["cpu", "cuda"], take_value("Where the search runs.", panel=RUNNING_PANEL)]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    take_value("What the search computes in; what is exported is float32.", panel=RUNNING_PANEL),
]
Resume = Annotated[
    bool, take_flag("--resume", "Go on from the journal of a killed job, and keep it on Ctrl-C.", panel=RUNNING_PANEL)
]
EvidenceKind = Annotated[
    Literal["basic", "full"], take_value("full: controls, too: four more searches.", panel=RUNNING_PANEL)
]
Quiet = Annotated[bool, take_flag("--quiet", "Print errors only.", panel=RUNNING_PANEL)]
Debug = Annotated[bool, take_flag("--debug", "Show the traceback of an error.", panel=RUNNING_PANEL)]

# tasks, inspect, verify, report
ExamplesModel = Annotated[str, take_name("The model whose tokenizer reads the examples.")]
ExportedFile = Annotated[Path, take_file("model.onnx or its manifest, model.json.")]
ReportedFile = Annotated[Path, take_file("The model.json that an export wrote.")]
ReportOut = Annotated[Path | None, take_path("The .html file to write. Default: beside the manifest.")]
ForceReport = Annotated[bool, take_flag("--force", "Overwrite a file that is no report.")]
TaskFile = Annotated[Path | None, take_path("Where the task's file is now. Default: where it was.")]

# check-data, make-data
DataFile = Annotated[Path, take_file("A .jsonl or .csv file with prompts and answers.")]
AskedModel = Annotated[
    str, take_name("Whose tokens, and who is asked: a checkpoint folder, a hub name, 'bundled', 'auto'.")
]
FileTemplate = Annotated[str | None, take_value("What the prompts are, with a slot: 'Review: {text} Verdict:'.")]
Template = Annotated[str, take_value('The prompt with slots: "The {noun} lasted from".')]
Fill = Annotated[Path, take_path("A .csv file; its first line names the slots, each row is one prompt.")]
DataOut = Annotated[Path, take_path("The .jsonl file to write.")]
Answer = Annotated[str | None, take_value('The answer with slots: " {year}". Default: the column answer.')]
ForceData = Annotated[bool, take_flag("--force", "Overwrite an existing file.")]

# run
DecodablePath = Annotated[Path, take_file("A bundle folder, or an ONNX file that export-circuit wrote.")]
Prompt = Annotated[str | None, typer.Argument(help="The text to go on from.")]
PromptText = Annotated[
    str | None,
    take_value("A user's text in place of the prompt, such as a review: the task's template is put around it."),
]
MaxNewTokens = Annotated[int, take_value("Tokens to generate, at most.", least=1, metavar="N")]
TextAsJson = Annotated[bool, take_flag("--json", "Print JSON: text, token ids, seconds for each.")]

# bench
MeasuredFile = Annotated[Path, take_file("The ONNX file to measure.")]
Against = Annotated[
    Path | None, take_path("The ONNX file to measure against. Default: the dense model, fp32, all logits.")
]
Batch = Annotated[
    list[int] | None,
    take_value("Prompts in a call; may be repeated. Default: the baseline's, or 1 and 32.", metavar="N"),
]
Length = Annotated[
    int | None, take_value("Take random prompts of so many tokens. Default: the file's own examples.", metavar="N")
]
Threads = Annotated[int | None, take_value("Threads. Default: the baseline's, or one for each core.", metavar="N")]
Provider = Annotated[Literal["cpu", "cuda"], take_value("Where both run.")]
MinSpeedup = Annotated[
    float | None, take_value("Fail unless the file is this many times as fast as the reference.", metavar="TIMES")
]
MaxRegression = Annotated[
    str | None,
    take_value(
        "Fail if it is slower or larger by more than this, 10% or 0.1: than the baseline's model, or without "
        "a baseline slower than the reference. Default with a baseline: 10%.",
        metavar="SHARE",
    ),
]
BaselineFile = Annotated[Path | None, take_path("A baseline (.json) to hold it against.")]
UpdateBaseline = Annotated[
    bool, take_flag("--update-baseline", "Write what is measured to --baseline, over what stands there.")
]
Gate = Annotated[
    Literal["all", "time", "proxies"],
    take_value("What can fail: times, what is counted (nodes, FLOPs, bytes) without timing, or all."),
]
Seconds = Annotated[float, take_value("Measure one batch for no longer than this.", metavar="SECONDS")]
