"""The journal: what was decided survives a kill, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_model, make_prompts

from exporter.circuit import Decision, Head, decision_from_json, decision_to_json
from exporter.errors import ExactnessError, InputError
from exporter.search.find import search_circuit
from exporter.search.journal import Journal, journal_path

KEY = {"model": "abc", "alpha": 0.1, "versions": {"torch": "2"}}
DECISIONS = [Decision(Head(1, i), 0.1 * i, 0.1 * i + 1 / 3, i % 2 == 0) for i in range(4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_path(tmp_path / "m.onnx")


def write_killed(path: Path, decisions: list[Decision] = DECISIONS) -> bytes:
    """The journal of a process that was killed."""
    with pytest.raises(SystemError), Journal(path, KEY, resume=False) as journal:
        for decision in decisions:
            journal.add(decision_to_json(decision))
        raise SystemError
    return path.read_bytes()


def resume(path: Path, key: dict[str, object] = KEY) -> list[Decision]:
    with Journal(path, key, resume=True) as journal:
        return journal.parse(decision_from_json)


def test_a_clean_end_removes_it(path: Path) -> None:
    with Journal(path, KEY, resume=False) as journal:
        journal.add(decision_to_json(DECISIONS[0]))
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ExactnessError("differ")])
def test_ctrl_c_removes_it_but_not_with_resume(path: Path, error: BaseException) -> None:
    for keep in (False, True):
        with pytest.raises(type(error)), Journal(path, KEY, resume=keep) as journal:
            journal.add(decision_to_json(DECISIONS[0]))
            raise error
        assert path.exists() is keep


def test_decisions_survive_to_the_bit(path: Path) -> None:
    write_killed(path)
    assert resume(path) == DECISIONS


def test_without_resume_it_starts_anew(path: Path) -> None:
    write_killed(path)
    with Journal(path, KEY, resume=False) as journal:
        assert journal.entries == []


def test_a_kill_after_any_byte_loses_at_most_the_torn_line(path: Path) -> None:
    whole = write_killed(path)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = max(0, whole[:length].count(b"\n") - 1)
        with pytest.raises(SystemError), Journal(path, KEY, resume=True) as journal:
            assert journal.parse(decision_from_json) == DECISIONS[:complete]
            for decision in DECISIONS[complete:]:
                journal.add(decision_to_json(decision))
            raise SystemError
        assert path.read_bytes() == whole


def test_a_changed_byte_is_refused(path: Path) -> None:
    whole = write_killed(path)
    for place in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="is damaged in line"):
            resume(path)


@pytest.mark.parametrize("change", [{"alpha": 0.2}, {"model": "x"}, {"versions": {"torch": "3"}}, {"seed": 1}])
def test_the_journal_of_another_search_is_refused(path: Path, change: dict[str, object]) -> None:
    whole = write_killed(path)
    with pytest.raises(InputError, match=f"is of another search: its {next(iter(change))} is"):
        resume(path, KEY | change)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(("old", "new"), [({}, {"arithmetic": 2}), ({"arithmetic": 2}, {"arithmetic": 3})])
def test_the_journal_of_another_arithmetic_is_refused_with_its_reason(
    path: Path, old: dict[str, object], new: dict[str, object]
) -> None:
    """Every KL of one search is computed alike; versions before there was a number wrote none."""
    with pytest.raises(SystemError), Journal(path, KEY | old, resume=False) as journal:
        journal.add(decision_to_json(DECISIONS[0]))
        raise SystemError
    with pytest.raises(InputError, match=r"computed KL otherwise.*start over without --resume"):
        resume(path, KEY | new)


@pytest.mark.parametrize("done", [0, 1, 3, 7, 12])
def test_a_search_goes_on_where_it_was(done: int) -> None:
    model = make_model(n_layers=3, n_heads=3)
    sets = make_prompts(20, 5, seed=1), make_prompts(30, 5, seed=2)
    whole = search_circuit(model, *sets, alpha=0.02)
    trace = whole[1].trace
    seen = []
    again = search_circuit(model, *sets, alpha=0.02, prior=trace[:done], on_decision=lambda d, *_: seen.append(d))
    assert again == whole
    assert tuple(seen) == trace
    with pytest.raises(InputError, match=r"go on with a0\.h0 where this one is at a2\.h0"):
        search_circuit(model, *sets, alpha=0.02, prior=[replace(trace[0], component=Head(0, 0))])
    lied = replace(trace[0], removed=not trace[0].removed)
    assert search_circuit(model, *sets, alpha=0.02, prior=[lied]) != whole  # what is prior is not evaluated again
