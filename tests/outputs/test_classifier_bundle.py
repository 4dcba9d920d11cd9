"""A classifier's bundle: its user sends a text, and each program that reads it puts the template around that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import run_script
from conftest import Run

from exporter.graph.export import read_metadata
from exporter.graph.metadata import EXAMPLES_KEY
from exporter.outputs.manifest import Manifest
from exporter.runtime.prompting import open_decoder
from exporter.tasks.template import Template

TEMPLATE = Template("Review: ", "\nSentiment:")
THINGS = ("film", "book", "meal", "trip", "song", "room", "talk", "game")
WORDS = {" positive": ("great", "lovely", "splendid", "good"), " negative": ("awful", "poor", "dull", "bad")}
CIRCUIT = '{"heads": [[0, 1], [1, 0]], "mlps": [1]}'


def write_task(path: Path, template: str = "Review: {}\nSentiment:") -> Path:
    lines = [
        {"prompt": template.format(f"The {thing} was {word}{end}"), "answer": answer, "choices": list(WORDS)}
        for answer, words in WORDS.items()
        for word in words
        for thing in THINGS
        for end in (".", " indeed!")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """A folder with out.onnx and the bundle beside it, made by one command; nobody changes it."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "c.json").write_text(CIRCUIT)
    Run().succeeds(
        "--task", write_task(folder / "mine.jsonl"), "--model", make_checkpoint(), "--circuit", folder / "c.json",
        "--logits", "classes", "--out", folder / "out.onnx", "--bundle", folder / "bundle", "--force",
    )  # fmt: skip
    return folder


def read_texts(folder: Path) -> dict[str, list[int]]:
    """The user's texts of the file's examples, each with its prompt's tokens."""
    stored = json.loads(read_metadata(folder / "out.onnx")[EXAMPLES_KEY])
    masks = stored["attention_mask"] or [[1] * len(ids) for ids in stored["input_ids"]]
    rows = [[t for t, real in zip(*row, strict=True) if real] for row in zip(stored["input_ids"], masks, strict=True)]
    decode = open_decoder(folder / "out.onnx").reader.tokenizer.decode
    return {TEMPLATE.cut(decode(ids)): ids for ids in rows}


def test_the_template_and_the_classes_are_said_everywhere(exported: Path) -> None:
    manifest = Manifest.load(exported / "out.json")
    assert manifest.export.template == TEMPLATE and sorted(manifest.export.labels) == ["negative", "positive"]
    assert manifest.to_dict()["export"]["template"] == {"prefix": "Review: ", "suffix": "\nSentiment:"}
    config = json.loads((exported / "bundle" / "config.json").read_text())
    labels = manifest.export.labels
    assert config["architectures"] == ["GPT2ForSequenceClassification"] and config["num_labels"] == 2
    assert config["id2label"] == dict(zip("01", labels, strict=True))
    assert config["label2id"] == {label: index for index, label in enumerate(labels)}
    assert config["problem_type"] == "single_label_classification"
    card = (exported / "bundle" / "README.md").read_text()
    assert "pipeline_tag: text-classification\n" in card and "a whole prompt would have them twice" in card
    assert str(exported) not in card


def test_a_text_and_its_whole_prompt_are_read_alike_by_every_command(exported: Path, run: Run) -> None:
    labels, bundle = set(), exported / "bundle"
    alone, beside = open_decoder(exported / "out.onnx"), open_decoder(bundle)
    assert (alone.reader.framed, beside.reader.framed) == (False, True)
    for text, ids in read_texts(exported).items():
        found = beside.classify(text)
        for other in (beside.classify(TEMPLATE.fill(text)), alone.classify(alone.reader.fill(text))):
            assert other.prompt_ids == found.prompt_ids == ids and other.scores == pytest.approx(found.scores)
        labels.add(found.label)
    for arguments in ((text,), ("--text", text), (TEMPLATE.fill(text),)):
        script = run_script(bundle, *arguments)
        assert (script.stdout, script.stderr) == (found.label + "\n", "")
    for arguments in ((bundle, text), (bundle, "--text", text), (exported / "out.onnx", TEMPLATE.fill(text))):
        assert json.loads(run.succeeds("run", *arguments, "--json"))["prompt_ids"] == ids


