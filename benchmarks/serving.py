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
    overhead     a request of a single client, less `predict` on the same input; medians
    memory       of the server's process, a tenth into the time and at its end
"""

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timing import introduce, write

from glocal.data import Preprocessing, TokenizerConfig, learn_tokenizer
from glocal.generation import DecodingConfig
from glocal.models import create_model
from glocal.tasks import load

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
BATCH, TOKENS, INPUTS = 32, 32, 256
CLOSE = 1e-3
"""How far a probability may be from the offline one; sums are rounded differently in another batch."""


@dataclass(frozen=True)
class Load:
    """A model under load."""

    name: str
    inputs: list[Any]
    path: str
    bodies: list[dict[str, Any]]
    """The request of each input."""
    offline: Callable[[list[Any], int], list[Any]]
    """Returns the answers to inputs, in batches of a size, as `read` returns them from a response."""
    read: Callable[[Any], Any]


# --------------------------------------------------------------------------------------------------------------- models


def write_models(root: Path) -> None:
    """Write the three models of random weights."""
    torch.manual_seed(0)
    words = [line for file in sorted(Path(os.__file__).parent.glob("a*.py")) for line in file.read_text().split("\n")]
    vit = create_model("vit-tiny", image_size=32, patch_size=4, num_classes=10, depth=6)
    vit.preprocessing = asdict(Preprocessing(image_size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3))
    tokens = learn_tokenizer(words, TokenizerConfig(kind="wordpiece", vocab_size=8000))
    shape: dict[str, Any] = {"embed_dim": 384, "depth": 6, "num_heads": 12, "vocab_size": tokens.vocab_size}
    bert = create_model("bert-tiny", head="classification", num_classes=5, max_length=128, **shape)
    pieces = learn_tokenizer(words, TokenizerConfig(kind="byte-bpe", vocab_size=8000))
    shape = {"embed_dim": 256, "depth": 6, "num_heads": 8, "vocab_size": pieces.vocab_size}
    gpt = create_model("gpt-tiny", max_length=256, pad_id=None, bos_id=None, eos_id=None, **shape)
    for name, model, tokenizer in (("vit", vit, None), ("bert", bert, tokens), ("gpt", gpt, pieces)):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)  # so that answers vary
        model.save_pretrained(root / name)
        if tokenizer is not None:
            tokenizer.save(root / name)


def open_loads(root: Path) -> list[Load]:
    """Load the models, and make their inputs."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(INPUTS)]
    vocabulary = [
        "def",
        "class",
        "return",
        "import",
        "self",
        "value",
        "name",
        "list",
        "of",
        "the",
        "for",
        "with",
        "open",
    ]
    texts = [" ".join(random.choice(vocabulary, random.integers(4, 41))) for _ in range(INPUTS)]
    vit, bert, gpt = (load(root / name, "cpu") for name in ("vit", "bert", "gpt"))
    decoding = DecodingConfig(extra_length=TOKENS)

    def encoded(image: np.ndarray) -> str:
        file = BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    def continued(inputs: list[Any], size: int) -> list[Any]:
        return [result.text for result in gpt.predict(inputs, decoding, size)]

    def classified(inputs: list[Any], size: int) -> list[Any]:
        return [vit.to_json(result) for result in vit.predict(list(map(vit.read_json, inputs)), batch_size=size)]

    def labelled(inputs: list[Any], size: int) -> list[Any]:
        return [bert.to_json(result) for result in bert.predict(inputs, batch_size=size)]

    ask = {"model": "gpt", "max_tokens": TOKENS, "temperature": 0}
    labels = place("results", 0, "labels")
    pngs = [encoded(image) for image in images]
    prompts = [ask | {"prompt": text} for text in texts]
    return [
        Load("vit", pngs, "/v1/vit/predict", [{"input": png} for png in pngs], classified, labels),
        Load("bert", texts, "/v1/bert/predict", [{"input": text} for text in texts], labelled, labels),
        Load("gpt", texts, "/v1/completions", prompts, continued, place("choices", 0, "text")),
    ]


def place(*keys: str | int) -> Callable[[Any], Any]:
    """Return a function to what stands at this place of a tree of JSON."""

    def read(tree: Any) -> Any:
        for key in keys:
            tree = tree[key]
        return tree

    return read


def equal(answer: Any, expected: Any) -> bool:
    """Whether two answers are the same: texts, or labels with probabilities."""
    if isinstance(expected, str):
        return bool(answer == expected)
    pairs = zip(answer, expected, strict=True)
    return all(abs(a["probability"] - b["probability"]) < CLOSE for a, b in pairs)


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


async def latency(at: Address, load: Load, count: int) -> float:
    """Return the median milliseconds of a request of a single client."""
    client, times = Client(*await asyncio.open_connection(at.host, at.port)), []
    for number in range(count):
        body = json.dumps(load.bodies[number % len(load.bodies)]).encode()
        start = time.perf_counter()
        await client.post(load.path, body)
        times.append(1000 * (time.perf_counter() - start))
    client.writer.close()
    return statistics.median(times)


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


def offline(load: Load, core: int, size: int, count: int) -> float:
    """Return how many inputs a second `predict` computes on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        load.offline(load.inputs[:size], size)
        start = time.perf_counter()
        load.offline(load.inputs[:count], size)
        return count / (time.perf_counter() - start)
    finally:
        os.sched_setaffinity(0, before)


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
    table: Table, load: Load, at: Address, expected: Sequence[Any], clients: int, seconds: float
) -> None:
    """Measure a model under load, answer by answer."""

    async def run() -> tuple[Tally, tuple[float, float]]:
        await press(at, load, expected, clients, seconds / 10)
        return await asyncio.gather(press(at, load, expected, clients, seconds), memory(at.pid, seconds))

    milliseconds = asyncio.run(latency(at, load, 100))
    table.add(load.name, "overhead", milliseconds - 1000 / table.values[load.name, "one by one"], "ms")
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
            measure_served(table, each, at, expected[each.name], clients, seconds)
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
