"""Every reader of every format, fed with damaged and odd files: each is read, or refused in one line, soon and small.

`GLOCAL_MUTATIONS` says how many files are tried; the same seed gives the same files.
"""

import gzip
import io
import json
import os
import random
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pytest
from mutate import Mutation, mutate_bytes, mutate_json, mutate_json_text, mutate_text, of_text
from PIL import Image
from pyarrow import parquet

from glocal.data import (
    DataConfig,
    DocumentsConfig,
    Tokenizer,
    TokenizerConfig,
    learn_tokenizer,
    open_image,
    open_images,
)
from glocal.data.conll import read_words
from glocal.data.files import read_lines
from glocal.data.squad import read_questions
from glocal.data.tables import read_prompts, read_text_inputs
from glocal.errors import GlocalError
from glocal.tasks import (
    causal_lm,
    completion,
    question_answering,
    text_classification,
    token_classification,
    translation,
)

COUNT = int(os.environ.get("GLOCAL_MUTATIONS", "1000"))
SECONDS, BYTES = 20, 2 * 2**30

CLASSES = ("good", "bad", "1", "nan")
ROWS = [(f"a film {number}, quite {CLASSES[number % 2]}", CLASSES[number % 2]) for number in range(12)]
ASKED = [
    {"id": str(number), "question": "who?", "answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": False}
    for number in range(3)
]
SQUAD = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": "Ada wrote it.", "qas": ASKED}] * 4}]}
CONLL = "-DOCSTART- O\n\n" + "Ada B-PER\nLovelace I-PER\nwrote O\n\nParis B-LOC\n. O\n\n" * 4
FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.1}


class Case(NamedTuple):
    """A kind of file: a good one, how it is damaged, and what reads it."""

    name: str
    content: bytes
    mutate: Mutation
    read: Callable[[Path], object]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [text for text, _ in ROWS] + ["Ada Lovelace wrote it who Paris ."]
    return learn_tokenizer(texts * 3, TokenizerConfig(kind="wordpiece", vocab_size=300))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def table(**columns: list) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def mutate_jsonl(content: str, rng: random.Random) -> str:
    """Change some lines of JSON, mostly as JSON."""
    if rng.random() < 0.3:
        return mutate_text(content, rng)
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    changed = (
        mutate_json_text if rng.random() < 0.1 else lambda text, rng: json.dumps(mutate_json(json.loads(text), rng))
    )
    lines[place] = changed(lines[place], rng)
    return "\n".join(lines)


def zipped(mutate: Mutation) -> Mutation:
    """Damage what is in a gzipped file, or the file."""
    return lambda content, rng: (
        mutate_bytes(content, rng) if rng.random() < 0.5 else gzip.compress(mutate(gzip.decompress(content), rng))
    )


