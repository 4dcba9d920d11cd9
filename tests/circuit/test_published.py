"""The published circuits are data that validates, and what they say is what their authors wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exporter.circuit import MLP, Head, load_published
from exporter.circuit.published import read_published
from exporter.errors import InputError
from exporter.tasks import TASKS

GPT2 = [Head(layer, index) for layer in range(12) for index in range(12)] + [MLP(layer) for layer in range(12)]


def test_they_are_as_large_as_their_authors_say() -> None:
    known = load_published()
    sizes = {name: (len(entry.circuit.heads), len(entry.circuit.mlps)) for name, entry in known.items()}
    assert sizes == {"ioi": (26, 0), "greater-than": (10, 8), "acronym": (8, 0)}
    assert set(known) == set(TASKS)
    assert all("arXiv:" in entry.source for entry in known.values())


def test_the_page_lists_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
    for name, entry in load_published().items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        heads, mlps, source = (cell.strip() for cell in row.split("|")[2:5])
        assert set(re.findall(r"\d+\.\d+", heads)) == {f"{head.layer}.{head.index}" for head in entry.circuit.heads}
        assert all(role in heads for role in entry.roles) and heads.startswith(f"{len(entry.circuit.heads)}:")
        assert mlps == ("not studied" if entry.mlps is None else " ".join(map(str, entry.mlps)))
        assert source.split()[-1] in entry.source


def test_of_mlps_only_some_say_anything() -> None:
    judged = {name: len(entry.judge(GPT2)) for name, entry in load_published().items()}
    assert judged == {"ioi": 144, "greater-than": 156, "acronym": 144}


def test_another_models_components_are_refused() -> None:
    with pytest.raises(InputError, match="GPT-2 Small, 12 layers of 12 heads, and this one is of a model with 6 of 8"):
        load_published()["ioi"].judge([Head(5, 7), MLP(3)])


ENTRY: dict[str, Any] = {
    "model": "m",
    "n_layers": 2,
    "n_heads": 2,
    "source": "s",
    "heads": {"r": ["a1.h1"]},
    "mlps": [0],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": {"r": ["a2.h0"]}}, "layers 0..1"),
        ({"heads": {"r": ["a0.h0", "a0.h0"]}}, "twice"),
        ({"heads": {"r": ["m0"]}}, "m0 is no head"),
        ({"heads": ["a0.h0"]}, "'x' lacks a field"),
        ({"mlps": [2]}, "layers 0..1"),
        ({"n_layers": "2"}, "n_layers must be a whole number"),
    ],
)
def test_wrong_entries_are_refused(change: dict[str, Any], message: str) -> None:
    assert read_published("x", ENTRY).mlps == (0,)
    with pytest.raises(InputError, match=message):
        read_published("x", ENTRY | change)


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(InputError, match="'source'"):
        read_published("x", {key: value for key, value in ENTRY.items() if key != "source"})
