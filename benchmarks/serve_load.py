"""Load a server over loopback and compare every answer: `make serve-load`.

A bundle is served in a process of its own. Clients are coroutines that write raw HTTP/1.1 on kept connections, each the
next request when it has its answer. Every answer is held against what ONNX Runtime says to that prompt alone, computed
here before. What is measured:

- 1, 8 and 32 clients with batching; 1 client without (`--max-batch 1`), which is one request at a time;
- the server's resident memory every half second, after the first tenth of the requests;
- SIGKILL in the middle of a load, and a restart at the same port: clients connect again and ask again.

One JSON line at the end; with --write also benchmarks/results/serve.json and the table in docs/serving.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/serve.json", ROOT / "docs/serving.md"
START, END = "<!-- load: start -->", "<!-- load: end -->"
CLIENTS = (1, 8, 32)
TOLERANCE = 1e-3  # of a probability: batches are summed in another order
WARM_UP = 0.1  # of the requests


@dataclass
class Tally:
    """What clients saw. right, wrong: answers. errors: other statuses. lost: requests whose connection broke."""

    right: int = 0
    wrong: int = 0
    errors: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Prompt:
    """A request as bytes, the right answer and its probability."""

    request: bytes
    token: int
    probability: float
    runner_up: float


def make_bundle(folder: Path, scratch: Path) -> None:
    """Half of the bundled model's heads and all MLPs, with all logits at the last position: a call costs something."""
    from exporter.circuit import Ablation, Circuit

    heads = [(layer, index) for layer in range(6) for index in range(0, 8, 2)]
    circuit = Circuit(heads=heads, mlps=range(6), ablation=Ablation(by="global"))
    (scratch / "circuit.json").write_text(json.dumps(circuit.to_json()), encoding="utf-8")
    command = [sys.executable, "-m", "exporter", "--task", "acronym", "--model", "bundled"]
    command += ["--circuit", str(scratch / "circuit.json"), "--logits", "last", "--with-past", "--force"]
    subprocess.run([*command, "--bundle", str(folder), "--test-prompts", "100", "--quiet"], check=True)


