"""Vocabularies of BERT, GPT and of characters: of any script, with the ids that transformers gives, saved and read."""

import gzip
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from unicodedata import normalize

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glocal.data import Tokenizer, TokenizerConfig, learn_tokenizer, vocabularies
from glocal.errors import GlocalError

PASSAGES = [
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền; TIẾNG VIỆT, tiếng Việt, Đà Nẵng.",
    "All human beings are born free: we'll, don't, it's -- (and) “equal” … 1,234.5 km/h @user #tag",
    "Ünïcödé İstanbul straße ŒUVRE ﬁne ΣΊΣΥΦΟΣ Привет, мир! ёлка Ǆ ǅ",
    "人人生而自由，在尊严和权利上一律平等。日本語のテキスト、カタカナ 한국어 각",
    "الْعَرَبِيَّة עִבְרִית हिन्दी में क्षत्रिय ไทยภาษาที่ ሰላም ಕನ್ನಡ தமிழ் ქართული Հայերեն",
    "👩‍🔬 👨‍👩‍👧‍👦 🏳️‍🌈 🇻🇳 👍🏽 ❤️ ☂ 1️⃣ ∑∫√∞≠ ½ Ⅻ ٣٤٥ ₫ €",
    "a\tb\r\nc  d\u00a0e\u3000f\u200bg\u200dh\u2028i\x85j\x00k\x07l\x7fm\ufeffn\u00ado\ufffdp\U0010fffdq",
]
PIECES = [*" ".join(PASSAGES).split(" "), *(chr(sign) for sign in range(0x300, 0x330)), "  ", "\n", "x" * 101]


def _lines(count: int) -> list[str]:
    """Parts of all scripts, glued together or spaced, half of them with their accents apart, and some of everything."""
    rng = random.Random(0)
    lines = []
    for _ in range(count):
        line = rng.choice(["", " "]).join(rng.choices(PIECES, k=rng.randrange(12)))
        line += "".join(map(chr, rng.choices([*range(0xD800), *range(0xE000, 0x20000)], k=rng.randrange(4))))
        lines.append(normalize(rng.choice(["NFC", "NFD"]), line))
    return lines


LINES = [*PASSAGES, *_lines(1000)]
SPOKEN = ["The [MASK] sat.", "[CLS][SEP] [PAD]", "one<|endoftext|>two", "<unk>"]
ANY = st.text(st.characters(exclude_categories=["Cs"]))

WORDPIECE = {
    case: learn_tokenizer(PASSAGES * 2, TokenizerConfig("wordpiece", case, vocab_size=700))
    for case in ("cased", "uncased", "lower")
}
BYTES = learn_tokenizer(LINES, TokenizerConfig("byte-bpe", vocab_size=1000))
CHARACTERS = learn_tokenizer(PASSAGES, TokenizerConfig("characters"))
EACH = {**WORDPIECE, "byte-bpe": BYTES, "characters": CHARACTERS}

each_tokenizer = pytest.mark.parametrize("tokenizer", EACH.values(), ids=EACH)


def same(tokenizer: Tokenizer, reference, texts: list[str]) -> None:
    """Ids, types, places and texts are transformers', with special tokens where a text spells them out, and pairs."""
    pairs = texts[::-1]
    for second in (None, pairs):
        expected = reference(texts, second, return_token_type_ids=True, return_offsets_mapping=True)
        found = tokenizer.encodings(texts, second, parse_special=True)
        assert [each.ids for each in found] == expected["input_ids"]
        assert [each.type_ids for each in found] == expected["token_type_ids"]
        assert [each.offsets for each in found] == [list(map(tuple, each)) for each in expected["offset_mapping"]]
    alone = reference(texts)["input_ids"]
    spelled = [any(token in text for token in reference.all_special_tokens) for text in texts]
    literal = tokenizer.encode(texts)
    assert [mine == theirs for mine, theirs in zip(literal, alone, strict=True)] == [not each for each in spelled]
    assert tokenizer.decode(alone) == reference.batch_decode(alone, skip_special_tokens=True)


# ------------------------------------------------------------------------------------------------------ WordPiece: BERT


