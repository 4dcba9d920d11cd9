"""Find the circuit of a task, rebuild the model with it alone, write ONNX, and check that it is exact.

python examples/extract.py --task acronym --out model.onnx
"""

import argparse
from pathlib import Path

from exporter import (
    Ablation,
    evaluate_circuit,
    export_onnx,
    find_circuit,
    load_model,
    load_task,
    rewrite_model,
    verify_export,
)
from exporter.tasks import SplitSizes


def main() -> None:
    """Do it, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="acronym")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--alpha", type=float, default=0.05, help="nats that one removal may cost")
    parser.add_argument("--prompts", type=int, default=100, help="prompts in each set")
    parser.add_argument("--out", type=Path, default=Path("model.onnx"))
    given = parser.parse_args()

    model = load_model(given.model)
    n = given.prompts
    data = load_task(given.task, model.tokenizer, sizes=SplitSizes(patching=n, selection=n, test=n, ood=n))
    ablation = Ablation("mean", by="position")
    circuit = find_circuit(model, data.patching, data.selection, alpha=given.alpha, ablation=ablation)
    print(f"circuit: heads {', '.join(map(str, circuit.heads)) or 'none'}; MLPs {list(circuit.mlps)}")

    small = rewrite_model(model, circuit, data.patching)
    export_onnx(small, given.out)
    exactness = verify_export(model, circuit, small, given.out, patching=data.patching, prompts=data.test)
    print(f"exact: logits differ by at most {exactness.rewritten_vs_onnx:.1e} on {exactness.prompts} prompts")
    for name, prompts in {"test": data.test, **data.ood}.items():
        figures = evaluate_circuit(model.dense.answer_logits, small.answer_logits, prompts)
        accuracy = f"dense {figures.dense.accuracy:.1%}, circuit {figures.circuit.accuracy:.1%}"
        print(f"{name}: {accuracy} of {figures.n} prompts, KL {figures.kl:.3f}")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
