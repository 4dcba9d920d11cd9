"""The installation's check: what it says here, and what it says of installations that lack something."""

from __future__ import annotations

import sys
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from waits import HANG

from exporter.cli import doctor
from exporter.cli.doctor import Check, diagnose
from exporter.errors import InputError

NAMES = [
    "python", "torch", "transformers", "onnx", "onnxruntime", "providers", "cuda", "hub", "bundled model", "optimum",
]  # fmt: skip


def find(name: str) -> Check:
    checks = {check.name: check for check in diagnose()}
    return checks[name]


def pretend_installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = doctor._installed
    names = {name.replace("_", "-"): found for name, found in versions.items()}
    monkeypatch.setattr(doctor, "_installed", lambda name: names[name] if name in names else real(name))


def test_this_installation_is_sound(capfd: pytest.CaptureFixture[str]) -> None:
    checks = diagnose()
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.status == "missing"] == []
    assert all(check.remedy for check in checks if check.status != "ok")
    assert capfd.readouterr() == ("", "")


def test_the_supported_ranges_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    for extra in ("cpu", "gpu"):
        requirements += [Requirement(line) for line in project["optional-dependencies"][extra]]
    ranges = {requirement.name: requirement.specifier for requirement in requirements}
    ranges["python"] = SpecifierSet(project["requires-python"])
    assert {name: ranges[name] for name in doctor.SUPPORTED} == {
        name: SpecifierSet(text) for name, text in doctor.SUPPORTED.items()
    }
    assert ranges["onnxruntime-gpu"] == ranges["onnxruntime"]


@pytest.mark.parametrize(
    ("installed", "name", "status", "detail", "remedy"),
    [
        ({"torch": "2.13.0+cpu"}, "torch", "ok", "2.13.0+cpu", None),
        ({"torch": "2.12.1"}, "torch", "warn", "2.12.1; ==2.13.* is supported", "pip install --upgrade"),
        ({"transformers": None}, "transformers", "missing", "not installed", "pip install"),
        ({"onnxruntime": None, "onnxruntime_gpu": None}, "onnxruntime", "missing", "not installed", "[cpu]"),
        ({"onnxruntime": "1.31.0", "onnxruntime_gpu": None}, "onnxruntime", "ok", "1.31.0 (onnxruntime)", None),
        (
            {"onnxruntime": None, "onnxruntime_gpu": "1.31.0"},
            "onnxruntime",
            "ok",
            "1.31.0 (onnxruntime-gpu)",
            None,
        ),
        ({"onnxruntime": "1.9.0", "onnxruntime_gpu": None}, "onnxruntime", "warn", "1.9.0", "[cpu]"),
        (
            {"onnxruntime": "1.31.0", "onnxruntime_gpu": "1.31.0"},
            "onnxruntime",
            "warn",
            "both onnxruntime and onnxruntime-gpu",
            "pip uninstall -y onnxruntime onnxruntime-gpu",
        ),
        ({"optimum_onnx": None}, "optimum", "ok", "not installed (optional", "[cpu,optimum]"),
        ({"optimum_onnx": "0.1.0", "transformers": "4.57.6"}, "optimum", "ok", "optimum-onnx 0.1.0", None),
        ({"optimum_onnx": "0.1.0", "transformers": "5.1"}, "optimum", "warn", "not 5.1", "[cpu,optimum]"),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch,
    installed: dict[str, str | None],
    name: str,
    status: str,
    detail: str,
    remedy: str | None,
) -> None:
    pretend_installed(monkeypatch, **installed)
    check = find(name)
    assert check.status == status
    assert detail in check.detail
    assert (check.remedy is None) == (remedy is None)
    assert remedy is None or remedy in str(check.remedy)


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.4")
    check = find("python")
    assert (check.status, check.detail) == ("warn", "3.10.4; >=3.11 is supported")


def test_onnx_runtime_gone_broken_or_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert find("providers").status == "missing"
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    assert "uninstall" in str(find("providers").remedy)
    runtime = SimpleNamespace(InferenceSession=None, get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    pretend_installed(monkeypatch, onnxruntime_gpu="1.31.0")
    check = find("providers")
    assert (check.status, check.detail) == ("warn", "CPU: no CUDA, though onnxruntime-gpu is installed")


def test_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find("cuda").status == "ok"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    pretend_installed(monkeypatch, onnxruntime="1.31.0", onnxruntime_gpu=None)
    assert find("cuda").detail == "A100, but ONNX Runtime is for the CPU only"
    pretend_installed(monkeypatch, onnxruntime=None, onnxruntime_gpu="1.31.0")
    assert find("cuda") == Check("cuda", "ok", "A100")

    def fail() -> bool:
        raise RuntimeError("driver\nbroken")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    assert find("cuda") == Check(
        "cuda", "missing", "driver broken", "pip install --force-reinstall 'export-circuit[cpu]' (or [gpu])"
    )


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "offline mode is on" in find("hub").detail
    monkeypatch.setattr(doctor, "is_offline", lambda: False)
    monkeypatch.setattr(doctor, "hub_answers", lambda *, seconds: seconds == 3.0)
    assert find("hub") == Check("hub", "ok", "answers")
    monkeypatch.setattr(doctor, "hub_answers", lambda *, seconds: False)
    assert "no answer within 3 s" in find("hub").detail


def test_a_hub_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    from exporter.loading.sources import hub

    monkeypatch.setattr(hub, "is_offline", lambda: False)
    goes_on = threading.Event()
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: goes_on.wait(HANG))
    assert not hub.hub_answers(seconds=0.2)  # while it hangs
    goes_on.set()
    assert hub.hub_answers(seconds=HANG)


def test_a_missing_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Path:
        raise InputError("the bundled checkpoint is missing")

    monkeypatch.setattr(doctor, "bundled_path", absent)
    assert find("bundled model").status == "missing"
