"""What a file is timed on: its own examples, or random prompts that fit; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny import VOCAB, make_model, make_prompts

from exporter.bench.workload import BoundModel, choose_workload
from exporter.circuit import Circuit
from exporter.errors import ExactnessError, InputError
from exporter.graph.export import export_onnx
from exporter.graph.metadata import ANSWER_IDS_KEY, EXAMPLES_KEY, VOCAB_SIZE_KEY
from exporter.graph.options import Form, GraphOptions
from exporter.rewrite.surgery import rewrite_model
from exporter.runtime.session import run_logits


def export(path: Path, form: Form = "plain", *, metadata: dict[str, str] | None = None, family: str = "gpt2") -> Path:
    export_onnx(make_model(family).dense, path, GraphOptions(form=form), metadata=metadata)
    return path


def make_examples(path: Path, *, padded: bool = False, **changes: object) -> dict[str, object]:
    """The examples that a file's own answers make."""
    prompts = make_prompts(6, 5, padded=padded)
    mask = None if prompts.mask is None else prompts.mask.numpy()
    logits = run_logits(BoundModel(path).session, prompts.input_ids.numpy(), mask)
    examples: dict[str, object] = {
        "input_ids": prompts.input_ids.tolist(),
        "attention_mask": None if mask is None else mask.astype(int).tolist(),
        "answers": logits[:, -1].argmax(-1).tolist(),
    }
    return examples | changes


def add_metadata(path: Path, key: str, value: object) -> None:
    model = onnx.load(path)
    model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, path)


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_every_form_is_fed(form: Form, tmp_path: Path) -> None:
    model = BoundModel(export(tmp_path / "m.onnx", form))
    workload = choose_workload([model])
    assert workload.input_ids.shape == (32, 12)  # the model takes no more
    assert (workload.input_ids < VOCAB).all()
    bound = model.bind(workload.repeat(3))
    expected = make_model().dense(torch.from_numpy(workload.input_ids[:3]))
    torch.testing.assert_close(torch.from_numpy(bound.outputs()["logits"]), expected, rtol=1e-3, atol=1e-4)


def test_position_ids_count_from_the_first_token(tmp_path: Path) -> None:
    """As other exporters have them."""
    nodes = [
        helper.make_node("Add", ["position_ids", "input_ids"], ["sum"]),
        helper.make_node("Add", ["sum", "attention_mask"], ["logits"]),
    ]
    names = ("input_ids", "attention_mask", "position_ids", "logits")
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in names]
    graph = helper.make_graph(nodes, "g", values[:3], values[3:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, tmp_path / "m.onnx")
    add_metadata(tmp_path / "m.onnx", VOCAB_SIZE_KEY, 5)
    model = BoundModel(tmp_path / "m.onnx")
    workload = choose_workload([model], length=4)
    feeds = model.make_feeds(workload)
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3]] * 32


@pytest.mark.parametrize("padded", [False, True])
def test_examples_are_repeated_and_their_answers_checked(padded: bool, tmp_path: Path) -> None:
    path = export(tmp_path / "m.onnx", "masked" if padded else "plain")
    examples = make_examples(path, padded=padded)
    add_metadata(path, EXAMPLES_KEY, examples)
    model = BoundModel(path)
    workload = choose_workload([model])
    assert workload.input_ids.tolist() == examples["input_ids"]
    repeated = workload.repeat(8)
    assert repeated.input_ids.tolist() == [examples["input_ids"][i % 6] for i in range(8)]  # type: ignore[index]
    model.bind(repeated)
    assert choose_workload([model], length=3).answers is None  # another length was asked for: random prompts
    wrong = [(answer + (i == 2)) % VOCAB for i, answer in enumerate(examples["answers"])]  # type: ignore[arg-type,var-annotated]
    add_metadata(export(path, "masked" if padded else "plain"), EXAMPLES_KEY, examples | {"answers": wrong})
    model = BoundModel(path)
    with pytest.raises(ExactnessError, match="gives 1 of 6 example prompts another answer"):
        model.bind(choose_workload([model]))


