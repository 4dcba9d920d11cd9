"""Which runtime computes which form of a file: `python benchmarks/runtimes.py` writes the table of docs/runtimes.md.

Every form of the bundled acronym model is written as a bundle's files are (`runtime_table.cases`), and given to every
runtime that is installed (`runtime_table.readers`). A cell is "yes" where all answers are the circuit's own, as in the
examples that an exported file holds; each "no" has its reason below the table; a runtime that is not installed leaves
its column empty, with what to install.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from main_job import ROOT, write_between
from runtime_table.cases import Case, make_cases
from runtime_table.chromium import run_chromium
from runtime_table.readers import (
    MODULES,
    Given,
    MissingError,
    run_c,
    run_genai,
    run_node,
    run_openvino,
    run_optimum,
    run_python,
)

PAGE = ROOT / "docs" / "runtimes.md"
START, END = "<!-- results of runtimes -->", "<!-- end of runtimes -->"
Column = list[str] | str
"""A runtime's cells: "" for yes, else the reason; or one text, where the runtime is missing."""


def judge(cases: Sequence[Case], given: Sequence[Given]) -> list[str]:
    """For each case "" where every answer is the circuit's, else the reason."""
    reasons = []
    for case, found in zip(cases, given, strict=True):
        if isinstance(found, str):
            reasons.append(" ".join(found.split())[:300])
        elif found != case.places:
            wrong = sum(one != right for one, right in zip(found, case.places, strict=True))
            reasons.append(f"answers otherwise on {wrong} of {len(case.places)} prompts")
        else:
            reasons.append("")
    return reasons


def render_table(names: Sequence[str], columns: dict[str, Column]) -> str:
    """Forms by runtimes, with notes."""
    notes: dict[str, int] = {}
    lines = [f"| form | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for row, name in enumerate(names):
        cells = []
        for column in columns.values():
            reason = column if isinstance(column, str) else column[row]
            if isinstance(column, str):
                cells.append("–")
            else:
                cells.append(f"no ({notes.setdefault(reason, len(notes) + 1)})" if reason else "yes")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. It {reason}" for reason, number in notes.items())]
    lines += [f"- {name} was not here: {column}" for name, column in columns.items() if isinstance(column, str)]
    return "\n".join(lines)


def name_version(package: str) -> str:
    """A package's version, of Python's or npm's; nothing where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        path = MODULES / package / "package.json"
        return str(json.loads(path.read_text(encoding="utf-8"))["version"]) if path.is_file() else ""


def name_versions() -> str:
    """Of everything that is here."""
    packages = ("onnxruntime", "onnxruntime-node", "onnxruntime-web", "onnxruntime-genai", "openvino")
    return ", ".join(f"{name} {version}" for name in packages if (version := name_version(name)))


def main() -> None:
    """Write the cases, ask every runtime, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimum-python", default=str(ROOT / ".venv-optimum" / "bin" / "python"))
    python = parser.parse_args().optimum_python
    runtimes: dict[str, Callable[[Sequence[Case]], list[Given]]] = {
        "Python": run_python,
        "genai": run_genai,
        "OpenVINO": run_openvino,
        "Node": run_node,
        "Chromium": run_chromium,
        "C": run_c,
        "Optimum": lambda cases: run_optimum(cases, python),
    }
    with tempfile.TemporaryDirectory(prefix="export-circuit-") as scratch:
        cases, columns = make_cases(Path(scratch)), dict[str, Column]()
        for name, run in runtimes.items():
            try:
                columns[name] = judge(cases, run(cases))
            except MissingError as error:
                columns[name] = str(error)
            print(name, columns[name], flush=True)
            table = render_table([case.form.name for case in cases], columns)
            write_between(PAGE, START, END, f"{table}\n\nWith {name_versions()}.")  # what is there stays, if one hangs
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
