"""The manifest and what the ONNX file says of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from manifests import DATA, FIGURES
from tiny import make_model

from exporter.circuit import Circuit, Head
from exporter.errors import InputError
from exporter.graph.export import export_onnx
from exporter.graph.metadata import ModelInfo, Origin, TaskInfo, collect_versions
from exporter.outputs.manifest import Manifest, hash_file


def test_round_trips_and_keeps_fields_of_later_versions() -> None:
    data = DATA | {"of_tomorrow": [1, 2]}
    manifest = Manifest.from_json(json.dumps(data))
    assert manifest.to_dict() == data
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.get_circuit().heads == (Head(0, 1),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "not a manifest of schema 1: schema"),
        ({"size": {}}, "size.dense"),
        ({"test": FIGURES | {"n": "many"}}, "test.n"),
        ({"circuit": {"heads": []}}, "no 'mlps'"),
    ],
)
def test_what_is_no_manifest_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Manifest.from_json(json.dumps(DATA | change))


def test_a_file_is_hashed_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 10)
    found = hash_file(tmp_path / "f")
    assert (found.bytes, found.sha256) == (30, hashlib.sha256(b"abc" * 10).hexdigest())


def test_versions_name_what_decides() -> None:
    assert {"python", "torch", "transformers", "onnx", "onnxruntime"} <= collect_versions().keys()


def test_the_onnx_file_says_what_it_is(tmp_path: Path) -> None:
    origin = Origin(
        task=TaskInfo.model_validate(DATA["task"]),
        model=ModelInfo.model_validate(DATA["model"]),
        circuit=Circuit.from_json(DATA["circuit"]),
    )
    export_onnx(make_model().dense, tmp_path / "m.onnx", metadata=origin.to_metadata())
    assert Origin.read(tmp_path / "m.onnx") == origin
    export_onnx(make_model().dense, tmp_path / "other.onnx")
    with pytest.raises(InputError, match="does not say which circuit it is"):
        Origin.read(tmp_path / "other.onnx")
    damaged = origin.to_metadata() | {"export_circuit.circuit": "{"}
    export_onnx(make_model().dense, tmp_path / "damaged.onnx", metadata=damaged)
    with pytest.raises(InputError, match="is damaged"):
        Origin.read(tmp_path / "damaged.onnx")
