"""Small models of every task, and a server of their pages."""

import json
from collections.abc import Callable
from functools import cache
from http.server import SimpleHTTPRequestHandler

import numpy as np
import torch
from conftest import TINY, wake

from glocal.data import Tokenizer, TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.models import create_model
from glocal.page import numbers
from glocal.tasks import (
    AnyPredictor,
    FillMask,
    ImageClassifier,
    QuestionAnswerer,
    TextClassifier,
    TextGenerator,
    TokenClassifier,
    Translator,
)

TEXTS = ["the cat sat on the mat", "where did the dog sit", "it sat on the cat", "the dog saw a cat"] * 9
SHAPE = {"embed_dim": 24, "num_heads": 3, "depth": 2, "max_length": 32}
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
GIVEN = {
    "vit": np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3),
    "glit": np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3),
    "classify": "the cat sat on the mat",
    "tag": "the cat saw the dog.",
    "answer": ("where did the dog sit", "the dog sat on the mat"),
    "mask": "the cat sat on the mat",
    "write": "the cat",
    "translate": "the cat sat on the mat",
    "recur": "the dog saw a cat",
}
"""An input of each of the models below."""


@cache
def tokenizer(kind: str) -> Tokenizer:
    return learn_tokenizer(TEXTS, TokenizerConfig(kind=kind, vocab_size=300))


@cache
def build(name: str) -> AnyPredictor:
    """Return a model with random weights and its predictor."""
    torch.manual_seed(0)
    if name == "vit":
        return ImageClassifier(wake(create_model("vit-tiny", **TINY)).eval(), "cpu")
    if name == "glit":
        sizes = {key: value for key, value in TINY.items() if key != "depth"}
        model = wake(create_model("glit-tiny", **sizes, kernel_size=3)).eval()
        model.labels = ["cat", "dog", "<bird>", "mat", "sun"]
        return ImageClassifier(model, "cpu")
    if name == "translate":
        return translator("transformer-tiny", **SHAPE)
    if name == "recur":
        return translator("lstm-tiny", embed_dim=16, hidden_dim=16, depth=1)
    if name == "write":
        words = tokenizer("byte-bpe")
        special = dict.fromkeys(("pad_id", "bos_id", "eos_id"), words.eos_id)
        return TextGenerator(
            wake(create_model("gpt-tiny", **SHAPE, **special, vocab_size=words.vocab_size)), words, "cpu"
        )
    kind, fields = {
        "classify": (TextClassifier, {"head": "classification"}),
        "tag": (TokenClassifier, {"head": "tagging", "num_classes": len(TAGS)}),
        "answer": (QuestionAnswerer, {"head": "spans"}),
        "mask": (FillMask, {"head": "pretraining"}),
    }[name]
    words = tokenizer("wordpiece")
    model = wake(create_model("bert-tiny", **SHAPE, **fields, vocab_size=words.vocab_size))
    model.labels = {"tag": TAGS, "classify": ["bad", "good"]}.get(name)
    return kind(model, words, "cpu")


def translator(name: str, **shape: int) -> Translator:
    words = learn_tokenizer(TEXTS, TokenizerConfig(kind="byte-bpe", vocab_size=300))
    ids = {"pad_id": words.pad_id, "bos_id": words.bos_id, "eos_id": words.eos_id}
    return Translator(wake(create_model(name, **shape, **ids, vocab_size=words.vocab_size)), words, "cpu")


class Server(SimpleHTTPRequestHandler):
    """Serves the page and answers its requests, as `contract` says a server does."""

    token = ""
    """What a request has to bear; none where it is empty."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(lambda: [{"id": name, "task": TASK[name], "family": name} for name in TASK])
        else:
            super().do_GET()

    def do_POST(self) -> None:
        name = self.path.split("/")[2]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(lambda: numbers(build(name), json.loads(body)))

    def answer(self, what: Callable[[], object]) -> None:
        status, content = 200, None
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            status, content = 401, {"detail": "this server wants a token"}
        else:
            try:
                content = what()
            except GlocalError as error:
                status, content = 400, {"detail": str(error)}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


TASK = {
    "classify": "text-classification",
    "vit": "image-classification",
    "mask": "masked-lm",
    "write": "causal-lm",
    "translate": "translation",
}
"""The models of the server."""
