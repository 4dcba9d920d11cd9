"""Files of a bundle by who reads them. A new reader is a file here and a line in TARGETS."""

from collections.abc import Callable
from typing import Any

from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.genai import write_genai
from exporter.outputs.targets.optimum import write_optimum
from exporter.outputs.targets.runner import write_runner

Target = Callable[[BundleShape], dict[str, str | dict[str, Any]]]
"""What a target puts into a bundle: texts, or JSON, by file name. Nothing where the model is not for it."""

TARGETS: dict[str, Target] = {
    "optimum": write_optimum,
    "genai": write_genai,
    "runner": write_runner,
}
