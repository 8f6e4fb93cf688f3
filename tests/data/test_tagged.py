"""Tagged words: CoNLL's columns in any scheme, a tag at each word's first piece, every word in exactly one window."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data import TokenDataset
from glocal.data.conll import read_words, to_iob2
from glocal.data.encoding import encode_words
from glocal.errors import GlocalError
from glocal.models import Model
from glocal.ops import IGNORED
from glocal.tasks.token_classification import TokenClassificationDataConfig, open_data

CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
British JJ I-NP B-MISC
lamb NN I-NP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def opened(source: object, tokenizer, classes=None, **fields) -> TokenDataset:
    fields = {"val_fraction": 0.0, "test_fraction": 0.0} | fields
    model = None
    if classes is not None:
        model = Model(None)
        model.labels = classes
    return open_data(TokenClassificationDataConfig(str(source), **fields), None, tokenizer, model)


def written(path, text: str):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# -------------------------------------------------------------------------------------------------------------- schemes

spans = st.lists(st.tuples(st.sampled_from(["O", "PER", "LOC", "A-b"]), st.integers(1, 4)), max_size=8)


def tags_of(entities: list[tuple[str, int]], scheme: str) -> list[str]:
    """Write entities, and words of none (`O`), in a scheme."""
    tags: list[str] = []
    for kind, length in entities:
        if kind == "O":
            tags += ["O"] * length
        elif scheme == "BIOES":
            tags += [f"S-{kind}"] if length == 1 else [f"B-{kind}", *[f"I-{kind}"] * (length - 2), f"E-{kind}"]
        else:
            begins = "B" if scheme == "IOB2" or (tags and tags[-1][2:] == kind) else "I"
            tags += [f"{begins}-{kind}", *[f"I-{kind}"] * (length - 1)]
    return tags


@given(spans, st.sampled_from(["IOB1", "IOB2", "BIOES"]))
def test_every_scheme_is_read(entities, scheme):
    assert to_iob2(tags_of(entities, scheme)) == tags_of(entities, "IOB2")


def test_a_file_in_each_scheme_is_the_same_data(tmp_path, speller):
    entities = [("PER", 2), ("PER", 1), ("O", 1), ("LOC", 3)]
    for scheme in ("IOB1", "IOB2", "BIOES"):
        tags = tags_of(entities, scheme)
        path = written(tmp_path / f"{scheme}.txt", "".join(f"word\t{tag}\n" for tag in tags))
        data = opened(path, speller)
        assert data.examples("train") == [(("word",) * 7, tuple(tags_of(entities, "IOB2")))]
        assert data.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_conll(tmp_path, speller, name):
    written(tmp_path / name, CONLL)
    data = opened(tmp_path, speller)
    words = [" ".join(item.words) for item in data.examples("train")]
    assert words == ["EU rejects German British lamb", "Peter Blackburn"]
    assert data.labels == ["O", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    assert data.examples("train")[0].tags == ("B-ORG", "O", "B-MISC", "B-MISC", "O")
    assert data.report == {"sentences": 2, "cut_into_windows": 0}
    batch = data.batch(np.array([1, 0]))
    labels = batch["labels"][0]
    tokens = data.tokenizer.tokens(batch["input_ids"][0].tolist())
    assert [(token, data.labels[tag]) for token, tag in zip(tokens, labels.tolist(), strict=True) if tag >= 0] == [
        ("p", "B-PER"), ("b", "I-PER")
    ]  # fmt: skip
    assert labels.shape == batch["input_ids"][0].shape
    assert (labels == IGNORED).sum() == len(tokens) - 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(8, 40))
def test_every_word_begins_in_one_window(speller, lengths, max_length):
    words = ["abcdefghijklmnopqrst"[:length] for length in lengths]
    (windows,) = encode_words(speller, [words], max_length)
    assert np.concatenate([window.word_indices for window in windows]).tolist() == list(range(len(words)))
    read = []
    for window in windows:
        tokens = speller.tokens(window.row["input_ids"].tolist())
        assert len(tokens) <= max_length
        assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
        assert [tokens[start] for start in window.starts] == ["a"] * len(window.word_indices)
        read += "".join(tokens[1:-1]).replace("##", "").replace("a", " a").split()
    assert read == [word[: max_length - 2] for word in words]
    fits = sum(lengths) + 2 <= max_length
    assert (len(windows) == 1) is fits or len(words) == 1


def test_a_header_within_a_file_is_no_word(tmp_path, speller):
    path = written(tmp_path / "some.tsv", "word\tpos\nAda\tNOUN\nruns\tVERB\n\nword\tpos\nAda\tNOUN\n")
    with pytest.raises(GlocalError, match=r"some.tsv line 5 repeats the header"):
        opened(path, speller)


def test_a_long_sentence_is_cut_and_counted(tmp_path, speller):
    path = written(tmp_path / "some.txt", "aaa O\nbbb B-X\nccc I-X\n\nd O\n")
    data = opened(path, speller, max_length=8)
    assert data.report == {"sentences": 2, "cut_into_windows": 1}
    assert data.owners.tolist() == [0, 0, 1]
    tags = [tag for batch in data.eval_batches("train", 2) for tag in batch["labels"].flatten().tolist() if tag >= 0]
    assert sorted(tags) == [0, 0, 1, 2]


def test_a_word_that_leaves_nothing_has_its_tag_too(tmp_path, speller):
    data = opened(written(tmp_path / "some.txt", "a O\n\u200b B-X\nb O\n"), speller)
    assert data.batch(np.array([0]))["labels"].tolist() == [[IGNORED, 0, 1, 0, IGNORED]]


def test_parts_of_speech_are_tags_too(tmp_path, speller):
    data = opened(written(tmp_path / "some.tsv", "it\tPRON\nworks\tVERB\n"), speller)
    assert (data.labels, data.examples("train")[0].tags) == (["PRON", "VERB"], ("PRON", "VERB"))


@pytest.mark.parametrize(
    "content",
    [
        "word\ttag\njane\tB-PER\nwrote\tO\n",
        "# sent_id = 1\n# text = jane wrote\njane B-PER\nwrote O\n\n# two\n",
        "jane\tB-PER\t\nwrote\tO\t\r\n",
        "jane B-PER\nwrote O\n\x20\t\n",
    ],
)
def test_what_others_write_around_the_columns_is_left_out(tmp_path, speller, content):
    data = opened(written(tmp_path / "some.conll", content), speller)
    assert data.examples("train") == [(("jane", "wrote"), ("B-PER", "O"))]
    assert list(read_words(tmp_path / "some.conll")) == [["jane", "wrote"]]


def test_a_hash_may_be_a_word(tmp_path, speller):
    data = opened(written(tmp_path / "some.txt", "# O\njane B-PER\n# B-X\n"), speller)
    assert data.examples("train")[0].words == ("#", "jane", "#")


def test_entities_of_no_kind(tmp_path, speller):
    data = opened(written(tmp_path / "some.txt", "good I\nfilm I\nis O\nbad B\nB B\n"), speller)
    assert (data.labels, data.examples("train")[0].tags) == (["O", "B", "I"], ("B", "I", "O", "B", "B"))


def test_accents_are_composed(tmp_path, speller):
    data = opened(written(tmp_path / "some.txt", "e\u0301 B-E\u0301\na O\n"), speller)
    assert data.examples("train") == [(("\u00e9", "a"), ("B-\u00c9", "O"))]


def test_tables_are_no_files_of_columns(tmp_path, speller):
    path = written(tmp_path / "some.jsonl", '{"tokens": ["jane"], "tags": ["B-PER"]}\n')
    with pytest.raises(
        GlocalError, match=r"some.jsonl is not a file of columns by its name; expected .txt, .tsv, .conll"
    ):
        opened(path, speller)


def test_other_data_under_the_tags_of_a_model(tmp_path, speller):
    path = written(tmp_path / "some.txt", CONLL)
    tags = ["B-ORG", "B-PER", "I-PER", "B-MISC", "O"]
    data = opened(path, speller, classes=tags)
    assert (data.splits["train"], len(data.examples("test")), data.labels) == ([], 2, tags)
    with pytest.raises(
        GlocalError, match=r"tag 'B-ORG' of 'EU' in .*some.txt is not one of the training tags: O, B-PER"
    ):
        opened(path, speller, classes=["O", "B-PER"])


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a b O\nc O\n", r"some.txt line 2 has 2 columns; expected a word first and its tag last"),
        ("alone\n", r"some.txt line 1 has 1 columns"),
        ("a O\nb B-X\n\nc NN\n", r"some.txt line 4 has tag 'NN'; expected O, or B, I, E or S and a type"),
        ("a O\nb O\n", r"some.txt holds one tag only \(O\)"),
        ("a B-X\nb NN\nc B-X\n", r"some.txt line 2 has tag 'NN'"),
        ("a B-X\t\nb\tO\t\n\tO\n", r"some.txt line 3 has 2 columns"),
        ("1\ta\tB-X\n2\tb\tO\n\n1\tc\tO\n", r"some.txt begins its lines with numbers"),
        ("-DOCSTART- O\n\n", r"some.txt holds no train sentences; expected a file of .txt, .tsv, .conll"),
    ],
)
def test_files_that_are_none(tmp_path, speller, content, line):
    with pytest.raises(GlocalError, match=line):
        opened(written(tmp_path / "some.txt", content), speller)


def test_tags_of_entities_in_small_letters_are_refused(tmp_path, speller):
    with pytest.raises(GlocalError, match="has the tag 'b-PER'; tags of entities are O, B-TYPE and I-TYPE in capitals"):
        opened(written(tmp_path / "some.txt", "Ada b-PER\nsat o\n"), speller)


def test_a_tag_that_training_lacks(tmp_path, speller):
    written(tmp_path / "train.txt", "a O\nb B-X\n")
    written(tmp_path / "valid.txt", "c B-Y\n")
    with pytest.raises(GlocalError, match=r"tag 'B-Y' of 'c' in .* is not one of the training tags: O, B-X, I-X"):
        opened(tmp_path, speller)
