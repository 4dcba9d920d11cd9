"""index.html: a page that runs the model on typed text, with ONNX Runtime and a tokenizer for browsers.

The runtime is not in the bundle: it is 14 MB, and published. The page takes its files from a folder `vendor` beside it,
or else from where npm's packages are served, and in both cases only the bytes whose hashes it names. Nothing else may
be loaded, and no script run but its own: the policy in its head says so, should a text slip through the escaping.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exporter.escaping import escape_controls
from exporter.graph.guards import GUARDS
from exporter.outputs.report.words import write_bytes, write_share
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.target import GENERATING

HOST = "https://cdn.jsdelivr.net"
RUNTIME_NAME = "ONNX Runtime Web 1.30.0 and @huggingface/tokenizers 0.2.0"
RUNTIME: dict[str, str] = {
    "onnxruntime-web@1.30.0/dist/ort.wasm.bundle.min.mjs": (
        "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"
    ),
    "onnxruntime-web@1.30.0/dist/ort-wasm-simd-threaded.wasm": (
        "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"
    ),
    "@huggingface/tokenizers@0.2.0/dist/tokenizers.min.mjs": (
        "sha384-Tl2lMbeE3RCGFLOUGQ7LhvaagysxiOw/9dulz2sD6jxNa1MckRJQBbYdVHhOoqEs"
    ),
}
"""Files of npm's packages, and their hashes; the page's script takes them in this order."""


def render_page(shape: BundleShape, graph: str) -> str:
    """The page, for one of the bundle's further ONNX files."""
    manifest = shape.manifest
    served = manifest.graphs[graph].served if graph in manifest.graphs else manifest.export.served
    style, script = _read("page.css"), _read("page.js")
    policy = (
        f"default-src 'none'; connect-src 'self' {HOST}; script-src {_hash(script)} blob: 'wasm-unsafe-eval'; "
        f"style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    generates, template = manifest.export.logits in GENERATING, manifest.export.template
    example = shape.example if generates or template is None else template.cut(shape.example)
    return (
        _make_environment()
        .get_template("page.html")
        .render(
            policy=policy,
            title=Path(manifest.task.name).name,
            model=manifest.model.name,
            what=f"The part of {manifest.model.name} that does this task.",
            example=Markup.escape(escape_controls(example, keep="\n\t")),
            label="Prompt" if generates or template is None else "Text",
            heading="Goes on with" if generates else "Class",
            length=_say_length(shape),
            figures=f"On {served.n} held-out prompts this file is right on {write_share(served.accuracy.accuracy)}.",
            files=[PurePosixPath(path).name for path in RUNTIME],
            data=Markup(_quote_json(describe_model(shape, graph))),
            style=Markup(style),
            script=Markup(script),
        )
    )


def describe_model(shape: BundleShape, graph: str) -> dict[str, Any]:
    """What the page's script has to know of the model."""
    weights = [name for name in (f"{graph}_data",) if (shape.path.parent / name).exists()]
    size = sum((shape.path.parent / name).stat().st_size for name in (graph, *weights))
    guards = {name: message for name, message in GUARDS.items() if name in shape.manifest.onnx.outputs}
    export = shape.manifest.export
    template = export.template if export.labels and not shape.framed else None  # else none, or the tokenizer's
    past = {name: dims for name, dims in shape.inputs.items() if name.startswith("past_key_values.")}
    return {
        "graph": graph,
        "weights": weights,
        "size": write_bytes(size),
        "past": [[name, dims[1], dims[3]] for name, dims in past.items()],
        "least": shape.max_length if shape.pinned else 1,
        "longest": shape.max_length,
        "stopIds": shape.stop_ids,
        "labels": export.labels,
        "around": ["", ""] if template is None else [template.prefix, template.suffix],
        "guards": guards,
        "runtimeName": RUNTIME_NAME,
        "runtime": [
            {"name": PurePosixPath(path).name, "url": f"{HOST}/npm/{path}", "integrity": integrity}
            for path, integrity in RUNTIME.items()
        ],
    }


def _say_length(shape: BundleShape) -> str:
    return f"Prompts have {'exactly' if shape.pinned else 'at most'} {shape.max_length} tokens."


def _quote_json(data: object) -> str:
    """JSON that can stand in a script element: nothing in it ends the element, or begins a comment."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _make_environment() -> Environment:
    return Environment(
        loader=PackageLoader("exporter.outputs.targets", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=_write_out,
    )


def _write_out(value: Any) -> Any:
    """A value as the template shows it: of a text, what is not seen is written out."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else escape_controls(value)


def _read(name: str) -> str:
    environment = _make_environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
