"""Text to the numbers of its tokens, and back."""

import copy
import json
import re
import shutil
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, normalizers

from glocal.data import vocabularies
from glocal.data.text_config import TokenizerConfig
from glocal.errors import GlocalError
from glocal.files import foreign, read_object, replacing, short, write_text

_NORMALIZER = normalizers.Sequence(vocabularies.SPACES)
_BYTES = decoders.ByteLevel()
SEPARATORS = re.compile(r"[\x1c-\x1f]")
"""White space to Python, and not to Unicode."""
SPARE = 10_000
"""Ids that a vocabulary may leave unused beyond twice its tokens."""
_SEEN = str.maketrans(" \n", "▁⏎")


def normalise(text: str) -> str:
    """Compose accents (Unicode NFC) and leave single spaces: the form that texts are learned, given and compared in."""
    if SEPARATORS.search(text) or not unicodedata.is_normalized("NFC", text):
        return _NORMALIZER.normalize_str(text)
    return " ".join(text.split())  # the same, six times as fast


def learn_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    """Learn a vocabulary from texts, or load the one that `config.files` names.

    The same texts give the same vocabulary. They are held in memory; of a corpus that is larger, give a part.

    Raises GlocalError where `config.vocab_size` is too small for the texts, or the files are no tokenizer.
    """
    if config.files is not None:
        return Tokenizer.load(config.files)
    if config.kind == "characters":
        return Subwords(vocabularies.learn_characters(texts))
    texts = map(vocabularies.cut_long_words, texts)
    if config.kind == "wordpiece":
        return Subwords(vocabularies.learn_wordpiece(texts, config.vocab_size, config.case))
    if config.kind == "byte-bpe":
        return Subwords(vocabularies.learn_byte_bpe(texts, config.vocab_size))
    raise GlocalError(f"tokenizer kind {short(config.kind)}; expected wordpiece, byte-bpe or characters")


class Tokenizer(ABC):
    """A vocabulary, and how texts are cut into its tokens. Calls leave it as it is: threads may share one."""

    pad_id: int
    """Fills a batch. A vocabulary without such a token, GPT-2's, fills with the end of a text."""
    bos_id: int
    """Stands before a text, and a translation is started from it; [CLS] of BERT, <|endoftext|> of GPT-2."""
    eos_id: int
    """Ends a text; [SEP] of BERT, <|endoftext|> of GPT-2."""
    unk_id: int | None = None
    """Stands for what the vocabulary has no tokens for; None where it can write everything."""
    mask_id: int | None = None
    """Stands for a word to be guessed, [MASK] of BERT; None where there is none."""
    vocab_size: int
    """Tokens there are; every id is below it."""

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Open what `save` has written or others have published: in this order, where there are several,

        - source.spm, target.spm and vocab.json of Marian;
        - tokenizer.json of the tokenizers library, ours or anyone's;
        - vocab.txt of BERT (see `vocabularies.read_wordpiece` on its case);
        - vocab.json and merges.txt of GPT-1 and GPT-2.

        Each may be gzipped, but for Marian's. Raises GlocalError where there is none of them, one is damaged, or
        sentencepiece is missing, which Marian's need.
        """
        folder = Path(folder)
        if (folder / Marian.FILES[0]).exists():
            return Marian(folder)
        return Subwords.open(folder)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether there is one to load."""
        return (folder / Marian.FILES[0]).exists() or vocabularies.files_in(folder) is not None

    @staticmethod
    def keep(folder: Path | None, learn: Callable[[], "Tokenizer"]) -> "Tokenizer":
        """Return the tokenizer in `folder`; where there is none, learn one and save it there."""
        if folder is not None and Tokenizer.is_in(folder):
            return Tokenizer.load(folder)
        tokenizer = learn()
        if folder is not None:
            tokenizer.save(folder)
        return tokenizer

    @abstractmethod
    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """Ids of each text's tokens and of the special ones around it: translation's end, BERT's [CLS] and [SEP].

        `target`: the texts are in the language translated to.
        """

    @abstractmethod
    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Texts, of a translation those in the language translated to, without special tokens."""

    @abstractmethod
    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return each token by itself, for the eye: ▁ is a space, ⏎ a new line, � a part of a character."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write what `load` reads."""

    def encodings(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        pairs: Sequence[str] | Sequence[Sequence[str]] | None = None,
        words: bool = False,
        special: bool = True,
        parse_special: bool = False,
    ) -> list[tokenizers.Encoding]:
        """Tokens of each text, and where in it they stand: `ids`, `type_ids`, `word_ids`, `offsets` in characters.

        Args:
            texts: what to encode.
            pairs: a second text for each; its tokens and the [SEP] after them are of type 1.
            words: every text is a sequence of words, to which `word_ids` and `offsets` then refer; no space is thought
                before a word, which only matters where a space is a token's own.
            special: add the special tokens that belong around a text, BERT's [CLS] A [SEP] and [CLS] A [SEP] B [SEP].
            parse_special: take [MASK], or another special token, that a text spells out for that token. Without, its
                letters are letters, so that nobody's text can end a sequence or ask for a guess: what training wants.

        Raises GlocalError where the tokenizer knows no places, Marian's.
        """
        raise GlocalError(f"a {type(self).__name__} tokenizer knows no places in a text; expected one of BERT or GPT")


