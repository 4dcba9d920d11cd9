"""A bundle is complete: every file says what the ONNX file says, and run.py needs nothing of ours."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import EVEN, UNEVEN, decode, make_bundle, make_dense, make_tokenizer, run_script, to_text
from tiny import VARIANTS, VOCAB
from tokenizers import Tokenizer

from exporter.circuit import Ablation
from exporter.errors import InputError
from exporter.graph.options import Form
from exporter.outputs.bundle import is_bundle
from exporter.outputs.front_matter import find_licence
from exporter.outputs.manifest import Manifest, hash_file
from exporter.runtime.session import open_session

PROMPT = [3, 1, 4, 1, 5, 9]
COMMON = {"README.md", "config.json", "generation_config.json", "model.json", "model.onnx", "run.py"}
FILES = COMMON | {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_it_holds_all_that_its_manifest_names(form: Form, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", form=form)
    assert {path.name for path in bundle.folder.iterdir()} == FILES | (
        {"genai_config.json"} if form == "past" else set()
    )
    manifest = Manifest.load(bundle.folder / "model.json")
    assert manifest == bundle.manifest
    assert set(manifest.files) == {path.name for path in bundle.folder.iterdir()} - {"model.json"}
    assert next(iter(manifest.files)) == "model.onnx"
    assert all(hash_file(bundle.folder / name) == info for name, info in manifest.files.items())
    assert is_bundle(bundle.folder)
    (bundle.folder / "mine.txt").write_text("not of the bundle")
    assert not is_bundle(bundle.folder)
    assert not is_bundle(tmp_path)


@pytest.mark.parametrize("heads", [UNEVEN, ()])
@pytest.mark.parametrize(
    ("form", "targets"), [("plain", ()), ("masked", ()), ("past", ()), ("past", ("optimum",))], ids=str
)
def test_its_script_is_15_lines_and_gives_our_tokens_alone(
    form: Form, targets: tuple[str, ...], heads: tuple, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "b", form=form, heads=heads, targets=targets)
    assert len((bundle.folder / "run.py").read_text().splitlines()) <= 15
    done = run_script(bundle.folder, to_text(PROMPT))
    expected = decode(bundle.rewritten, PROMPT, 19)  # the model's 24 positions end
    expected = expected[: expected.index(0) + 1] if 0 in expected else expected
    assert (done.stderr, done.stdout.split()) == ("", [f"w{i}" for i in PROMPT + expected if i])


def test_its_script_stops_at_the_end_of_text(tmp_path: Path) -> None:
    model = make_dense()
    free = decode(make_bundle(tmp_path / "free", model=model).rewritten, PROMPT, 3)
    model.hf.generation_config.eos_token_id = [36, free[1]]
    bundle = make_bundle(tmp_path / "b", model=model)
    tokens = free[: free.index(free[1]) + 1]
    assert run_script(bundle.folder, to_text(PROMPT)).stdout.split() == to_text(PROMPT + tokens).split()
    assert json.loads((bundle.folder / "generation_config.json").read_text())["eos_token_id"] == [36, free[1]]


def test_its_script_says_which_lengths_it_takes(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", form="plain", ablation=Ablation()).folder
    assert run_script(folder, to_text(PROMPT)).returncode == 0
    done = run_script(folder, "w1 w2")
    assert (done.returncode, done.stderr) == (1, "the prompt has 2 tokens, not 6\n")
    done = run_script(make_bundle(tmp_path / "c").folder, to_text(range(25)))
    assert (done.returncode, done.stderr) == (1, "the prompt has 25 tokens, not 1 to 24\n")


@pytest.mark.parametrize("family", VARIANTS)
@pytest.mark.parametrize(("form", "heads"), [("plain", UNEVEN), ("past", UNEVEN), ("past", EVEN)])
def test_its_configuration_is_the_dense_models_with_what_changed(
    family: str, form: Form, heads: tuple, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    model = make_dense(family)
    bundle = make_bundle(tmp_path / "b", form=form, heads=heads, model=model, ablation=Ablation())
    config, data = AutoConfig.from_pretrained(bundle.folder), json.loads((bundle.folder / "config.json").read_text())
    assert config.model_type == family
    assert config.max_position_embeddings == 6  # the means end there
    assert config.use_cache == (form == "past")
    assert data["architectures"] == [type(model.hf).__name__]
    assert data["export_circuit"]["heads"] == [[head.layer, head.index] for head in heads]
    assert data["export_circuit"]["form"] == form
    before = model.hf.config.to_dict()
    changed = data["export_circuit"]["dense"]
    assert all(before[key] == value for key, value in changed.items() if key not in ("architectures", "dtype"))
    counts = {info[1] for name, info in bundle.manifest.onnx.inputs.items() if name.endswith(".key")}
    assert counts == ({2} if heads == EVEN else {1, 3} if family in ("gpt2", "gpt_neox") else {1, 2}) or form == "plain"
    if heads == EVEN and family in ("gpt2", "gpt_neox"):
        assert (config.num_attention_heads, config.hidden_size) == (2, 8)
    elif heads == EVEN:
        assert (config.num_key_value_heads, config.hidden_size // config.num_attention_heads) == (2, 4)
    else:
        assert (config.num_attention_heads, config.hidden_size) == (4, 16)
    generation = GenerationConfig.from_pretrained(bundle.folder)
    assert (generation.max_length, generation.eos_token_id, generation.do_sample) == (7, 0, False)  # one follows
    if family != "qwen2":  # whose own kind of tokenizer transformers expects there
        assert AutoTokenizer.from_pretrained(bundle.folder)("w3 w4")["input_ids"] == [3, 4]


def test_its_tokenizer_cuts_and_pads_nothing(tmp_path: Path) -> None:
    model = replace(make_dense(), tokenizer=make_tokenizer(truncate=2))
    folder = make_bundle(tmp_path / "b", model=model).folder
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("w5 w6 w7").ids == [5, 6, 7]
    with pytest.raises(InputError, match=r"the tokenizer of tiny has no tokenizer\.json"):
        make_bundle(tmp_path / "c", model=replace(model, tokenizer=None))


MIXED = [[3, 1, 4, 1, 5, 9], [2, 6], [7]]


@pytest.mark.parametrize("form", ["masked", "past"])
def test_a_batch_of_mixed_lengths_by_its_tokenizer_alone_is_right(form: Form, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bundle = make_bundle(tmp_path / "b", form=form)
    tokenizer = AutoTokenizer.from_pretrained(bundle.folder)
    assert tokenizer.model_max_length == 24
    feeds = dict(tokenizer([to_text(prompt) for prompt in MIXED], padding=True, return_tensors="np"))
    session = open_session(bundle.folder / "model.onnx")
    past = [value for value in session.get_inputs() if value.name.startswith("past")]
    feeds |= {value.name: np.zeros((3, value.shape[1], 0, value.shape[3]), np.float32) for value in past}
    found = session.run(["logits"], feeds)[0][:, -1].argmax(-1).tolist()
    assert found == [decode(bundle.rewritten, prompt, 1)[0] for prompt in MIXED]


def test_a_plain_models_tokenizer_pads_nothing_and_gives_what_the_graph_takes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer()
    tokenizer.pad_token = "w0"
    folder = make_bundle(tmp_path / "b", form="plain", model=replace(make_dense(), tokenizer=tokenizer)).folder
    read = AutoTokenizer.from_pretrained(folder)
    assert list(read(to_text(MIXED[0]))) == ["input_ids"]
    with pytest.raises(ValueError, match="does not have a padding token"):
        read([to_text(prompt) for prompt in MIXED], padding=True)


@pytest.mark.parametrize("wrong", [-1, VOCAB, 10**9])
def test_token_ids_that_are_none_are_not_written(wrong: int, tmp_path: Path) -> None:
    model = make_dense()
    config, generation = model.hf.config, model.hf.generation_config
    config.pad_token_id, config.bos_token_id, config.sep_token_id = wrong, wrong, wrong
    config.eos_token_id = generation.eos_token_id = [wrong, 5]
    folder = make_bundle(tmp_path / "b", model=model).folder
    for path in folder.glob("*.json"):
        if path.name not in ("tokenizer.json", "tokenizer_config.json", "model.json"):
            found = _find_ids(json.loads(path.read_text()))
            assert all(0 <= token < VOCAB for token in found), path
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("generation_config", "genai_config")}
    assert (read["generation_config"]["pad_token_id"], read["generation_config"]["eos_token_id"]) == (5, 5)
    assert read["generation_config"]["bos_token_id"] is None
    assert read["genai_config"]["model"]["bos_token_id"] == 5
    config.eos_token_id = generation.eos_token_id = wrong
    assert "in ():" in (make_bundle(tmp_path / "c", model=model).folder / "run.py").read_text()


def _find_ids(data: object) -> list[int]:
    """All that is called a token id, anywhere."""
    if isinstance(data, list):
        return [token for part in data for token in _find_ids(part)]
    if not isinstance(data, dict):
        return []
    named = [value for name, value in data.items() if name.endswith("_token_id")]
    ids = [token for value in named for token in (value if isinstance(value, list) else [value]) if token is not None]
    return ids + [token for value in data.values() for token in _find_ids(value)]


def test_its_card_has_the_figures_and_how_to_run_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    card = (bundle.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: onnx\n")
    assert "| held out | 4 | 50.0% [40.0%, 60.0%] | 50.0% [40.0%, 60.0%] | 0.100 | 90.0% |" in card
    assert f"python run.py {shlex.quote('w3 w1 w4')}" in card
    assert "4 attention heads and 2 MLPs" in card
    assert "Optimum cannot generate with it" in card and "have 1, 3 heads" in card
    assert "genai_config.json" in card
    assert "license:" not in card and "not known to the exporter" in card
    assert "$" not in card
    even = (make_bundle(tmp_path / "c", heads=EVEN).folder / "README.md").read_text()
    assert "ORTModelForCausalLM.from_pretrained(folder)" in even
    plain = (make_bundle(tmp_path / "d", form="plain").folder / "README.md").read_text()
    assert "use_cache=False" in plain and "genai" not in plain
    pinned = (make_bundle(tmp_path / "e", form="plain", ablation=Ablation()).folder / "README.md").read_text()
    assert "exactly 6 tokens" in pinned and "it generates one token" in pinned


def test_the_licence_is_known_or_read_or_not_said(tmp_path: Path) -> None:
    assert find_licence("openai-community/gpt2") == "mit"
    assert find_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: cc-by-4.0\n---\n# A model\nlicense: none\n")
    assert find_licence(str(tmp_path)) == "cc-by-4.0"
    (tmp_path / "README.md").write_text("# A model\nlicense: none\n")
    assert find_licence(str(tmp_path)) is None
