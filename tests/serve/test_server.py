"""The command as a process: it says where it is, answers what it has accepted before it stops, and imports little."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest
from conftest import Run
from nursery import Child, Nursery
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from serving import write_bundle
from waits import HANG, wait_until

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

ROOT = Path(__file__).parents[2]
BODY = json.dumps({"token_ids": [3, 1, 4], "top": 1}).encode()
REQUEST = (
    b"POST /v1/predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


Answers = list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("serve") / "bundle", "masked")


def start(nursery: Nursery, folder: Path, *options: object) -> tuple[Child, int]:
    """A server and its port."""
    child = nursery.start(["serve", folder, "--port", "0", *options])
    assert wait_until(lambda: "serving on" in child.out.read_text(), child.is_running), child.err.read_text()
    return child, int(child.out.read_text().rsplit(":", 1)[1])


def read_response(stream: socket.SocketIO) -> tuple[int, bytes] | None:
    """A status and a body; None where the connection ends before either. Raises where it ends between."""
    line = stream.readline()
    if not line:
        return None
    length = 0
    while (header := stream.readline().strip().lower()) != b"":
        if header.startswith(b"content-length:"):
            length = int(header.split(b":")[1])
    body = stream.read(length)
    assert body is not None and len(body) == length, "the response is cut off"
    return int(line.split()[1]), body


def ask_until_closed(
    port: int, answers: list[tuple[int, bytes]], errors: list[BaseException], busy: threading.Event
) -> None:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=HANG)) as connection:
            stream = connection.makefile("rb")
            while True:
                connection.sendall(REQUEST)
                answer = read_response(stream)  # type: ignore[arg-type]  # a buffered reader
                if answer is None:
                    return
                answers.append(answer)
                busy.set()
    except (ConnectionResetError, BrokenPipeError, ConnectionRefusedError):
        return  # closed before it took the request
    except BaseException as error:
        errors.append(error)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_cuts_no_answer_off(number: int, nursery: Nursery, folder: Path) -> None:
    child, port = start(nursery, folder)
    answers, errors, busy = list[tuple[int, bytes]](), list[BaseException](), threading.Event()
    clients = [threading.Thread(target=ask_until_closed, args=(port, answers, errors, busy)) for _ in range(4)]
    for client in clients:
        client.start()
    assert busy.wait(HANG)
    os.kill(child.pid, number)
    for client in clients:
        client.join(HANG)
    code, out, err = child.wait()
    assert (code, errors) == (0, []), err
    assert {status for status, _ in answers} == {200}
    found = [json.loads(body)["predictions"][0] for _, body in answers]
    assert len({one["token_id"] for one in found}) == 1
    shares = [one["probability"] for one in found]
    assert max(shares) == pytest.approx(min(shares), rel=1e-4)  # calls of other sizes round otherwise
    assert "Traceback" not in err and all(
        re.match(r"\d{4}-\d\d-\d\d .* (INFO|WARNING) ", line) for line in err.splitlines()
    )
    assert out.startswith("serving on http://127.0.0.1:") and out.count("\n") == 1


def test_what_cannot_be_served_ends_in_a_line(run: Run, folder: Path, tmp_path: Path) -> None:
    run.fails(3, "no folder", "serve", tmp_path / "nowhere")
    run.fails(3, "model.json", "serve", tmp_path)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        run.fails(3, "another --host or --port", "serve", folder, "--port", taken.getsockname()[1])
    run.fails(3, "another --host or --port", "serve", folder, "--host", "no.such.host.invalid", "--port", 0)
    run.fails(3, "give fallback='dense' too", "serve", folder, "--model", "gpt2")
    run.fails(2, "65535", "serve", folder, "--port", 70000)


def test_a_missing_extra_says_what_to_install(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    run.fails(6, r"uvicorn is not installed.*pip install 'export-circuit\[cpu,serve\]'", "serve", folder)


SCRIPT = """
import json, sys
from importlib.metadata import packages_distributions
import exporter.cli.main, exporter.serve.server  # what the command imports
from exporter.serve.app import make_app
app = make_app(sys.argv[1])
tops, owners = {name.partition(".")[0] for name in sys.modules}, packages_distributions()
print(json.dumps(sorted({owner for top in tops for owner in owners.get(top, ())})))
"""


def read_installed() -> set[str]:
    """What Dockerfile.serve installs by name, and what that needs."""
    text = (ROOT / "Dockerfile.serve").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"pip install -c constraints\.txt (.*?) &&", text)
    found, left = set[str](), {canonicalize_name(name) for name in line.split()}
    while left:
        found.add(name := left.pop())
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                left |= {canonicalize_name(needed.name)} - found
    return found


def test_a_server_imports_no_more_than_its_container_has(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True, timeout=HANG
    )
    ours = {"export-circuit", "setuptools"}  # an editable install imports the second
    used = {canonicalize_name(name) for name in json.loads(done.stdout)} - ours
    assert used - read_installed() == set()
    assert {"torch", "transformers"} & read_installed() == set()
