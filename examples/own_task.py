"""A task of one's own: a file of prompts and answers, here years after which the next one comes.

python examples/own_task.py --data years.jsonl
"""

import argparse
import json
from pathlib import Path

from exporter import evaluate_circuit, load_model, load_task, rewrite_model, search_circuit
from exporter.tasks import SplitSizes


def write_data(path: Path) -> None:
    """One line for each prompt; "answers" are several right ones, of which any will do."""
    lines = []
    for noun in ("war", "siege", "reign", "trial"):
        for year in range(12, 88):
            later = [str(other) for other in range(year + 1, 100)]
            prompt = f"The {noun} lasted from the year 16{year} to the year 16"
            lines.append(json.dumps({"prompt": prompt, "answers": later}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write the file where there is none, and find the circuit of what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("years.jsonl"))
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--prompts", type=int, default=80, help="prompts in each set, at most")
    given = parser.parse_args()
    if not given.data.exists():
        write_data(given.data)

    model = load_model(given.model)
    n = given.prompts
    data = load_task(given.data, model.tokenizer, sizes=SplitSizes(patching=n, selection=n, test=n))
    circuit, record = search_circuit(model, data.patching, data.selection, alpha=given.alpha)
    for step in record.trace:
        if not step.removed:
            print(f"{step.component} stays: without it KL goes from {step.kl_before:.3f} to {step.kl_without:.3f}")
    small = rewrite_model(model, circuit, data.patching)
    figures = evaluate_circuit(model.dense.answer_logits, small.answer_logits, data.test)
    print(f"dense {figures.dense.accuracy:.1%}, circuit {figures.circuit.accuracy:.1%} of {figures.n} held-out prompts")


if __name__ == "__main__":
    main()
