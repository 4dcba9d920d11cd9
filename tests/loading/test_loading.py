"""Where models come from: folders, the hub (imitated on this machine), the bundled one, and `auto`."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel
from waits import HANG

from exporter.errors import InputError, UsageError
from exporter.loading.load import LanguageModel, bundled_path, load_model
from exporter.loading.sources.checkpoint import Precision
from exporter.loading.sources.hub import GPT2_SMALL, fetch_snapshot

Save = Callable[..., Path]

# Loads each [source, revision] of argv[1] and prints a JSON list of what came out, with the seconds it took.
LOAD = """
import json, sys, time
import exporter.loading.sources.checkpoint, transformers
from exporter.errors import InputError
from exporter.loading.load import load_model
if "patient" in sys.argv[2:]:  # a slow machine is no hub that is not there
    from exporter.loading import load
    load._AUTO_SECONDS = load._NAMED_SECONDS = 900
if "hang" in sys.argv[2:]:  # a name lookup that hangs, as behind a broken resolver
    import socket
    socket.getaddrinfo = lambda *args, **kwargs: time.sleep(900)
rows = []
for source, revision in json.loads(sys.argv[1]):
    started = time.perf_counter()
    try:
        model = load_model(source, revision=revision)
        row = dict(name=model.name, revision=model.revision, sha256=model.sha256, notes=model.notes)
        row["tokenizer"] = model.tokenizer is not None
    except InputError as error:
        row = dict(error=str(error))
    rows.append(row | dict(seconds=time.perf_counter() - started))
print(json.dumps(rows))
"""


def load_elsewhere(requests: list[tuple[str, str | None]], *, home: Path, how: str = "", **env: str) -> Any:
    """What `load_model` does in a process with its own hub cache and network settings; `how`: patient, or hang."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    proxies = {name: "" for name in inherited if name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(requests), how],
        env=inherited | proxies | {"HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])} | env,
        capture_output=True,
        text=True,
        timeout=2 * HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


class FakeHub(ThreadingHTTPServer):
    """The hub's endpoints that a download uses; `repositories` maps a name to {commit: folder}."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.repositories: dict[str, dict[str, Path]] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class FakeHubHandler(BaseHTTPRequestHandler):
    """One request: /api/models/NAME[/revision/REV], /api/models/NAME/tree/REV, /NAME/resolve/REV/FILE."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.server.requests.append(path)
        is_api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        commits = self.server.repositories.get("/".join(parts[:2]))
        if commits is None:
            return self.reply(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
        revision = parts[3] if len(parts) > 3 else "main"
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files = {file.name: file.read_bytes() for file in sorted(commits[commit].iterdir())}
        if is_api and len(parts) > 2 and parts[2] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.reply(200, entries, {})
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            return self.reply(200, {"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings}, {})
        data = files.get(parts[4])
        if data is None:
            return self.reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return self.reply(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit})

    def reply(self, status: int, body: Any, headers: dict[str, str]) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


OLD, NEW = "a" * 40, "b" * 40


def add_tokenizer(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bundled_path() / name).read_bytes())
    return folder


def fill_hub(hub: FakeHub, save_gpt2: Save) -> None:
    old = add_tokenizer(save_gpt2("old", n_layer=1, vocab_size=50257))
    new = add_tokenizer(save_gpt2("new", n_layer=2, vocab_size=50257))
    (new / "evil.py").write_text("raise SystemExit")
    (new / "training_args.bin").write_bytes(b"a pickle")
    pickled = save_gpt2("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    hub.repositories = {
        "org/model": {OLD: old, NEW: new},
        "org/pickled": {OLD: pickled},
        GPT2_SMALL: {NEW: new},
    }


@pytest.mark.slow
def test_the_hub_is_asked_once_and_the_cache_serves_from_then_on(hub: FakeHub, save_gpt2: Save, tmp_path: Path) -> None:
    fill_hub(hub, save_gpt2)
    home = tmp_path / "home"
    asked = [("org/model", None), ("org/model", OLD), ("auto", None)]
    wrong = [("org/absent", None), ("org/model", "no-such-branch"), ("org/pickled", None)]
    rows = load_elsewhere([*asked, *wrong], home=home, how="patient", HF_ENDPOINT=hub.url)
    newest, pinned, auto, absent, no_branch, pickled = rows
    assert (newest["name"], newest["revision"], newest["notes"]) == ("org/model", NEW, [])
    assert newest["tokenizer"]
    new_weights = hub.repositories["org/model"][NEW] / "model.safetensors"
    assert newest["sha256"] == hashlib.sha256(new_weights.read_bytes()).hexdigest()
    assert pinned["revision"] == OLD
    assert pinned["sha256"] != newest["sha256"]
    assert (auto["name"], auto["revision"], auto["notes"]) == (GPT2_SMALL, NEW, [])
    assert "there is no such model, or it is not public" in absent["error"]
    assert "it has no revision 'no-such-branch'" in no_branch["error"]
    assert "has no model.safetensors" in pickled["error"]
    fetched = {request.rsplit("/", 1)[-1] for request in hub.requests if "/resolve/" in request}
    assert fetched == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }

    hub.requests.clear()
    hub.repositories.clear()  # whatever is asked now fails
    again = load_elsewhere(asked, home=home, how="patient", HF_ENDPOINT=hub.url)
    drop = {"seconds": 0}
    assert [row | drop for row in again] == [row | drop for row in (newest, pinned, auto)]
    assert hub.requests == []


@pytest.mark.slow  # a process that imports everything; offline mode, and a failing fetch, have quicker tests
def test_a_hub_that_is_not_there_is_said_and_only_auto_falls_back(unused_port: int, tmp_path: Path) -> None:
    requests = [("org/model", None), ("auto", None)]
    named, auto = load_elsewhere(requests, home=tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{unused_port}")
    assert "cannot get 'org/model' from the hub" in named["error"]
    assert "cannot be reached" in named["error"]
    assert "give a folder" in named["error"]
    assert (auto["name"], auto["revision"]) == ("bundled", None)
    assert auto["notes"][0].startswith(f"using the bundled model instead of {GPT2_SMALL}: ")


@pytest.mark.slow
def test_auto_waits_for_a_hanging_name_lookup_a_few_seconds_only(tmp_path: Path) -> None:
    (auto,) = load_elsewhere([("auto", None)], home=tmp_path, how="hang", HF_ENDPOINT="http://hub.invalid")
    assert auto["name"] == "bundled"
    assert "no answer within 4 s" in auto["notes"][0]
    assert auto["seconds"] < HANG  # where it would wait for ever


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (auto,) = load_elsewhere([("auto", None)], home=tmp_path, HF_ENDPOINT=url)
    assert auto["name"] == "bundled"
    assert auto["seconds"] < HANG  # where it would wait for ever


def test_offline_mode_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *arguments, **_: asked.append(arguments))
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: asked.append(arguments))
    with pytest.raises(InputError, match="offline mode is on; unset HF_HUB_OFFLINE or give a folder"):
        fetch_snapshot("org/model", seconds=30)
    model = load_model("auto")
    assert model.name == "bundled"
    assert "offline mode is on" in model.notes[0]
    assert asked == []


