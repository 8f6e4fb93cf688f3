"""Tokenizers: texts to the ids of their tokens, and back."""

import copy
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import tokenizers
from tokenizers import decoders, normalizers

from glocal.data import vocabularies
from glocal.data.text_config import TokenizerConfig
from glocal.errors import GlocalError
from glocal.files import foreign, short, write_text

_NORMALIZER = normalizers.Sequence(vocabularies.SPACES)
_BYTES = decoders.ByteLevel()
SEPARATORS = re.compile(r"[\x1c-\x1f]")
"""White space to Python, but not to Unicode."""
SPARE = 10_000
"""An id is below twice the number of tokens plus this."""
MARIAN_FILES = ("source.spm", "target.spm", "vocab.json")
"""The tokenizer of Marian's models (see `glocal.data.marian`)."""
_SEEN = str.maketrans(" \n", "▁⏎")


def normalise(text: str) -> str:
    """Return a text with composed accents (Unicode NFC) and single spaces, the form in which translations are
    compared.
    """
    if SEPARATORS.search(text) or not unicodedata.is_normalized("NFC", text):
        return _NORMALIZER.normalize_str(text)
    return " ".join(text.split())  # the same, six times as fast


def learn_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    """Learn a vocabulary from texts, or load the one that `config.files` names.

    The same texts give the same vocabulary. All texts are held in memory: give a sample of a large corpus.

    Raises GlocalError if `config.vocab_size` is too small for the texts, or the files are no tokenizer.
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
    """A vocabulary, and how texts are cut into its tokens. Calls do not change it, so that threads may share one."""

    pad_id: int
    """Padding; in a vocabulary without such a token, such as GPT-2's, the end token."""
    bos_id: int
    """The token before a text and the first input of a decoder; [CLS] of BERT, <|endoftext|> of GPT-2."""
    eos_id: int
    """The token that ends a text; [SEP] of BERT, <|endoftext|> of GPT-2."""
    unk_id: int | None = None
    """The token of what the vocabulary cannot write; None where it can write everything."""
    mask_id: int | None = None
    """The token of a masked word, [MASK] of BERT; None where there is none."""
    vocab_size: int
    """Number of tokens; every id is below it."""

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Return the tokenizer in a folder, ours or a published one. Of several, the first of these is read:

        - source.spm, target.spm and vocab.json of Marian;
        - tokenizer.json of the tokenizers library, ours or anyone's;
        - vocab.txt of BERT (see `vocabularies.read_wordpiece` on its case);
        - vocab.json and merges.txt of GPT-1 and GPT-2.

        Each may be gzipped, but for Marian's. Raises GlocalError if there is none of them, one is damaged, or
        sentencepiece is missing, which Marian's need.
        """
        folder = Path(folder)
        if (folder / MARIAN_FILES[0]).exists():
            from glocal.data.marian import Marian  # imports this module

            return Marian(folder)
        return Subwords.open(folder)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder has a tokenizer."""
        return (folder / MARIAN_FILES[0]).exists() or vocabularies.files_in(folder) is not None

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
        """Return the ids of each text's tokens, with special tokens: the end of a translation, BERT's [CLS] and [SEP].

        With `target`, the texts are in the language translated to.
        """

    @abstractmethod
    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Return the texts of ids, without special tokens; in translation, texts in the language translated to."""

    @abstractmethod
    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return each token as a text to show: ▁ is a space, ⏎ a new line, � a part of a character."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the files that `load` reads."""

    def encodings(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        pairs: Sequence[str] | Sequence[Sequence[str]] | None = None,
        words: bool = False,
        special: bool = True,
        parse_special: bool = False,
    ) -> list[tokenizers.Encoding]:
        """Return the tokens of each text with their positions: `ids`, `type_ids`, `word_ids`, `offsets` in characters.

        Args:
            texts: what to encode.
            pairs: a second text for each; its tokens and the [SEP] after them are of type 1.
            words: every text is a sequence of words, to which `word_ids` and `offsets` then refer. Words are encoded
                without a space before them.
            special: add the special tokens that belong around a text, BERT's [CLS] A [SEP] and [CLS] A [SEP] B [SEP].
            parse_special: encode [MASK], or another special token, in a text as that token. Without it, as in training,
                they are encoded as letters.

        Raises GlocalError for Marian's tokenizer, which has no positions.
        """
        raise GlocalError(f"a {type(self).__name__} tokenizer has no positions in a text; expected one of BERT or GPT")


