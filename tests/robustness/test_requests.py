"""Mutated requests: bodies, images, headers, paths, and clients that go away. Each gets an answer below 500, soon.

A request is one of `TEMPLATES`, of which a seed changes a part. A server of tiny models answers it; afterwards the
server still answers as before, no request waits, and its log holds no traceback.
"""

import json
import logging
import os
import random
import socket
import warnings
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx
import jaxtyping
import mutate
import pytest
from tiny_server import INPUTS, picture, predictors, running, write_models

COUNT, SEED = int(os.environ.get("GLOCAL_MUTATIONS", "2000")) * 10, int(os.environ.get("GLOCAL_SEED", "0"))
FEW = 200
SECONDS = 30
PATIENCE = 0.2
"""Seconds that a client waits for the answer to a request whose head is damaged, which may have none."""
LIMITS = {"max_tokens": 24, "max_inputs": 16, "max_text": 20_000, "max_body": 10**6, "max_pixels": 10**6, "timeout": 20}
BOUNDARY = "x7MA4YWxkTrZu0gW"


@dataclass(frozen=True)
class Sent:
    """A request as a client sends it."""

    path: str
    body: bytes
    kind: str = "application/json"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    harmed: bool = False
    """Whether its head is damaged."""
    has_answer: bool = True
    """Whether the server has to answer; not where it may wait for the rest of a body, or of a head."""
    share: float = 1.0
    """How much of it is sent."""
    waits: bool = True
    """Whether the client waits for the answer; else it goes away."""

    def raw(self, rng: random.Random) -> bytes:
        """Return its bytes, the head damaged where that is wanted."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"Content-Type: {self.kind}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        head = "\r\n".join(lines).encode("utf-8", errors="surrogateescape") + b"\r\n\r\n"
        return (mutate.mutate_bytes(head, rng) if self.harmed else head) + self.body


def form(files: list[bytes], fields: dict[str, str]) -> bytes:
    """Return a multipart form."""
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts += [b'name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + content for content in files]
    body = b"".join(f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode() + part + b"\r\n" for part in parts)
    return body + f"--{BOUNDARY}--\r\n".encode()


def templates() -> list[Sent]:
    """Return requests that are right, apart from those with images."""
    options = {
        "reviews": {"top": 2},
        "topics": {"threshold": 0.3},
        "reader": {"top": 3, "longest": 5, "may_have_none": True, "threshold": 0.5},
        "words": {"top": 2},
        "writer": {"decoding": {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 1, "extra_length": 8}},
        "translator": {"decoding": {"beams": 2, "nbest": 2, "length_penalty": 0.5, "stop": ["x"]}},
    }
    inputs = {name: given for name, given in INPUTS.items() if given is not None}
    bodies = [(f"/v1/{name}/predict", {"input": given} | options.get(name, {})) for name, given in inputs.items()]
    bodies += [(f"/v1/{name}/predict", {"inputs": [given, given]}) for name, given in inputs.items()]
    bodies += [("/v1/reviews/predict", {"input": ["a", "b"]}), ("/v1/tagger/predict", {"input": ["New", "York"]})]
    completion = {"model": "writer", "prompt": ["He", "she"], "max_tokens": 8, "n": 2, "temperature": 0.7, "seed": 1}
    bodies += [
        ("/v1/completions", completion | {"top_p": 0.9, "stop": ["a"], "logprobs": 2}),
        ("/v1/completions", completion | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"model": "writer", "prompt": [5, 6, 7], "top_k": 3, "repetition_penalty": 1.2}),
        ("/v1/embeddings", {"model": "reviews", "input": ["a", "b"], "pooling": "mean", "encoding_format": "float"}),
        ("/v1/embeddings", {"model": "writer", "input": "a b", "normalise": False, "encoding_format": "base64"}),
    ]
    bodies += [
        ("/v1/reviews/look", {"text": "a b", "pair": "c", "parts": ["result", "attention"], "layer": 1}),
        ("/v1/reader/look", {"question": "Where ?", "context": "in New York", "parts": ["vectors", "positions"]}),
        ("/v1/words/look", {"text": "John [MASK]", "parts": ["masks"], "token": 1}),
        ("/v1/writer/look", {"text": "He", "path": [5, 6]}),
        ("/v1/translator/look", {"text": "Where", "parts": ["result"]}),
    ]
    sent = [Sent(path, json.dumps(body).encode()) for path, body in bodies]
    return [*sent, Sent("/v1/models", b"", method="GET"), Sent("/metrics", b"", method="GET")]


TEMPLATES = templates()
mutate_body = mutate.of_text(mutate.mutate_json_text)


def image_request(rng: random.Random) -> Sent:
    """Return a request with damaged images, as base64 or in a form, which may be damaged itself."""
    kind = rng.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"))
    files = [mutate.mutate_bytes(picture(rng.randrange(9), kind=kind), rng) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.1:
        return Sent("/v1/digits/look", json.dumps({"image": b64encode(files[0]).decode()}).encode())
    if rng.random() < 0.5:
        body = json.dumps({"inputs": [b64encode(file).decode() for file in files], "top": 2}).encode()
        return Sent("/v1/digits/predict", mutate_body(body, rng) if rng.random() < 0.3 else body)
    body = form(files, {"top": rng.choice(("2", "x", "", "[", "1e9", "null"))})
    body = mutate.mutate_bytes(body, rng) if rng.random() < 0.5 else body
    return Sent("/v1/digits/predict", body, f"multipart/form-data; boundary={BOUNDARY}")


def odd_head(sent: Sent, rng: random.Random) -> Sent:
    """Return a request with another method, path, type or more headers, or with a damaged head."""
    odd = rng.choice(mutate.ODD_TEXTS).encode("unicode_escape").decode()
    odd = odd.replace(" ", "%20") or "%"
    names = ("Content-Length", "Transfer-Encoding", "Expect", "Authorization", "Content-Encoding", "Host", "Upgrade")
    values = (odd, "-1", "chunked", "100-continue", "9" * 30, "gzip", "Bearer \xe9", "websocket", "x" * 70_000)
    action = rng.choice(("path", "path", "method", "type", "header", "header", "harm"))
    if action == "path":
        paths = (f"/v1/{odd}/predict", sent.path + odd, f"/{odd}", "*", "//", "/v1/../metrics", "/v1/%2e%2e/predict")
        return replace(sent, path=rng.choice(paths))
    if action == "method":
        return replace(sent, method=rng.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW", "post")))
    if action == "type":
        kinds = ("", "text/plain", "application/json; charset=utf-16", "multipart/form-data", odd, "a/b; boundary=")
        return replace(sent, kind=rng.choice(kinds))
    if action == "header":
        return replace(sent, headers=((rng.choice(names), rng.choice(values)),), has_answer=False)
    return replace(sent, harmed=True, has_answer=False)


def mutated(rng: random.Random) -> Sent:
    """Return a request that is not as it should be, in one way or several."""
    sent, kind = rng.choice(TEMPLATES), rng.random()
    if kind < 0.5:
        return replace(sent, body=mutate_body(sent.body, rng) if sent.body else sent.body)
    if kind < 0.6:
        return replace(sent, body=mutate.mutate_bytes(sent.body, rng))
    if kind < 0.75:
        return image_request(rng)
    if kind < 0.9:
        return odd_head(sent, rng)
    return replace(sent, share=rng.choice((rng.random(), 1.0)), waits=False)


def outcome(address: tuple[str, int], sent: Sent, rng: random.Random) -> str:
    """Send a request, and return the status of the answer, `left`, `none`, or `hang` after `SECONDS`."""
    raw = sent.raw(rng)
    answer = b""
    with socket.create_connection(address, timeout=SECONDS) as client:
        try:
            client.sendall(raw[: int(len(raw) * sent.share)])
            if not sent.waits:
                return "left"
            client.settimeout(SECONDS if sent.has_answer else PATIENCE)
            while chunk := client.recv(65536):
                answer += chunk
        except TimeoutError:
            if sent.has_answer:
                return "hang"
        except ConnectionError:  # the server has answered, and does not read the rest
            pass
    return answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "none"


@contextmanager
def tracebacks() -> Iterator[list[str]]:
    """Collect what is logged with a traceback."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(handler.format(record)) if record.exc_info else None  # type: ignore[method-assign,assignment,return-value]
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)


