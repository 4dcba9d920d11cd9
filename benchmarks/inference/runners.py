"""Ways to run a model: an ONNX file on the CPU or on CUDA, bound or not, and PyTorch.

A runner takes prompts once, `bind`, and gives a call without arguments that waits for its result, so that nothing
but the model is on the clock; `last_logits` reads the result.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from exporter.runtime.session import PROVIDERS, import_onnxruntime, open_session
from inference.matrix import Contestant, Provider

Array = np.ndarray[Any, Any]
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class UnavailableError(Exception):
    """What a contestant needs is not on this machine; the message says what."""


class Runner(Protocol):
    """A model that is ready to run."""

    def bind(self, ids: Array) -> Callable[[], Any]:
        """A call on these (batch, pos) int64 prompts."""

    def last_logits(self, result: Any) -> Array:
        """The logits at the answer position in what the call returned: (batch, vocab or answer)."""


class OnnxRunner:
    """`session.run` on arrays in the computer's memory."""

    def __init__(self, path: Path, *, provider: Provider, threads: int) -> None:
        self.session = open_session(path, provider=provider, threads=threads)

    def feeds(self, ids: Array) -> dict[str, Array]:
        """All inputs: Optimum's graphs ask for a mask and positions, too."""
        known = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy(),
        }
        return {value.name: known[value.name] for value in self.session.get_inputs()}

    def bind(self, ids: Array) -> Callable[[], Any]:
        """A call on these prompts."""
        feeds = self.feeds(ids)
        return lambda: self.session.run(None, feeds)[0]

    def last_logits(self, result: Any) -> Array:
        """Logits are the first output."""
        return np.asarray(result[:, -1], np.float32)


class BoundRunner(OnnxRunner):
    """Inputs and outputs stay on the device, in memory that is given out beforehand; optionally as a CUDA graph."""

    def __init__(self, path: Path, *, provider: Provider, threads: int, graph: bool = False) -> None:
        if not graph:
            super().__init__(path, provider=provider, threads=threads)
        else:
            ort = import_onnxruntime()
            options = ort.SessionOptions()
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            placed = [(PROVIDERS[provider], {"enable_cuda_graph": "1"})]
            self.session = ort.InferenceSession(str(path), options, providers=placed)
            assert self.session.get_providers()[0] == PROVIDERS[provider]
        self.device: str = provider

    def bind(self, ids: Array) -> Callable[[], Any]:
        """A call on these prompts, which returns the bound output when it is there."""
        ort = import_onnxruntime()
        binding = self.session.io_binding()
        for name, array in self.feeds(ids).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
        logits = next(value for value in self.session.get_outputs() if value.name == "logits")
        free = (*ids.shape, None)  # files of all exporters have logits of (batch, pos or 1, vocab)
        shape = [dim if isinstance(dim, int) else size for dim, size in zip(logits.shape, free, strict=True)]
        out = ort.OrtValue.ortvalue_from_shape_and_type(shape, _TYPES[logits.type], self.device, 0)
        binding.bind_ortvalue_output("logits", out)

        def call() -> Any:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return out

        return call

    def last_logits(self, result: Any) -> Array:
        """Copied from the device."""
        return np.asarray(result.numpy()[:, -1], np.float32)


class TorchRunner:
    """The Hugging Face model in fp32, as it is or compiled."""

    def __init__(self, hf: Any, *, provider: Provider, threads: int, compiled: bool = False) -> None:
        if compiled and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise UnavailableError("torch.compile needs a C++ compiler, and there is none")
        self.device, self.threads = provider, threads
        if provider == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.model = hf.to(provider)
        if compiled:
            torch.compiler.reset()
            self.model = torch.compile(self.model, dynamic=False)

    def bind(self, ids: Array) -> Callable[[], Any]:
        """A call on these prompts."""
        on_device = torch.from_numpy(ids).to(self.device)
        torch.set_num_threads(self.threads)

        @torch.inference_mode()
        def call() -> Any:
            logits = self.model(input_ids=on_device, use_cache=False).logits
            if self.device == "cuda":
                torch.cuda.synchronize()
            return logits

        return call

    def last_logits(self, result: Any) -> Array:
        """Of a tensor."""
        return np.asarray(result[:, -1].float().cpu().numpy())


def make_runner(contestant: Contestant, path: Path | None, hf: Any, *, provider: Provider, threads: int) -> Runner:
    """The contestant, ready to run; `path` is its file. Raises UnavailableError."""
    if provider == "cuda" and (reason := why_no_cuda()):
        raise UnavailableError(reason)
    if path is None:
        return TorchRunner(hf, provider=provider, threads=threads, compiled=contestant.engine == "compile")
    if contestant.io_binding:
        return BoundRunner(path, provider=provider, threads=threads, graph=contestant.graph)
    return OnnxRunner(path, provider=provider, threads=threads)


def why_no_cuda() -> str:
    """Why nothing can run on CUDA here; empty when it can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if PROVIDERS["cuda"] not in import_onnxruntime().get_available_providers():
        return "ONNX Runtime here has no CUDA provider; pip install 'export-circuit[gpu]' in place of [cpu]"
    return ""
