"""Measure every case of benchmarks/results/search.json, each in a process of its own: `make search-results`.

Names as arguments measure these cases alone and leave the others' figures as they are. Each case also says
how much else the machine did meanwhile: a case that was disturbed is worth measuring again.
"""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from main_job import describe_machine

from exporter.tasks import TASKS

CASE = Path(__file__).parent / "search_case.py"
RESULTS = Path(__file__).parent / "results" / "search.json"
CASES = {
    "small-few-100": "--shape small --survivors few --prompts 100 --hooked 12",
    "small-few-250": "--shape small --survivors few --prompts 250",
    "small-all-mlps-100": "--shape small --survivors all-mlps --prompts 100 --hooked 12",
    "medium-few-24": "--shape medium --survivors few --prompts 24 --hooked 6",
    "large-few-24": "--shape large --survivors few --prompts 24 --hooked 4",
    **{task: f"--task {task}" for task in TASKS},
}


def measure(arguments: str) -> dict[str, Any]:
    """One case's figures, and the processor's seconds that went to anything else meanwhile."""
    others = count_others_seconds()
    done = subprocess.run([sys.executable, str(CASE), *arguments.split()], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    others = count_others_seconds() - others
    return {"command": f"python benchmarks/search_case.py {arguments}"} | found | {"others_seconds": round(others, 1)}


def count_others_seconds() -> float:
    """The processor's seconds since it started, all cores together, without those of this process's children."""
    times = psutil.cpu_times()
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(sum(times) - times.idle - times.iowait - own.ru_utime - own.ru_stime)


def main() -> None:
    """Measure the cases that are named, or all, and write the results after each."""
    names = sys.argv[1:] or list(CASES)
    cases = json.loads(RESULTS.read_text(encoding="utf-8"))["cases"] if sys.argv[1:] else {}
    for name in names:
        cases[name] = measure(CASES[name])
        print(name, json.dumps(cases[name]), flush=True)
        results = {
            "date": datetime.date.today().isoformat(),
            "machine": describe_machine() | {"instructions": torch.backends.cpu.get_cpu_capability()},
            "cases": {name: cases[name] for name in CASES if name in cases},
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