def ask_all(http: httpx.Client) -> list[object]:
    """Return what the server says of each model's input."""
    inputs = {name: given or b64encode(picture()).decode() for name, given in INPUTS.items()}
    return [http.post(f"/v1/{name}/predict", json={"input": given}).json() for name, given in inputs.items()]


def campaign(models: dict, count: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Send mutated requests, check each answer, and return how many had which status."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # odd values are to reach the code's own checks
    rng, ends, wrong = random.Random(SEED), Counter(), []
    with warnings.catch_warnings(), tracebacks() as logged, running(models, **LIMITS) as url:
        warnings.simplefilter("ignore")
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with httpx.Client(base_url=url, timeout=SECONDS) as http:
            before = ask_all(http)
            for number in range(count):
                sent = mutated(rng)
                end = outcome(address, sent, rng)
                ends[end] += 1
                if end[0] == "5" or end == "hang" or logged or (end == "none" and sent.has_answer):
                    wrong.append(f"{number}: {end} {sent!r:.600} {logged}")
                    logged.clear()
            assert ask_all(http) == before
            waiting = [
                line for line in http.get("/metrics").text.splitlines() if line.startswith("glocal_queue_length{")
            ]
            assert {line.rpartition(" ")[2] for line in waiting} == {"0.0"}
    assert not wrong, f"{len(wrong)} of {count} are wrong: {dict(ends)}\n" + "\n".join(wrong[:20])
    return ends


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return predictors(root)


def test_some_mutated_requests_have_answers(models, monkeypatch):
    ends = campaign(models, FEW, monkeypatch)
    assert ends["200"] > FEW / 20
    assert ends["400"] > FEW / 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_requests_have_answers(models, monkeypatch, capsys):
    ends = campaign(models, COUNT, monkeypatch)
    with capsys.disabled():
        print(f"\n{COUNT} mutated requests: {dict(ends.most_common())}")
