"""What is given in place of a checkpoint is called by its name, with the command that makes one of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.errors import InputError
from exporter.loading.load import bundled_path, load_model

Save = Callable[..., Path]
CONVERT = (
    r"python -c \"from transformers import AutoModelForCausalLM as M; M\.from_pretrained\('.*'{}\)\.save_pretrained\("
)

# What stands in a folder in place of model.safetensors, beside config.json: what is said.
INSTEAD: dict[str, tuple[str, str]] = {
    "Flax": ("flax_model.msgpack", r"weights for Flax .* transformers 4: " + CONVERT.format(", from_flax=True")),
    "Flax in shards": ("flax_model-00001-of-00002.msgpack", "weights for Flax"),
    "TensorFlow": ("tf_model.h5", r"weights for TensorFlow .* transformers 4: " + CONVERT.format(", from_tf=True")),
    "TensorFlow in shards": ("tf_model-00001-of-00002.h5", "weights for TensorFlow"),
    "a saved model": ("saved_model.pb", "holds a model of TensorFlow"),
    "a pickle": ("pytorch_model.bin", r"pickle \(pytorch_model\.bin\), which is never read.*: " + CONVERT.format("")),
    "pickles": ("pytorch_model-00001-of-00002.bin", r"pickle \(pytorch_model-00001-of-00002\.bin\)"),
    "another pickle": ("weights.pt", r"pickle \(weights\.pt\), which is never read; save them as model\.safetensors"),
    "DeepSpeed": (
        "zero_to_fp32.py",
        r"shards of DeepSpeed .*join them: python .*zero_to_fp32\.py .* --safe_serialization",
    ),
    "DeepSpeed's step": ("global_step500/", "shards of DeepSpeed"),
    "DeepSpeed's ranks": ("zero_pp_rank_0_mp_rank_00_model_states.pt", "shards of DeepSpeed"),
    "Megatron's ranks": ("mp_rank_00_model_states.pt", "shards of DeepSpeed"),
    "FSDP": ("pytorch_model_fsdp_0/", r"shards of FSDP .*accelerate merge-weights .*pytorch_model_fsdp_0 "),
    "distributed": ("__0_0.distcp", "shards of FSDP"),
    "Meta's": ("consolidated.00.pth", r"Meta's own format .*convert_llama_weights_to_hf --input_dir"),
    "Mistral's": ("consolidated.safetensors", "Mistral's own format"),
    "adapter's weights": ("adapter_model.safetensors", "holds an adapter's weights"),
    "GGUF": ("model.Q4_0.gguf", r"holds GGUF files; give the file itself: .*model\.Q4_0\.gguf"),
    "GGUF in capitals": ("MODEL.GGUF", r"give the file itself: .*MODEL\.GGUF"),
    "ONNX": ("model.onnx", "holds an ONNX model .*give the checkpoint that it was made from"),
    "a folder of ONNX": ("onnx/", "holds an ONNX model"),
    "OpenVINO": ("openvino_model.xml", "holds a compiled model"),
    "shards without index": ("model-00001-of-00002.safetensors", r"no model\.safetensors\.index\.json, which says"),
    "another name": ("model.fp16.safetensors", r"no model\.safetensors, but model\.fp16\.safetensors; if that holds"),
    "what training leaves": ("training_args.bin", r"has no model\.safetensors; give a checkpoint saved with"),
    "optimizer alone": ("optimizer.pt", r"has no model\.safetensors; give a checkpoint saved with"),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_stands_in_place_of_the_weights_is_named(name: str, save_gpt2: Save) -> None:
    file, message = INSTEAD[name]
    folder = save_gpt2()
    weights = folder / "model.safetensors"
    if file.endswith("/"):
        (folder / file).mkdir()
        weights.unlink()
    else:
        weights.rename(folder / file)
    assert_refused(folder, message)


def assert_refused(source: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(source)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["DeepSpeed", "Meta's", "GGUF", "ONNX", "distributed"])
def test_so_it_is_without_a_configuration(name: str, tmp_path: Path) -> None:
    file, message = INSTEAD[name]
    (tmp_path / file).touch()
    assert_refused(tmp_path, message)


def test_an_adapter_is_merged_into_its_base_model(tmp_path: Path, save_gpt2: Save) -> None:
    message = (
        r"holds an adapter .*python -c \"from peft import .*\.merge_and_unload\(\)\.save_pretrained\('.*-merged'\)"
    )
    for folder in (tmp_path / "alone", save_gpt2("full")):
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
        assert_refused(folder, message)


def test_folders_above_and_below_are_said(save_gpt2: Save, tmp_path: Path) -> None:
    folder = save_gpt2("run/model")
    (folder / "onnx-files").mkdir()
    assert_refused(tmp_path / "run", rf"is no checkpoint, but holds some; give {folder}$")
    assert_refused(folder / "onnx-files", rf"has no config\.json, but the folder above it has; give {folder}$")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", r"has no config\.json; give a checkpoint saved with save_pretrained")


def test_the_last_checkpoint_of_a_training_run_is_named(save_gpt2: Save, tmp_path: Path) -> None:
    for step in (500, 1000, 90):
        save_gpt2(f"run/checkpoint-{step}")
    (tmp_path / "run" / "trainer_state.json").write_text("{}")
    assert_refused(tmp_path / "run", r"folder of a training run.*one of its 3, such as the last: .*/checkpoint-1000$")


FILES: dict[str, str] = {
    "model.onnx": "is a file: it is an ONNX file, which export-circuit writes and does not read; give the checkpoint",
    "MODEL.ONNX": "is an ONNX file",
    "pytorch_model.bin": "is a pickle, which is never read",
    "tf_model.h5": "holds weights of TensorFlow or Flax",
    "model.safetensors": "holds the weights alone; give the checkpoint folder that holds config",
    "config.json": "is one file of a checkpoint; give the checkpoint folder",
    "model.tar.gz": "is an archive; unpack it; give the checkpoint folder",
    "README": "is a file; give the checkpoint folder",
}


@pytest.mark.parametrize("name", FILES)
def test_single_files_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert_refused(tmp_path / name, FILES[name])


# --- a hub cache


def make_cache(folder: Path, save_gpt2: Save, commits: list[str], *, main: str | None = None) -> Path:
    for commit in commits:
        save_gpt2(f"{folder.name}/snapshots/{commit}", n_layer=len(commit))
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(f"{main}\n")
    return folder


@pytest.mark.parametrize("below", ["", "snapshots"])
def test_the_one_snapshot_of_a_hub_cache_is_taken(below: str, save_gpt2: Save, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "models--org--name", save_gpt2, ["aaa"])
    model = load_model(cache / below)
    assert (model.name, model.revision, model.hf.config.n_layer) == (str(cache / below), None, 3)


def test_of_several_snapshots_that_of_main(save_gpt2: Save, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "models--org--name", save_gpt2, ["aa", "b", "cccc"], main="b")
    assert load_model(cache).hf.config.n_layer == 1
    (cache / "refs" / "main").write_text("gone")
    assert_refused(
        cache, rf"a hub cache's folder with 3 snapshots; give one of them: {cache}/snapshots/aa, .*/b, .*/cccc$"
    )
    shutil.rmtree(cache / "snapshots")
    assert_refused(cache, r"has no config\.json")
    assert_refused(tmp_path, r"is a hub cache, not a checkpoint; give one of its models: models--org--name")


# --- tokenizers


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "tokenizer.model",
            r"has tokenizer\.model alone; make a tokenizer\.json .*sentencepiece protobuf.*AutoTokenizer",
        ),
        ("tekken.json", r"has tekken\.json alone; make a tokenizer\.json of it \(pip install mistral-common\)"),
        ("qwen.tiktoken", r"has qwen\.tiktoken alone; .*pip install tiktoken"),
        ("merges.txt", r"has no tokenizer; put its tokenizer\.json beside config\.json"),
    ],
)
def test_what_is_there_of_a_tokenizer_is_said(file: str, message: str, save_gpt2: Save) -> None:
    from exporter.evidence.fitness import require_tokenizer

    folder = save_gpt2()
    (folder / file).write_text("x")
    model = load_model(folder)
    assert model.tokenizer is None
    with pytest.raises(InputError, match=message):
        require_tokenizer(model)


def test_a_checkpoint_with_a_tokenizer_lacks_nothing(save_gpt2: Save) -> None:
    folder = save_gpt2(vocab_size=50257, dtype=torch.float16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_path() / name, folder)
    (folder / "tokenizer.model").touch()
    model = load_model(folder)
    assert (model.lacks, model.tokenizer is not None) == ("", True)
