"""Where the time of a search goes: `python benchmarks/profile_search.py` writes the tables of PROFILE.md.

Timers around the search's own functions, each charged with what no inner one takes: torch.profiler
costs time at each of tens of thousands of small operations, and with shapes it changes the picture.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from main_job import describe_machine, write_between
from search_case import ALPHA, make_case, make_prompts, measure_gemm_rates
from torch.nn import functional

from exporter.metrics import divergence
from exporter.network import attention, feed_forward, norm
from exporter.search import find, greedy, residuals
from exporter.search.find import find_circuit

PROFILE = Path(__file__).parent / "PROFILE.md"
N, T, D_MODEL = 100, 11, 768

MLP_PRODUCTS, UNEMBEDDING = "candidates: matrix products of MLPs", "candidates: unembedding products"
ATTENTION, MEANS, DENSE, SLICING = "candidates: attention", "means", "dense passes", "slicing what survives"
WHOLE = {ATTENTION, MEANS, DENSE, SLICING}  # nothing inside them is charged to anything else
REST = "the rest"
PARTS: list[tuple[Any, str, str]] = [
    (find, "compute_replacements", MEANS),
    (residuals.DenseResiduals, "__init__", DENSE),
    (residuals.DenseResiduals, "take", DENSE),
    (greedy._Search, "_run_dense", DENSE),
    (divergence.KLTarget, "of", DENSE),
    (greedy, "slice_step", SLICING),
    (attention.Attention, "forward", ATTENTION),
    (feed_forward, "affine", MLP_PRODUCTS),
    (norm.Norm, "forward", "candidates: norms"),
    (divergence.KLTarget, "measure", "candidates: log-sum-exp of the logits"),
    (torch, "mm", UNEMBEDDING),
    (greedy, "_replace_unit", "candidates: the residual without each"),
    (residuals.Residual, "plus", "candidates: the residual without each"),
]


class Clock:
    """Seconds of each part, less those of the parts inside it, and FLOPs of the parts that are one product."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.open = [REST]
        self.since = time.perf_counter()

    def charge(self) -> None:
        """What has passed since the last time goes to the innermost open part."""
        now = time.perf_counter()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.open[-1] in WHOLE:
                return function(*args, **kwargs)
            self.charge()
            self.open.append(part)
            found = function(*args, **kwargs)
            self.charge()
            self.open.pop()
            if part in (MLP_PRODUCTS, UNEMBEDDING):
                self.flops[part] += 2 * args[0].numel() * args[1].shape[1]
            return found

        return timed


def profile() -> tuple[Clock, float]:
    """The parts' times in one search, and how long the same search takes without timers."""
    model, _ = make_case("small", "few")
    sets = make_prompts(N, T, 1), make_prompts(N, T, 2)
    run = partial(find_circuit, model, *sets, alpha=ALPHA)
    start = time.perf_counter()
    run()
    plain = time.perf_counter() - start
    clock = Clock()
    with ExitStack() as stack:
        for owner, name, part in PARTS:
            stack.enter_context(patch.object(owner, name, clock.wrap(getattr(owner, name), part)))
        gelu = clock.wrap(feed_forward.ACTIVATIONS["gelu_tanh"], "candidates: GELU")
        stack.enter_context(patch.dict(feed_forward.ACTIVATIONS, gelu_tanh=gelu))
        clock.since = time.perf_counter()
        run()
        clock.charge()
    return clock, plain


def time_alone(function: Callable[[], object], *, seconds: float = 0.7) -> float:
    """The median time of a function, called again and again."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


@torch.inference_mode()
def measure_operations() -> list[tuple[str, str]]:
    """What the search is made of, each operation alone."""
    best, middle = (rate / 1e9 for rate in measure_gemm_rates(N * T, torch.randn(D_MODEL, 4 * D_MODEL)))
    found = [("product of an MLP, 1100 rows", f"{best:.0f} GFLOP/s at best, {middle:.0f} in the median")]
    W_U = torch.randn(50257, D_MODEL) * 0.02
    blocks = W_U.split(divergence._BLOCK)
    for rows in (100, 400):
        x = torch.randn(rows, D_MODEL)
        seconds = time_alone(partial(_unembed, x, blocks))
        found.append((f"unembedding, {rows} rows", f"{2 * rows * W_U.numel() / seconds / 1e9:.0f} GFLOP/s"))
    hidden = torch.randn(N * T, 4 * D_MODEL)
    seconds = time_alone(lambda: functional.gelu(hidden, approximate="tanh"))
    found.append(("GELU (tanh)", f"{seconds / hidden.numel() * 1e9:.2f} ns a number"))
    for value in (-10.0, -95.0):
        logits = torch.full((N, divergence._BLOCK), value)
        seconds = time_alone(lambda logits=logits: logits.exp().sum(1))
        found.append((f"exp({value:g}) and sum", f"{seconds / logits.numel() * 1e9:.2f} ns a number"))
    return found


def _unembed(x: torch.Tensor, blocks: tuple[torch.Tensor, ...]) -> None:
    for tokens in blocks:
        torch.mm(x, tokens.T)


def render(clock: Clock, plain: float, operations: list[tuple[str, str]]) -> str:
    """The Markdown between the markers."""
    total = sum(clock.seconds.values())
    lines = ["| part | seconds | share | GFLOP/s |", "|---|---|---|---|"]
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: (item[0] == REST, -item[1])):
        rate = f"{clock.flops[part] / seconds / 1e9:.0f}" if clock.flops[part] else ""
        lines.append(f"| {part} | {seconds:.2f} | {seconds / total:.1%} | {rate} |")
    lines += [f"| all | {total:.2f} ({plain:.2f} without timers) | | |", ""]
    lines += ["| operation alone | |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in operations), ""]
    machine = describe_machine()
    lines.append(f"{machine['cpu']}, {machine['cores']} cores, {torch.backends.cpu.get_cpu_capability()}.")
    return "\n".join(lines)


def main() -> None:
    """Profile, and write the tables."""
    table = render(*profile(), measure_operations())
    write_between(PROFILE, "<!-- profile: make search-profile -->", "<!-- end of profile -->", table)
    print(table)


if __name__ == "__main__":
    main()
