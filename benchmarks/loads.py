"""The load of benchmarks/serving.py: three models of random weights, their inputs, and their offline answers."""

import base64
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glocal.data import Preprocessing, TokenizerConfig, learn_tokenizer
from glocal.generation import DecodingConfig
from glocal.models import create_model
from glocal.tasks import load

TOKENS, INPUTS = 32, 256
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