def check_ids(ids: Mapping[str, Any]) -> int:
    """Return how far ids reach. Raises GlocalError where one is no number, or far beyond the others."""
    numbers = list(ids.values())
    if not numbers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise GlocalError("a vocabulary without tokens, or one whose ids are no whole numbers of 0 or more")
    token = max(ids, key=ids.__getitem__)
    if (reach := ids[token] + 1) > 2 * len(numbers) + SPARE:
        raise GlocalError(f"the token {short(token)} has the id {reach - 1} in a vocabulary of {len(numbers)} tokens")
    return reach


class Subwords(Tokenizer):
    """A tokenizer of the tokenizers library: its tokens are words, parts of words, bytes or characters.

    One of translation can write any text: `decode(encode(x))` is `normalise(x)`. Byte-level ones and characters give
    `x` itself.
    """

    FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
    NAMES: Mapping[str, tuple[str, ...]] = {
        "pad_token": ("[PAD]", "<pad>"),
        "cls_token": ("[CLS]",),
        "bos_token": ("<bos>", "<s>", vocabularies.END_OF_TEXT),
        "sep_token": ("[SEP]",),
        "eos_token": ("<eos>", "</s>", vocabularies.END_OF_TEXT),
        "unk_token": ("[UNK]", "<unk>", vocabularies.UNKNOWN_CHARACTER),
        "mask_token": ("[MASK]", "<mask>"),
    }
    """Special tokens by what transformers calls them, and what they are usually written like."""

    def __init__(self, inner: tokenizers.Tokenizer, settings: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Of `settings`, those under the keys of `NAMES` say which tokens are special.

        Raises GlocalError where no token ends a text.
        """
        inner.no_padding()  # which published files bring along
        inner.no_truncation()
        inner.encode_special_tokens = True  # a text that says <eos> does not end there
        self.inner = inner
        ids = inner.get_vocab()
        self.vocab_size = check_ids(ids)
        self.special: dict[str, str] = {}
        """Which tokens of the vocabulary are those of `NAMES`."""
        for role, usual in self.NAMES.items():
            named = [token for token in (settings.get(role), *usual) if isinstance(token, str) and token in ids]
            if named:
                self.special[role] = named[0]
        found = {role: ids[token] for role, token in self.special.items()}
        ends = [found[role] for role in ("sep_token", "eos_token", "bos_token", "unk_token") if role in found]
        if not ends:
            raise GlocalError(
                "a tokenizer has no token to end a text; expected one of [SEP], </s>, <|endoftext|>, <eos>"
            )
        self.eos_id = ends[0]
        self.bos_id = found.get("cls_token", found.get("bos_token", self.eos_id))
        self.pad_id = found.get("pad_token", self.eos_id)
        self.unk_id, self.mask_id = found.get("unk_token"), found.get("mask_token")

    @classmethod
    def train(cls, texts: Iterable[str], kind: Literal["bpe", "unigram"], vocab_size: int) -> "Subwords":
        """Learn a vocabulary of up to `vocab_size` tokens, 259 or more, from sentences of both languages."""
        return cls(vocabularies.learn_subwords(map(vocabularies.cut_long_words, texts), kind, vocab_size))

    @classmethod
    def open(cls, folder: Path) -> "Subwords":
        """Read a folder's files. Raises GlocalError where it has none, or they are no vocabulary."""
        names = vocabularies.files_in(folder)
        if names is None:
            known = [" + ".join(names) for names in (*vocabularies.READERS, Marian.FILES)]
            raise GlocalError(f"{folder} holds no tokenizer; expected {', or '.join(known)}")
        with foreign(folder / names[0], "is no tokenizer that can be read"):
            return cls(vocabularies.READERS[names](folder), vocabularies.read_settings(folder))

    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """All languages share everything, so `target` changes nothing."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts))]

    def encodings(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        pairs: Sequence[str] | Sequence[Sequence[str]] | None = None,
        words: bool = False,
        special: bool = True,
        parse_special: bool = False,
    ) -> list[tokenizers.Encoding]:
        """Tokens of each text, and where in it they stand."""
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        inner = self._parsing if parse_special else self.inner
        return inner.encode_batch(inputs, is_pretokenized=words, add_special_tokens=special)

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """The same tokenizer over again: whether it parses special tokens, the library sets for all calls at once."""
        inner = copy.deepcopy(self.inner)
        inner.encode_special_tokens = False
        return inner

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        return self.inner.decode_batch([list(each) for each in ids])

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each token by itself."""
        pieces = [self.inner.id_to_token(each) or "" for each in ids]
        if "ByteLevel" in repr(self.inner.decoder):
            pieces = [_BYTES.decode([piece]) for piece in pieces]
        return [piece.translate(_SEEN) for piece in pieces]

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, which the tokenizers library reads too, and what transformers is to know beside it.

        tokenizer.json, by which a folder is known to hold a tokenizer, is the last.
        """
        inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if "sep_token" in self.special else [])]
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs, **self.special}
        files = {self.SETTINGS: json.dumps(settings, indent=2), self.FILE: self.inner.to_str(pretty=True)}
        for name, text in files.items():
            write_text(Path(folder) / name, text)


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
        with foreign(folder, "holds no tokenizer that can be read"):
            self.source, self.target = (
                SentencePieceProcessor(model_proto=(folder / name).read_bytes()) for name in self.FILES[:2]
            )
            self.ids = read_object(folder / self.FILES[2])
            self.vocab_size = check_ids(self.ids)
            if missing := [piece for piece in ("<pad>", "</s>", "<unk>") if piece not in self.ids]:
                raise GlocalError(f"{folder / self.FILES[2]} lacks {', '.join(missing)}")
        self.pieces = {number: piece for piece, number in self.ids.items()}
        self.pad_id, self.eos_id, self.unk_id = (self.ids[piece] for piece in ("<pad>", "</s>", "<unk>"))
        self.bos_id = self.pad_id

    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """Cut by the language's own model; of a text that begins with >>xx<<, that is a token, the language wanted."""
        pieces = self.target if target else self.source
        unknown = self.ids["<unk>"]
        encoded = []
        for text in map(normalise, texts):
            code, closed, rest = text.partition("<<") if text.startswith(">>") else ("", "", text)
            begun = [code + closed] if closed else []
            found = begun + pieces.encode(rest if closed else text, out_type=str)
            encoded.append([self.ids.get(piece, unknown) for piece in found] + [self.ids["</s>"]])
        return encoded

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        special = {self.pad_id, self.eos_id, self.unk_id}
        return [
            normalise(self.target.decode([self.pieces.get(number, "") for number in each if number not in special]))
            for each in ids
        ]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each piece by itself."""
        return [self.pieces.get(number, "") for number in ids]

    def save(self, folder: str | Path) -> None:
        """Copy the three files; source.spm, by which a folder is known to hold them, is the last."""
        for name in reversed(self.FILES):
            if (self.folder / name).resolve() != (Path(folder) / name).resolve():
                with replacing(Path(folder) / name) as draft:
                    shutil.copy(self.folder / name, draft)
