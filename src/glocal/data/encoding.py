"""Encoding of texts as rows and batches, for training, evaluation and prediction."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glocal.data.tokenizer import Tokenizer
from glocal.ops import IGNORED

Row = dict[str, np.ndarray]
"""One example of a batch by columns, each a number for every token or one for the whole example."""
Batch = dict[str, Tensor]

QUESTION = 64
"""Tokens of the longest question; the rest of a window is context (Devlin et al. 2018, `max_query_length` of their
run_squad.py)."""
STAND_IN = "?"
"""What replaces a word without tokens, such as a zero-width space, so that every word has a token to be tagged."""


class Batches:
    """One pass over some batches, each made on demand."""

    def __init__(self, make: Callable[[np.ndarray], Batch], chosen: list[np.ndarray]) -> None:
        self.make = make
        self.chosen = chosen
        """The numbers of each batch's rows."""

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, self.chosen)


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pad rows on the right to a batch: int64, and the bool `attention_mask` (B, N), True at tokens.

    Labels are padded with -100, `token_type_ids` with 0.
    """
    fill = {"input_ids": pad_id, "labels": IGNORED}
    batch = {}
    for name in rows[0]:
        columns = [torch.from_numpy(np.array(row[name])) for row in rows]  # a copy: mapped memory is read-only
        alike = columns[0].ndim == 0  # one number for each example
        padded = torch.stack(columns) if alike else pad_sequence(columns, True, fill.get(name, 0))
        batch[name] = padded if padded.is_floating_point() else padded.long()
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return batch | {"attention_mask": torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]}


def encode_sentences(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    parse_special: bool = False,
) -> list[tuple[Row, bool]]:
    """Return the row of each sentence, or pair of sentences, and whether it was shortened to `max_length` tokens.

    The longer side of a pair loses its end (Devlin et al. 2018, `_truncate_seq_pair`). Where the tokenizer puts no
    token between the two, as GPT's, the end token separates them (Radford et al. 2018, section 3.3). With
    `parse_special`, "[MASK]" in a text is that token, and not its letters.
    """
    rows = []
    for encoding in tokenizer.encodings(texts, pairs, parse_special=parse_special):
        apart = pairs is None or any(encoding.special_tokens_mask)
        limit = max_length if apart else max_length - 1
        kept = _shorten(encoding, limit) if len(encoding) > limit else np.arange(len(encoding))
        row = _row(encoding, kept)
        if not apart:
            firsts = int((_sides(encoding)[kept] == 0).sum())
            row["input_ids"] = np.insert(row["input_ids"], firsts, tokenizer.eos_id)
        rows.append((row, len(kept) < len(encoding)))
    return rows


class WordWindow(NamedTuple):
    """A window of a sentence that is split into words: its row, and the words in it."""

    row: Row
    starts: np.ndarray
    """Position of each word's first token in the row."""
    word_indices: np.ndarray
    """Indices of these words in their sentence."""


def encode_words(tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], max_length: int) -> list[list[WordWindow]]:
    """Return the windows of each sentence; one longer than `max_length` tokens has several, each of whole words.

    Every word is in exactly one window. A word longer than a window loses its end.
    """
    encodings = tokenizer.encodings(sentences, words=True)
    for number, (encoding, sentence) in enumerate(zip(encodings, sentences, strict=True)):
        with_tokens = {word for word in encoding.word_ids if word is not None}
        if len(with_tokens) < len(sentence):
            replaced = [word if index in with_tokens else STAND_IN for index, word in enumerate(sentence)]
            encodings[number] = tokenizer.encodings([replaced], words=True)[0]
    return [_cut_words(encoding, max_length) for encoding in encodings]


class Passage(NamedTuple):
    """A question and a window of its context: their row, and the characters of the context that each token covers."""

    row: Row
    offsets: np.ndarray
    """int32 (N, 2): the first character of the context that a token covers, and the one after the last; -1 and -1 at
    tokens that are not of the context."""


def encode_questions(
    tokenizer: Tokenizer, questions: Sequence[str], contexts: Sequence[str], max_length: int, stride: int
) -> list[list[Passage]]:
    """Return the windows of each question and its context; if both are longer than `max_length`, there are several.

    A window begins `stride` tokens of the context after the one before it, or fewer, so that every token of the context
    is in a window. A question longer than 64 tokens, or than half of `max_length`, loses its end.
    """
    return [_cut_context(encoding, max_length, stride) for encoding in tokenizer.encodings(questions, contexts)]


def _row(encoding: Encoding, kept: np.ndarray) -> Row:
    """Return the row of some positions; it has segments where the tokenizer marks their ends."""
    row = {"input_ids": np.array(encoding.ids, dtype=np.int32)[kept]}
    if any(encoding.special_tokens_mask):
        row["token_type_ids"] = np.array(encoding.type_ids, dtype=np.int8)[kept]
    return row


def _sides(encoding: Encoding) -> np.ndarray:
    """Return the text that each token is of, 0 or 1, or -1 for special tokens."""
    return np.array([-1 if side is None else side for side in encoding.sequence_ids])


def _shorten(encoding: Encoding, max_length: int) -> np.ndarray:
    """Return the positions that are kept."""
    sides = _sides(encoding)
    first, second = np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)
    limit = max_length - int((sides == -1).sum())
    share = max(limit - len(second), min(len(first), (limit + 1) // 2))
    return np.sort(np.concatenate([np.flatnonzero(sides == -1), first[:share], second[: limit - share]]))


def _cut_words(encoding: Encoding, max_length: int) -> list[WordWindow]:
    """Cut into windows of as many whole words as fit."""
    word_ids = np.array([-1 if word is None else word for word in encoding.word_ids])
    pieces = np.flatnonzero(word_ids >= 0)
    before, after = np.arange(pieces[0]), np.arange(pieces[-1] + 1, len(word_ids))
    window = max_length - len(before) - len(after)
    starts = pieces[np.diff(word_ids[pieces], prepend=-1) != 0]
    ends = np.append(starts[1:], pieces[-1] + 1)
    windows = []
    first = 0
    while first < len(starts):
        limit = starts[first] + window
        last = max(int(np.searchsorted(ends, limit, side="right")), first + 1)  # the first word that does not fit
        inner = np.arange(starts[first], min(ends[last - 1], limit))
        row = _row(encoding, np.concatenate([before, inner, after]))
        windows.append(WordWindow(row, starts[first:last] - starts[first] + len(before), np.arange(first, last)))
        first = last
    return windows


def _cut_context(encoding: Encoding, max_length: int, stride: int) -> list[Passage]:
    """Cut the context into windows, each with the question and the special tokens."""
    sides, offsets = _sides(encoding), np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    offsets[sides != 1] = -1
    question, context = np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)
    around = np.setdiff1d(np.flatnonzero(sides != 1), question[min(QUESTION, max_length // 2) :])
    before, after = np.split(around, [np.searchsorted(around, context[0])]) if len(context) else (around, around[:0])
    window = max_length - len(around)
    step = min(stride, window)
    windows = []
    for start in range(0, max(len(context) - window, 0) + step, step):
        kept = np.concatenate([before, context[start : start + window], after])
        windows.append(Passage(_row(encoding, kept), offsets[kept]))
    return windows