def write_wordpiece(folder, tokenizer, **said):
    """Write a vocabulary as Google does, and `said` as transformers does."""
    ids = tokenizer.inner.get_vocab()
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(ids, key=ids.get)), encoding="utf-8")
    if said:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("cased", {"do_lower_case": False}),
        ("uncased", {"do_lower_case": True, "strip_accents": None}),
        ("lower", {"do_lower_case": True, "strip_accents": False}),
        ("uncased", {"do_lower_case": True, "tokenize_chinese_chars": False}),
    ],
)
def test_vocab_txt_as_transformers_reads_it(tmp_path, case, said):
    transformers = pytest.importorskip("transformers")
    folder = write_wordpiece(tmp_path / "bert", WORDPIECE[case], **said)
    reference = transformers.BertTokenizerFast(str(folder / "vocab.txt"), **said)
    tokenizer = Tokenizer.load(folder)
    same(tokenizer, reference, [*LINES, *SPOKEN])
    assert tokenizer.tokens(range(tokenizer.vocab_size)) == reference.convert_ids_to_tokens(range(len(reference)))


@pytest.mark.parametrize("case", WORDPIECE)
def test_a_bare_vocab_txt_tells_its_case(tmp_path, case):
    tokenizer = Tokenizer.load(write_wordpiece(tmp_path, WORDPIECE[case]))
    composed = [normalize("NFC", line) for line in LINES]
    assert tokenizer.encode(composed) == WORDPIECE[case].encode(composed)


def test_what_a_case_does_to_vietnamese():
    def told_apart(case: str, *texts: str) -> bool:
        return len({tuple(ids) for ids in WORDPIECE[case].encode(texts)}) == len(texts)

    assert told_apart("cased", "Tiếng", "tiếng", "tieng")
    assert told_apart("lower", "tiếng", "tieng")
    assert not told_apart("lower", "TIẾNG", "tiếng")
    assert not told_apart("uncased", "TIẾNG", "tieng")
    for case in WORDPIECE:
        assert not told_apart(case, *(normalize(form, "Tiếng Việt") for form in ("NFC", "NFD")))


def test_wordpiece_has_berts_special_tokens():
    tokenizer = WORDPIECE["cased"]
    special = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]
    assert special == [0, 1, 2, 3, 4]
    assert tokenizer.tokens(special) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert 500 < tokenizer.vocab_size <= 700
    (ids,) = tokenizer.encode(["bình đẳng ☃"])
    assert tokenizer.decode([ids]) == ["bình đẳng"]
    assert ids[-2:] == [tokenizer.unk_id, tokenizer.eos_id]


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe", "characters"])
def test_the_same_texts_give_the_same_vocabulary(kind):
    config = TokenizerConfig(kind, vocab_size=1500)
    learned = {learn_tokenizer(iter(LINES[:300]), config).inner.to_str() for _ in range(3)}
    assert len(learned) == 1


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_learning_takes_as_long_as_a_text_is(kind):
    config = TokenizerConfig(kind=kind, vocab_size=300)
    begun = time.process_time()
    long = learn_tokenizer(["ab" * 50_000] * 2, config)  # ten seconds and more where the word is learned from whole
    assert time.process_time() - begun < 4
    assert long.decode([long.encodings(["abab"], special=False)[0].ids]) == ["abab"]


def test_the_rarest_letters_are_no_tokens(monkeypatch):
    monkeypatch.setattr(vocabularies, "LETTERS", 3)
    tokenizer = learn_tokenizer(["aab", "ccc d"], TokenizerConfig("wordpiece", vocab_size=300))
    assert tokenizer.tokens(range(5, 11)) == ["##a", "##b", "##c", "a", "b", "c"]


def test_letters_beyond_the_vocabulary_are_counted():
    with pytest.raises(GlocalError, match=r"vocab_size 700 does not hold the 1\d\d\d letters and special tokens"):
        learn_tokenizer(LINES, TokenizerConfig("wordpiece", vocab_size=700))


# ----------------------------------------------------------------------------------------------- merges of letters: GPT


