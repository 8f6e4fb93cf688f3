"""Prompts and what follows them: any task that is answered by writing (Radford et al. 2019, section 2)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glocal.data.files import TABLES, Record, check_columns, compose, listed, read_records
from glocal.data.labels import is_visible
from glocal.data.text.config import CompletionsConfig
from glocal.data.text.encoding import IGNORED, Row
from glocal.data.text.labelled.texts import Texts, encode_all, read_source, settle_splits
from glocal.data.text.tokenizer import Tokenizer
from glocal.errors import GlocalError

PROMPTS = ("prompt", "text", "sentence", "content", "source")
"""What a column of texts to go on from, to fill, or to translate is usually called."""


class Completion(NamedTuple):
    """A prompt, and what is to be written after it."""

    prompt: str
    completion: str


def open_completions(
    config: CompletionsConfig, folder: Path | None, tokenizer: Tokenizer, testing: bool = False
) -> Texts[Completion]:
    """Open the prompts that `config` names, with the splits.json of `folder`, written where missing.

    Batches hold `input_ids`, `attention_mask` and `labels`, each (B, L): the label of a token is the one after it, -100
    before the completion begins; the last label is the token that ends a text. `testing` opens data to test a trained
    model on: its test split, or all where it names none.

    Raises GlocalError where the data or the config is unusable, or the data is not that of `folder`.
    """
    counts: Counter[str] = Counter(prompts=0, misaligned=0, empty=0)
    read, hub = partial(_file, config, counts), partial(_completions, config, counts)
    examples = read_source(config.source, TABLES, read, hub, testing, counts)
    splits = settle_splits(examples, config, folder)
    encoded = encode_all(examples.items, partial(encode_completions, tokenizer, max_length=config.max_length))
    rows = [row for row, _ in encoded]
    report = dict(counts) | {"truncated": sum(overlong for _, overlong in encoded)}
    return Texts(config, examples, splits, tokenizer, rows, range(len(rows)), report)


def encode_completions(tokenizer: Tokenizer, items: Sequence[Completion], max_length: int) -> list[tuple[Row, bool]]:
    """Encode prompts with their completions, and say of each whether it had to be shortened to `max_length` tokens.

    The prompt gives way, at its beginning, down to a token; then the completion, at its end.
    """
    prompts = tokenizer.encodings([item.prompt for item in items], special=False)
    completions = tokenizer.encodings([item.completion for item in items], special=False)
    rows = []
    for before, after in zip(prompts, completions, strict=True):
        written = [*after.ids, tokenizer.eos_id]
        prompt = before.ids[-max(max_length + 1 - len(written), 1) :]
        ids = np.array([*prompt, *written][: max_length + 1], dtype=np.int32)  # the last is a label alone
        labels = ids[1:].copy()
        labels[: len(prompt) - 1] = IGNORED
        overlong = len(before.ids) + len(written) > max_length + 1
        rows.append(({"input_ids": ids[:-1], "labels": labels}, overlong))
    return rows


def read_prompts(path: Path) -> Iterator[str]:
    """Read the texts of a table that a model goes on from, fills or translates: one a row, "" where a row has none.

    Raises GlocalError where no column has a usual name.
    """
    for record in read_records(path):
        column = next((name for name in PROMPTS if name in record), None)
        if column is None:
            raise GlocalError(
                f"{path} has the columns {listed(record)}; expected one named {', '.join(PROMPTS[:-1])} or "
                f"{PROMPTS[-1]}, or a .txt file with one text a line"
            )
        text = record[column]
        yield compose(text) if isinstance(text, str) and is_visible(text) else ""


def _file(config: CompletionsConfig, counts: Counter[str], path: Path) -> Iterator[Completion]:
    return _completions(config, counts, str(path), read_records(path))


def _completions(
    config: CompletionsConfig, counts: Counter[str], name: str, records: Iterable[Record]
) -> Iterator[Completion]:
    for number, record in enumerate(records):
        if number == 0:
            check_columns(name, record, config.columns, "data.columns")
        prompt, completion = (record.get(column) for column in config.columns)
        counts["prompts"] += 1
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            counts["misaligned"] += 1
        elif not (prompt.strip() and completion.strip()):
            counts["empty"] += 1
        else:
            yield Completion(compose(prompt), compose(completion))
