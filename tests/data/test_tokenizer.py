"""Translation's tokens: any text comes back, no token crosses a word, and Marian's are those of transformers."""

import json
import sys
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from num2words import num2words

from glocal.data import Subwords, Tokenizer, TokenizerConfig, learn_tokenizer
from glocal.data.marian import Marian
from glocal.data.tokenizer import normalise
from glocal.errors import GlocalError

TEXTS = [num2words(number, lang=lang) for number in range(0, 100_000, 331) for lang in ("en", "vi")]
TEXTS += ["Tiếng Việt có dấu, phải không?", "A man's hat -- two hats!"] * 3
TOKENIZERS = {kind: Subwords.train(TEXTS, kind, 400) for kind in ("bpe", "unigram")}
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1c\x1d\x1e\x1f"))  # spaces to Python alone

each_kind = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@given(ANY)
@example(" \u00a0\u3000 e\u0323\u0302\u0301 \x85\u2028")
def test_normalised_is_composed_with_single_spaces(text):
    assert normalise(text) == " ".join(unicodedata.normalize("NFC", text).split())


@each_kind
@settings(deadline=None)
@given(texts=st.lists(ANY | st.sampled_from(TEXTS), max_size=5))
@example(texts=["<eos> <pad>", "", " ", "👩‍🔬 ሰላም ไทย", "Vie\u0302\u0323t"])
def test_every_text_comes_back(tokenizer, texts):
    encoded = tokenizer.encode(texts)
    assert tokenizer.decode(encoded) == [normalise(text) for text in texts]
    assert [ids.index(tokenizer.eos_id) for ids in encoded] == [len(ids) - 1 for ids in encoded]
    assert not {tokenizer.pad_id, tokenizer.bos_id} & {each for ids in encoded for each in ids}
    assert all(0 <= each < tokenizer.vocab_size for ids in encoded for each in ids)
    assert encoded == [tokenizer.encode([text])[0] for text in texts] == tokenizer.encode(texts, target=True)


@each_kind
def test_a_vocabulary_of_parts_of_words(tokenizer):
    tokens = tokenizer.tokens(range(tokenizer.vocab_size))
    assert tokens[:3] == ["<pad>", "<bos>", "<eos>"]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert 259 < tokenizer.vocab_size <= 400
    assert not [token for token in tokens if "▁" in token[1:]]
    assert not [token for token in tokens[259:] if any(map(str.isalpha, token)) and any(map(str.isdigit, token))]


@each_kind
def test_decoding_drops_special_tokens_alone(tokenizer):
    (ids,) = tokenizer.encode(["hai mươi"])
    assert tokenizer.decode([[tokenizer.bos_id, *ids, tokenizer.pad_id], [tokenizer.eos_id], []]) == [
        "hai mươi",
        "",
        "",
    ]


def test_words_of_numbers_are_tokens_and_so_unseen_numbers_are_made_of_them():
    tokenizer = TOKENIZERS["bpe"]
    unseen = num2words(742_361, lang="en")
    assert unseen not in TEXTS
    assert tokenizer.tokens(tokenizer.encode([unseen])[0]) == [
        "▁seven", "▁hundred", "▁and", "▁forty", "-", "two", "▁thousand", ",",
        "▁three", "▁hundred", "▁and", "▁sixty", "-", "one", "<eos>",
    ]  # fmt: skip
    assert tokenizer.tokens(tokenizer.encode(["Hai 42"])[0])[-4:] == ["▁", "4", "2", "<eos>"]


def test_a_word_is_the_same_token_wherever_it_stands():
    first, later = TOKENIZERS["bpe"].encode(["hundred", "one hundred"])
    assert first == later[1:]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_learned_again_saved_and_loaded(tmp_path, kind):
    TOKENIZERS[kind].save(tmp_path / "new")
    Subwords.train(TEXTS, kind, 400).save(tmp_path / "again")
    file, again = (tmp_path / name / "tokenizer.json" for name in ("new", "again"))
    assert file.read_bytes() == again.read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert Tokenizer.is_in(tmp_path / "new")
    loaded = Tokenizer.load(tmp_path / "new")
    texts = [*TEXTS[:9], "<eos> of an ☂"]
    assert loaded.encode(texts) == TOKENIZERS[kind].encode(texts)
    assert loaded.decode(loaded.encode(texts)) == texts


