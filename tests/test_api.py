"""The Python API: what the README says runs as it stands."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
from tiers import THOROUGH

import exporter
from exporter.tasks import SplitSizes

README = Path(__file__).parent.parent / "README.md"


def test_every_public_name_is_there_and_documented() -> None:
    assert set(exporter.__all__) == set(exporter._HOME)
    for name in exporter.__all__:
        assert getattr(exporter, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = exporter.nonsense


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not THOROUGH:
        monkeypatch.setattr(exporter, "load_task", partial(exporter.load_task, sizes=SplitSizes(60, 60, 60)))
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert exporter.Circuit.load("circuit.json") == names["circuit"]
    loaded, ids = exporter.CircuitModel.load("folder"), names["data"].test.input_ids[:2]
    assert (loaded(ids) == names["small"](ids)).all()
