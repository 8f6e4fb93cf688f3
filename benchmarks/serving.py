"""`glocal serve` under load: throughput against offline batches, latency, memory, wrong and failed answers.

    python benchmarks/serving.py                         # about ten minutes on 2 cores
    python benchmarks/serving.py --seconds 5 --clients 8 # quicker, and rougher

Writes results/speed-serving-PROCESSOR.csv. The models are random: a ViT (32 × 32 pixels in patches of 4, 192 wide, 6
blocks), a BERT of MiniLM's shape (384 wide, 6 blocks) that classifies texts of 4 to 40 words, and a GPT (256 wide, 6
blocks) that adds 32 tokens to prompts of 4 to 40 words. The server has one core, and its clients another one.

    offline      `predict` on many inputs, in batches as large as the server's
    one by one   `predict` on one input after another
    served       clients that each send one input, wait for the answer, and send the next; every answer is compared
                 with the offline one
    unbatched    the same clients, of a server whose batches hold one input
    overhead     the median of what a request of a single client takes longer than `predict` on the same input
    memory       of the server's process, a tenth into the time and at its end
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from loads import INPUTS, Load, equal, open_loads, write_models
from timing import introduce, write

COLUMNS = ("what", "measure", "value", "unit", "at_least", "hope", "clients", "seconds", "command", "commit", "machine")
AIMS = {
    "served / offline": (0.85, 0.95),
    "served / unbatched, vit": (2, 4),
    "served / unbatched, bert": (2, 4),
    "served / unbatched, gpt": (3, 4),
    "overhead": (3, 1.5),
    "wrong": (0, None),
    "failed": (0, None),
}
"""What is aimed at, and what is hoped for; of overhead, wrong and failed the most."""
BATCH = 32


# -------------------------------------------------------------------------------------------------------------- clients


class Address(NamedTuple):
    """Where a server is, and its process."""

    host: str
    port: int
    pid: int


class Client:
    """A connection to the server, which sends one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def post(self, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON of a response."""
        lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer)
        assert length is not None
        return int(answer[9:12]), json.loads(await self.reader.readexactly(int(length[1])))


@dataclass
class Tally:
    """What clients have counted."""

    answers: int = 0
    wrong: int = 0
    failed: int = 0


async def press(at: Address, load: Load, expected: Sequence[Any], clients: int, seconds: float) -> Tally:
    """Have clients send requests for some seconds, and compare every answer."""
    tally, bodies = Tally(), [json.dumps(body).encode() for body in load.bodies]
    end = time.monotonic() + seconds

    async def run(number: int) -> None:
        client = Client(*await asyncio.open_connection(at.host, at.port))
        turn = number * len(bodies) // clients
        while time.monotonic() < end:
            status, answer = await client.post(load.path, bodies[turn % len(bodies)])
            tally.answers += 1
            if status != 200:
                tally.failed += 1
            elif not equal(load.read(answer), expected[turn % len(bodies)]):
                tally.wrong += 1
            turn += 1
        client.writer.close()

    await asyncio.gather(*map(run, range(clients)))
    return tally


async def overhead(at: Address, load: Load, core: int, count: int) -> float:
    """Return the median milliseconds by which a request of a single client takes longer than `predict` on that core."""
    client, longer = Client(*await asyncio.open_connection(at.host, at.port)), []
    for given, body in zip(load.inputs[:count], load.bodies, strict=False):
        content = json.dumps(body).encode()
        start = time.perf_counter()
        await client.post(load.path, content)
        served = time.perf_counter() - start
        with on_core(core):
            start = time.perf_counter()
            load.offline([given], 1)
            longer.append(1000 * (served - (time.perf_counter() - start)))
    client.writer.close()
    return statistics.median(longer)


# --------------------------------------------------------------------------------------------------------------- server


@contextmanager
def server(root: Path, core: int, *options: str) -> Iterator[Address]:
    """Serve the models by a process on one core."""
    models = [str(root / name) for name in ("vit", "bert", "gpt")]
    command = [sys.executable, "-m", "glocal", "serve", *models, "--port", "0", "--precision", "float32", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        found = None
        while found is None and (line := process.stdout.readline()):
            found = re.search(r"http://([\d.]+):(\d+)", line)
        assert found is not None, "the server did not start"
        yield Address(found[1], int(found[2]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def resident(pid: int) -> float:
    """Return the megabytes that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Compute on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def offline(load: Load, core: int, size: int, count: int) -> float:
    """Return how many inputs a second `predict` computes on one core."""
    with on_core(core):
        load.offline(load.inputs[:size], size)
        start = time.perf_counter()
        load.offline(load.inputs[:count], size)
        return count / (time.perf_counter() - start)


# ----------------------------------------------------------------------------------------------------------------- main


class Table:
    """The rows of the results, which are printed as they come."""

    def __init__(self, clients: int, seconds: float) -> None:
        self.common = {"clients": clients, "seconds": seconds}
        self.rows: list[dict[str, object]] = []
        self.values: dict[tuple[str, str], float] = {}

    def add(self, what: str, measure: str, value: float, unit: str) -> None:
        """Add a row, with what is aimed at."""
        at_least, hope = AIMS.get(f"{measure}, {what}") or AIMS.get(measure) or (None, None)
        aimed = "" if at_least is None else f"   aim: {at_least}" + (f", hope {hope}" if hope else "")
        print(f"{what:6}{measure:22}{value:10.4g} {unit}{aimed}", flush=True)
        row: dict[str, object] = {"what": what, "measure": measure, "value": f"{value:.4g}", "unit": unit}
        self.rows.append(row | {"at_least": at_least, "hope": hope} | self.common)
        self.values[what, measure] = value

    def add_ratio(self, what: str, measure: str, other: str) -> None:
        """Add how many times as large one measure is as another."""
        self.add(what, f"{measure} / {other}", self.values[what, measure] / self.values[what, other], "×")


def measure_served(
    table: Table, load: Load, at: Address, core: int, expected: Sequence[Any], clients: int, seconds: float
) -> None:
    """Measure a model under load, answer by answer."""

    async def run() -> tuple[Tally, tuple[float, float]]:
        await press(at, load, expected, clients, seconds / 10)
        return await asyncio.gather(press(at, load, expected, clients, seconds), memory(at.pid, seconds))

    table.add(load.name, "overhead", asyncio.run(overhead(at, load, core, 100)), "ms")
    tally, (early, late) = asyncio.run(run())
    table.add(load.name, "served", tally.answers / seconds, "inputs/s")
    table.add_ratio(load.name, "served", "offline")
    table.add(load.name, "wrong", tally.wrong, f"of {tally.answers}")
    table.add(load.name, "failed", tally.failed, f"of {tally.answers}")
    table.add(load.name, "memory early", early, "MB")
    table.add(load.name, "memory at the end", late, "MB")


async def memory(pid: int, seconds: float) -> tuple[float, float]:
    """Return the megabytes of a process a tenth into the time, and at its end."""
    await asyncio.sleep(seconds / 10)
    early = resident(pid)
    await asyncio.sleep(seconds * 0.9)
    return early, resident(pid)


def measure(loads: list[Load], root: Path, clients: int, seconds: float, slots: int) -> list[dict[str, object]]:
    """Return all rows of the table."""
    table, expected = Table(clients, seconds), {}
    mine, theirs = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {mine})
    torch.set_num_threads(1)
    for each in loads:
        size = slots if each.name == "gpt" else BATCH
        expected[each.name] = each.offline(each.inputs, size)
        table.add(each.name, "offline", offline(each, theirs, size, INPUTS), "inputs/s")
        table.add(each.name, "one by one", offline(each, theirs, 1, INPUTS // 4), "inputs/s")
    with server(root, theirs, "--max-batch", str(BATCH), "--slots", str(slots)) as at:
        for each in loads:
            measure_served(table, each, at, theirs, expected[each.name], clients, seconds)
    with server(root, theirs, "--max-batch", "1", "--slots", "1") as at:
        for each in loads:
            asyncio.run(press(at, each, expected[each.name], clients, seconds / 20))
            tally = asyncio.run(press(at, each, expected[each.name], clients, seconds / 4))
            table.add(each.name, "unbatched", tally.answers / (seconds / 4), "inputs/s")
            table.add_ratio(each.name, "served", "unbatched")
            table.add_ratio(each.name, "served", "one by one")
    return table.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slots", type=int, default=BATCH, help="texts that the GPT generates side by side")
    parser.add_argument("--models", nargs="+", default=["vit", "bert", "gpt"])
    args = parser.parse_args()
    introduce()
    with TemporaryDirectory() as folder:
        write_models(Path(folder))
        loads = [each for each in open_loads(Path(folder)) if each.name in args.models]
        rows = measure(loads, Path(folder), args.clients, args.seconds, args.slots)
    write(rows, "speed-serving", COLUMNS)


if __name__ == "__main__":
    main()
