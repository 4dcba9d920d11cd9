"""What keeps a test short: jobs time a call or two, few prompts are of unseen kinds, sessions have one thread.

And GPT-2's tokenizer, which most checkpoints of the tests have, is read once, and memory is kept for the next tensor.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
from pathlib import Path
from typing import Any

from tiers import THOROUGH

from exporter.evidence import latency
from exporter.job import timing
from exporter.loading import load
from exporter.loading.sources.tokenizer import load_tokenizer
from exporter.runtime.session import open_session
from exporter.tasks import SplitSizes, acronym
from exporter.tasks.tokenizer import encode_text


def compare_briefly(*arguments: Any, **options: Any) -> latency.Latency:
    """`compare_latency` with two calls a block, of which the first is not counted."""
    least, latency._LEAST_CALLS = latency._LEAST_CALLS, 1
    try:
        return latency.compare_latency(*arguments, **options | {"blocks": 1, "block_seconds": 0.0, "threads": 1})
    finally:
        latency._LEAST_CALLS = least


_read: dict[tuple[object, ...], Any] = {}


def load_tokenizer_once(folder: Path, config: Any) -> Any:
    """`load_tokenizer`, which takes seconds of a suite's minutes; of the same files, a copy of what it gave before.

    Copies share the backend, which is settled and which nobody changes; what they are called is their own.
    """
    names = sorted(path for path in folder.iterdir() if "token" in path.name or path.suffix in (".jinja", ".txt"))
    if [path.name for path in names] != ["tokenizer.json", "tokenizer_config.json"]:
        return load_tokenizer(folder, config)
    contents = (hashlib.sha256(path.read_bytes()).digest() for path in names)
    key = (config.model_type, config.vocab_size, *contents)
    if key not in _read:
        _read[key] = load_tokenizer(folder, config)
    found = copy.copy(_read[key])
    for name, value in vars(found).items():
        if isinstance(value, dict | list):
            setattr(found, name, copy.copy(value))
    found.name_or_path = str(folder)
    return found


_encoded: dict[tuple[int, str], tuple[int, ...]] = {}


def encode_once(tokenizer: Any, text: str) -> tuple[int, ...]:
    """`encode_text`, which the acronyms ask of thousands of letters for each job; of GPT-2's tokenizer, each once."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not any(backend is known.backend_tokenizer for known in _read.values()):
        return encode_text(tokenizer, text)
    if (key := (id(backend), text)) not in _encoded:
        _encoded[key] = encode_text(tokenizer, text)
    return _encoded[key]


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_memory() -> None:
    """Let glibc keep what is freed: logits over GPT-2's vocabulary came from the kernel page by page, each time anew.

    That was a third of a job's time. Elsewhere than with glibc nothing changes.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**27)):
            set_option(option, value)


def be_brief() -> None:
    """From here on, in all of this process; the figures are no test's concern, and take seconds."""
    keep_memory()
    assert timing.compare_latency is latency.compare_latency  # where jobs take it from
    timing.compare_latency = compare_briefly
    assert load.load_tokenizer is load_tokenizer
    load.load_tokenizer = load_tokenizer_once
    assert acronym.encode_text is encode_text
    acronym.encode_text = encode_once
    open_session.__kwdefaults__["threads"] = 1
    if not THOROUGH:
        SplitSizes.__init__.__defaults__ = (*SplitSizes.__init__.__defaults__[:-1], 8)  # each set of unseen kinds
