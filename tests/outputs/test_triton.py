"""A repository for Triton holds to Triton's schema and rules, and what its configuration says of the graph is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import EVEN, UNEVEN, Bundle, make_bundle
from triton_rules import RefusalError, Repository

from exporter.circuit import Ablation
from exporter.graph.options import GraphOptions
from exporter.outputs.targets.triton import MAX_BATCH

PROMPT, OTHER = [3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]
ANSWERS = (3, 9, 20)
KNOWN = tuple(range(1, 12))
GRAPHS = {
    "plain": GraphOptions(logits="last"),
    "everywhere": GraphOptions(),
    "masked": GraphOptions(form="masked", logits="last"),
    "past": GraphOptions(form="past", logits="last"),
    "answers": GraphOptions(logits="answers", answer_ids=ANSWERS),
    "vocabulary": GraphOptions(form="masked", logits="answers", answer_ids=ANSWERS, vocabulary=KNOWN),
    "classes": GraphOptions(logits="classes", answer_ids=ANSWERS, labels=("three", "nine", "twenty")),
    "int8": GraphOptions(precision="int8", scales="token", logits="last"),
    "fp16": GraphOptions(precision="fp16", form="past", logits="last"),
}


def make_repository(folder: Path, graph: GraphOptions, **options: object) -> tuple[Bundle, Repository]:
    bundle = make_bundle(folder, graph=graph, form=graph.form, targets=["triton"], **options)
    return bundle, Repository(folder / "acronym")


def make_request(repository: Repository, prompt: list[int]) -> dict[str, np.ndarray]:
    request = {"input_ids": np.array([prompt])}
    for io in repository.config.input:
        if io.name == "attention_mask":
            request[io.name] = np.ones((1, len(prompt)), np.int64)
        elif io.name.startswith("past"):
            dtype = np.float16 if repository.type_name(io.data_type) == "TYPE_FP16" else np.float32
            request[io.name] = np.zeros((1, io.dims[0], 0, io.dims[2]), dtype)
    return request


@pytest.mark.parametrize(("name", "pinned"), [*((name, False) for name in GRAPHS), ("plain", True), ("answers", True)])
def test_every_graph_is_taken_and_answers_as_the_circuit(name: str, pinned: bool, tmp_path: Path) -> None:
    graph, ablation = GRAPHS[name], Ablation(by="position" if pinned else "global")
    bundle, repository = make_repository(tmp_path, graph, heads=UNEVEN, ablation=ablation)
    assert repository.config.max_batch_size == MAX_BATCH
    requests = [make_request(repository, prompt) for prompt in (PROMPT, OTHER)]
    found = repository.infer(requests)
    for request, batched in zip(requests, found, strict=True):
        alone = repository.session.run(["logits"], request)[0]
        np.testing.assert_allclose(
            batched["logits"], alone, rtol=1e-4, atol=1e-2 if graph.precision == "fp16" else 1e-4
        )
    if graph.precision == "fp32":
        expected = bundle.rewritten(torch.tensor([PROMPT, OTHER])).detach().numpy()  # (batch, pos, vocab)
        expected = expected if graph.logits == "all" else expected[:, -1:]
        expected = expected[..., list(ANSWERS)] if graph.answer_ids else expected
        expected = expected[:, 0] if graph.labels else expected
        np.testing.assert_allclose(np.concatenate([one["logits"] for one in found]), expected, rtol=1e-4, atol=1e-4)


def test_the_configuration_is_the_known_right_one(tmp_path: Path) -> None:
    _, repository = make_repository(tmp_path, GRAPHS["vocabulary"])
    outputs = {io.name: io for io in repository.config.output}
    assert set(outputs) == {"logits", "in_vocabulary"}  # answer_token_ids has no batch
    assert list(outputs["logits"].dims) == [1, len(ANSWERS)]
    assert list(outputs["in_vocabulary"].dims) == [1] and outputs["in_vocabulary"].HasField("reshape")
    assert list(outputs["in_vocabulary"].reshape.shape) == []
    assert [list(io.dims) for io in repository.config.input] == [[-1], [-1]]
    (inside,) = repository.infer([make_request(repository, PROMPT)])
    (outside,) = repository.infer([make_request(repository, [3, 30])])
    assert inside["in_vocabulary"].tolist() == [[True]] and outside["in_vocabulary"].tolist() == [[False]]
    assert repository.classify(inside["logits"]) == f"w{ANSWERS[int(inside['logits'].argmax())]}"
    assert repository.labels == {"logits": ["w3", "w9", "w20"]}


def test_a_classifiers_labels_are_its_classes(tmp_path: Path) -> None:
    _, repository = make_repository(tmp_path, GRAPHS["classes"])
    (logits,) = repository.config.output
    assert list(logits.dims) == [3]
    (found,) = repository.infer([make_request(repository, PROMPT)])
    assert repository.classify(found["logits"]) == GRAPHS["classes"].labels[int(found["logits"].argmax())]


def test_a_pinned_length_stands_in_the_dimensions(tmp_path: Path) -> None:
    _, repository = make_repository(tmp_path, GRAPHS["plain"], ablation=Ablation())
    assert list(repository.config.input[0].dims) == [6]
    with pytest.raises(RefusalError, match="unexpected shape for input input_ids"):
        repository.infer([make_request(repository, PROMPT[1:])])
    assert "exactly 6 a prompt" in (tmp_path / "acronym" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (' reshape: { shape: [ ] }', "", "in_vocabulary has 1 dimensions, not 2"),
        ("dims: [ 1, 3 ]", "dims: [ 3 ]", "logits has 3 dimensions, not 2"),
        ("dims: [ 1, 3 ]", "dims: [ -1, 3 ]", r"logits has shape \[-1, 1, 3\]"),
        ("TYPE_BOOL", "TYPE_UINT8", "in_vocabulary has another type"),
        ("dynamic_batching {", "dynamic_batching { preferred_batch_size: [ 64 ]", "preferred size above"),
        ('name: "acronym"', 'name: "other"', "the name is not the folder's"),
        ("$", 'output [ { name: "answer_token_ids" data_type: TYPE_INT64 dims: [ 3 ] } ]\n', "must be -1"),
    ],
)  # fmt: skip
def test_the_rules_would_notice(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    _, repository = make_repository(tmp_path, GRAPHS["vocabulary"])
    path = repository.folder / "config.pbtxt"
    text = path.read_text()
    assert right in text or right == "$"
    path.write_text(text + wrong if right == "$" else text.replace(right, wrong))
    with pytest.raises(RefusalError, match=message):
        Repository(repository.folder)


def test_where_it_runs_and_how_long_it_waits(tmp_path: Path) -> None:
    kinds = {}
    for name in ("plain", "int8", "fp16"):
        _, repository = make_repository(tmp_path / name, GRAPHS[name], heads=EVEN)
        kinds[name] = [group.kind for group in repository.config.instance_group]
        assert 0 < repository.config.dynamic_batching.max_queue_delay_microseconds <= 1000
    assert kinds == {"plain": [], "int8": [2], "fp16": [1]}  # KIND_CPU, KIND_GPU


def test_a_server_needs_nothing_but_the_folder_and_the_card_says_how(tmp_path: Path) -> None:
    bundle, _ = make_repository(tmp_path / "b", GRAPHS["answers"])
    names = {"acronym/config.pbtxt", "acronym/labels.txt", "acronym/1/model.onnx"}
    assert names <= set(bundle.manifest.files) and set(bundle.manifest.graphs) == {"acronym/1/model.onnx"}
    card = (tmp_path / "b" / "README.md").read_text()
    assert "--model-control-mode=explicit --load-model=acronym" in card and "1 to 24 a prompt" in card
