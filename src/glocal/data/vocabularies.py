"""Vocabularies of each kind, learned from texts or read from published files; `Tokenizer` here is the library's."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from glocal.data.text_config import Case
from glocal.errors import GlocalError
from glocal.files import MAX_BYTES, JSONObject, read_object, read_text

LONG_WORD = re.compile(r"\S{1000}(?=\S)")


def cut_long_words(text: str) -> str:
    """Put a space after each 1,000 letters of a word: the library's time grows with the square of a word's length."""
    return LONG_WORD.sub(r"\g<0> ", text)


# ---------------------------------------------------------------------------------------- of translation: all of a pair

PAD, BOS, EOS = TRANSLATION = ["<pad>", "<bos>", "<eos>"]
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+"
SPACES = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
"""Compose accents and leave single spaces (see `glocal.data.tokenizer.normalise`)."""


def learn_subwords(texts: Iterable[str], kind: Literal["bpe", "unigram"], vocab_size: int) -> Tokenizer:
    """Learn parts of words, down to single bytes (Radford et al. 2019, section 2.2), so that no text is unknown.

    No token spans a space, and every digit is a token. The first word of a sentence is the same token as elsewhere,
    since a space is put before it.
    """
    inner = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    inner.normalizer = normalizers.Sequence([*SPACES, normalizers.Prepend(" ")])
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = (trainers.BpeTrainer if kind == "bpe" else trainers.UnigramTrainer)(
        vocab_size=vocab_size,
        special_tokens=TRANSLATION,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    if kind == "unigram":
        inner.model = _deterministic(inner)
    inner.post_processor = processors.TemplateProcessing(f"$A {EOS}", special_tokens=[(EOS, TRANSLATION.index(EOS))])
    return inner


def _deterministic(inner: Tokenizer) -> models.Unigram:
    """Return the learned pieces with rounded scores, in an order that is the same in each run.

    The library adds up in the order of its hashes, which differs from run to run. In that order, it also gives the
    bytes that the texts lack scores 0.0001, 0.0002, ... above the lowest; here, all of these get the lowest.
    """
    learned = json.loads(inner.to_str())["model"]["vocab"][len(TRANSLATION) :]
    least = min(score for _, score in learned)
    scores = {piece: round(score if score > least + 0.03 else least, 4) for piece, score in learned}
    ranked = sorted(scores.items(), key=lambda each: (-each[1], each[0]))
    return models.Unigram([*((piece, 0.0) for piece in TRANSLATION), *ranked])


# ------------------------------------------------------------------------------------------------------ WordPiece: BERT

UNK, CLS, SEP = REQUIRED = ["[UNK]", "[CLS]", "[SEP]"]
BERT_TOKENS = ["[PAD]", *REQUIRED, "[MASK]"]
LETTERS = 1000
"""Number of the most frequent characters that a vocabulary has; a word with any other is [UNK]."""


def learn_wordpiece(texts: Iterable[str], vocab_size: int, case: Case) -> Tokenizer:
    """Learn parts of words (Wu et al. 2016, section 4.1); the same texts give the same parts.

    The library numbers the letters within words, ##a, in the order of its hashes, which differs from run to run, and of
    equally frequent merges takes the one of lower numbers. So it learns twice: the letters alone, and then, with these
    sorted, everything.

    Raises GlocalError if the letters alone are more than `vocab_size`.
    """
    texts = list(texts)
    bert = normalizers.BertNormalizer(lowercase=case != "cased", strip_accents=case == "uncased")
    normalizer = normalizers.Sequence([normalizers.NFC(), bert])
    counts = Counter(chain.from_iterable(map(normalizer.normalize_str, texts)))
    del counts[" "]
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))[:LETTERS]

    def learn(size: int, known: list[str]) -> dict[str, int]:
        inner = Tokenizer(models.WordPiece(unk_token=UNK))
        inner.normalizer, inner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=known,
            initial_alphabet=frequent,
            limit_alphabet=len(frequent),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return inner.get_vocab()

    known = [*BERT_TOKENS, *sorted(learn(0, []))]
    if len(known) > vocab_size:
        raise GlocalError(
            f"data.tokenizer.vocab_size {vocab_size} does not hold the {len(known)} letters and special tokens that "
            "these texts take; raise it"
        )
    return _wordpiece(learn(vocab_size, known), normalizer)


def read_wordpiece(folder: Path) -> Tokenizer:
    """Read BERT's vocab.txt, a token a line.

    tokenizer_config.json says whether texts lose capitals and accents (do_lower_case, strip_accents). Where it does
    not, the case is the first of uncased, lower and cased that changes no token of the vocabulary.
    """
    tokens = _read(folder, "vocab.txt").removesuffix("\n").split("\n")
    if missing := set(REQUIRED).difference(tokens):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    settings = read_settings(folder)
    if "do_lower_case" in settings:
        lowercase, strip_accents = settings["do_lower_case"], settings.get("strip_accents")
    else:
        lowercase, strip_accents = _case(tokens)
    normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    return _wordpiece({token: number for number, token in enumerate(tokens)}, normalizer)


def _case(tokens: list[str]) -> tuple[bool, bool]:
    """Return whether these tokens need texts that are lower-cased, and whether they need texts without accents."""
    words = [token for token in tokens if not token.startswith("[")]  # [MASK] has capitals in every vocabulary
    for case in [(True, True), (True, False)]:
        lowercase, strip_accents = case
        reader = normalizers.BertNormalizer(False, False, strip_accents, lowercase)
        if all(reader.normalize_str(word) == word for word in words):
            return case
    return False, False


def _wordpiece(ids: dict[str, int], normalizer: normalizers.Normalizer) -> Tokenizer:
    inner = Tokenizer(models.WordPiece(ids, unk_token=UNK))
    inner.normalizer, inner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens([token for token in BERT_TOKENS if token in ids])
    inner.post_processor = processors.TemplateProcessing(
        f"{CLS} $A {SEP}", f"{CLS} $A {SEP} $B:1 {SEP}:1", [(token, ids[token]) for token in (CLS, SEP)]
    )
    return inner


# ----------------------------------------------------------------------------------------------- merges of letters: GPT

END_OF_TEXT = "<|endoftext|>"
END_OF_WORD = "</w>"


def learn_byte_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges of bytes as GPT-2 did (Radford et al. 2019, section 2.2): a space belongs to the word after it."""
    inner = _byte_bpe(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner


def read_merges(folder: Path) -> Tokenizer:
    """Read vocab.json and merges.txt: GPT-2's, or GPT-1's, which are of lower-cased letters, not bytes."""
    ids = json.loads(_read(folder, "vocab.json"))
    lines = _read(folder, "merges.txt").strip("\n").split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines if not line.startswith("#version"))]
    if any(token.endswith(END_OF_WORD) for token in ids):
        inner = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", end_of_word_suffix=END_OF_WORD))
        inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.BPEDecoder()
        inner.add_special_tokens(["<unk>"])
        return inner
    inner = _byte_bpe(models.BPE(ids, merges))
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def _byte_bpe(model: models.BPE) -> Tokenizer:
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    inner.decoder = decoders.ByteLevel()
    return inner


