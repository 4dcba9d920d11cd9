"""Run by the interpreter of `.venv-exchange`: what EAP-IG, MIB and circuitkit make of graph files that we wrote.

    python their_side.py JOBS.json EAP_IG_FOLDER [MIB_FOLDER]

Each of the jobs names a checkpoint folder, prompts, and graph files; the result is printed as one line of JSON. Their
code runs as it is, on a CPU: `eap.utils` alone asks for a CUDA device by name, which is answered with the CPU. The
tokenizer is replaced by one that reads token ids, so that both sides see the same prompts.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained import weight_conversions
from transformers import AutoModelForCausalLM

LAST = [lambda logits, _clean, lengths, _labels: logits[torch.arange(len(logits)), lengths - 1]]


class CpuTorch(ModuleType):
    """`torch`, whose `zeros` takes the CPU for CUDA."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*sizes: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*sizes, device="cpu" if device == "cuda" else device, **options)


def load_hooked(folder: str) -> HookedTransformer:
    """The checkpoint in TransformerLens, with its weights as they are: neither folded nor centred."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = hf.config
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    common = {
        "d_model": d_model,
        "d_head": d_model // n_heads,
        "n_heads": n_heads,
        "n_layers": config.num_hidden_layers,
    }
    common |= {"d_vocab": config.vocab_size, "device": "cpu", "n_ctx": config.max_position_embeddings}
    rotary = {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False}
    if config.model_type == "gpt2":
        own = {"act_fn": "gelu_new", "eps": config.layer_norm_epsilon, "normalization_type": "LN"}
        own["d_mlp"] = config.n_inner or 4 * d_model
        convert = weight_conversions.convert_gpt2_weights
    elif config.model_type == "llama":
        own = {"act_fn": "silu", "eps": config.rms_norm_eps, "normalization_type": "RMS", "final_rms": True}
        own |= {"gated_mlp": True, "d_mlp": config.intermediate_size, "n_key_value_heads": config.num_key_value_heads}
        own |= rotary | {"rotary_dim": d_model // n_heads, "rotary_base": 10000}
        convert = weight_conversions.convert_llama_weights
    else:
        own = {"act_fn": "gelu", "eps": config.layer_norm_eps, "normalization_type": "LN", "parallel_attn_mlp": True}
        own |= {"d_mlp": config.intermediate_size} | rotary | {"rotary_dim": d_model // n_heads}
        convert = weight_conversions.convert_neox_weights
    cfg = HookedTransformerConfig(**common, **own)
    model = HookedTransformer(cfg, move_to_device=False)
    model.load_state_dict(convert(hf, cfg), strict=False)
    model.tokenizer = SimpleNamespace(pad_token_id=-1, padding_side="right")
    model.to_tokens = lambda texts, **_options: torch.tensor([[int(word) for word in text.split()] for text in texts])
    model.cfg.use_split_qkv_input = model.cfg.use_attn_result = model.cfg.use_hook_mlp_in = True
    model.cfg.ungroup_grouped_query_attention = True
    return model


def make_loader(prompts: dict[str, Any]) -> list[tuple[tuple[str, ...], tuple[str, ...], list[list[int]]]]:
    """Batches of clean prompts, corrupted ones (which no ablation here reads) and pairs of right and wrong answers."""
    texts = tuple(" ".join(map(str, ids)) for ids in prompts["ids"])
    return [(texts, texts, prompts["answers"])]


def read_with_circuitkit(path: str) -> list[str] | None:
    """The nodes that circuitkit's reader finds; None where it is not installed. Its reader alone is imported.

    The package as a whole wants another TransformerLens.
    """
    try:
        folder = Path(str(importlib.metadata.distribution("circuitkit").locate_file("circuitkit")))
    except importlib.metadata.PackageNotFoundError:
        return None
    for name in ("circuitkit", "circuitkit.backends", "circuitkit.backends.eap"):
        stub = sys.modules.setdefault(name, ModuleType(name))
        stub.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    from circuitkit.backends.eap.graph import Graph

    return list_kept(Graph.from_json(path))


def list_kept(graph: Any) -> list[str]:
    return sorted(name for name, node in graph.nodes.items() if node.in_graph)


def examine(model: HookedTransformer, job: dict[str, Any], path: str, intervention: str) -> dict[str, Any]:
    """One graph: what their reader finds, the logits that their evaluation computes, and what their writer writes."""
    from eap.evaluate import evaluate_graph
    from eap.graph import Graph

    graph = Graph.from_json(path)
    found: dict[str, Any] = {"nodes": list_kept(graph), "edges": graph.count_included_edges()}
    found["circuitkit"] = read_with_circuitkit(path)
    scored = graph.nodes_scores is not None
    found["unscored"] = int(graph.nodes_scores.isnan().sum()) if scored else None
    if not scored:  # their writer fails at `logits` where nodes have scores
        graph.to_json(f"{path}.theirs")
    means = make_loader(job["patching"])
    options = {"quiet": True, "intervention": intervention, "intervention_dataloader": means}
    found["logits"] = evaluate_graph(model, graph, make_loader(job["prompts"]), LAST, **options).tolist()
    if scored:
        again = Graph.from_json(path)
        again.apply_threshold(job["alpha"], absolute=True, level="node")
        found["thresholded"] = list_kept(again)
    return found


def run_mib(model: HookedTransformer, job: dict[str, Any], path: str, intervention: str) -> dict[str, Any]:
    """MIB's curve of faithfulness over nodes, and the two scores that it is normalised with."""
    from eap.evaluate import evaluate_baseline, evaluate_graph
    from eap.graph import Graph
    from MIB_circuit_track.evaluation import evaluate_area_under_curve
    from MIB_circuit_track.metrics import get_metric

    metric = get_metric("logit_diff", "ioi", model=model)
    per_prompt = lambda *values: metric(*values, mean=False)  # noqa: E731
    prompts, means = make_loader(job["prompts"]), make_loader(job["patching"])
    options = {"quiet": True, "intervention": intervention, "intervention_dataloader": means}
    nothing = Graph.from_json(path)
    nothing.apply_topn(0, True)
    curve = evaluate_area_under_curve(model, Graph.from_json(path), prompts, per_prompt, level="node", **options)
    return {
        "faithfulness": curve[4],
        "baseline": evaluate_baseline(model, prompts, per_prompt, quiet=True).mean().item(),
        "corrupted": evaluate_graph(model, nothing, prompts, per_prompt, **options).mean().item(),
    }


def do_job(job: dict[str, Any], *, mib: bool) -> dict[str, Any]:
    """What is found for each graph of one model."""
    model, results = load_hooked(job["model"]), {}
    for name, (path, intervention) in job["graphs"].items():
        results[name] = examine(model, job, path, intervention)
        if mib and results[name]["unscored"] is not None:
            results[name]["mib"] = run_mib(model, job, path, intervention)
    return results


def main(jobs: str, eap_ig: str, mib: str | None = None) -> None:
    sys.path[:0] = [str(Path(eap_ig) / "src"), *([mib] if mib else [])]
    import eap.utils
    from eap.evaluate import evaluate_graph

    eap.utils.torch = CpuTorch("torch")
    fits_mib = mib is not None and "optimal_ablation_path" in inspect.signature(evaluate_graph).parameters
    results = {name: do_job(job, mib=fits_mib) for name, job in json.loads(Path(jobs).read_text()).items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
