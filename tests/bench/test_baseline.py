"""The baseline file: what is written is read, what is foreign is refused, nothing is overwritten by accident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.bench.baseline import Baseline, compare_proxies, describe_machine, read_replaceable
from exporter.bench.proxies import Proxies
from exporter.errors import InputError

SIZE = {"nodes": 50, "parameters": 1000, "weight_bytes": 4000, "file_bytes": 5000}
RECORD = {"batch": 1, "pos": 11, "speedup": 2.5, "ci95": [2.4, 2.6], "flops": 10_000, "reference_flops": 30_000}
DATA: dict[str, Any] = {
    "schema": 1,
    "provider": "cpu",
    "threads": 1,
    "circuit": SIZE,
    "reference": SIZE | {"parameters": 3000},
    "batches": [RECORD],
    "information": {},
    "graph": "",
}


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps(DATA | changes))
    return path


def proxies(**changes: int | None) -> Proxies:
    return Proxies(**(SIZE | {"flops": 10_000} | changes))  # type: ignore[arg-type]


def test_it_round_trips_with_a_line_for_each_number(tmp_path: Path) -> None:
    made = Baseline.model_validate(DATA)
    made.save(tmp_path / "b.json")
    assert Baseline.load(tmp_path / "b.json") == made
    lines = (tmp_path / "b.json").read_text().splitlines()
    assert '  "nodes": 50,' in lines and '   "speedup": 2.5,' in lines
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "has schema 2, this version reads 1; upgrade export-circuit"),
        ({"schema": "one"}, "is no latency baseline: schema"),
        ({"circuit": SIZE | {"nodes": "many"}}, "is no latency baseline: circuit.nodes"),
        ({"batches": [RECORD | {"speedup": -1}]}, r"batches\.0\.speedup"),
        ({"batches": [RECORD | {"spedup": 1}]}, r"batches\.0\.spedup"),
        ({"provider": "tpu"}, "provider"),
        ({"batches": []}, "batches"),
        ({"batches": [RECORD | {"batch": 10**9}]}, r"batches\.0\.batch"),
        ({"batches": [RECORD | {"flops": -5}]}, r"batches\.0\.flops"),
        ({"batches": [RECORD | {"ci95": [1, float("nan")]}]}, r"batches\.0\.ci95"),
    ],
)
def test_what_is_no_baseline_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Baseline.load(write(tmp_path / "b.json", **change))


def test_what_is_not_there_or_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no baseline .*; write a new one with --update-baseline"):
        Baseline.load(tmp_path / "b.json")
    for text in (b"{", b"\xff\xfe", b"[]", b"[" * 200_000):
        (tmp_path / "b.json").write_bytes(text)
        with pytest.raises(InputError, match=r"is not JSON|is no latency baseline"):
            Baseline.load(tmp_path / "b.json")
    with pytest.raises(InputError, match="is a folder; give a regular file"):
        Baseline.load(tmp_path)


def test_only_a_baseline_is_replaced(tmp_path: Path) -> None:
    assert read_replaceable(tmp_path / "new.json") is None
    for name, text in (("package.json", '{"name": "mine"}'), ("newer.json", '{"schema": 2}'), ("text.json", "text")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="it is not overwritten: move it away"):
            Baseline.model_validate(DATA).save(tmp_path / name)
        assert (tmp_path / name).read_text() == text
    for path in (tmp_path / "b.txt", tmp_path / "no" / "b.json"):
        with pytest.raises(InputError, match="cannot write a baseline to"):
            read_replaceable(path)


def test_other_batches_of_the_same_graphs_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "b.json")
    other = RECORD | {"batch": 32, "speedup": 9.0}
    Baseline.model_validate(DATA | {"batches": [other]}).save(path)
    assert [(r.batch, r.speedup) for r in Baseline.load(path).batches] == [(1, 2.5), (32, 9.0)]
    Baseline.model_validate(DATA | {"batches": [RECORD | {"speedup": 3.0}]}).save(path)
    assert [(r.batch, r.speedup) for r in Baseline.load(path).batches] == [(1, 3.0), (32, 9.0)]
    Baseline.model_validate(DATA | {"batches": [other], "circuit": SIZE | {"nodes": 49}}).save(path)
    assert [r.batch for r in Baseline.load(path).batches] == [32]


def test_a_batch_that_is_not_there_is_said() -> None:
    with pytest.raises(InputError, match="has no batch of 8 x 11 tokens, only 1 x 11 tokens"):
        Baseline.model_validate(DATA).find_batch(8, 11)


def test_changes_of_proxies() -> None:
    baseline = Baseline.model_validate(DATA)
    (record,) = baseline.batches
    assert list(compare_proxies(baseline, record, proxies())) == []
    (change,) = compare_proxies(baseline, record, proxies(flops=12_000))
    assert (change.text, change.growth) == ("12,000 FLOPs, 10,000 in the baseline (+20.0%)", pytest.approx(0.2))
    (change,) = compare_proxies(baseline, record, proxies(nodes=40))
    assert change.growth == pytest.approx(-0.2)
    (change,) = compare_proxies(baseline, record, proxies(flops=None))
    assert change.growth == float("inf") and "cannot be counted any more" in change.text


def test_the_machine_is_described() -> None:
    found = describe_machine()
    assert found["cores"] >= 1 and found["versions"]["python"] and found["processor"]
