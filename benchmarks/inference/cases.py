"""The models, circuits and prompts that are measured.

Three circuits have GPT-2 Small's shape and random weights: speed does not depend on what weights say, and the real
ones are not at hand everywhere. The others are those that the main job found (benchmarks/results/main_job.json), on
their tasks' own prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from exporter.circuit import Circuit, Head
from exporter.evidence.fitness import require_tokenizer
from exporter.loading.families import FAMILIES
from exporter.loading.load import load_model
from exporter.network.model import CircuitModel
from exporter.rewrite.folds import fold_model
from exporter.rewrite.surgery import plan_surgery, slice_model
from exporter.tasks import TaskData, rebuild_task
from exporter.tasks.dataset import Dataset, count_shared

RESULTS = Path(__file__).parent.parent / "results" / "main_job.json"
MOST = 128  # the largest batch


@dataclass(frozen=True, eq=False)
class Case:
    """One circuit, and what it is measured on.

    `hf` and `dense` are the same weights; `small` is what survives, of `n_parameters` before folding. prompts: (MOST,
    pos) int64, of one length. `answer_ids` are the tokens that the task can answer with, `vocabulary` those that its
    prompts can have, `opening` those that all start with. `test` is the task's test set; None where there is no task.
    """

    name: str
    circuit: Circuit
    hf: Any
    dense: CircuitModel
    small: CircuitModel
    n_parameters: int
    prompts: Tensor
    answer_ids: tuple[int, ...]
    vocabulary: tuple[int, ...]
    opening: tuple[int, ...]
    test: Dataset | None = None

    def describe(self) -> dict[str, Any]:
        """What is in the case, for the results."""
        return {
            "heads": len(self.circuit.heads),
            "head_layers": len({head.layer for head in self.circuit.heads}),
            "mlps": len(self.circuit.mlps),
            "parameters_dense": self.dense.count_parameters(),
            "parameters_circuit": self.n_parameters,
            "pos": self.prompts.shape[1],
            "opening": len(self.opening),
            "answers": len(self.answer_ids),
            "vocabulary": len(self.vocabulary),
        }


def load_case(name: str) -> Case:
    """Build the case of that name."""
    return CASES[name](name)


def _spread_heads(n_heads: int, layers: int) -> tuple[Head, ...]:
    """So many heads in the upper layers, at different places."""
    return tuple(sorted(Head(11 - i % layers, (5 * i + 1) % 12) for i in range(n_heads)))


def _build_random(name: str, *, circuit: Circuit, n_answers: int = 100, n_tokens: int = 500, **shape: Any) -> Case:
    """A GPT-2 with random weights (Small's shape but for `shape`) and prompts of 11 random tokens out of some 500."""
    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **shape)
    hf = GPT2LMHeadModel(config).eval().requires_grad_(False)
    dense = FAMILIES["gpt2"].build_dense(hf)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(config.vocab_size, generator=generator)
    vocabulary, answers = ids[:n_tokens].sort().values, ids[:n_answers].sort().values
    chosen = torch.randint(len(vocabulary), (2 * MOST, 11), generator=generator)
    chosen[0, 0], chosen[1, 0] = 0, 1  # two prompts differ in their first token: there is no common opening
    prompts = vocabulary[chosen]  # (prompt, pos)
    patching = Dataset(prompts[MOST:], prompts[MOST:, 0].contiguous())
    return Case(
        name=name,
        circuit=circuit,
        hf=hf,
        dense=dense,
        **_rewrite(dense, circuit, patching),
        prompts=prompts[:MOST].contiguous(),
        answer_ids=tuple(answers.tolist()),
        vocabulary=tuple(vocabulary.tolist()),
        opening=(),
    )


def _build_found(name: str, *, model: str, task: str) -> Case:
    """What the main job found for a task, on the task's test set."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))[model]["tasks"][task]
    loaded = load_model(model)
    data = rebuild_task(found["task"]["name"], found["task"]["parameters"], require_tokenizer(loaded))
    circuit = Circuit.from_json(found["circuit"])
    loaded.hf.set_attn_implementation("sdpa")  # the faster one, as PyTorch users have it; ours is eager for its hooks
    return Case(
        name=name,
        circuit=circuit,
        hf=loaded.hf,
        dense=loaded.dense,
        **_rewrite(loaded.dense, circuit, data.patching),
        prompts=data.test.input_ids[:MOST].contiguous(),
        answer_ids=collect_answers(data),
        vocabulary=tuple(torch.cat([s.input_ids.flatten() for s in _sets(data)]).unique().tolist()),
        opening=find_opening(torch.cat([s.input_ids for s in (data.patching, data.selection, data.test)])),
        test=data.test,
    )


def _rewrite(dense: CircuitModel, circuit: Circuit, patching: Dataset) -> dict[str, Any]:
    sliced = slice_model(dense, plan_surgery(dense, circuit, patching))
    return {"small": fold_model(sliced), "n_parameters": sliced.count_parameters()}


def _sets(data: TaskData) -> list[Dataset]:
    """The sets that have the prompts' length: those of other templates may have another one."""
    sets = [data.patching, data.selection, data.test, *data.ood.values()]
    return [s for s in sets if s.length == data.test.length]


def collect_answers(data: TaskData) -> tuple[int, ...]:
    """The tokens that the task can answer with, in rising order."""
    ids = torch.cat([s.answer_ids.flatten() for s in _sets(data)]).unique()
    return tuple(ids[ids >= 0].tolist())


def find_opening(prompts: Tensor) -> tuple[int, ...]:
    """The tokens that all of some (prompt, pos) prompts start with; at least the last position is left to compute."""
    return tuple(prompts[0, : count_shared(prompts[:, :-1])].tolist())


_LAYERS = tuple(range(12))
CASES: dict[str, Callable[[str], Case]] = {
    "gpt2-reference": partial(_build_random, circuit=Circuit(heads=(Head(7, 10), Head(9, 1)), mlps=(8, 9, 10))),
    "gpt2-acronym-like": partial(_build_random, circuit=Circuit(heads=(Head(8, 11), Head(9, 9)), mlps=_LAYERS)),
    "gpt2-ioi-like": partial(_build_random, circuit=Circuit(heads=_spread_heads(9, 7), mlps=(0, 7, 8, 9, 10))),
    "tiny": partial(
        _build_random,
        circuit=Circuit(heads=(Head(1, 0), Head(2, 1)), mlps=(1, 2)),
        n_answers=10,
        n_tokens=50,
        vocab_size=199,
        n_positions=32,
        n_layer=3,
        n_head=2,
        n_embd=32,
    ),
    **{
        f"{model}-{task}": partial(_build_found, model=model, task=task)
        for model, task in (
            ("bundled", "acronym"),
            ("bundled", "greater-than"),
            ("bundled", "ioi"),
            ("smollm2", "acronym"),
            ("smollm2", "ioi"),
        )
    },
}
