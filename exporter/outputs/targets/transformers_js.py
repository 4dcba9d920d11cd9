"""What Transformers.js reads, in Node and in browsers: graphs under its own names, its settings, and a page.

It takes `onnx/model.onnx`, in browsers `onnx/model_quantized.onnx`, and gives every graph an attention mask: a graph
without one is exported with one, so that prompts of several lengths in a batch are answered rightly. A classifier needs
a model type that it knows for classifiers, which are encoders all: it is called what runs as this one does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.files.names import CONFIG, PAGE, TOKENIZER
from exporter.loading.sources.tokenizer_files import SETTINGS
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.optimum import make_config
from exporter.outputs.targets.page import render_page
from exporter.outputs.targets.target import GENERATING, BundleTarget, Contents, GraphFile

FULL, QUANTIZED, HALF = "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx"
_WEIGHTS = "{name}_data"
_GRAPHS = (
    GraphFile(FULL, "fp32", weights=_WEIGHTS, padded=True),
    GraphFile(QUANTIZED, "int8", "token", weights=_WEIGHTS, padded=True, optional=True),
    GraphFile(HALF, "fp16", weights=_WEIGHTS, padded=True, optional=True),
)
CLASSIFIER = "bert"  # the model type of a classifier there: token ids and a mask in, logits of classes out


def write_transformers_js(shape: BundleShape) -> Contents:
    """Its settings in config.json, and index.html."""
    graphs = [graph.name for graph in _GRAPHS if graph.name in shape.manifest.graphs]
    config = make_config(shape)
    if shape.manifest.export.logits not in GENERATING:
        config["export_circuit"]["dense"]["model_type"] = config["model_type"]
        config |= {"model_type": CLASSIFIER, "architectures": ["BertForSequenceClassification"]}
    return {
        CONFIG: config | {"transformers.js_config": make_settings(shape, graphs)},
        PAGE: render_page(shape, QUANTIZED if QUANTIZED in graphs else FULL),
        **_keep_first_token(shape.path.parent),
    }


def make_settings(shape: BundleShape, graphs: list[str]) -> dict[str, Any]:
    """`transformers.js_config`: int8 unless it is left out, on a GPU 16 bits; and which graphs have weights beside."""
    settings: dict[str, Any] = {"dtype": "q8" if QUANTIZED in graphs else "fp32"}
    settings["device_config"] = {"webgpu": {"dtype": "fp16" if HALF in graphs else "fp32"}}
    beside = [name for name in graphs if (shape.path.parent / _WEIGHTS.format(name=name)).exists()]
    settings["use_external_data_format"] = {name.split("/")[-1]: 1 for name in beside} or False
    return settings


def _keep_first_token(folder: Path) -> Contents:
    """The tokenizer's settings, where it begins a text with a token: its text generation leaves that out else."""
    single = (json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))["post_processor"] or {}).get("single")
    if not single or "SpecialToken" not in single[0]:
        return {}
    return {SETTINGS: json.loads((folder / SETTINGS).read_text(encoding="utf-8")) | {"add_bos_token": True}}


def refuse_transformers_js(shape: BundleShape) -> str | None:
    """It picks tokens out of the whole vocabulary, or classes."""
    if shape.manifest.export.logits == "answers":
        return "picks tokens by their place among the logits; give --logits classes, or leave --logits answers out"
    return None


def describe_transformers_js(shape: BundleShape) -> str:
    """Five lines of JavaScript, and the page."""
    generates = shape.manifest.export.logits in GENERATING
    task = "text-generation" if generates else "text-classification"
    once = generates and not shape.kv_heads
    options = f", {{ max_new_tokens: {1 if once else 20} }}" if generates else ""  # else 256, beyond its positions
    more = " Without a past it gives one token, and refuses a second call; for more, export it `--with-past`."
    return (
        "With Transformers.js (npm: @huggingface/transformers):\n\n"
        '    import { env, pipeline } from "@huggingface/transformers";\n'
        '    Object.assign(env, { localModelPath: "..", allowRemoteModels: false }); // the folder above this one\n'
        f'    const run = await pipeline("{task}", "this-folder");\n'
        f"    console.log(await run(prompt{options}));\n\n"
        f"`{PAGE}` runs it in a browser, from any static server (`python -m http.server`).{more if once else ''}"
    )


TRANSFORMERS_JS = BundleTarget(
    write_transformers_js,
    graphs=lambda _: _GRAPHS,
    refuse=refuse_transformers_js,
    describe=describe_transformers_js,
)