def cases(tokenizer: Tokenizer) -> Iterator[Case]:
    text = of_text(mutate_text)
    records = "".join(json.dumps({"text": each, "label": label}) + "\n" for each, label in ROWS).encode()
    tsv = "".join(f"{each}\t{label}\n" for each, label in ROWS).encode()
    csv = ("text,label\n" + "".join(f'"{each}",{label}\n' for each, label in ROWS)).encode()
    columns = table(text=[each for each, _ in ROWS], label=[label for _, label in ROWS])

    def sentences(path: Path) -> object:
        data = text_classification.open_data(
            text_classification.TextClassificationDataConfig(str(path), **FRACTIONS), None, tokenizer
        )
        list(islice(read_text_inputs(path), 100))
        return next(iter(data.train_batches(4, 0)))

    def completions(path: Path) -> object:
        config = completion.CompletionDataConfig(str(path), columns=("text", "label"), **FRACTIONS)
        list(islice(read_prompts(path), 100))
        return next(iter(completion.open_data(config, None, tokenizer).train_batches(4, 0)))

    def pairs(path: Path) -> object:
        config = translation.TranslationDataConfig(str(path), ("text", "label"), vocab_size=300)
        return next(iter(translation.open_data(config).train_batches(200, 0)))

    def documents(path: Path) -> object:
        config = DocumentsConfig(str(path), max_length=8, **FRACTIONS)
        return next(iter(causal_lm.open_data(config, None, tokenizer).train_batches(4, 0)))

    def tagged(path: Path) -> object:
        list(islice(read_words(path), 100))
        config = token_classification.TokenClassificationDataConfig(str(path), **FRACTIONS)
        return next(iter(token_classification.open_data(config, None, tokenizer).train_batches(4, 0)))

    def questions(path: Path) -> object:
        list(islice(read_questions(path), 100))
        config = question_answering.QuestionAnsweringDataConfig(str(path), max_length=32, **FRACTIONS)
        return next(iter(question_answering.open_data(config, None, tokenizer).train_batches(4, 0)))

    def images(path: Path) -> object:
        return next(iter(open_images(DataConfig(str(path), 8, val_fraction=0.2)).train_batches(2, 0)))

    for kind, content, mutate in (
        ("tsv", tsv, text),
        ("csv", csv, text),
        ("jsonl", records, of_text(mutate_jsonl)),
        ("parquet", columns, mutate_bytes),
    ):
        for reader in (sentences, completions, pairs, documents):
            yield Case(f"some.{kind}", content, mutate, reader)
        if kind != "parquet":
            yield Case(f"some.{kind}.gz", gzip.compress(content), zipped(mutate), sentences)
    yield Case("some.txt", b"Ada wrote it. Paris is a town.\n" * 20, text, documents)
    yield Case("some.txt", b"Ada wrote it. Paris is a town.\n" * 20, mutate_bytes, lambda path: list(read_lines(path)))
    yield Case("some.conll", CONLL.encode(), text, tagged)
    yield Case("some.tsv", CONLL.replace(" ", "\t").encode(), text, tagged)
    yield Case("some.json", json.dumps(SQUAD).encode(), of_text(mutate_json_text), questions)
    ramp = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "pcx"):
        yield Case(f"some.{kind}", encoded(ramp, kind), mutate_bytes, open_image)
    transparent = encoded(ramp.convert("L"), "png", transparency=7)
    yield Case("some.png", transparent, mutate_bytes, lambda path: open_image(path, 1))
    pictures = [{"bytes": encoded(ramp, "png"), "path": None}] * 8
    yield Case("pictures.parquet", table(image=pictures, label=[0, 1] * 4), mutate_bytes, images)
    for part, axes in (("images-idx3", 3), ("labels-idx1", 1)):
        shape = (8, 4, 4)[:axes]
        pixels = (np.arange(np.prod(shape)) % 2).astype(np.uint8)
        content = bytes([0, 0, 8, axes]) + np.array(shape, ">i4").tobytes() + pixels.tobytes()
        yield Case(f"train-{part}-ubyte", content, mutate_bytes, lambda path: images(path.parent))
        yield Case(
            f"train-{part}-ubyte.gz", gzip.compress(content), zipped(mutate_bytes), lambda path: images(path.parent)
        )


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_damaged_files_are_read_or_refused_in_a_line(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    kinds = list(cases(tokenizer))
    idx = {case.name: case.content for case in kinds if "-ubyte" in case.name}
    counts: Counter[str] = Counter()
    wrong = []
    for seed in range(COUNT):
        case, rng = kinds[seed % len(kinds)], random.Random(seed)
        folder = tmp_path / f"{seed % len(kinds)}"
        folder.mkdir(exist_ok=True)
        if case.name in idx:
            other = (
                case.name.replace("images-idx3", "\0")
                .replace("labels-idx1", "images-idx3")
                .replace("\0", "labels-idx1")
            )
            (folder / other).write_bytes(idx[other])
        path = folder / case.name
        path.write_bytes(case.mutate(case.content, rng))
        begun = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case.read(path)
            counts["read"] += 1
        except GlocalError as error:
            counts["refused"] += 1
            if len(str(error).splitlines()) != 1 or len(str(error)) > 1000:
                wrong.append(f"{seed} {case.name}: not one line: {str(error)[:200]!r}")
        except Exception as error:  # whatever else is raised is what is looked for
            wrong.append(f"{seed} {case.name}: {type(error).__name__}: {str(error)[:200]}")
        if time.monotonic() - begun > SECONDS:
            wrong.append(f"{seed} {case.name}: {time.monotonic() - begun:.0f} seconds")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak > BYTES:
            wrong.append(f"{seed} {case.name}: {peak >> 20} MiB")
            break
    print(f"{sum(counts.values())} of {COUNT} files: {dict(counts)}; wrong {len(wrong)}")
    assert not wrong, "\n".join(wrong[:40])
