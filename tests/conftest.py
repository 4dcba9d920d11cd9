"""What every test stands on: no network, no hub cache of the developer's, few threads, fixed examples."""

from __future__ import annotations

import gc
import io
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

# Before any import of the hub client, which reads these once.
_HF_HOME = tempfile.TemporaryDirectory(prefix="export-circuit-tests-")
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(_name, None)
os.environ.update(HF_HOME=_HF_HOME.name, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from briefly import be_brief  # noqa: E402
from nursery import Nursery  # noqa: E402

from exporter.loading.load import LanguageModel, bundled_path, load_model  # noqa: E402

# Where the suite runs in the background of a script, Ctrl-C comes ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("repository", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repository")
torch.set_num_threads(1)
be_brief()


def pytest_runtest_teardown() -> None:
    """A benchmark may have chosen its threads."""
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays: a third of the suite's time went into looking through it for garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what the machine lacks: a CUDA device for `gpu`, the real hub for `network`."""
    no_cuda = pytest.mark.skip(reason="no CUDA device")
    no_hub = pytest.mark.skip(reason="needs the real model hub; set EXPORT_CIRCUIT_TEST_HUB=1 to run it")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_cuda)
        if item.get_closest_marker("network") and not os.environ.get("EXPORT_CIRCUIT_TEST_HUB"):
            item.add_marker(no_hub)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Command lines in processes of their own, which start in no time."""
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, where it and playwright are."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: playwright is not installed")
    names = (os.environ.get("EXPORT_CIRCUIT_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, filter(None, names))), None)
    if chromium is None:
        pytest.skip("no Chromium on the path; apt-get install chromium, or set EXPORT_CIRCUIT_CHROMIUM")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def bundled() -> LanguageModel:
    """The bundled model, loaded once; tests do not change it."""
    return load_model("bundled")


class Run:
    """The command line, in this process: exit code, stdout, stderr."""

    def all(self, *arguments: object) -> tuple[int, str, str]:
        """Run it and return all three."""
        from exporter.__main__ import run_command

        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run_command([str(argument) for argument in arguments])
        return code, out.getvalue(), err.getvalue()

    def succeeds(self, *arguments: object) -> str:
        """Run it, expect exit code 0 and no word on stderr but warnings, and return stdout."""
        code, out, err = self.all(*arguments)
        assert code == 0, err
        return out

    def fails(self, code: int, message: str, *arguments: object) -> str:
        """Run it, expect this exit code, nothing on stdout and at most two lines on stderr that match `message`."""
        found, out, err = self.all(*arguments)
        assert (found, out) == (code, ""), err
        assert re.search(message, err), err
        assert err.startswith("export-circuit: error: ")
        assert err.count("\n") <= 2, err
        assert "Traceback" not in err
        return err


@pytest.fixture
def run() -> Run:
    """The command line."""
    return Run()


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that gives a folder with a random GPT-2 and the real tokenizer; nobody changes it."""
    made: dict[str, Path] = {}

    def make(**config: object) -> Path:
        from transformers import GPT2Config, GPT2LMHeadModel

        if (key := repr(sorted(config.items()))) not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            torch.manual_seed(0)
            shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64}
            GPT2LMHeadModel(GPT2Config(**(shape | config))).save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(bundled_path() / name, folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def save_gpt2(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a tiny random GPT-2 and returns its folder; arguments go to its config."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def save(name: str = "checkpoint", *, dtype: torch.dtype = torch.float32, **config: object) -> Path:
        shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 30}
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **(shape | config)))
        model.to(dtype).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save
