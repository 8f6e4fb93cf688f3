"""From sentence pairs to batches. A batch is a pure function of (seed, epoch, its number): nothing to save."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glocal.data.progress import progress
from glocal.data.splits import Splits, cut_splits, no_examples, read_splits, write_splits
from glocal.data.text.config import PairsConfig
from glocal.data.text.encoding import Batches
from glocal.data.text.pairs.sources import Corpus, open_corpus
from glocal.data.text.tokenizer import Subwords, Tokenizer
from glocal.errors import GlocalError

Batch = dict[str, Tensor]
"""`input_ids` int64 (B, S), `attention_mask` bool (B, S), True at tokens; `decoder_input_ids` int64 (B, T), the target
after the token that starts it; `labels` int64 (B, T), the target and its end, -100 at padding."""


def open_pairs(config: PairsConfig, folder: Path | None = None, tokenizer: Tokenizer | None = None) -> "Pairs":
    """Open the pairs that `config` names, with the splits.json and the tokenizer of `folder`, written where missing.

    A vocabulary is learned from the training pairs. To fine-tune, save the model's tokenizer in `folder` beforehand.
    With the `tokenizer` of a trained model, open other data to test it on: its test split, or all where it names none.

    Raises GlocalError where the data or the config is unusable, or the data is not that of `folder`.
    """
    corpus = open_corpus(config, testing=tokenizer is not None)
    if tokenizer is not None:
        return Pairs(config, corpus, {"train": [], "val": [], "test": corpus.splits["test"].tolist()}, tokenizer)
    file = None if folder is None else folder / "splits.json"
    if file is not None and file.exists():
        splits, _ = read_splits(file, corpus)
    else:
        everything = np.ones(len(corpus.pairs), dtype=bool)
        splits = cut_splits(corpus, everything, config.val_fraction, config.test_fraction, config.seed)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_splits(file, corpus, splits, [])
    if folder is not None and Tokenizer.is_in(folder):
        return Pairs(config, corpus, splits, Tokenizer.load(folder))
    texts = (text for index in splits["train"] for text in corpus.pairs[index])
    learned = Subwords.train(texts, config.tokenizer, config.vocab_size)
    if folder is not None:
        learned.save(folder)
    return Pairs(config, corpus, splits, learned)


class Pairs:
    """A corpus that is ready to learn from: tokens, splits, and batches of them."""

    def __init__(self, config: PairsConfig, corpus: Corpus, splits: Splits, tokenizer: Tokenizer) -> None:
        self.config = config
        self.corpus = corpus
        self.splits = splits
        """Indices into the corpus."""
        self.tokenizer = tokenizer
        self._sources = _encode(tokenizer, [source for source, _ in corpus.pairs], target=False)
        self._targets = _encode(tokenizer, [target for _, target in corpus.pairs], target=True)
        sides = zip(self._sources, self._targets, strict=True)
        self._lengths = np.array([max(len(source), len(target)) for source, target in sides])
        self.report = corpus.counts | {"overlong": int((self._lengths > config.max_length).sum())}
        """How many pairs were read, and how many are in no batch, by why."""

    @property
    def languages(self) -> tuple[str, str]:
        """From which, to which."""
        return self.corpus.languages

    def texts(self, split: str) -> list[tuple[str, str]]:
        """Every pair of a split, also those too long for a batch, in the order of the data."""
        self._check(split)
        return [self.corpus.pairs[index] for index in self.splits[split]]

    def train_batches(self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Batches:
        """Batches `start` and later of an epoch, of up to `batch_size` tokens a side and process, padding counted.

        Pairs whose longer side is of one length stand together (Vaswani et al. 2017, section 5.1), which of them the
        epoch draws; then the batches are shuffled. Every epoch has as many. Each pair comes once over the processes,
        but for fewer than there are processes, of the shortest: they wait for another epoch.
        """
        rng = np.random.default_rng((self.config.seed, epoch))
        drawn = self._longest_first(rng.permutation(self._usable("train", batch_size)))
        drawn = drawn[: len(drawn) // world * world]
        if not len(drawn):
            raise GlocalError(f"{self.corpus.name} has too few training pairs for {world} processes; expected as many")
        batches = self._cut(drawn, batch_size, world)
        order = rng.permutation(len(batches))[start:]
        return Batches(self.batch, [batches[number][rank::world] for number in order])

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world: int = 1) -> Batches:
        """Batches of a split, longest first, the same each time; over the processes every pair comes exactly once."""
        self._check(split)
        ordered = self._longest_first(self._usable(split, batch_size))
        return Batches(self.batch, self._cut(ordered[rank::world], batch_size))

    def batch(self, indices: np.ndarray) -> Batch:
        """Pad some pairs of the corpus to a batch."""
        chosen = indices.tolist()
        sources = [torch.from_numpy(self._sources[index]) for index in chosen]
        targets = [torch.from_numpy(self._targets[index]) for index in chosen]
        input_ids = pad_sequence(sources, batch_first=True, padding_value=self.tokenizer.pad_id).long()
        labels = pad_sequence(targets, batch_first=True, padding_value=-100).long()
        lengths = torch.tensor([len(source) for source in sources])
        shifted = torch.cat([torch.full_like(labels[:, :1], self.tokenizer.bos_id), labels[:, :-1]], dim=1)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.arange(input_ids.shape[1]) < lengths[:, None],
            "decoder_input_ids": shifted.masked_fill(labels == -100, self.tokenizer.pad_id),
            "labels": labels,
        }

    def _check(self, split: str) -> None:
        if not self.splits.get(split):
            raise no_examples(self.corpus.name, "pairs", split)

    def _usable(self, split: str, batch_size: int) -> np.ndarray:
        """Return the pairs of a split that are not overlong. Raises GlocalError where all are, or one fills a batch."""
        indices = np.array(self.splits[split], dtype=int)
        overlong = self._lengths[indices] > self.config.max_length
        if len(indices) and overlong.all():
            raise GlocalError(
                f"all {len(indices)} {split} pairs of {self.corpus.name} have more than {self.config.max_length} "
                "tokens; raise data.max_length"
            )
        indices = indices[~overlong]
        longest = self._lengths[indices].max(initial=0)
        if longest > batch_size:
            raise GlocalError(
                f"batch_size {batch_size} counts tokens, and a {split} pair has {longest}; raise train.batch_size or "
                "lower data.max_length"
            )
        return indices

    def _longest_first(self, indices: np.ndarray) -> np.ndarray:
        """Sort; pairs of one length keep their order."""
        return indices[np.argsort(-self._lengths[indices], kind="stable")]

    def _cut(self, ordered: np.ndarray, batch_size: int, world: int = 1) -> list[np.ndarray]:
        """Cut pairs that stand longest first into batches for `world` processes, each as large as its first allows.

        Where the cuts fall hangs on the lengths alone, so that an epoch's draw does not change how many there are.
        """
        ends = [0]
        while ends[-1] < len(ordered):
            ends.append(ends[-1] + batch_size // self._lengths[ordered[ends[-1]]] * world)
        return [ordered[start:end] for start, end in pairwise(ends)]


def _encode(tokenizer: Tokenizer, texts: list[str], target: bool) -> list[np.ndarray]:
    """Encode by the thousand, because lists of numbers are many times as large as arrays of them."""
    encoded: list[np.ndarray] = []
    for first in progress(range(0, len(texts), 1000), "Encoding sentences"):
        encoded += [np.array(ids, dtype=np.int32) for ids in tokenizer.encode(texts[first : first + 1000], target)]
    return encoded
