"""Model files from the Hugging Face hub: the local cache first, then the hub, always in bounded time.

The hub client retries and can hang in a name lookup for minutes when there is no network, so the first
question to it is asked in a daemon thread with a hard limit. Only weights in safetensors, the
configuration and tokenizer files are fetched: no code and no pickle reaches the disk.
"""

from __future__ import annotations

import errno
import logging as stdlib_logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from exporter.errors import InputError

GPT2_SMALL = "openai-community/gpt2"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.json")
_WANTED = (
    "config.json",
    "generation_config.json",
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*.safetensors",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *TOKENIZERS,
)
_TRANSFER_SECONDS = 10.0  # for each request of a download; a longer pause counts as a broken connection

Answer = TypeVar("Answer")


class HubError(InputError):
    """A model that the hub did not give; `reason` is the short why, without the advice."""

    def __init__(self, name: str, reason: str, advice: str) -> None:
        super().__init__(f"cannot get {name!r} from the hub: {reason}; {advice}")
        self.reason = reason


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) was set when the hub client was imported."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_answers(*, seconds: float) -> bool:
    """Whether the hub answers a question within this time; False when offline mode is on."""
    if is_offline():
        return False
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        with _quiet_hub():
            _within(seconds, lambda: HfApi().model_info(GPT2_SMALL, timeout=seconds))
    except RepositoryNotFoundError:  # a mirror without that model is an answer, too
        return True
    except Exception:  # httpx's, requests' and the hub's own errors all mean the same here
        return False
    return True


def cached_snapshot(name: str, *, revision: str | None = None) -> Path | None:
    """The cached folder of a model (its name is the commit hash) if it is complete; asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        with _quiet_hub():
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_WANTED], local_files_only=True))
    except (OSError, HFValidationError):
        return None
    has_weights = any((folder / file).is_file() for file in (WEIGHTS, WEIGHTS_INDEX))
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZERS)
    # Other programs leave partial snapshots: a tokenizer alone, or a model without one.
    return folder if has_weights and has_tokenizer and (folder / "config.json").is_file() else None


def fetch_snapshot(name: str, *, revision: str | None = None, seconds: float) -> Path:
    """The folder of a model, from the cache or else from the hub; its name is the commit hash.

    A complete cached snapshot is used as it is, without asking whether the branch has moved. `seconds`
    bounds the wait for the hub's first answer. Raises HubError.
    """
    if folder := cached_snapshot(name, revision=revision):
        return folder
    if is_offline():
        raise HubError(
            name, "it is not in the local cache and offline mode is on", "unset HF_HUB_OFFLINE or give a folder"
        )
    _ask_hub(name, revision, seconds)
    from huggingface_hub import snapshot_download

    try:
        with _quiet_hub():
            return Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=[*_WANTED], etag_timeout=_TRANSFER_SECONDS, max_workers=4
                )
            )
    except Exception as error:  # httpx's, requests' and the hub's own errors all mean the same here
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(name, "no space left for the hub cache", "free some, or set HF_HOME") from error
        raise HubError(name, f"the download failed ({_first_line(error)})", "try again, or give a folder") from error


def _ask_hub(name: str, revision: str | None, seconds: float) -> None:
    """Raise HubError unless the hub answers in time that it has this model at this revision."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with _quiet_hub():
            _within(seconds, lambda: HfApi().model_info(name, revision=revision, timeout=seconds))
    except RevisionNotFoundError as error:
        raise HubError(name, f"it has no revision {revision!r}", "give a branch, a tag or a commit hash") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            name, "there is no such model, or it is not public", "check the name (org/name), or give a folder"
        ) from error
    except HFValidationError as error:
        raise HubError(name, _first_line(error), "write a hub name as org/name") from error
    except Exception as error:  # httpx's, requests' and the hub's own errors all mean the same here
        is_timeout = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
        is_connection = "Connect" in type(error).__name__  # httpx's and requests' errors share no base
        reason = f"no answer within {seconds:g} s" if is_timeout else "no connection" if is_connection else ""
        raise HubError(
            name,
            f"it is not in the local cache, and the hub cannot be reached ({reason or _first_line(error)})",
            "check the network, or give a folder",
        ) from error


def _within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The result of a call made in a daemon thread; TimeoutError when it takes longer."""
    results: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except Exception as error:  # carried over to the caller's thread
            results.put((None, error))

    threading.Thread(target=work, daemon=True, name="hub").start()
    try:
        answer, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # None only where Answer admits it


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub client's progress bars and log lines are off within the context, and as before after it."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, bars_were_off = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(stdlib_logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not bars_were_off:
            enable_progress_bars()
