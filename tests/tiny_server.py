"""Tiny models of every task, and a server of them in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import uvicorn
from PIL import Image

from glocal.data import Preprocessing, Subwords, TokenizerConfig, learn_tokenizer
from glocal.models import create_model
from glocal.ops import native
from glocal.serve import ServeConfig, create_app
from glocal.serve.server import address, open_port
from glocal.tasks import load

SAID = "John Smith lives in New York , far from Hà Nội . Where who does live ? He likes it there"
WORDS = learn_tokenizer([SAID] * 3, TokenizerConfig(kind="wordpiece", vocab_size=300))
BYTES = learn_tokenizer([SAID] * 3, TokenizerConfig(kind="byte-bpe", vocab_size=300))
PAIRS = Subwords.train([SAID] * 3, "bpe", 300)
SHAPE = {"embed_dim": 16, "depth": 2, "num_heads": 2}
INPUTS = {
    "digits": None,
    "reviews": "John likes New York .",
    "topics": "John likes New York .",
    "stars": "John likes New York .",
    "tagger": "John Smith lives in New York",
    "reader": {"question": "Where does John live ?", "context": "John Smith lives in New York , far from Hà Nội ."},
    "words": "John [MASK] in New [MASK] .",
    "writer": "John Smith lives",
    "translator": "Where does he live ?",
}
"""An input of each model as JSON; that of images is `picture`."""


def write_models(root: Path) -> None:
    """Write a folder for each model: random weights, whose answers vary."""
    torch.manual_seed(0)
    bert = SHAPE | {"vocab_size": WORDS.vocab_size, "max_length": 64}
    heads = {
        "reviews": {"head": "classification", "num_classes": 3},
        "topics": {"head": "classification", "num_classes": 3},
        "stars": {"head": "classification", "num_classes": 1},
        "tagger": {"head": "tagging", "num_classes": 3},
        "reader": {"head": "spans"},
        "words": {"head": "pretraining"},
    }
    models = {name: (create_model("bert-tiny", **bert, **head), WORDS) for name, head in heads.items()}
    ends = {"pad_id": BYTES.eos_id, "bos_id": BYTES.eos_id, "eos_id": BYTES.eos_id}
    models["writer"] = create_model("gpt-tiny", **SHAPE, vocab_size=BYTES.vocab_size, max_length=96, **ends), BYTES
    special = {name: getattr(PAIRS, name) for name in ("pad_id", "bos_id", "eos_id")}
    translator = create_model("transformer-tiny", **SHAPE, vocab_size=PAIRS.vocab_size, max_length=64, **special)
    models["translator"] = translator, PAIRS
    images = create_model("vit-tiny", image_size=16, patch_size=8, num_classes=3, **SHAPE)
    images.preprocessing = asdict(Preprocessing(image_size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3))
    models["digits"] = images, None
    models["topics"][0].problem_type, models["stars"][0].problem_type = "multi_label_classification", "regression"
    for name in ("digits", "reviews", "topics"):
        models[name][0].labels = ["bad", "fair", "good"]
    models["tagger"][0].labels = ["O", "B-LOC", "I-LOC"]
    for name, (model, tokenizer) in models.items():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(root / name)
        if tokenizer is not None:
            tokenizer.save(root / name)


@cache
def predictors(root: Path) -> dict:
    """Load all models that were written, on the processor; the kernels are compiled first, which may take a minute."""
    native.load()
    return {folder.name: load(folder, "cpu") for folder in sorted(root.iterdir()) if folder.is_dir()}


def picture(seed: int = 0, size: tuple[int, int] = (20, 24), kind: str = "PNG") -> bytes:
    """Return the file of a random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@contextmanager
def running(models: dict, **config) -> Iterator[str]:
    """Serve predictors in a thread, and return the address."""
    settings = ServeConfig(port=0, **config)
    with open_port(settings) as port:
        app = create_app(models, settings)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", lifespan="on", ws="none"))
        thread = threading.Thread(target=server.run, name=address(port), kwargs={"sockets": [port]})
        thread.start()
        try:
            yield address(port)
        finally:
            server.should_exit = True
            thread.join()
