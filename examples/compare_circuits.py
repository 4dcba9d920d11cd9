"""Compare circuits: of two ablations, at several thresholds, and with each other.

python examples/compare_circuits.py --task greater-than --alphas 0.02 0.1
"""

import argparse
from pathlib import Path

from exporter import MLP, Ablation, Circuit, evaluate_circuit, load_model, load_task, rewrite_model, search_circuit
from exporter.tasks import SplitSizes


def components(circuit: Circuit) -> set[str]:
    """What stays, by name."""
    return {str(component) for component in (*circuit.heads, *map(MLP, circuit.mlps))}


def main() -> None:
    """Search, evaluate each circuit on the test set, save it, and print what they share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="acronym")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--prompts", type=int, default=60, help="prompts in each set")
    parser.add_argument("--folder", type=Path, default=Path())
    given = parser.parse_args()

    model = load_model(given.model)
    n = given.prompts
    data = load_task(given.task, model.tokenizer, sizes=SplitSizes(patching=n, selection=n, test=n, ood=n))
    circuits = {}
    for ablation in (Ablation("mean", by="position"), Ablation("mean", by="global"), Ablation("zero")):
        for alpha in given.alphas:
            circuit, record = search_circuit(model, data.patching, data.selection, alpha=alpha, ablation=ablation)
            small = rewrite_model(model, circuit, data.patching)
            figures = evaluate_circuit(model.dense.answer_logits, small.answer_logits, data.test)
            name = f"{ablation.kind}-{ablation.by}-{alpha:g}" if ablation.kind == "mean" else f"zero-{alpha:g}"
            circuits[name] = circuit
            circuit.save(given.folder / f"{name}.json", record)
            size = f"{len(circuit.heads)} heads, {len(circuit.mlps)} MLPs"
            print(f"{name}: {size}, accuracy {figures.circuit.accuracy:.1%}, KL {figures.kl:.3f}")
    shared = set.intersection(*map(components, circuits.values()))
    print(f"all circuits share: {', '.join(sorted(shared)) or 'nothing'}")


if __name__ == "__main__":
    main()