# ----------------------------------------------------------------------------------------------------------- characters

UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def learn_characters(texts: Iterable[str]) -> Tokenizer:
    """Make every character of the texts a token, in Unicode's order; others are encoded as `UNKNOWN_CHARACTER`."""
    characters = set(chain.from_iterable(texts)) - {UNKNOWN_CHARACTER}
    tokens = [END_OF_TEXT, UNKNOWN_CHARACTER, *sorted(characters)]
    ids = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN_CHARACTER))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([END_OF_TEXT])
    return inner


# ---------------------------------------------------------------------------------------------------------------- files


def read_whole(folder: Path) -> Tokenizer:
    """Read tokenizer.json of the tokenizers library.

    Raises ValueError if it adds special tokens that it has no ids for: the library would panic at the first text.
    """
    inner = Tokenizer.from_str(_read(folder, "tokenizer.json"))
    if inner.post_processor is not None:
        outer = json.loads(inner.post_processor.__getstate__())
        for step in outer.get("processors", [outer]):
            numbered = step.get("special_tokens", {})
            for piece in [*step.get("single", []), *step.get("pair", [])]:
                added = piece.get("SpecialToken")
                if added is not None and added["id"] not in numbered:
                    raise ValueError(f"its post_processor adds {added['id']!r:.40}, and has no number for it")
    return inner


READERS: dict[tuple[str, ...], Callable[[Path], Tokenizer]] = {
    ("tokenizer.json",): read_whole,
    ("vocab.txt",): read_wordpiece,
    ("vocab.json", "merges.txt"): read_merges,
}
"""Functions that read folders with these files, plain or gzipped, in order of preference."""


def files_in(folder: Path) -> tuple[str, ...] | None:
    """Return the first files of `READERS` that a folder has; None without any."""
    return next((names for names in READERS if all(_is_in(folder, name) for name in names)), None)


def read_settings(folder: Path) -> JSONObject:
    """Return the fields of transformers' tokenizer_config.json and special_tokens_map.json in a folder."""
    settings: JSONObject = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            for key, value in read_object(folder / name).items():
                content = value.get("content") if isinstance(value, dict) else value  # of a token with attributes
                settings |= {} if content is None else {key: content}
    return settings


def _is_in(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.gz").exists()


def _read(folder: Path, name: str) -> str:
    if (folder / name).exists():
        return read_text(folder / name)
    with gzip.open(folder / f"{name}.gz") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise GlocalError(f"{folder / name}.gz holds more than {MAX_BYTES:,} bytes")
    return content.decode()