def test_what_is_no_tokenizer_is_named(tmp_path):
    assert not Tokenizer.is_in(tmp_path)
    files = r"tokenizer.json, or vocab.txt, or vocab.json \+ merges.txt, or source.spm \+ target.spm \+ vocab.json"
    with pytest.raises(GlocalError, match=rf"holds no tokenizer; expected {files}"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(GlocalError, match=r"tokenizer.json is no tokenizer that can be read"):
        Tokenizer.load(tmp_path)


# --------------------------------------------------------------------------------------------------------------- Marian


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A folder as opus-mt has it, with a piece that only one of the languages knows, and one that the list lacks."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("marian")
    vocabulary = {"</s>": 0, "<unk>": 1}
    for name, texts in {"source.spm": TEXTS[::2], "target.spm": TEXTS[1::2]}.items():
        model = BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=70, hard_vocab_limit=False, minloglevel=2
        )
        (folder / name).write_bytes(model.getvalue())
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        for number in range(3, len(pieces) - 1):
            vocabulary.setdefault(pieces.id_to_piece(number), len(vocabulary))
    vocabulary |= {">>vie<<": len(vocabulary), "<pad>": len(vocabulary) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_marian_as_transformers_reads_it(marian):
    transformers = pytest.importorskip("transformers")
    reference = transformers.MarianTokenizer.from_pretrained(marian)
    tokenizer = Tokenizer.load(marian)
    assert isinstance(tokenizer, Marian)
    assert tokenizer.vocab_size == reference.vocab_size
    assert (tokenizer.pad_id, tokenizer.eos_id) == (reference.pad_token_id, reference.eos_token_id)
    assert tokenizer.bos_id == tokenizer.pad_id
    sources = [*TEXTS[:60:2], ">>vie<< twenty-one", ">> one", "q ☂ 12", ""]
    assert tokenizer.encode(sources) == reference(sources)["input_ids"]
    assert any(tokenizer.unk_id in ids for ids in tokenizer.encode(sources))
    targets = TEXTS[1:60:2]
    encoded = tokenizer.encode(targets, target=True)
    assert encoded == reference(text_target=targets)["input_ids"]
    assert encoded != tokenizer.encode(targets)
    padded = [[tokenizer.pad_id, *ids, tokenizer.pad_id] for ids in encoded]
    assert tokenizer.decode(padded) == reference.batch_decode(padded, skip_special_tokens=True)
    assert tokenizer.tokens(encoded[3]) == reference.convert_ids_to_tokens(encoded[3])


def test_marian_saved_and_loaded(marian, tmp_path):
    tokenizer = Tokenizer.load(marian)
    tokenizer.save(tmp_path / "model")
    tokenizer.save(marian)  # where it lies already
    assert Tokenizer.is_in(tmp_path / "model")
    assert Tokenizer.load(tmp_path / "model").encode(TEXTS) == tokenizer.encode(TEXTS)
    (tmp_path / "model" / "vocab.json").unlink()
    with pytest.raises(GlocalError, match=r"model lacks vocab.json; expected source.spm, target.spm, vocab.json"):
        Tokenizer.load(tmp_path / "model")
    with pytest.raises(GlocalError, match="a Marian tokenizer has no positions in a text; expected one of BERT or GPT"):
        tokenizer.encodings(TEXTS)


def test_sentencepiece_is_asked_for_by_name(marian, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(GlocalError, match=r"whose tokenizer needs sentencepiece; pip install sentencepiece"):
        Tokenizer.load(marian)


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("kind", ["subwords", "marian"])
def test_a_save_that_was_killed_leaves_no_tokenizer(kind, marian, tmp_path, monkeypatch):
    """Whoever resumes would take it for whole."""
    tokenizer = Tokenizer.load(marian) if kind == "marian" else TOKENIZERS["bpe"]
    tokenizer.save(tmp_path / "whole")
    files = len(list((tmp_path / "whole").iterdir()))
    replace = Path.replace
    for last in range(files):
        renames = iter(range(files))

        def renamed(draft, path, renames=renames, last=last):
            if next(renames) == last:
                raise Killed
            return replace(draft, path)

        monkeypatch.setattr(Path, "replace", renamed)
        with pytest.raises(Killed):
            tokenizer.save(tmp_path / "killed")
        assert not Tokenizer.is_in(tmp_path / "killed")
    monkeypatch.setattr(Path, "replace", replace)
    tokenizer.save(tmp_path / "killed")
    assert Tokenizer.load(tmp_path / "killed").encode(TEXTS) == tokenizer.encode(TEXTS)


def test_an_id_that_is_added_around_texts_and_not_in_the_vocabulary_is_refused(tmp_path):
    learn_tokenizer(["a good film"] * 3, TokenizerConfig(kind="wordpiece", vocab_size=300)).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [300]
    file.write_text(json.dumps(content))
    with pytest.raises(GlocalError, match=r"tokenizer.json .*a tokenizer adds the id 300, and its vocabulary has none"):
        Tokenizer.load(tmp_path)