def make_prompts(folder: Path, n: int) -> list[Prompt]:
    """Different prompts of the file's own examples' tokens, and what ONNX Runtime says to each alone."""
    from exporter.graph.metadata import EXAMPLES_KEY
    from exporter.runtime.session import open_session, run_logits

    session = open_session(folder / "model.onnx", threads=1)
    examples = json.loads(session.get_modelmeta().custom_metadata_map[EXAMPLES_KEY])
    rows = np.array(examples["input_ids"])  # (prompt, pos)
    draw, made = random.Random(0), []
    for _ in range(n):
        ids = [int(draw.choice(rows[:, pos])) for pos in range(rows.shape[1])][: draw.randint(4, rows.shape[1])]
        logits = run_logits(session, np.array([ids]))[0, -1].astype(np.float64)
        shares = np.exp(logits - logits.max())
        first, second = np.sort(shares / shares.sum())[::-1][:2]
        body = json.dumps({"token_ids": ids, "top": 1}).encode()
        head = (
            f"POST /v1/predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        made.append(Prompt(head.encode() + b"\r\n\r\n" + body, int(logits.argmax()), float(first), float(second)))
    return made


class Server:
    """`export-circuit serve` in a process of its own."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "exporter", "serve", str(folder), "--port", str(port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving on"), "the server did not start"
        self.port = int(line.rsplit(":", 1)[1])

    def read_memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        code = self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


async def ask(port: int, prompts: list[Prompt], left: list[int], tally: Tally, patient: bool) -> None:
    """One client: requests while there are any left; `patient` connects again where the connection breaks."""
    draw, connection = random.Random(id(tally) + len(left)), None
    while left[0] > 0:
        left[0] -= 1
        prompt = draw.choice(prompts)
        while True:
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", port)
                start = time.perf_counter()
                status, body = await exchange(*connection, prompt.request)
                tally.seconds.append(time.perf_counter() - start)
                judge(tally, prompt, status, body)
                break
            except (OSError, asyncio.IncompleteReadError):
                tally.lost += connection is not None
                connection = None
                if not patient:
                    raise
                await asyncio.sleep(0.05)
    if connection is not None:
        connection[1].close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


def judge(tally: Tally, prompt: Prompt, status: int, body: bytes) -> None:
    """An answer is right if the token is, and its probability to rounding, to which two likeliest may be equal."""
    if status != 200:
        tally.errors += 1
        return
    (found,) = json.loads(body)["predictions"]
    tied = prompt.probability - prompt.runner_up < TOLERANCE
    right = (found["token_id"] == prompt.token or tied) and abs(found["probability"] - prompt.probability) < TOLERANCE
    tally.right += right
    tally.wrong += not right


async def load(server: Server, prompts: list[Prompt], clients: int, n: int, memory: list[int]) -> tuple[Tally, float]:
    """Load it with n requests; returns what was seen, and requests in a second."""
    tally, left, start = Tally(), [n], time.perf_counter()

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.5)
            if tally.right > WARM_UP * n:
                memory.append(server.read_memory())

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(ask(server.port, prompts, left, tally, False) for _ in range(clients)))
    watching.cancel()
    return tally, n / (time.perf_counter() - start)


async def load_and_kill(folder: Path, prompts: list[Prompt], n: int) -> Tally:
    """A third of the way SIGKILL, then a new server at the same port; every request is answered in the end."""
    server, tally, left = Server(folder), Tally(), [n]
    clients = asyncio.gather(*(ask(server.port, prompts, left, tally, True) for _ in range(8)))
    while left[0] > 2 * n // 3:
        await asyncio.sleep(0.02)
    server.stop(signal.SIGKILL)
    again = await asyncio.to_thread(Server, folder, port=server.port)
    await clients
    assert again.stop() == 0
    return tally


def describe(clients: int, batching: bool, tally: Tally, rate: float) -> dict[str, Any]:
    low, high = np.percentile(tally.seconds, (50, 99))
    counts = {"right": tally.right, "wrong": tally.wrong, "errors": tally.errors}
    return {"clients": clients, "batching": batching, "per_second": round(rate, 1), **counts,
            "p50_ms": round(1000 * low, 2), "p99_ms": round(1000 * high, 2)}  # fmt: skip


def measure(folder: Path, n: int) -> dict[str, Any]:
    """All of it; n requests with batching, of which most by 32 clients."""
    prompts = make_prompts(folder, 500)
    rows, memory = [], list[int]()
    server = Server(folder, "--max-batch", "1")
    for clients in (1, 32):
        tally, rate = asyncio.run(load(server, prompts, clients, max(200, n // 50), []))
        rows.append(describe(clients, False, tally, rate))
    server.stop()
    server = Server(folder)
    asyncio.run(load(server, prompts, 32, max(200, n // 50), []))  # warms up: buffers of every size of batch
    for clients, share in zip(CLIENTS, (0.05, 0.25, 0.7), strict=True):
        tally, rate = asyncio.run(load(server, prompts, clients, round(n * share), memory))
        rows.append(describe(clients, True, tally, rate))
        print(json.dumps(rows[-1]), flush=True)
    assert server.stop() == 0
    killed = asyncio.run(load_and_kill(folder, prompts, max(600, n // 50)))
    alone, best = rows[0]["per_second"], max(row["per_second"] for row in rows if row["batching"])
    return {
        "requests": n,
        "loads": rows,
        "speedup": round(best / alone, 2),
        "memory": {"first": memory[0], "largest": max(memory), "last": memory[-1], "smallest": min(memory)},
        "killed": {"right": killed.right, "wrong": killed.wrong, "errors": killed.errors, "lost": killed.lost},
        "machine": {
            "cpus": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[1],
            "python": platform.python_version(),
        },
    }


def check(found: dict[str, Any]) -> None:
    """What must hold: nothing wrong, no error, memory within 5 %."""
    for row in [*found["loads"], found["killed"]]:
        assert row["wrong"] == row["errors"] == 0, row
    memory = found["memory"]
    assert memory["largest"] <= 1.05 * memory["smallest"], memory


def render(found: dict[str, Any]) -> str:
    """The table of docs/serving.md."""
    lines = [
        "| clients | batching | requests/s | p50 | p99 | right | wrong | errors |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["loads"]:
        lines.append(
            f"| {row['clients']} | {'yes' if row['batching'] else 'no'} | {row['per_second']:g} | "
            f"{row['p50_ms']:g} ms | {row['p99_ms']:g} ms | {row['right']:,} | {row['wrong']} | {row['errors']} |"
        )
    memory, killed, machine = found["memory"], found["killed"], found["machine"]
    lines += ["", f"Memory from {memory['smallest'] / 2**20:.1f} to {memory['largest'] / 2**20:.1f} MiB after warm-up. "
              f"Killed (SIGKILL) and restarted under load: {killed['right']} right answers, {killed['wrong']} wrong, "
              f"{killed['lost']} requests asked again. Server and clients shared {machine['cpus']} core(s), "
              f"at a load average of {machine['load']:.0f}."]  # fmt: skip
    return "\n".join(lines)


def write(found: dict[str, Any]) -> None:
    """The results, and their table in docs/serving.md."""
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}\n{render(found)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--bundle", type=Path, help="serve this bundle instead of the bundled acronym's circuit")
    parser.add_argument("--write", action="store_true", help="write the results and the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.bundle or Path(scratch) / "bundle"
        if options.bundle is None:
            make_bundle(folder, Path(scratch))
        found = measure(folder, options.requests)
    print(render(found))
    print(json.dumps(found))
    check(found)
    if options.write:
        write(found)


if __name__ == "__main__":
    main()
