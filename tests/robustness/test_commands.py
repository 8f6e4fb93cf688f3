"""Mutated command lines and Python calls: each does what it says, or ends in one clear line, soon and in little memory.

Training is left out: a command line or a recipe's fields are checked up to the first step. The type checks that other
tests run with are off, so that a user's values reach the code's own checks.
"""

import contextlib
import io
import os
import random
import re
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import glocal
from glocal.cli import main
from glocal.data import Preprocessing, TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.models import create_model

COUNT, SEED = int(os.environ.get("GLOCAL_MUTATIONS", "2000")), int(os.environ.get("GLOCAL_SEED", "0"))
COMMANDS, CALLS = COUNT * 7 // 10, COUNT * 3 // 10
SECONDS, BYTES = 30, 2 * 2**30
ODD_WORDS = (
    *("", " ", "-", "--", "---", "-1", "0", "1e999", "nan", "9" * 40, "0.5", "null", "true", "[]", "[1, [", "{a: b}"),
    *("\n", "\t", "\0", "\udcff", "\x1b[31m", "[/]", "$$", "e\u0301", "\u202e", "é" * 50, "x" * 5000, "../..", "/"),
    *("--top", "--json", "--layer", "--head", "--heads", "--fields", "--resume", "--from", "--data", "--help"),
    *("--train.lr", "--model.depth=0", "--model.arch=.", "--data.source=", "--run.dir=", "--name=../x", "--train={}"),
    *(
        "--train.epochs=x",
        "--model=1",
        "--task.name=question-answering",
        "--decoding.temperature=-1",
        "--decoding.beams=0",
        "*",
        "~",
    ),
)
ODD_VALUES = (
    *(
        None,
        True,
        0,
        -1,
        1,
        0.5,
        1e-9,
        50,
        10**6,
        2**31 - 1,
        2**31,
        10**30,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\0",
        "\udcff",
        "\x1b[31m",
    ),
    *("x" * 5000, [], {}, (), [None], [[]], {"a": 1}, b"bytes", Path("no/such"), Path(), object(), torch.zeros(2, 3)),
    *(np.zeros((3, 3)), np.zeros((8, 8, 3), np.uint8), torch.zeros(0), ["x", 5], ("a", "b"), ("a", None)),
)
HARSH = ("replace", "insert", "drop", "twice", "letter", "join")
TEXTS = (
    "New York\t[MASK]",
    "[MASK] é e\u0301",
    "\u202eNew\t[MASK]\u2028York",
    "[MASK]\t" + "y " * 300,
    "\x1b[31m[MASK]\t[/]$$",
)
MODELS = ("vit-tiny", "glit-tiny", "timm:resnet10t", "transformer-tiny", "lstm-tiny", "bert-tiny", "gpt-tiny")
FIELDS = (
    *("depth", "embed_dim", "num_heads", "patch_size", "image_size", "num_classes", "norm", "dropout", "in_chans"),
    *("kernel_size", "expand_ratio", "qkv_ratio", "mlp_ratio", "local_heads", "vocab_size", "max_length", "hidden_dim"),
    *("pad_id", "head", "stem", "args"),
)
DOTTED = ("train.steps", "train.lr", "data.image_size", "model.depth", "model", "train", "no.field", "name")
ONE_LINE = re.compile(r"glocal: .+\n")


class Hang(BaseException):
    """Raised by the clock, past every `except Exception`."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny models, some data, and a recipe, by name."""
    root = tmp_path_factory.mktemp("places")
    said = "Once upon a time John lived in New York ."
    words = learn_tokenizer([said] * 3, TokenizerConfig(kind="wordpiece", vocab_size=300))
    letters = learn_tokenizer([said] * 3, TokenizerConfig(kind="byte-bpe", vocab_size=300))
    tiny: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    for head in ("pretraining", "classification", "tagging", "spans"):
        model = create_model("bert-tiny", head=head, vocab_size=words.vocab_size, max_length=64, **tiny)
        model.labels = {"classification": ["$$", "[/]\x1b[31m"], "tagging": ["B-LOC", "O"]}.get(head)
        model.save_pretrained(root / head)
        words.save(root / head)
    ids = {"pad_id": 0, "bos_id": 0, "eos_id": 0}
    model = create_model("gpt-tiny", vocab_size=letters.vocab_size, max_length=64, **tiny, **ids)
    model.save_pretrained(root / "language")
    letters.save(root / "language")
    image = create_model("vit-tiny", image_size=16, patch_size=8, num_classes=2, **tiny)
    image.labels = ["cat", "dog"]
    image.preprocessing = asdict(Preprocessing(image_size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3))
    image.save_pretrained(root / "images")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "photo.png")
    (root / "texts.txt").write_text(said + "\nNew York\n")
    (root / "recipe.yaml").write_text("model: {name: vit-tiny}\ndata: {source: digits}\ntrain: {epochs: 1}\n")
    return {path.name: str(path) for path in root.iterdir()} | {"out": str(root / "out"), "run": str(root / "run")}


