"""ONNX Runtime's header and library, a C compiler and CMake, where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest
from waits import HANG

HEADER = "onnxruntime_c_api.h"
PLACES = ("/usr/include/onnxruntime", "/usr/include/onnxruntime/core/session", "/usr/local/include/onnxruntime")


def find_header() -> Path:
    """The folder of the header: EXPORT_CIRCUIT_ORT_INCLUDE, or the system's. The Python wheel has none."""
    named = os.environ.get("EXPORT_CIRCUIT_ORT_INCLUDE")
    for folder in [named] if named else PLACES:
        if (Path(folder) / HEADER).is_file():
            return Path(folder)
    pytest.skip(f"needs {HEADER}: install libonnxruntime-dev, or set EXPORT_CIRCUIT_ORT_INCLUDE to its folder")


def make_release(folder: Path) -> Path:
    """A folder as an unpacked release of ONNX Runtime is, of the header and the Python wheel's library."""
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("the installed wheel of ONNX Runtime ships no libonnxruntime.so")
    (folder / "lib").mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the name that it is linked by, and its own
        (folder / "lib" / name).symlink_to(libraries[0])
    (folder / "include").symlink_to(find_header())
    return folder


def compile_program(source: Path, release: Path, program: Path) -> Path:
    """With warnings as errors."""
    if (compiler := shutil.which("cc") or shutil.which("gcc")) is None:
        pytest.skip("needs a C compiler")
    library = release / "lib"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{release / 'include'}"]
    command = [
        compiler,
        *flags,
        str(source),
        f"-L{library}",
        "-lonnxruntime",
        f"-Wl,-rpath,{library}",
        "-o",
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    return program


def build_with_cmake(sources: Path, release: Path, build: Path) -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    for command in (["-S", str(sources), "-B", str(build), f"-DONNXRUNTIME={release}"], ["--build", str(build)]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True, timeout=HANG, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "run"


def run_program(program: Path, folder: Path, ids: list[int] | list[str]) -> subprocess.CompletedProcess[str]:
    command = [str(program), str(folder), *map(str, ids)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, cwd="/")
