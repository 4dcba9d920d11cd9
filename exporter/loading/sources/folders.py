"""What a file or folder is that is no checkpoint as save_pretrained leaves it, and the command that makes one of it.

Only names are looked at. A hub cache's folder is followed to its snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from exporter.errors import InputError
from exporter.files import read_text
from exporter.loading.sources.hub import WEIGHTS, WEIGHTS_INDEX

_MOST = 5  # names in a message
_KINDS_OF_FILES: dict[str, str] = {
    **dict.fromkeys((".onnx", ".onnx_data", ".ort"), "is an ONNX file, which export-circuit writes and does not read"),
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), "is a pickle, which is never read"),
    **dict.fromkeys((".h5", ".keras", ".msgpack", ".tflite"), "holds weights of TensorFlow or Flax"),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".tar", ".xz", ".7z"), "is an archive; unpack it"),
    ".safetensors": "holds the weights alone",
    ".json": "is one file of a checkpoint",
}


def follow_cache(folder: Path) -> Path:
    """The snapshot of a hub cache's folder of a model (`models--org--name`); any other folder as it is.

    That of refs/main, or else the only one. Raises InputError with the list where there are several.
    """
    if (folder / "config.json").exists():
        return folder
    root = folder.parent if folder.name == "snapshots" else folder
    snapshots = _subfolders(root / "snapshots")
    if not snapshots:
        return folder
    main = _read_ref(root / "refs" / "main")
    if main in snapshots:
        return root / "snapshots" / main
    if len(snapshots) == 1:
        return root / "snapshots" / snapshots[0]
    raise InputError(
        f"{folder} is a hub cache's folder with {len(snapshots)} snapshots; give one of them: "
        f"{_name_some([str(root / 'snapshots' / name) for name in snapshots])}"
    )


def explain_file(path: Path, name: str) -> str:
    """Why a file that is no GGUF file is no model."""
    suffix = path.suffix.lower()
    if suffix in _KINDS_OF_FILES:
        what = _KINDS_OF_FILES[suffix]
        advice = "give the checkpoint folder that holds config.json, or a .gguf file"
        return f"{name} is a file: it {what}; {advice}"
    return f"{name} is a file; give the checkpoint folder that holds config.json, or a .gguf file"


def explain_no_checkpoint(folder: Path) -> str | None:
    """What a folder is, and what to give instead, where it is no checkpoint; None where it may be one."""
    names = _names(folder)
    if "adapter_config.json" in names:
        merge = f"M.from_pretrained({_path(folder)}).merge_and_unload()"
        return (
            f"{folder} holds an adapter (LoRA or another of PEFT's), not a model; merge it into its base model: "
            f"{_save_by('from peft import AutoPeftModelForCausalLM as M', merge, folder, 'merged')}"
        )
    return None if "config.json" in names else _explain_contents(folder, names) or _explain_neighbours(folder, names)


def explain_no_weights(folder: Path) -> str:
    """What weights a folder with a configuration has in place of safetensors, and how to convert them."""
    names = [name for name in _names(folder) if not re.fullmatch(_NO_WEIGHTS, name)]
    for pattern, kind, version, option in _CONVERTED:
        if file := _first(names, pattern):
            load = f"M.from_pretrained({_path(folder)}{option})"
            return (
                f"{folder} has its weights {kind.format(file=file)}; convert them{version}: "
                f"{_save_by('from transformers import AutoModelForCausalLM as M', load, folder, 'safetensors')}"
            )
    if reason := _explain_contents(folder, names):
        return reason
    if file := _first(names, r".*\.(bin|pt|pth|ckpt)"):
        return f"{folder} has its weights as a pickle ({file}), which is never read; save them as {WEIGHTS}"
    if file := _first(names, r".*-\d+-of-\d+\.safetensors"):
        return f"{folder} has {file}, but no {WEIGHTS_INDEX}, which says what is where; get the whole checkpoint"
    if others := [name for name in names if name.endswith(".safetensors")]:
        return f"{folder} has no {WEIGHTS}, but {_name_some(others)}; if that holds the whole model, call it {WEIGHTS}"
    near = _explain_neighbours(folder, names)
    return near or f"{folder} has no {WEIGHTS}; give a checkpoint saved with save_pretrained"


def explain_no_tokenizer(folder: Path) -> str:
    """What a checkpoint without a tokenizer that is read has in its place, and how to make one: `has ...; ...`."""
    names = _names(folder)
    for file, needs in _TOKENIZERS_ALONE.items():
        if file in names:
            make = _save_by(
                "from transformers import AutoTokenizer as T", f"T.from_pretrained({_path(folder)})", folder
            )
            return f"has {file} alone; make a tokenizer.json of it (pip install {needs}): {make}"
    return "has no tokenizer; put its tokenizer.json beside config.json"


def _explain_contents(folder: Path, names: list[str]) -> str | None:
    """By files that other programs leave."""
    for pattern, explain in _OTHERS.items():
        if file := _first(names, pattern):
            return f"{folder} {explain(folder, file)}"
    return None


def _explain_neighbours(folder: Path, names: list[str]) -> str | None:
    """By checkpoints inside this folder, or above it."""
    inside = [name for name in _subfolders(folder) if (folder / name / "config.json").is_file()]
    runs = sorted((name for name in inside if re.fullmatch(r"checkpoint-\d+", name)), key=lambda name: int(name[11:]))
    if runs:
        return (
            f"{folder} is the folder of a training run, not a checkpoint; give one of its {len(runs)}, such as the "
            f"last: {folder / runs[-1]}"
        )
    if models := [name for name in _subfolders(folder) if name.startswith("models--")]:
        return f"{folder} is a hub cache, not a checkpoint; give one of its models: {_name_some(models)}"
    if inside:
        return f"{folder} is no checkpoint, but holds some; give {_name_some([str(folder / name) for name in inside])}"
    parent = folder.resolve().parent
    if "config.json" not in names and (parent / "config.json").is_file():
        return f"{folder} has no config.json, but the folder above it has; give {parent}"
    return None


# By a pattern of names: what it is. The first that matches counts.
_OTHERS: dict[str, Callable[[Path, str], str]] = {
    r"adapter_model\..*": lambda folder, file: (
        f"holds an adapter's weights ({file}) without its adapter_config.json; merge it into its base model with peft"
    ),
    r"zero_to_fp32\.py|global_step\d+|.*zero_pp_rank_\d+.*|.*mp_rank_\d+.*": lambda folder, file: (
        f"holds shards of DeepSpeed ({file}), not a model; join them: "
        f"python {folder / 'zero_to_fp32.py'} {folder} {folder} --safe_serialization"
    ),
    r"pytorch_model_fsdp.*|__\d+_\d+\.distcp|\.metadata": lambda folder, file: (
        f"holds shards of FSDP ({file}), not a model; join them: accelerate merge-weights "
        f"{folder / file if (folder / file).is_dir() else folder} {folder}"
    ),
    r"consolidated.*\.pth": lambda folder, file: (
        f"has weights in Meta's own format ({file}); convert them: python -m transformers.models.llama."
        f"convert_llama_weights_to_hf --input_dir {folder} --output_dir {folder}-hf"
    ),
    r"consolidated.*\.safetensors": lambda folder, file: (
        f"has weights in Mistral's own format ({file}); give the checkpoint that has config.json and {WEIGHTS}"
    ),
    r"(?i).*\.gguf": lambda folder, file: f"holds GGUF files; give the file itself: {folder / file}",
    r".*\.onnx|onnx": lambda folder, file: (
        f"holds an ONNX model ({file}), which is what export-circuit writes; give the checkpoint that it was made from"
    ),
    r"saved_model\.pb": lambda folder, file: f"holds a model of TensorFlow ({file}); give a checkpoint with {WEIGHTS}",
    r"openvino_model\.xml|.*\.mlmodel|.*\.mlpackage|.*\.engine": lambda folder, file: (
        f"holds a compiled model ({file}); give the checkpoint that it was made from"
    ),
}
_NO_WEIGHTS = r"(training_args|optimizer|scheduler|rng_state|random_states).*"  # what a training run leaves beside them
# Pattern of names, what such a file is, which version of transformers reads it, and its argument there.
_CONVERTED = (
    (r"flax_model.*\.msgpack", "for Flax ({file})", " with transformers 4", ", from_flax=True"),
    (r"tf_model.*\.h5", "for TensorFlow ({file})", " with transformers 4", ", from_tf=True"),
    (r"pytorch_model.*\.bin", "as a pickle ({file}), which is never read", ", if you trust it", ""),
)
_TOKENIZERS_ALONE = {
    **dict.fromkeys(("tokenizer.model", "spiece.model"), "sentencepiece protobuf"),
    "tekken.json": "mistral-common",
    **dict.fromkeys(("tokenizer.tiktoken", "qwen.tiktoken"), "tiktoken"),
}


def _save_by(imports: str, load: str, folder: Path, suffix: str = "") -> str:
    """A command that loads and saves, beside the folder or into it."""
    return f'python -c "{imports}; {load}.save_pretrained({_path(folder, suffix)})"'


def _path(folder: Path, suffix: str = "") -> str:
    """A path within Python code."""
    return repr(f"{folder}-{suffix}" if suffix else str(folder))


def _first(names: list[str], pattern: str) -> str | None:
    return next((name for name in names if re.fullmatch(pattern, name)), None)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _read_ref(path: Path) -> str:
    """A branch's commit, from the hub cache; empty where there is none."""
    try:
        return read_text(path)[:200].strip()
    except (InputError, OSError, ValueError):
        return ""


def _name_some(names: list[str]) -> str:
    return ", ".join(names[:_MOST]) + (f", ... ({len(names)} in all)" if len(names) > _MOST else "")
