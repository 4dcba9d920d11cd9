"""Build the model that the service ships: build/model.onnx, the acronym circuit of the bundled checkpoint.

The circuit is given (circuit.json), so nothing is searched and this takes seconds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE / "build" / "model.onnx"


def make_model() -> Path:
    """Write the model, over an older one, and return where it is."""
    MODEL.parent.mkdir(exist_ok=True)
    options = {"--task": "acronym", "--model": "bundled", "--circuit": HERE / "circuit.json", "--out": MODEL}
    options |= {"--patching-prompts": 100, "--selection-prompts": 1, "--test-prompts": 100}
    arguments = [str(part) for option in options.items() for part in option]
    subprocess.run([sys.executable, "-m", "exporter", *arguments, "--force", "--quiet"], check=True)
    return MODEL


if __name__ == "__main__":
    make_model()
