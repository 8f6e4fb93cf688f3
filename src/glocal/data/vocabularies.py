"""Vocabularies of each kind, learned from texts or read from published files. `Tokenizer` is the library's here."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from glocal.data.text_config import Case
from glocal.errors import GlocalError
from glocal.files import LARGEST, read_object, read_text

LONG_WORD = re.compile(r"\S{1000}(?=\S)")


def cut_long_words(text: str) -> str:
    """Put a space into what is longer than any word: the library learns from a word in the square of its length."""
    return LONG_WORD.sub(r"\g<0> ", text)


# ---------------------------------------------------------------------------------------- of translation: all of a pair

PAD, BOS, EOS = TRANSLATION = ["<pad>", "<bos>", "<eos>"]
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+"
SPACES = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
"""Accents composed and single spaces: the form that sentences are learned, given and compared in."""


def learn_subwords(texts: Iterable[str], kind: Literal["bpe", "unigram"], vocab_size: int) -> Tokenizer:
    """Learn parts of words, down to single bytes (Radford et al. 2019, section 2.2), so that no text is unknown.

    No token reaches over a space, every digit is a token, and so is the first word of a sentence the token that it is
    further on.
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
        inner.model = _settled(inner)
    inner.post_processor = processors.TemplateProcessing(f"$A {EOS}", special_tokens=[(EOS, TRANSLATION.index(EOS))])
    return inner


def _settled(inner: Tokenizer) -> models.Unigram:
    """Return the pieces that were learned so that they are the same each time.

    The library adds up in the order of its hashes, another in each run, and in that order gives the bytes that it
    kept only because they were asked for scores of 0.0001, 0.0002, ... above the lowest: they become the lowest.
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
"""Characters that a vocabulary is learned of, the most frequent ones; a word with another is [UNK]."""


def learn_wordpiece(texts: Iterable[str], vocab_size: int, case: Case) -> Tokenizer:
    """Learn parts of words (Wu et al. 2016, section 4.1), from the same texts the same ones each time.

    The library numbers the letters within words, ##a, in the order of its hashes, another in each run, and between
    merges that are equally frequent the numbers decide. So it learns twice: the letters, then, these in order, all.

    Raises GlocalError where the letters alone are more than `vocab_size`.
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

    What becomes of capitals and accents, tokenizer_config.json says (do_lower_case, strip_accents). Where it does not,
    the tokens do: uncased, lower and cased are tried in this order, and the first that changes none of them is taken,
    for a token that is changed could never be met.
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
    """Return whether texts are to be lower-cased, and stripped of accents, to be written in these tokens."""
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
    """Make every character of the texts a token, in Unicode's order; any other is read as `UNKNOWN_CHARACTER`."""
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
    """Read tokenizer.json, in which the tokenizers library keeps all there is.

    Raises ValueError where it adds tokens to texts that it does not number: the library would panic at the first text.
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
"""What opens a folder that has these files, each plain or gzipped; the first that can."""


def files_in(folder: Path) -> tuple[str, ...] | None:
    """Return those of `READERS` that a folder has."""
    return next((names for names in READERS if all(_is_in(folder, name) for name in names)), None)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what stands beside a vocabulary in transformers' tokenizer_config.json and special_tokens_map.json."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            for key, value in read_object(folder / name).items():
                said = value.get("content") if isinstance(value, dict) else value  # a token with its manner
                settings |= {} if said is None else {key: said}
    return settings


def _is_in(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.gz").exists()


def _read(folder: Path, name: str) -> str:
    if (folder / name).exists():
        return read_text(folder / name)
    with gzip.open(folder / f"{name}.gz") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise GlocalError(f"{folder / name}.gz holds more than {LARGEST:,} bytes")
    return content.decode()
