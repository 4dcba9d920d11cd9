"""Manifests with everything that a report can show: a deep model, a path, prompts, attention, a failing set."""

from __future__ import annotations

import copy
import random
from typing import Any

from manifests import DATA

from exporter.evidence.shown import SCALE

LAYERS, HEADS, UNITS = 30, 9, 1536
HOSTILE = '<img src=x onerror="document.title=1">&amp;\x1b[31m\u202e</script><script>document.title=2</script>\u2028'


def make_data(*, layers: int = LAYERS, heads: int = HEADS, text: str = "") -> dict[str, Any]:
    """A manifest of a gradual search; `text` is put into every string that comes from outside."""
    rng, data = random.Random(0), copy.deepcopy(DATA)
    neurons = {
        str(layer): sorted(rng.sample(range(UNITS), min(UNITS, 40 * layer))) for layer in range(1, layers - 1, 3)
    }
    kept = sorted({(rng.randrange(layers), rng.randrange(heads)) for _ in range(layers)})
    data["model"] |= {"name": f"smollm2{text}", "family": "llama", "n_layers": layers, "n_heads": heads, "d_mlp": UNITS}
    data["task"] |= {"name": f"agreement{text}.jsonl", "parameters": {"seed": 0, "path": f"data/agreement{text}.jsonl"}}
    data["circuit"] = {
        "heads": kept, "mlps": [0, layers - 1], "neurons": neurons, "ablation": "mean", "mean": "position",
        "align": "left", "alpha": None, "order": "gradual", "kl": 0.08, "trace": [], "budget": {"min_accuracy": "-1pt"},
        "path": [_make_step(i) for i in range(7)],
        "learning": {"heal": "distil", "teacher": "dense", "prompts": 2872, "steps": 640, "unlabelled": 0},
    }  # fmt: skip
    data["size"] = {"dense": 106_200_000, "circuit": 4_310_000, "constants": 34_000, "reduction": 0.959}
    data["test"] = _make_figures(500, 494, 491, apart=9)
    data["ood"] = {f"two-nouns{text}": _make_figures(200, 186, 142, apart=52), "words": _make_figures(200, 198, 197, 3)}
    data["latency"] = [
        {"batch": 1, "threads": 2, "dense": 0.0612, "circuit": 0.00418, "speedup": 14.6, "speedup_ci95": [14.1, 15.2]},
        {"batch": 32, "threads": 2, "dense": 1.31, "circuit": 0.049, "speedup": 26.7, "speedup_ci95": [25.2, 27.9]},
    ]
    data["memory"] = [{"batch": 1, "dense": 596_000_000, "circuit": 201_000_000}]
    data["dense_onnx_bytes"] = 538_000_000
    data["files"] = {"model.onnx": {"bytes": 131_000_000, "sha256": "22" * 32}}
    data["seconds"] = {"load": 3.1, "search": 412.0, "measure": 21.5}
    data["notes"] = [f"the task file's near twins are kept together{text}"]
    data["command"] = f"export-circuit --task agreement.jsonl --model smollm2 --out model.onnx --report{text}"
    tokens = [f"The{text}", " keys", " to", " the", " old", " cab", "inet", "\n"]
    data["prompts"] = [_make_prompt(rank, tokens, text) for rank in (1, 2, 3, 4, 5, 6, 230, 455, 678, 900)]
    data["attention"] = _make_attention(rng, tokens, kept[:24], len(kept))
    return data


def _make_step(i: int) -> dict[str, Any]:
    kept = i != 5
    return {
        "parameters": int(106_200_000 / 1.7**i), "heads": 270 - 34 * i, "neurons": 46_080 // 2**i,
        "kl_cut": 0.02 * 1.9**i, "accuracy_cut": 0.99 - 0.012 * i**2, "kl": 0.01 * 1.5**i,
        "accuracy": 0.992 - (0 if kept else 0.03), "steps": 80, "kept": kept,
    }  # fmt: skip


def _make_figures(n: int, dense: int, circuit: int, apart: int) -> dict[str, Any]:
    def accuracy(right: int) -> dict[str, Any]:
        share = right / n
        width = 1.96 * (share * (1 - share) / n) ** 0.5
        return {"accuracy": share, "ci95": [max(0.0, share - width), min(1.0, share + width)]}

    return {
        "n": n, "dense": accuracy(dense), "circuit": accuracy(circuit), "kl": 0.081, "agreement": 1 - apart / n,
        "metrics": {"same_verdict": 1 - apart / n},
    }  # fmt: skip


def _make_prompt(rank: int, tokens: list[str], text: str) -> dict[str, Any]:
    def read(first: str, second: str) -> dict[str, Any]:
        names = (first, second, " were", " is", f" used{text}")
        top = [
            {"token": name, "probability": share, "right": name == " are"}
            for name, share in zip(names, (0.71, 0.22, 0.03, 0.0123, 0.0004), strict=True)
        ]
        return {"top": top, "predicted": first, "right": first == " are"}

    wrong = rank < 5
    return {
        "set": f"two-nouns{text}" if wrong else "test", "rank": rank, "of": 900, "kl": 3.2 / rank, "tokens": tokens,
        "answers": [" are", " were"], "n_answers": 9, "dense": read(" are", " is"),
        "circuit": read(" is", " are") if wrong else read(" are", " is"),
    }  # fmt: skip


def _make_attention(rng: random.Random, tokens: list[str], heads: list[Any], n_heads: int) -> dict[str, Any]:
    shown = []
    for layer, index in heads:
        rows = []
        for query in range(len(tokens)):
            weights = [rng.random() ** 4 for _ in range(query + 1)]
            rows.append("".join(SCALE[round(63 * weight / sum(weights))] for weight in weights))
        shown.append({"layer": layer, "index": index, "written": 1.0, "rows": rows})
    return {"tokens": tokens, "n_heads": n_heads, "heads": shown}


def make_comparison(data: dict[str, Any], text: str = "") -> dict[str, Any]:
    """A comparison on the task of a manifest's data, as `export-circuit compare` writes it, with what is read of it."""

    def point(contestant: str, name: str, right: int, held: int, ms: float) -> dict[str, Any]:
        test = _make_figures(500, right, right, 0)["dense"]
        return {"contestant": contestant, "name": name, "held": held, "test": test | {"n": 500}, "latency_ms": ms}

    points = {
        "dense": [point("dense", f"the model as it is{text}", 494, 134_500_000, 61.2)],
        "ours": [point("ours", "ours", 491, 33_000_000, 4.18)],
        "ours-unhealed": [point("ours-unhealed", "ours, not healed", 462, 33_000_000, 4.2)],
        "probe": [
            point("probe", f"probe after layer {n}", 380 + 12 * n, 28_000_000 + n, 2.1 * n + 1) for n in (1, 4, 8)
        ],
        "words": [point("words", "TF-IDF, logistic regression", 402, 21_000, 0.04)],
        "taylor": [],
    }
    return {
        "schema": 1,
        "key": {"task": data["task"]["name"], "weights": data["model"]["sha256"], "seed": 0},
        "sentences": [f"no baseline is as accurate as ours in as little time, or with as few parameters.{text}"],
        "contestants": {name: {"note": None, "points": found} for name, found in points.items()},
    }