def write_merges(folder, inner):
    """Write a vocabulary as OpenAI does."""
    model = json.loads(inner.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *map(" ".join, model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return [str(folder / name) for name in ("vocab.json", "merges.txt")]


def test_gpt2_as_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    files = write_merges(tmp_path, BYTES.inner)
    tokenizer = Tokenizer.load(tmp_path)
    same(tokenizer, transformers.GPT2TokenizerFast(*files), [*LINES, *SPOKEN])
    assert tokenizer.tokens([tokenizer.eos_id]) == ["<|endoftext|>"]
    assert tokenizer.pad_id == tokenizer.bos_id == tokenizer.eos_id
    assert tokenizer.unk_id is tokenizer.mask_id is None


def test_gpt1_as_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    inner.train_from_iterator(PASSAGES * 2, trainer)
    files = write_merges(tmp_path, inner)
    tokenizer = Tokenizer.load(tmp_path)
    same(tokenizer, transformers.OpenAIGPTTokenizerFast(*files), [*LINES, *SPOKEN])
    assert tokenizer.eos_id == tokenizer.unk_id == 0


def test_files_may_be_gzipped(tmp_path):
    write_merges(tmp_path, BYTES.inner)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    assert Tokenizer.is_in(tmp_path)
    assert Tokenizer.load(tmp_path).encode(LINES) == BYTES.encode(LINES)


@settings(deadline=None)
@given(ANY | st.lists(st.sampled_from(LINES)).map("".join))
@example("  <|endoftext|>\n\n\tx \r\n e\u0323\u0302 \x00")
def test_bytes_give_any_text_back(text):
    (ids,) = BYTES.encode([text])
    assert BYTES.decode([ids]) == [text]
    assert BYTES.eos_id not in ids


# ----------------------------------------------------------------------------------------------------------- characters


@settings(deadline=None)
@given(st.text(sorted(set("".join(PASSAGES)))))
@example("")
@example("  \r\n\n  \x00")
def test_characters_give_any_text_of_theirs_back(text):
    (ids,) = CHARACTERS.encode([text])
    assert len(ids) == len(text)
    assert CHARACTERS.decode([[CHARACTERS.bos_id, *ids, CHARACTERS.pad_id]]) == [text]


def test_characters_are_in_order_after_what_is_special():
    tokenizer = learn_tokenizer(iter(["b a\n", "\ufffd"]), TokenizerConfig("characters"))
    assert tokenizer.tokens(range(tokenizer.vocab_size)) == ["<|endoftext|>", "�", "⏎", "▁", "a", "b"]
    assert tokenizer.encode(["ba☂\n<"]) == [[5, 4, tokenizer.unk_id, 2, tokenizer.unk_id]]
    assert tokenizer.decode(tokenizer.encode(["ba☂\n"])) == ["ba�\n"]


# ------------------------------------------------------------------------------------------------------ what all can do


@each_tokenizer
def test_special_tokens_that_a_text_spells_out_are_letters_unless_asked_for(tokenizer):
    token = "[MASK]" if tokenizer.mask_id is not None else "<|endoftext|>"
    number = tokenizer.mask_id if tokenizer.mask_id is not None else tokenizer.eos_id
    text = f"free {token} born"
    literal, parsed = (tokenizer.encodings([text], special=False, parse_special=parse)[0] for parse in (False, True))
    (whole,) = tokenizer.encode([text])
    assert literal.ids == [each for each in whole if each not in (tokenizer.bos_id, tokenizer.eos_id)]
    assert number not in literal.ids
    place = parsed.ids.index(number)
    assert parsed.offsets[place] == (text.index(token), text.index(token) + len(token))
    assert number not in tokenizer.encode([text])[0]  # it is not remembered


def test_threads_may_ask_for_different_things():
    tokenizer = WORDPIECE["lower"]
    asked = [index % 2 == 1 for index in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda parse: tokenizer.encodings(["a [MASK]"], parse_special=parse)[0].ids, asked)
    assert [tokenizer.mask_id in ids for ids in found] == asked


def test_pairs_and_words():
    tokenizer = WORDPIECE["cased"]
    (pair,) = tokenizer.encodings([["All", "human-beings"]], [["are", "born"]], words=True)
    plain = [token for token in pair.tokens if token not in ("[CLS]", "[SEP]")]
    assert "".join(plain).replace("##", "") == "Allhuman-beingsareborn"
    ends = [place for place, token in enumerate(pair.tokens) if token == "[SEP]"]
    assert pair.tokens[0] == "[CLS]"
    assert len(ends) == 2
    assert pair.type_ids == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
    assert [word for word in pair.word_ids[: ends[0] + 1] if word is None] == [None, None]
    assert set(pair.word_ids[1 : ends[0]]) == set(pair.word_ids[ends[0] + 1 : ends[1]]) == {0, 1}
    (alone,) = tokenizer.encodings(["All human-beings"], special=False)
    assert alone.tokens == pair.tokens[1 : ends[0]]


@each_tokenizer
def test_saved_and_loaded_and_read_by_transformers(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    loaded.save(tmp_path / "again")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert loaded.encode(LINES) == tokenizer.encode(LINES)
    ours = {name: value for name, value in vars(loaded).items() if isinstance(value, int | dict | None)}
    assert ours == {name: vars(tokenizer)[name] for name in ours}
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # which would have its own opinion
    foreign = transformers.AutoTokenizer.from_pretrained(tmp_path)
    pairs = foreign(LINES, LINES[::-1])
    assert pairs["input_ids"] == [each.ids for each in tokenizer.encodings(LINES, LINES[::-1])]
    assert ("token_type_ids" in pairs) == (tokenizer.mask_id is not None)
    assert foreign.mask_token_id == tokenizer.mask_id


# ---------------------------------------------------------------------------------------------------- what others write


def test_a_published_file_neither_pads_nor_cuts(tmp_path):
    WORDPIECE["cased"].save(tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.enable_padding(length=128)
    inner.enable_truncation(5)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(PASSAGES) == WORDPIECE["cased"].encode(PASSAGES)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_are_those_that_a_file_names(tmp_path, file):
    BYTES.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.add_special_tokens(["<|start|>", "<|hole|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    told = {"bos_token": {"content": "<|start|>", "lstrip": False}, "mask_token": "<|hole|>", "pad_token": None}
    (tmp_path / file).write_text(json.dumps(told | {"eos_token": "<|gone|>", "model_max_length": 9}))
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path / "again")
    for each in (tokenizer, Tokenizer.load(tmp_path / "again")):
        assert each.tokens([each.bos_id, each.mask_id]) == ["<|start|>", "<|hole|>"]
        assert each.pad_id == each.eos_id == BYTES.eos_id
        assert each.vocab_size == BYTES.vocab_size + 2


def test_what_is_no_vocabulary_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\nthe\n")
    with pytest.raises(GlocalError, match=r"vocab.txt is no tokenizer that can be read: it lacks \[SEP\]"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    write_merges(tmp_path, BYTES.inner)
    assert Tokenizer.is_in(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c")
    with pytest.raises(GlocalError, match=r"vocab.json is no tokenizer that can be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    assert not Tokenizer.is_in(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(GlocalError, match=r"tokenizer.json is .* no token to end a text; expected one of \[SEP\]"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_token_that_is_added_without_a_number_is_named(tmp_path, nested):
    WORDPIECE["cased"].save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    del content["post_processor"]["special_tokens"]["[SEP]"]
    if nested:
        content["post_processor"] = {"type": "Sequence", "processors": [content["post_processor"]]}
    file.write_text(json.dumps(content))
    with pytest.raises(GlocalError, match=r"its post_processor adds '\[SEP\]', and has no number for it"):
        Tokenizer.load(tmp_path)


def test_published_files_in_place_of_learning(tmp_path):
    BYTES.save(tmp_path)
    loaded = learn_tokenizer([], TokenizerConfig(files=str(tmp_path)))
    assert loaded.encode(LINES) == BYTES.encode(LINES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "byte-bpe", "case": "lower"}, r"case lower, but byte-bpe keeps all letters; expected cased"),
        ({"vocab_size": 100}, r"data.tokenizer.vocab_size 100; expected 259 or more"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(GlocalError, match=message):
        TokenizerConfig(**fields)
