"""Documents from every kind of source, their splits, their pieces, and one clear line for each way to be wrong."""

import gzip
import io
import json
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from glocal.data import DocumentsConfig, documents, pydoc
from glocal.data.documents import Documents, cut_documents, open_documents, pieces, sentences
from glocal.errors import GlocalError

TEXTS = ["One.\nTwo.\n", "Ba bốn.\n\nNăm\n", "six, “seven”"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def jsonl(path: Path, texts=TEXTS) -> Path:
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def opened(source: object, testing: bool = False, **fields) -> Documents:
    return open_documents(DocumentsConfig(str(source), **fields), testing)


def texts(found: Documents, split: str = "train") -> list[str]:
    return ["".join(lines) for lines in found.read(found.splits[split])]


def line_of(source: object, **fields) -> str:
    with pytest.raises(GlocalError) as caught:
        opened(source, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz", "some.csv", "some.tsv", "some.parquet"])
def test_the_rows_of_a_table_are_documents(tmp_path, name):
    path, rows = tmp_path / name, [text.replace("\n", " ") for text in TEXTS]
    if name == "some.parquet":
        parquet.write_table(pa.table({"id": [1, 2, 3], "body": rows}), path)
    elif "jsonl" in name:
        write(path, "".join(json.dumps({"body": text}) + "\n" for text in rows))
    elif name == "some.csv":
        write(path, "body\n" + "".join(f'"{text}"\n' for text in rows))
    else:
        write(path, "id\tbody\n" + "".join(f"1\t{text}\n" for text in rows))
    assert texts(opened(path, column="body")) == rows


def test_a_folder_of_files_a_document_each(tmp_path):
    for number, text in enumerate(TEXTS):
        write(tmp_path / "deep" / f"{number}.txt{'.gz' * (number % 2)}", text)
    write(tmp_path / "README.md", "about")
    assert texts(opened(tmp_path)) == TEXTS


@pytest.mark.filterwarnings("ignore:.*named after no split")  # each reading of the source says it
def test_files_and_folders_named_after_their_splits(tmp_path):
    write(tmp_path / "train" / "a.txt", TEXTS[0])
    write(tmp_path / "train" / "b.txt", TEXTS[1])
    jsonl(tmp_path / "valid.jsonl", TEXTS[2:])
    write(tmp_path / "other.txt", "left alone")
    with pytest.warns(UserWarning, match=r"other\.txt named after no split"):
        found = opened(tmp_path)
    assert (texts(found), texts(found, "val")) == (TEXTS[:2], TEXTS[2:])
    assert list(found.splits) == ["train", "val"]


def test_no_name_is_not_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", TEXTS[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GlocalError, match="'' is not a source of documents"):
        opened("")


def test_hub(monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        rows = {"train": [*TEXTS, "eight"], "validation": TEXTS[:1]}
        return {name: datasets.Dataset.from_dict({"text": each}) for name, each in rows.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = opened("someone/texts/en")
    assert (texts(found), texts(found, "val"), asked) == ([*TEXTS[1:], "eight"], TEXTS[:1], [("someone/texts", "en")])
    assert found.counts["duplicate"] == 1


def test_the_built_in_documentation():
    found = opened("pydoc")
    read = texts(found)
    topics = set(pydoc._topics())
    language = [text for text in read if text in topics]
    assert len(language) > 40
    assert sum(map(len, language)) > 300_000
    assert not any(pydoc.RULE.fullmatch(line) for text in language for line in text.split("\n") if line)
    paragraph = next(
        line for text in language for line in text.split("\n") if line.startswith('The "with" statement is used')
    )
    assert paragraph.endswith("convenient reuse.")  # wrapped over three lines
    paragraphs = [each for text in language for each in set(text.split("\n\n")) if len(each) > 60]
    assert len(paragraphs) - len(set(paragraphs)) < 10  # topics that others contain are left out
    assert len(read) - len(language) > 200
    assert any("Compare two sequences of lines; generate the delta as a unified diff." in text for text in read)


def test_lines_of_windows_and_half_characters_of_json(tmp_path):
    assert texts(opened(write(tmp_path / "a.txt", "one\r\ntwo\r\n"), val_fraction=0.0, test_fraction=0.0)) == [
        "one\ntwo\n"
    ]
    write(tmp_path / "b.jsonl", '{"text": "a\\ud83d b\\r\\nc"}\n{"text": "b"}')
    assert texts(opened(tmp_path / "b.jsonl")) == ["a? b\nc", "b"]


def test_what_is_left_out_is_counted(tmp_path):
    write(
        tmp_path / "train.jsonl",
        "".join(json.dumps({"text": text}) + "\n" for text in ["a", "b", " \n", None, "a", "c"]),
    )
    jsonl(tmp_path / "test.jsonl", ["c", "c"])
    found = opened(tmp_path)
    assert found.counts == {"documents": 8, "empty": 2, "duplicate": 2}
    splits = cut_documents(found, 0.0, 0.0, 0)
    assert ["".join(lines) for lines in found.read(splits["train"])] == ["a", "b"]
    assert ["".join(lines) for lines in found.read(splits["test"])] == ["c", "c"]


def test_other_data_is_tested_whole_unless_it_names_a_test_split(tmp_path):
    path = jsonl(tmp_path / "train.jsonl")
    found = opened(path, testing=True)
    assert (texts(found, "test"), texts(found)) == (TEXTS, [])
    assert cut_documents(found, 0.1, 0.1, 0) == {"train": [], "val": [], "test": [0, 1, 2]}
    write(tmp_path / "test.txt", "other")
    assert texts(opened(tmp_path, testing=True), "test") == ["other"]


def test_a_fingerprint_tells_data_apart(tmp_path):
    first = opened(jsonl(tmp_path / "a.jsonl")).fingerprint()
    assert opened(jsonl(tmp_path / "b.jsonl")).fingerprint() == first
    assert opened(tmp_path / "a.jsonl", testing=True).fingerprint() != first
    assert opened(jsonl(tmp_path / "a.jsonl", TEXTS[::-1])).fingerprint() != first
    assert opened(jsonl(tmp_path / "a.jsonl", [*TEXTS[:2], "six"])).fingerprint() != first


# --------------------------------------------------------------------------------------------------------------- splits


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=60), st.integers(0, 40), st.integers(0, 40), st.integers(0, 5)
)
def test_a_cut_takes_its_share_of_the_characters(sizes, val, test, seed):
    everything = np.arange(len(sizes))
    none = np.zeros(len(sizes), dtype=bool)
    digests = everything.astype(np.uint64)
    found = Documents("some", dict, {"train": everything}, 0 * everything, [], np.array(sizes), digests, none, {})
    splits = cut_documents(found, val / 100, test / 100, seed)
    assert sorted(chain.from_iterable(splits.values())) == everything.tolist()
    for name, percent in (("val", val), ("test", test)):
        taken, room = sum(sizes[number] for number in splits[name]), percent / 100 * sum(sizes)
        assert taken <= room + 1e-6 or len(splits[name]) == 1
        assert splits[name] or not percent or len(sizes) < 3
        assert all(sizes[number] > room - taken - 1e-6 for number in splits["train"])
    assert splits["train"]


def test_a_single_document_is_cut_by_place(tmp_path):
    text = "".join(f"line {number}\n" for number in range(200))
    path = write(tmp_path / "input.txt.gz", text)
    size = len(text)
    found = opened(path, val_fraction=0.1, test_fraction=0.0)
    assert (texts(found), texts(found, "val")) == ([text[: int(0.9 * size)]], [text[int(0.9 * size) :]])
    assert cut_documents(found, 0.1, 0.0, 0) == {"train": [0], "val": [1], "test": []}
    found = opened(path, val_fraction=0.2, test_fraction=0.3)
    assert "".join(texts(found) + texts(found, "val") + texts(found, "test")) == text
    assert found.sizes.tolist() == [size // 2, size - size // 2 - int(0.3 * size), int(0.3 * size)]
    assert texts(opened(path, testing=True), "test") == [text]


def test_a_single_training_document_gives_the_splits_that_its_folder_lacks(tmp_path):
    text = "".join(f"line {number}\n" for number in range(200))
    write(tmp_path / "train.txt", text)
    write(tmp_path / "test.txt", "A test.\n")
    found = opened(tmp_path, val_fraction=0.1)
    cut = int(0.9 * len(text))
    assert (texts(found), texts(found, "val"), texts(found, "test")) == ([text[:cut]], [text[cut:]], ["A test.\n"])
    assert [len(part) for part in cut_documents(found, 0.1, 0.1, 0).values()] == [1, 1, 1]
    assert texts(opened(tmp_path, val_fraction=0.0)) == [text]
    write(tmp_path / "val.txt", "A val.\n")
    found = opened(tmp_path, val_fraction=0.1)
    assert (texts(found), texts(found, "val")) == ([text], ["A val.\n"])


# ---------------------------------------------------------------------------------------------------- pieces, sentences


@given(st.text("ab .\n", max_size=200), st.integers(1, 20))
def test_pieces_are_the_whole_and_end_where_white_space_begins(text, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", length)
        found = list(pieces(io.StringIO(text)))
    assert "".join(found) == text
    assert all(piece == piece.rstrip() for piece in found[:-1])
    assert all(piece.isspace() or piece[:1] in ("", " ", "\n") for piece in found[1:])
    assert all(piece[:length].strip() or len(piece) >= length for piece in found[:-1])


@pytest.mark.parametrize(
    ("line", "cut"),
    [
        ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
        ("Xin chào. Bạn khoẻ không? Đẹp quá…  Ừ.", ["Xin chào.", "Bạn khoẻ không?", "Đẹp quá…", "Ừ."]),
        ("He said “Go.” Then left (at 3.5 o'clock.) Well", ["He said “Go.”", "Then left (at 3.5 o'clock.)", "Well"]),
        ("Letters, e.g. this, v.v. đó, and x.y stay...so.", ["Letters, e.g. this, v.v. đó, and x.y stay...so."]),
        ("One\n\n  two \nthree", ["One", "two", "three"]),
        (" \n", []),
    ],
)
def test_sentences(line, cut):
    assert list(sentences(io.StringIO(line))) == cut


# --------------------------------------------------------------------------------------------------------------- errors


def test_not_utf8_names_file_and_line(tmp_path):
    (tmp_path / "some.txt").write_bytes(b"one\ntwo\n" + "été".encode("latin-1"))
    assert f"{tmp_path}/some.txt line 3 is not UTF-8" in line_of(tmp_path / "some.txt")
    assert "some.txt line 3 is not UTF-8" in line_of(tmp_path)


def test_a_column_that_is_not_there(tmp_path):
    line = line_of(jsonl(tmp_path / "some.jsonl"), column="body")
    assert "some.jsonl has no column 'body'; expected data.column to name some of text" in line


def test_nothing_to_learn_from(tmp_path):
    assert "'missing' is not a source of documents; expected a file .txt, .tsv" in line_of("missing")
    assert "some.md' is not a source of documents" in line_of(write(tmp_path / "some.md", "one"))
    assert "holds no train documents; expected one or more" in line_of(tmp_path)
    assert "of 1 documents, 1 empty" in line_of(write(tmp_path / "empty.txt", " \n"))
    write(tmp_path / "only" / "test.txt", "one")
    assert "holds no train documents, of 1 documents; expected" in line_of(tmp_path / "only")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"one two three")[:-9])
    assert "cut.txt.gz is not a complete gzip file" in line_of(tmp_path / "cut.txt.gz")
    (tmp_path / "plain.txt.gz").write_text("one")
    assert "plain.txt.gz is not a complete gzip file" in line_of(tmp_path / "plain.txt.gz")