def templates(at: dict[str, str]) -> list[list[str]]:
    """Command lines that are right."""
    heads = ("pretraining", "classification", "tagging", "spans", "language")
    return [
        *(["predict", at[head], "New\tYork [MASK]", at["texts.txt"], "--json"] for head in heads),
        *(["explain", at[head], "New York", "-o", at["out"] + ".png", "--layer", "0"] for head in heads),
        ["predict", at["language"], "Once", "--decoding.extra_length", "3", "--decoding.beams", "2"],
        ["predict", at["classification"], "New York", "--top", "1", "--precision", "float32"],
        ["predict", at["images"], at["photo.png"], "--top", "2"],
        ["explain", at["images"], at["photo.png"], "-o", at["out"] + ".png", "--head", "1", "--layer", "0"],
        ["explain", at["pretraining"], at["texts.txt"], "-o", at["out"] + ".png", "--patterns"],
        ["export", at["images"], "--to", "timm", "-o", at["out"]],
        ["info", at["images"]],
        ["info", "deit-tiny", "--image-size", "32"],
        ["info", "bert-tiny", "--tokens", "9"],
        ["list", "models"],
        ["test", at["images"], "--data", at["photo.png"], "--precision", "int8"],
        ["train", "vit-digits", "--fields"],
        ["search", "glit-digits", "--search.retrain", "1", "--fields"],
        ["train", at["recipe.yaml"], "--train.lr", "0.1", "--model.depth", "2", "--run.dir", at["run"]],
        ["train", "bert-sst2", "--from", at["pretraining"], "--data", at["texts.txt"], "--run.dir", at["run"]],
    ]


def mutated(words: Sequence[str], rng: random.Random) -> list[str]:
    """Write a command line in another way that may be right, or change one word of it, or a few."""
    words = list(words)
    for _ in range(rng.choice((1, 1, 1, 1, 2))):
        place = rng.randrange(1, len(words) + 1)
        kind = rng.choice(("number", "joined", "moved", "text", "slash") * 2 + HARSH)
        if kind in HARSH:
            words = spoilt(words, place, kind, rng)
        elif kind == "number":
            words = [rng.choice("123") if word.isdecimal() else word for word in words]
        elif kind == "joined" and len(words[place:]) > 1 and words[place].startswith("--"):
            words[place : place + 2] = [f"{words[place]}={words[place + 1]}"]
        elif kind == "moved" and len(words) > 3:
            words = [*words[:2], *words[-2:], *words[2:-2]]
        elif kind == "text":
            words = [
                rng.choice(TEXTS) if word.startswith(("New York", "New\tYork", "Once")) else word for word in words
            ]
        elif kind == "slash":
            words[1] = words[1].replace("/places0/", "/places0/./")
    return words


def spoilt(words: list[str], place: int, kind: str, rng: random.Random) -> list[str]:
    """Change one word in a way that is seldom right."""
    if kind == "insert" or place == len(words):
        return [*words[:place], rng.choice(ODD_WORDS), *words[place:]]
    word = words[place]
    if kind == "replace":
        word = rng.choice(ODD_WORDS)
    elif kind == "letter":
        cut = rng.randrange(len(word) + 1)
        word = word[:cut] + rng.choice(("", "é", "-", "=", "\x07", "9")) + word[cut + 1 :]
    elif kind == "join":
        word += "=" + rng.choice(ODD_WORDS)
    kept = {"drop": [], "twice": [word, word]}.get(kind, [word])
    return [*words[:place], *kept, *words[place + 1 :]]


