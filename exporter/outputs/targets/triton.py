"""A model repository for Triton Inference Server, and for what else serves one over KServe's v2 protocol.

config.pbtxt is written in full, because Triton would complete it wrongly: it wants a batch dimension of every output
that it finds itself, and has no shape for a guard, which is one value for each prompt. Rules and field names are those
of model_config.proto (triton-inference-server/common) and of the checks in Triton's core and its ONNX Runtime backend.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import Template

import onnx

from exporter.files.onnx_file import read_onnx
from exporter.outputs.answers import name_answers
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.target import BundleTarget, Contents, GraphFile

CONFIG_NAME, LABELS_NAME, GRAPH_NAME = "config.pbtxt", "labels.txt", "1/model.onnx"
MAX_BATCH = 32  # requests that Triton runs as one at most
QUEUE_DELAY = 100  # microseconds that a request waits for others: below what the smallest circuit takes
_TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT64": "INT64", "BOOL": "BOOL"}
_CONFIG = Template("""\
# input_ids: $about
name: "$name"
backend: "onnxruntime"
max_batch_size: $max_batch
dynamic_batching { max_queue_delay_microseconds: $delay }
$instances$values""")
_INSTANCES = Template("""\
instance_group [ { kind: $kind } ]
""")
_VALUE = Template("""\
$direction [ { name: $name data_type: TYPE_$type dims: [ $dims ]$more } ]
""")


def list_graphs(name: str) -> tuple[GraphFile, ...]:
    """The graph where Triton looks for it; in int8 with scales that other requests of a batch do not move."""
    return (GraphFile(f"{name}/{GRAPH_NAME}", scales="token"),)


def write_repository(shape: BundleShape) -> Contents:
    """The texts of the repository, in a folder of the model's name."""
    words = name_answers(shape)
    texts: Contents = {f"{shape.name}/{CONFIG_NAME}": make_config(shape, words)}
    return texts | ({f"{shape.name}/{LABELS_NAME}": "".join(f"{word}\n" for word in words)} if words else {})


def make_config(shape: BundleShape, words: Sequence[str]) -> str:
    """config.pbtxt, for logits that `words` name where there are some.

    Dimensions are without the batch. Outputs without a batch dimension are left out: `answer_token_ids`, a constant
    that labels.txt and the manifest have.
    """
    graph = read_onnx(shape.path).proto.graph
    export = shape.manifest.graphs.get(f"{shape.name}/{GRAPH_NAME}", shape.manifest.export)
    values = [_write_value("input", value) for value in graph.input]
    for value in filter(_has_batch, graph.output):
        values.append(_write_value("output", value, labelled=bool(words) and value.name == "logits"))
    kind = {"int8": "KIND_CPU", "fp16": "KIND_GPU", "bf16": "KIND_GPU"}.get(export.precision)
    return _CONFIG.substitute(
        about=_say_requests(shape),
        name=shape.name,
        max_batch=MAX_BATCH,
        delay=QUEUE_DELAY,
        instances="" if kind is None else _INSTANCES.substitute(kind=kind),
        values="".join(values),
    )


def _say_requests(shape: BundleShape) -> str:
    """What a request has to hold, on one line."""
    length = f"exactly {shape.max_length}" if shape.pinned else f"1 to {shape.max_length}"
    told = f"those of the bundle's tokenizer.json, {length} a prompt"
    if shape.form != "plain":
        return f"{told}, padded on the left where attention_mask is 0."
    return f"{told}; prompts of one length run as one batch."


def _write_value(direction: str, value: onnx.ValueInfoProto, *, labelled: bool = False) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim][1:]
    more = f' label_filename: "{LABELS_NAME}"' if labelled else ""
    if not dims:  # Triton wants at least one dimension: it is taken away again
        dims, more = [1], f"{more} reshape: {{ shape: [ ] }}"
    return _VALUE.substitute(
        direction=direction,
        name=json.dumps(value.name),
        type=_TYPES[onnx.TensorProto.DataType.Name(tensor.elem_type)],
        dims=", ".join(map(str, dims)),
        more=more,
    )


def _has_batch(value: onnx.ValueInfoProto) -> bool:
    """Whether the first dimension is free, as that of prompts is."""
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and not dims[0].HasField("dim_value")


def describe_triton(shape: BundleShape) -> str:
    """How to start the server, and what a request is."""
    name = shape.name
    return (
        f"The folder `{name}` is a model of a repository for Triton Inference Server: `tritonserver "
        f"--model-repository=. --model-control-mode=explicit --load-model={name}`. A request has token ids: "
        f"{_say_requests(shape)}"
    )


TRITON = BundleTarget(write_repository, graphs=list_graphs, describe=describe_triton)