def test_transformers_reads_a_text_as_its_prompt(exported: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported / "bundle", local_files_only=True)
    for text, ids in read_texts(exported).items():
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer(text + " ")["input_ids"] == ids  # white space behind a text is nobody's
        assert tokenizer(text, truncation=True, max_length=len(ids) - 2)["input_ids"][-4:] == ids[-4:]


def test_optimums_pipeline_gives_the_class_of_a_bare_text(exported: Path) -> None:
    pytest.importorskip("optimum.onnxruntime", reason="the extra [optimum] is not installed")
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    folder = str(exported / "bundle")
    model, tokenizer = ORTModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    for text in (texts := list(read_texts(exported))):
        expected = open_decoder(exported / "bundle").classify(text)
        for found in classify(text, top_k=None):
            assert found["score"] == pytest.approx(expected.scores[found["label"]], abs=1e-5)
    if tokenizer.pad_token is not None:
        together = classify(texts, batch_size=len(texts))
        assert [found["label"] for found in together] == [classify(text)[0]["label"] for text in texts]


def test_a_file_without_a_template_takes_whole_prompts(
    tmp_path: Path, make_checkpoint: Callable[..., Path], run: Run
) -> None:
    (tmp_path / "c.json").write_text(CIRCUIT)
    run.succeeds(
        "--task", write_task(tmp_path / "mine.jsonl", "{}"), "--model", make_checkpoint(), "--circuit",
        tmp_path / "c.json", "--logits", "classes", "--bundle", tmp_path / "b", "--force",
    )  # fmt: skip
    assert Manifest.load(tmp_path / "b" / "model.json").export.template is None
    run.fails(3, "no template to put around a text; give a whole prompt", "run", tmp_path / "b", "--text", "The")
    run.fails(2, "give a prompt, or --text .* one of the two", "run", tmp_path / "b")
    run.fails(2, "one of the two", "run", tmp_path / "b", "The", "--text", "The")


def test_a_declared_template_travels_where_none_could_be_found(
    tmp_path: Path, make_checkpoint: Callable[..., Path], run: Run
) -> None:
    (tmp_path / "c.json").write_text(CIRCUIT)
    declared = "I heard that {text} It was"
    run.succeeds(
        "--task", write_task(tmp_path / "mine.jsonl", "I heard that {} It was"), "--template", declared,
        "--model", make_checkpoint(), "--circuit", tmp_path / "c.json", "--logits", "classes",
        "--bundle", tmp_path / "b", "--force",
    )  # fmt: skip
    manifest = Manifest.load(tmp_path / "b" / "model.json")
    assert manifest.export.template == Template("I heard that ", " It was")
    assert f"--template '{declared}'" in str(manifest.command)
    whole = json.loads(run.succeeds("run", tmp_path / "b", "I heard that The meal was dull. It was", "--json"))
    assert (
        json.loads(run.succeeds("run", tmp_path / "b", "--text", "The meal was dull.", "--json"))["label"]
        == whole["label"]
    )


def test_a_classifier_that_pipelines_pad_takes_a_mask(
    tmp_path: Path, make_checkpoint: Callable[..., Path], run: Run
) -> None:
    """Means over all positions and prompts of one length: without a mask, padding would be read as text."""
    (tmp_path / "c.json").write_text('{"heads": [[0, 1]], "mlps": [1], "mean": "global"}')
    shared = ("--task", "acronym", "--model", make_checkpoint(), "--circuit", tmp_path / "c.json", "--force")
    small = ("--patching-prompts", "20", "--selection-prompts", "20", "--test-prompts", "30")
    run.succeeds(*shared, *small, "--logits", "classes", "--out", tmp_path / "m.onnx")
    assert list(Manifest.load(tmp_path / "m.json").onnx.inputs) == ["input_ids", "attention_mask"]