def check_ids(ids: Mapping[str, object]) -> int:
    """Return the number after the highest id. Raises GlocalError if an id is no number, or far above the others."""
    numbers = [number for number in ids.values() if isinstance(number, int) and number >= 0]
    if not numbers or len(numbers) < len(ids):
        raise GlocalError("a vocabulary without tokens, or one whose ids are no whole numbers of 0 or more")
    highest = max(numbers)
    if highest >= 2 * len(numbers) + SPARE:
        token = next(token for token, number in ids.items() if number == highest)
        raise GlocalError(f"the token {short(token)} has the id {highest} in a vocabulary of {len(numbers)} tokens")
    return highest + 1


class Subwords(Tokenizer):
    """A tokenizer of the tokenizers library, whose tokens are words, parts of words, bytes or characters.

    `decode(encode(x))` is `normalise(x)` for a tokenizer of translation, and `x` for bytes and characters.
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
    """Special tokens by their names in transformers, and how they are usually written."""

    def __init__(self, inner: tokenizers.Tokenizer, settings: Mapping[str, object] = MappingProxyType({})) -> None:
        """Wrap the library's tokenizer; `settings` name the special tokens, under the keys of `NAMES`.

        Raises GlocalError if no token ends a text.
        """
        inner.no_padding()  # which published files may set
        inner.no_truncation()
        inner.encode_special_tokens = True  # <eos> within a text is encoded as letters
        self.inner = inner
        ids = inner.get_vocab()
        self.vocab_size = check_ids(ids)
        added = inner.encode("", "").ids  # those around texts are written in another place of a file
        if unknown := [number for number in added if number >= self.vocab_size]:
            raise GlocalError(
                f"a tokenizer adds the id {unknown[0]}, and its vocabulary has none above {max(ids.values())}"
            )
        self.special: dict[str, str] = {}
        """Special tokens of the vocabulary, by the keys of `NAMES`."""
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
        """Read a folder's files. Raises GlocalError if it has none, or they are no vocabulary."""
        names = vocabularies.files_in(folder)
        if names is None:
            known = [" + ".join(names) for names in (*vocabularies.READERS, MARIAN_FILES)]
            raise GlocalError(f"{folder} holds no tokenizer; expected {', or '.join(known)}")
        with foreign(folder / names[0], "is no tokenizer that can be read"):
            return cls(vocabularies.READERS[names](folder), vocabularies.read_settings(folder))

    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """Return the ids of each text; both languages share the vocabulary, so that `target` has no effect."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts))]

    def encodings(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        pairs: Sequence[str] | Sequence[Sequence[str]] | None = None,
        words: bool = False,
        special: bool = True,
        parse_special: bool = False,
    ) -> list[tokenizers.Encoding]:
        """Return the tokens of each text with their positions (see `Tokenizer.encodings`)."""
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        inner = self._parsing if parse_special else self.inner
        return inner.encode_batch(inputs, is_pretokenized=words, add_special_tokens=special)

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """A copy that parses special tokens, which the library sets for a tokenizer and not for a call."""
        inner = copy.deepcopy(self.inner)
        inner.encode_special_tokens = False
        return inner

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Return the texts of ids, without special tokens."""
        return self.inner.decode_batch([list(each) for each in ids])

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return each token as a text to show."""
        pieces = [self.inner.id_to_token(each) or "" for each in ids]
        if "ByteLevel" in repr(self.inner.decoder):
            pieces = [_BYTES.decode([piece]) for piece in pieces]
        return [piece.translate(_SEEN) for piece in pieces]

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, which the tokenizers library reads too, and tokenizer_config.json for transformers.

        tokenizer.json, by which `load` recognises a tokenizer, is written last.
        """
        inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if "sep_token" in self.special else [])]
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs, **self.special}
        files = {self.SETTINGS: json.dumps(settings, indent=2), self.FILE: self.inner.to_str(pretty=True)}
        for name, text in files.items():
            write_text(Path(folder) / name, text)