def calls(at: dict[str, str], rng: random.Random) -> tuple[str, Callable[[], Any]]:
    """A Python call with an odd value in one place, and how it reads."""
    odd = rng.choice(ODD_VALUES)
    model = at[rng.choice(("pretraining", "classification", "tagging", "spans", "language", "images"))]
    option = rng.choice(("top", "batch_size"))
    name, field, dotted = rng.choice(MODELS), rng.choice(FIELDS), rng.choice(DOTTED)
    run = {"run.dir": at["run"]}
    choices: dict[str, Callable[[], Any]] = {
        f"load({odd!r:.60})": lambda: glocal.load(odd),
        f"load(precision={odd!r:.60})": lambda: glocal.load(model, precision=odd),
        f"load(device={odd!r:.60})": lambda: glocal.load(model, device=odd),
        f"load({Path(model).name}).predict({odd!r:.60})": lambda: glocal.load(model).predict(odd),
        f"load({Path(model).name}).predict([{odd!r:.60}])": lambda: glocal.load(model).predict([odd]),
        f"load(images).predict({option}={odd!r:.60})": lambda: glocal.load(at["images"]).predict(
            at["photo.png"], **{option: odd}
        ),
        f"load(classification).predict({option}={odd!r:.60})": lambda: glocal.load(at["classification"]).predict(
            ["x"], **{option: odd}
        ),
        f"explain({Path(model).name}, {odd!r:.60})": lambda: glocal.explain(model, odd),
        f"export(images, to={odd!r:.60})": lambda: glocal.export(at["images"], at["out"], odd),
        f"create_model({odd!r:.60})": lambda: glocal.create_model(odd),
        f"create_model({name}, {field}={odd!r:.60})": lambda: glocal.create_model(name, **{field: odd}),
        f"load_recipe({odd!r:.60})": lambda: glocal.load_recipe(odd),
        f"load_recipe({dotted}={odd!r:.60})": lambda: glocal.load_recipe("vit-digits", {dotted: odd}),
        f"train({dotted}={odd!r:.60})": lambda: glocal.train("vit-digits", run | {dotted: odd}),
        f"search({dotted}={odd!r:.60})": lambda: glocal.search("glit-digits", run | {dotted: odd}),
        f"test({odd!r:.60})": lambda: glocal.test(odd),
        f"test(precision={odd!r:.60})": lambda: glocal.test(at["images"], precision=odd),
        f"resume({odd!r:.60})": lambda: glocal.resume(odd),
    }
    written = rng.choice(list(choices))
    return written, choices[written]


def outcome(call: Callable[[], Any]) -> str:
    """How a call ended: `right`, `one line`, `hang`, what memory it took, or the last lines of a traceback."""
    before = _peak()
    ended = _end(call)
    return f"took {grown >> 20} MiB" if (grown := _peak() - before) > BYTES else ended


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _end(call: Callable[[], Any]) -> str:
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor, which others may share
        call()
    except (GlocalError, SystemExit) as stop:
        return "right" if isinstance(stop, SystemExit) and not stop.code else "one line"
    except Hang:
        return "hang"
    except BaseException:
        return "".join(traceback.format_exc().strip().splitlines(keepends=True)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "right"


@contextlib.contextmanager
def contained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder, without training, with a clock and nothing to type; a warning is no error here."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr("glocal.runner.run.run_recipe", lambda recipe, run, resume: run.path)
    monkeypatch.setattr("glocal.runner.search_run.run_search", lambda recipe, run: sys.exit())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"New York\n")))
    previous = signal.signal(signal.SIGPROF, _ring)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    signal.signal(signal.SIGPROF, previous)


def _ring(*_: object) -> None:
    raise Hang


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_command_lines_end_well(places, tmp_path, monkeypatch, capsys):
    rng, counts, wrong = random.Random(SEED), Counter(), []
    with contained(tmp_path, monkeypatch):
        for _ in range(COMMANDS):
            words = mutated(rng.choice(templates(places)), rng)
            error = io.StringIO()
            with contextlib.redirect_stderr(error):
                end = outcome(lambda words=words: main(words))
            said = error.getvalue()
            if end == "one line" and not ONE_LINE.fullmatch(said.splitlines(keepends=True)[-1] if said else ""):
                end = f"no clear line: {said[-300:]}"
            counts[end if end in ("right", "one line", "hang") else "wrong"] += 1
            if end not in ("right", "one line"):
                wrong.append(f"{words!r:.300}\n  {end}")
    _report(capsys, counts, wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_calls_end_well(places, tmp_path, monkeypatch, capsys):
    rng, counts, wrong = random.Random(SEED + 1), Counter(), []
    with contained(tmp_path, monkeypatch):
        for _ in range(CALLS):
            name, call = calls(places, rng)
            end = outcome(call)
            counts[end if end in ("right", "one line", "hang") else "wrong"] += 1
            if end not in ("right", "one line"):
                wrong.append(f"{name}\n  {end}")
    _report(capsys, counts, wrong)


def _report(capsys: pytest.CaptureFixture[str], counts: Counter[str], wrong: list[str]) -> None:
    with capsys.disabled():
        print(f"\n{sum(counts.values())}: " + ", ".join(f"{count} {end}" for end, count in counts.most_common()))
    assert not wrong, f"{len(wrong)} wrong\n" + "\n".join(sorted(set(wrong)))
