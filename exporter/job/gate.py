"""What an exported file has to pass before it is left on disk: exactness, and the answers of a reduced precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.errors import ExactnessError
from exporter.files.scratch import make_scratch
from exporter.graph.export import export_onnx
from exporter.graph.options import GraphOptions
from exporter.loading.load import LanguageModel
from exporter.network.model import CircuitModel
from exporter.network.scope import Scope
from exporter.rewrite.surgery import Surgery
from exporter.runtime.session import has_provider, open_session
from exporter.tasks import TaskData
from exporter.verify.exactness import check_file, verify_surgery
from exporter.verify.figures import Exactness, Served
from exporter.verify.precision import compare_batches, evaluate_file, require_precision


@dataclass(frozen=True, eq=False)
class Gate:
    """The dense model, what was done to it, what came of that, its guard's scope if it has one, and the prompts.

    If not `shut`, no difference is an error: the circuit of a rehearsal says nothing about the one to be found.
    """

    model: LanguageModel
    surgery: Surgery
    rewritten: CircuitModel
    data: TaskData
    scope: Scope | None = None
    shut: bool = True

    def prove(self, path: Path, options: GraphOptions) -> Exactness:
        """Exactness: of the same graph in fp32 where the file is in reduced precision. Raises ExactnessError."""
        with make_scratch() as folder:
            exact = path
            if options.precision != "fp32":
                exact, plain = folder / path.name, replace(options, precision="fp32", scales="tensor", in_fp32=())
                export_onnx(self.rewritten, exact, plain, scope=self.scope)
            sets = {"patching": self.data.patching, "prompts": self.data.test}
            try:
                return verify_surgery(self.model, self.surgery, self.rewritten, exact, **sets, scope=self.scope)
            except ExactnessError:
                if self.shut:
                    raise
                check_file(exact)
                return Exactness(math.nan, math.nan, math.nan, len(self.data.test))

    def serve(self, path: Path, options: GraphOptions) -> Served:
        """What the file itself answers. Raises ExactnessError: in reduced precision, too far from the circuit."""
        session = open_session(path, provider=pick_provider(options))
        served = evaluate_file(session, self.rewritten, self.data.test)
        if options.precision == "int8":
            served = replace(served, mates=compare_batches(session, self.data.test))
        if self.shut:
            require_precision(served, options)
        return served


def pick_provider(options: GraphOptions) -> str:
    """Where a file of this precision is run here: 16 bits are for CUDA; without it, fp16 runs on the CPU."""
    return "cuda" if options.precision in ("fp16", "bf16") and has_provider("cuda") else "cpu"
