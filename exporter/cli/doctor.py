"""Check the installation: what is there, what is missing, and the command that mends it.

Versions are read from the installed packages' metadata, so that a package too broken to import is still
reported. Only torch and ONNX Runtime are imported, to ask them for devices and providers.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from packaging.specifiers import SpecifierSet

from exporter.errors import InputError, MissingRuntimeError
from exporter.loading.load import bundled_path
from exporter.loading.sources.hub import GPT2_SMALL, hub_answers, is_offline
from exporter.runtime.session import import_onnxruntime

Status = Literal["ok", "warn", "missing"]

# The ranges of pyproject.toml; a test compares the two.
SUPPORTED = {
    "python": ">=3.11",
    "torch": "==2.13.*",
    "transformers": ">=4.57.6,<5.24",
    "onnx": ">=1.22,<1.24",
    "onnxruntime": ">=1.30,<1.32",
}
_HUB_SECONDS = 3.0
_CPU, _GPU = "onnxruntime", "onnxruntime-gpu"
_REINSTALL_RUNTIME = f"pip uninstall -y {_CPU} {_GPU} && pip install 'export-circuit[gpu]' (or [cpu])"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `remedy` is what mends it, where there is something to mend."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None


def diagnose() -> list[Check]:
    """Look at everything the package stands on; takes a few seconds at most."""
    libraries = [_check_version(name, _installed(name)) for name in ("torch", "transformers", "onnx")]
    return [
        _check_version("python", platform.python_version()),
        *libraries,
        _check_runtime(),
        _guard("providers", _check_providers),
        _guard("cuda", _check_cuda),
        _check_hub(),
        _check_bundled(),
        _check_optimum(),
    ]


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _check_version(name: str, installed: str | None, *, install: str = "pip install --upgrade export-circuit") -> Check:
    wanted = SUPPORTED[name]
    if name == "python":
        install = f"make an environment with Python {wanted} and install export-circuit there"
    if installed is None:
        return Check(name, "missing", f"not installed; {wanted} is supported", install)
    if not SpecifierSet(wanted).contains(installed, prereleases=True):
        return Check(name, "warn", f"{installed}; {wanted} is supported", install)
    return Check(name, "ok", installed)


def _check_runtime() -> Check:
    """Which wheel ONNX Runtime comes from: the two install the same module, so that only one may be there."""
    versions = {wheel: _installed(wheel) for wheel in (_CPU, _GPU)}
    if all(versions.values()):
        detail = f"both {_CPU} and {_GPU} are installed: the CUDA provider disappears"
        return Check("onnxruntime", "warn", detail, _REINSTALL_RUNTIME)
    wheel = _GPU if versions[_GPU] else _CPU
    install = f"pip install 'export-circuit[{'gpu' if versions[_GPU] else 'cpu'}]'"
    check = _check_version("onnxruntime", versions[wheel], install=install)
    detail = f"{check.detail} ({wheel})" if versions[wheel] else check.detail
    return Check(check.name, check.status, detail, check.remedy)


def _check_providers() -> Check:
    try:
        runtime = import_onnxruntime()
    except MissingRuntimeError as error:
        return Check("providers", "missing", str(error), _REINSTALL_RUNTIME)
    providers = runtime.get_available_providers()
    names = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    if _installed(_GPU) and "CUDAExecutionProvider" not in providers:
        return Check("providers", "warn", f"{names}: no CUDA, though {_GPU} is installed", _REINSTALL_RUNTIME)
    return Check("providers", "ok", names)


def _check_cuda() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("cuda", "ok", "no CUDA device that torch can use; the CPU is used")
    name = torch.cuda.get_device_name()
    if not _installed(_GPU):
        return Check("cuda", "warn", f"{name}, but ONNX Runtime is for the CPU only", _REINSTALL_RUNTIME)
    return Check("cuda", "ok", name)


def _check_hub() -> Check:
    without = f"named models must be in the local cache, and 'auto' takes the bundled one unless {GPT2_SMALL} is there"
    if is_offline():
        return Check("hub", "warn", f"offline mode is on: {without}", "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE")
    if hub_answers(seconds=_HUB_SECONDS):
        return Check("hub", "ok", "answers")
    return Check("hub", "warn", f"no answer within {_HUB_SECONDS:g} s: {without}", "check the network or the proxy")


def _check_bundled() -> Check:
    try:
        folder = bundled_path()
    except InputError as error:
        return Check("bundled model", "missing", str(error), "pip install --force-reinstall --no-deps export-circuit")
    return Check("bundled model", "ok", str(folder))


def _check_optimum() -> Check:
    install = "pip install 'export-circuit[cpu,optimum]' in an environment of its own"
    optimum = _installed("optimum-onnx")
    if optimum is None:
        return Check("optimum", "ok", "not installed (optional: loads exports as ORTModelForCausalLM)", install)
    transformers = _installed("transformers")
    if transformers and not SpecifierSet("<4.58").contains(transformers, prereleases=True):
        detail = f"optimum-onnx {optimum} needs transformers < 4.58, not {transformers}"
        return Check("optimum", "warn", detail, install)
    return Check("optimum", "ok", f"optimum-onnx {optimum}")


def _guard(name: str, check: Callable[[], Check]) -> Check:
    """The check's answer, or what broke: a damaged library must not end the report."""
    try:
        return check()
    except Exception as error:  # whatever a damaged library raises when it is imported or asked
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        return Check(name, "missing", detail, "pip install --force-reinstall 'export-circuit[cpu]' (or [gpu])")
