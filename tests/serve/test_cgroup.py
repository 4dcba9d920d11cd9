"""Threads follow the container's quota, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.serve import cgroup
from exporter.serve.cgroup import count_processors

V1 = "4:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n1:cpuset:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),  # a third thread would be held back
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/pod/box\n", {"pod/cpu.max": "400000 100000", "pod/box/cpu.max": "max 100000"}, 4),  # the group above
        ("0::/pod/box\n", {"cpu.max": "300000 100000"}, 3),  # the host's path, in a container without a namespace
        ("0::/../other\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "800000 100000", "cpuset.cpus.effective": "0-3,7\n"}, 5),
        ("0::/\n", {"cpu.max": "nonsense"}, 64),
        ("0::/\n", {"cpu.max": "100000 0"}, 64),
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1"}, 64),
        (V1, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 3),
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "4", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "2"}, 2),
        (V1, {"cpuset/docker/abc/cpuset.cpus": "2,3\n"}, 2),
    ],
)
def test_the_quota_is_found(
    groups: str, files: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_count_bound", lambda: 64)
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert count_processors(tmp_path) == count


def test_here_it_is_at_least_one() -> None:
    assert count_processors() >= 1
