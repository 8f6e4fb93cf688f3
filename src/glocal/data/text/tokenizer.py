"""Text to the numbers of its tokens, and back."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from glocal.errors import GlocalError

PAD, BOS, EOS = SPECIAL = ["<pad>", "<bos>", "<eos>"]

_SPACES = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
_NORMALIZER = normalizers.Sequence(_SPACES)
_BYTES = decoders.ByteLevel()


def normalise(text: str) -> str:
    """Compose accents (Unicode NFC) and leave single spaces: the form that texts are learned, given and compared in."""
    return _NORMALIZER.normalize_str(text)


class Tokenizer(ABC):
    """One vocabulary for both languages of a translation."""

    pad_id: int
    """Fills a batch."""
    bos_id: int
    """What a translation is started from."""
    eos_id: int
    """Ends every sentence."""
    vocab_size: int
    """Tokens there are; every id is below it."""

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Open what `save` has written, or the files of a Marian model.

        Raises GlocalError where there is neither, or sentencepiece is missing, which Marian's files need.
        """
        folder = Path(folder)
        if (folder / Marian.FILES[0]).exists():
            return Marian(folder)
        return Subwords.open(folder / Subwords.FILE)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether there is one to load."""
        return any((folder / name).exists() for name in (Subwords.FILE, Marian.FILES[0]))

    @abstractmethod
    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """Ids of each text's tokens, ended by `eos_id`. `target`: the texts are in the language translated to."""

    @abstractmethod
    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Texts in the language translated to, without special tokens."""

    @abstractmethod
    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return each token by itself, for the eye: ▁ is the space before a word, � a part of a character."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write what `load` reads."""


class Subwords(Tokenizer):
    """Parts of words, down to single bytes (Radford et al. 2019, section 2.2), so that no text is unknown.

    `decode(encode(x))` is `normalise(x)`. No token reaches over a space, every digit is a token, and so is the first
    word of a sentence the token that it is further on.
    """

    FILE = "tokenizer.json"
    WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+"

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True  # a text that says <eos> does not end there
        self.inner = inner
        ids = inner.get_vocab()
        self.pad_id, self.bos_id, self.eos_id = (ids[token] for token in SPECIAL)
        self.vocab_size = len(ids)

    @classmethod
    def train(cls, texts: Iterable[str], kind: Literal["bpe", "unigram"], vocab_size: int) -> "Subwords":
        """Learn a vocabulary of up to `vocab_size` tokens, 259 or more, from sentences of both languages."""
        inner = tokenizers.Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
        inner.normalizer = normalizers.Sequence([*_SPACES, normalizers.Prepend(" ")])
        words = pre_tokenizers.Split(Regex(cls.WORDS), "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        inner.decoder = decoders.Sequence([_BYTES, decoders.Strip(" ", 1, 0)])
        trainer = (trainers.BpeTrainer if kind == "bpe" else trainers.UnigramTrainer)(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        if kind == "unigram":
            inner.model = _settled(inner)
        inner.post_processor = processors.TemplateProcessing(f"$A {EOS}", special_tokens=[(EOS, SPECIAL.index(EOS))])
        return cls(inner)

    @classmethod
    def open(cls, path: Path) -> "Subwords":
        """Read a file. Raises GlocalError where it is none of ours."""
        if not path.exists():
            raise GlocalError(f"{path.parent} holds no {path.name}, nor Marian's {', '.join(Marian.FILES)}")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise GlocalError(f"{path} is no file of the tokenizers library: {error}") from None
        if not set(SPECIAL) <= inner.get_vocab().keys():
            raise GlocalError(f"{path} lacks one of {', '.join(SPECIAL)}; expected one that glocal has trained")
        return cls(inner)

    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """Both languages share everything, so `target` changes nothing."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        return self.inner.decode_batch([list(each) for each in ids])

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each token by itself."""
        return [_BYTES.decode([self.inner.id_to_token(each) or ""]).replace(" ", "▁") for each in ids]

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, which the tokenizers library reads too."""
        path = Path(folder) / self.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")  # a kill leaves no half of it under its name
        self.inner.save(str(draft))
        draft.replace(path)


def _settled(inner: tokenizers.Tokenizer) -> models.Unigram:
    """Return the pieces that were learned so that they are the same each time.

    The library adds up in the order of its hashes, another in each run, and in that order gives the bytes that it
    kept only because they were asked for scores of 0.0001, 0.0002, ... above the lowest: they become the lowest.
    """
    learned = json.loads(inner.to_str())["model"]["vocab"][len(SPECIAL) :]
    least = min(score for _, score in learned)
    scores = {piece: round(score if score > least + 0.03 else least, 4) for piece, score in learned}
    ranked = sorted(scores.items(), key=lambda each: (-each[1], each[0]))
    return models.Unigram([*((piece, 0.0) for piece in SPECIAL), *ranked])


class Marian(Tokenizer):
    """The sentencepiece models of Marian's checkpoints (opus-mt): one a language, over a shared list of pieces."""

    FILES = ("source.spm", "target.spm", "vocab.json")

    def __init__(self, folder: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise GlocalError(
                f"{folder} holds a Marian model, whose tokenizer needs sentencepiece; pip install sentencepiece"
            ) from None
        missing = [name for name in self.FILES if not (folder / name).exists()]
        if missing:
            raise GlocalError(f"{folder} lacks {missing[0]}; expected {', '.join(self.FILES)}")
        self.folder = folder
        self.source, self.target = (SentencePieceProcessor(model_file=str(folder / name)) for name in self.FILES[:2])
        self.ids = json.loads((folder / self.FILES[2]).read_text(encoding="utf-8"))
        self.pieces = {number: piece for piece, number in self.ids.items()}
        self.pad_id, self.eos_id, self.unk_id = (self.ids[piece] for piece in ("<pad>", "</s>", "<unk>"))
        self.bos_id = self.pad_id
        self.vocab_size = len(self.ids)

    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """Cut by the language's own model; of a text that begins with >>xx<<, that is a token, the language wanted."""
        pieces = self.target if target else self.source
        encoded = []
        for text in map(normalise, texts):
            code, closed, rest = text.partition("<<") if text.startswith(">>") else ("", "", text)
            begun = [code + closed] if closed else []
            found = begun + pieces.encode(rest if closed else text, out_type=str)
            encoded.append([self.ids.get(piece, self.unk_id) for piece in found] + [self.eos_id])
        return encoded

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        special = {self.pad_id, self.eos_id, self.unk_id}
        return [
            normalise(self.target.decode([self.pieces[number] for number in each if number not in special]))
            for each in ids
        ]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each piece by itself."""
        return [self.pieces[number] for number in ids]

    def save(self, folder: str | Path) -> None:
        """Copy the three files."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in self.FILES:
            if (self.folder / name).resolve() != (Path(folder) / name).resolve():
                shutil.copy(self.folder / name, folder)