@pytest.mark.parametrize("as_output", [False, True])
def test_answers_among_some_tokens(as_output: bool, tmp_path: Path) -> None:
    """Logits (batch, 1, answer), with the tokens in the metadata, or in a constant output too."""
    ids = np.array([30, 10, 20])
    nodes = [
        helper.make_node("Slice", ["input_ids", "minus", "most", "one"], ["last"]),
        helper.make_node("Gather", ["table", "last"], ["logits"]),  # (batch, 1, answer)
    ]
    weights = {"minus": np.array([-1]), "most": np.array([99]), "one": np.array([1]),
               "table": np.eye(3, dtype=np.float32)[[2, 0, 1]]}  # fmt: skip
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1, 3])]
    if as_output:
        weights["answer_token_ids"] = ids
        outputs.append(helper.make_tensor_value_info("answer_token_ids", TensorProto.INT64, [3]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])], outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    add_metadata(path, ANSWER_IDS_KEY, ids.tolist())
    add_metadata(path, EXAMPLES_KEY, {"input_ids": [[1, 0], [2, 1], [0, 2]], "answers": [20, 30, 10]})
    model = BoundModel(path)
    assert model.vocab_size is None  # the width of the logits says nothing of the prompts
    model.bind(choose_workload([model]))
    with pytest.raises(InputError, match="does not say how many token ids it knows"):
        choose_workload([model], length=2)


@pytest.mark.parametrize(
    "examples",
    [
        {"input_ids": [[1, 2], [3]], "answers": [1, 2]},
        {"input_ids": [[1, 2]], "answers": [1, 2]},
        {"input_ids": [[1, 2]], "answers": [1], "attention_mask": [[1]]},
        {"input_ids": [], "answers": []},
        {"answers": []},
        {"input_ids": "text", "answers": [1]},
        [],
    ],
)
def test_damaged_examples_are_refused(examples: object, tmp_path: Path) -> None:
    add_metadata(export(tmp_path / "m.onnx"), EXAMPLES_KEY, examples)
    with pytest.raises(InputError, match=r"the examples in the metadata of .* are damaged"):
        choose_workload([BoundModel(tmp_path / "m.onnx")])


def test_a_length_that_does_not_fit(tmp_path: Path) -> None:
    free = BoundModel(export(tmp_path / "free.onnx"))
    with pytest.raises(InputError, match="prompts of 13 tokens do not fit: the model takes at most 12"):
        choose_workload([free], length=13)
    lm = make_model()
    for length in (5, 6):
        pinned = rewrite_model(lm, Circuit(heads=(), mlps=(0,)), make_prompts(4, length))
        export_onnx(pinned, tmp_path / f"{length}.onnx")
    five, six = (BoundModel(tmp_path / f"{length}.onnx") for length in (5, 6))
    assert choose_workload([free, five]).pos == 5
    assert choose_workload([free], usual=7).pos == 7
    with pytest.raises(InputError, match=r"no prompt fits both"):
        choose_workload([five, six])
    with pytest.raises(InputError, match="prompts of 4 tokens do not fit: the model takes 5"):
        choose_workload([five], length=4)
    with pytest.raises(InputError, match="takes prompts of 6 tokens, not of 5"):
        six.make_feeds(choose_workload([five]))


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        BoundModel(tmp_path / "no.onnx")
    node = helper.make_node("Relu", ["pixels"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("pixels", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="takes pixels; it must be a language model that takes input_ids"):
        BoundModel(tmp_path / "m.onnx")


def test_padded_examples_need_a_mask(tmp_path: Path) -> None:
    path = export(tmp_path / "m.onnx", "masked")
    add_metadata(path, EXAMPLES_KEY, make_examples(path, padded=True))
    plain = BoundModel(export(tmp_path / "p.onnx"))
    workload = choose_workload([BoundModel(path), plain])
    with pytest.raises(InputError, match="takes no attention_mask, but the examples are padded"):
        plain.bind(workload)


def test_ids_that_a_model_does_not_know(tmp_path: Path) -> None:
    add_metadata(export(tmp_path / "m.onnx"), EXAMPLES_KEY, {"input_ids": [[VOCAB]], "answers": [1]})
    model = BoundModel(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"does not run on prompts of shape \(1, 1\)"):
        model.bind(choose_workload([model]))
