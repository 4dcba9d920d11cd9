"""What a server takes and refuses, and how it batches: one frozen value, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from exporter.checks import require_choice, require_number, require_type, take_integer
from exporter.errors import InputError

Fallback = Literal["none", "dense"]

MOST_THREADS = 1024


@dataclass(frozen=True)
class Settings:
    """How a bundle is served.

    fallback: what answers a prompt that the circuit was not made for: nothing (`none`, the request is refused), or the
    `dense` model. dense_model: where that is now; None for where it was. max_batch: prompts in one call of the runtime.
    max_wait_ms: how long a call waits for prompts of clients that were just answered; a lone client never waits.
    max_queue: prompts that wait for a call; with more a request is refused (503). max_prompts: of one request.
    max_body: bytes of one request. timeout: seconds that a request's body may take to come, and its answer after that.
    threads: of ONNX Runtime; None for what the container may use (`exporter.serve.cgroup`). log_requests: whether each
    request is a line in the log; prompts never are. Raises InputError for a value of a wrong type or range.
    """

    fallback: Fallback = "none"
    dense_model: str | None = None
    max_batch: int = 32
    max_wait_ms: float = 2.0
    max_queue: int = 256
    max_prompts: int = 64
    max_body: int = 1 << 18
    timeout: float = 10.0
    threads: int | None = None
    log_requests: bool = False

    def __post_init__(self) -> None:
        require_choice("fallback", self.fallback, get_args(Fallback))
        require_type("dense_model", self.dense_model, str, type(None))
        require_type("log_requests", self.log_requests, bool)
        for name in ("max_batch", "max_queue", "max_prompts", "max_body"):
            object.__setattr__(self, name, take_integer(name, getattr(self, name), least=1))
        if self.threads is not None:
            object.__setattr__(self, "threads", take_integer("threads", self.threads, least=1, most=MOST_THREADS))
        for name in ("max_wait_ms", "timeout"):
            require_number(name, getattr(self, name))
        if self.max_wait_ms < 0 or self.timeout <= 0:
            raise InputError(
                f"max_wait_ms is {self.max_wait_ms:g} and timeout {self.timeout:g}; give 0 or more, and more than 0"
            )
        if self.max_prompts > self.max_queue:
            raise InputError(
                f"max_prompts is {self.max_prompts} and max_queue {self.max_queue}: a full request would never be "
                "taken; let the queue hold at least one request"
            )
        if self.dense_model is not None and self.fallback != "dense":
            raise InputError("dense_model says where the fallback is; give fallback='dense' too, or leave it out")