def test_the_bundled_model(bundled: LanguageModel) -> None:
    assert (bundled.name, bundled.revision, bundled.family, bundled.notes) == ("bundled", None, "gpt2", ())
    assert bundled.tokenizer is not None
    assert bundled.tokenizer("The Chief Executive Officer (CE")["input_ids"] == [464, 5953, 10390, 10391, 357, 5222]
    assert bundled.sha256 == hashlib.sha256((bundled_path() / "model.safetensors").read_bytes()).hexdigest()


def test_sources_that_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    for source in ("gpt2", "/no/such/folder", "./models", "a/b/c", "~/nothing-here", "https://example.org/x", ""):
        with pytest.raises(InputError, match=r"no folder|has no config\.json|name is empty"):
            load_model(source)
    with pytest.raises(InputError, match="no folder"):
        load_model(Path("org/model"))
    with pytest.raises(InputError, match="is a file"):
        load_model("file.txt")


def test_a_folder_is_preferred_to_a_hub_name_and_a_keyword_to_a_folder(
    save_gpt2: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_gpt2("org/model")
    save_gpt2("bundled")
    assert load_model("org/model").name == "org/model"
    assert load_model("./bundled").name == "./bundled"
    assert load_model("bundled").tokenizer is not None


@pytest.mark.parametrize("source", ["auto", "bundled", "folder"])
def test_a_revision_is_for_hub_names(source: str, save_gpt2: Save) -> None:
    with pytest.raises(InputError, match="is for a hub name"):
        load_model(save_gpt2() if source == "folder" else source, revision="main")


def test_whether_the_hub_answers(hub: FakeHub, save_gpt2: Save, unused_port: int, tmp_path: Path) -> None:
    code = "from exporter.loading.sources.hub import hub_answers; print(hub_answers(seconds=10))"

    def ask(url: str) -> str:
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        env |= {"HF_ENDPOINT": url, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    assert ask(hub.url) == "True\n"  # though it has no model at all
    fill_hub(hub, save_gpt2)
    assert ask(hub.url) == "True\n"
    assert ask(f"http://127.0.0.1:{unused_port}") == "False\n"


STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("asked", [*STORED, "auto"])
def test_weights_are_held_in_the_dtype_that_was_asked_for(
    stored: str, asked: Precision, save_gpt2: Save, tmp_path: Path
) -> None:
    folder = save_gpt2(dtype=STORED[stored])
    exact = load_model(folder)
    model = load_model(folder, dtype=asked)
    assert {parameter.dtype for parameter in model.hf.parameters()} == {STORED[stored if asked == "auto" else asked]}
    wide = model.to_float32()
    state, wanted = wide.hf.state_dict(), exact.hf.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    assert (wide.name, wide.sha256, wide.notes) == (exact.name, exact.sha256, exact.notes)
    torch.testing.assert_close(wide.dense(torch.arange(5)[None]), exact.hf(torch.arange(5)[None]).logits)


def test_widening_keeps_no_second_model(save_gpt2: Save) -> None:
    rounded = load_model(save_gpt2("a"), dtype="bfloat16")
    stored = load_model(save_gpt2("b", dtype=torch.bfloat16), dtype="bfloat16")
    for model in (rounded, stored):
        assert model.dense.W_E.dtype == torch.bfloat16
        wide = model.to_float32()
        assert wide.dense.W_E.dtype == torch.float32
    assert sum(parameter.numel() for parameter in rounded.hf.parameters()) == 0  # it is read again elsewhere
    assert stored.hf is wide.hf
    assert load_model("bundled").to_float32().reload is None


def test_weights_that_change_between_two_readings_are_refused(save_gpt2: Save) -> None:
    from safetensors.torch import load_file, save_file

    model = load_model(save_gpt2(), dtype="float16")
    path = Path(model.name) / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.ln_f.bias"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="have changed since they were loaded"):
        model.to_float32()


def test_what_float16_cannot_hold_is_said(save_gpt2: Save) -> None:
    from safetensors.torch import load_file, save_file

    path = save_gpt2() / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.ln_f.weight"][2] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"transformer\.ln_f\.weight holds .* float16 cannot hold; choose float32"):
        load_model(path.parent, dtype="float16")
    assert load_model(path.parent, dtype="bfloat16").hf.dtype == torch.bfloat16


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown dtype 'int8'; choose from float32, bfloat16, float16, auto"):
        load_model("bundled", dtype="int8")  # type: ignore[arg-type]


# What loading argv[1] as argv[2] adds to this process's own memory, at its highest, in bytes. File pages do not count:
# they are the system's to take back.
MEMORY = """
import sys, threading
from exporter.loading.load import load_model

def anonymous():
    with open("/proc/self/smaps_rollup") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

def watch():
    while not done.wait(0.002):
        seen.append(anonymous())

load_model("bundled", dtype=sys.argv[2])  # what the first model brings in
seen, done = [before := anonymous()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(sys.argv[1], dtype=sys.argv[2])
if len(sys.argv) > 3:
    model = model.to_float32()
done.set()
watcher.join()
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory")
def test_a_model_is_never_held_twice(save_gpt2: Save, tmp_path: Path) -> None:
    shape = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 256}
    stored = {
        "float32": save_gpt2("float32", **shape),
        "bfloat16": save_gpt2("bfloat16", dtype=torch.bfloat16, **shape),
    }
    size = (stored["float32"] / "model.safetensors").stat().st_size
    assert size > 3e8
    model = GPT2LMHeadModel.from_pretrained(stored["float32"])
    model.save_pretrained(tmp_path / "shards", max_shard_size="60MB")
    del model
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 4

    def peak(*arguments: object) -> float:
        command = [sys.executable, "-c", MEMORY, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout) / size

    assert peak(stored["float32"], "float32") < 0.4  # the file's own pages
    assert peak(tmp_path / "shards", "float32") < 0.4
    assert peak(stored["bfloat16"], "float32") < 1.3
    assert peak(stored["bfloat16"], "bfloat16", "widened") < 1.6
    assert peak(stored["float32"], "bfloat16", "read again") < 0.8


def test_shards_are_the_same_model_as_one_file(tmp_path: Path, save_gpt2: Save) -> None:
    whole = load_model(save_gpt2(n_layer=4))
    whole.hf.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    shards = load_model(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    ids = torch.arange(10)[None]
    assert torch.equal(shards.hf(ids).logits, whole.hf(ids).logits)
    assert shards.sha256 != whole.sha256


@pytest.mark.network
@pytest.mark.slow
def test_the_real_hub_has_gpt2_small(tmp_path: Path) -> None:
    (auto,) = load_elsewhere([("auto", None)], home=tmp_path)
    assert (auto["name"], len(auto["revision"])) == (GPT2_SMALL, 40)
