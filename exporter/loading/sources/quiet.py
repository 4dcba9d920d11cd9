"""Silence for the libraries that read models: what they have to say, we check ourselves and say in our own words.

transformers warns of a configuration's values while it reads them, and so do the hub client, accelerate and
Python's own `warnings`, each by a way of its own. Whatever calls into them stands in this one context.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Some of these have no handler of their own, so that Python's last resort prints their warnings.
_LOUD = (
    *("accelerate", "filelock", "fsspec", "gguf", "httpx", "huggingface_hub", "peft", "safetensors", "tokenizers"),
    *("torch", "transformers", "urllib3"),
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Log lines, warnings and progress bars of these libraries are off within the context, as before after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import utils as hub  # importing them sets their levels, and may warn
        from transformers.utils import logging as transformers_logging

        levels = {name: logging.getLogger(name).level for name in _LOUD}
        bars_were_on = transformers_logging.is_progress_bar_enabled()
        hub_bars_were_on = not hub.are_progress_bars_disabled()
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        transformers_logging.disable_progress_bar()
        hub.disable_progress_bars()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if bars_were_on:
                transformers_logging.enable_progress_bar()  # turns on the hub's, too
            (hub.enable_progress_bars if hub_bars_were_on else hub.disable_progress_bars)()
