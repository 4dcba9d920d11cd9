"""How many processors this process may use: the machine's, those it is bound to, or the quota of its container.

ONNX Runtime makes a thread for each processor that it sees, and a container with a quota of two sees all of the
host's: its threads then wait for each other while the kernel holds some back. The quota is in the files of the control
group, in version 2 of the hierarchy (`cpu.max`) or version 1 (`cpu.cfs_quota_us`); it holds for groups below, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def count_processors(root: Path = Path("/")) -> int:
    """Whole processors that this process can keep busy, at least one; `root` is where /proc and /sys are.

    A quota of 2.5 counts as two: a third thread would be held back half of the time, and the others wait for it.
    """
    counts = [float(_count_bound())]
    for folder, version in _find_groups(root):
        quota = _read_quota(folder) if version == 2 else _read_old_quota(folder)
        bound = _read_set(folder / "cpuset.cpus.effective") or _read_set(folder / "cpuset.cpus")
        counts += [count for count in (quota, bound) if count]
    return max(1, int(min(counts)))


def _count_bound() -> int:
    """Processors that the process is bound to, as `taskset` and Docker's --cpuset-cpus do."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return int(os.process_cpu_count() or 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _find_groups(root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of this process's control groups and of those above, each with its hierarchy's version.

    Inside a container the path in /proc is the host's where the group has no namespace of its own: only the mounted
    root, which is the container's group, is there then.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inside = PurePosixPath(path.lstrip("/"))
        if ".." in inside.parts:  # above the namespace: not visible
            inside = PurePosixPath()
        tops = [(mount, 2)] if number == "0" and not controllers else [
            (mount / name, 1) for name in {controllers, *controllers.split(",")} if "cpu" in name
        ]  # fmt: skip
        for top, version in tops:
            for part in (inside, *inside.parents):
                if (top / part).is_dir():
                    yield top / part, version


def _read_quota(folder: Path) -> float | None:
    """Of version 2: `200000 100000` are two processors, `max` is no limit."""
    words = _read(folder / "cpu.max").split()
    return _divide(*words) if len(words) == 2 else None


def _read_old_quota(folder: Path) -> float | None:
    """Of version 1: microseconds in each period; -1 is no limit."""
    return _divide(_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip())


def _divide(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal()) or not int(period):
        return None
    return int(quota) / int(period) or None


def _read_set(path: Path) -> float | None:
    """How many processors a list like `0-3,7` names; None where there is none."""
    count = 0
    for part in filter(None, _read(path).strip().split(",")):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return None
        count += int(last or first) - int(first) + 1
    return count or None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
