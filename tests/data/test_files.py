"""The one reader of lines and tables: what ends a line, what is blank, and one line for what cannot be read."""

import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from glocal.data.files import compose, files_below, read_json, read_lines, read_records
from glocal.errors import GlocalError


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_ends_at_its_newline_alone(tmp_path, suffix):
    content = "\ufeffone\u2028still\r\ntwo\x85\x0cstill\rstill\n\n  \nthree".encode()
    path = tmp_path / f"some.txt{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert list(read_lines(path)) == ["one\u2028still\n", "two\x85\x0cstill\rstill\n", "\n", "  \n", "three"]


def test_a_gzipped_file_is_known_by_its_first_bytes(tmp_path):
    (tmp_path / "some.txt").write_bytes(gzip.compress("một\nhai\n".encode()))
    assert list(read_lines(tmp_path / "some.txt")) == ["một\n", "hai\n"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("some.txt", b"good\ncaf\xe9\n", r"some.txt line 2 is not UTF-8; convert it"),
        ("some.txt.gz", b"good\n", r"some.txt.gz is not a complete gzip file"),
        ("some.txt.gz", gzip.compress(b"good\n" * 9, mtime=0)[:-9], r"some.txt.gz is not a complete gzip file"),
        ("some.jsonl", b'{"a": 1}\n[1]\n', r"some.jsonl line 2 is not a JSON object"),
        ("some.jsonl", b'{"a": ' + b"[" * 100_000, r"some.jsonl line 1 is not readable JSON: it is nested too"),
        ("some.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"some.jsonl line 1 is not readable JSON: Exceeds"),
        ("some.csv", b'a,b\nc,"d\ne', r"some.csv line 2 begins a row that is not CSV"),
        ("some.csv", b"a,b\nc\rd,e\n", r"some.csv line 2 .*: a carriage return stands outside of quotes"),
        ("some.csv", b"a,b,a\nc,d,e\n", r"some.csv names two columns 'a'; rename one"),
        ("some.csv", b"a,b\nc,d\n\xef\xbb\xbfa, b\n", r"some.csv line 3 repeats the header"),
        ("some.tsv.gz", gzip.compress(b"a\tb\r\nc\td\r\na\tb\r\n", mtime=0), r"some.tsv.gz line 3 repeats the header"),
        ("some.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', r"some.jsonl line 2 .*: an object has 'a' twice"),
        ("some.parquet", b"PAR1 nothing PAR1", r"some.parquet is not a readable Parquet file"),
        ("some.xlsx", b"", r"some.xlsx is not a file of columns by its name"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GlocalError, match=line) as caught:
        list(read_lines(tmp_path / name) if ".txt" in name else read_records(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_expands_beyond_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("glocal.data.files.SMALL", 10_000)
    (tmp_path / "some.txt.gz").write_bytes(gzip.compress(b"0" * 99 + b"\n", mtime=0))
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress((b"0" * 99 + b"\n") * 100_000))
    assert len(list(read_lines(tmp_path / "some.txt.gz"))) == 1
    with pytest.raises(GlocalError, match=r"bomb.txt.gz expands to more than 200 times its size"):
        list(read_lines(tmp_path / "bomb.txt.gz"))
    monkeypatch.setattr("glocal.data.files.LONGEST_LINE", 50)
    with pytest.raises(GlocalError, match=r"some.txt.gz line 1 is longer than"):
        list(read_lines(tmp_path / "some.txt.gz"))


def test_blank_lines_are_no_rows_and_long_fields_are_read(tmp_path):
    long = "x" * 200_000
    rows = [{"a": long, "b": "é"}, {"a": "c", "b": "d"}]
    contents = {
        "some.tsv": f"\ufeffa\tb\r\n\r\n{long}\té\r\n \t\r\nc\td\r\n\r\n",
        "some.csv": f'a, b\n\n"{long}",é\n , \nc,d\n',
        "some.jsonl": "".join(json.dumps(row) + "\n \n" for row in rows),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert list(read_records(tmp_path / name)) == rows


def test_the_case_of_an_ending_means_nothing(tmp_path):
    content = b"text,label\nfine,1\n"
    (tmp_path / "SOME.CSV").write_bytes(content)
    (tmp_path / "Some.Csv.GZ").write_bytes(gzip.compress(content))
    for name in ("SOME.CSV", "Some.Csv.GZ"):
        assert list(read_records(tmp_path / name)) == [{"text": "fine", "label": "1"}]


def test_a_parquet_file_with_a_name_twice_is_refused(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "some.parquet")
    with pytest.raises(GlocalError, match=r"some.parquet: two columns have one name"):
        list(read_records(tmp_path / "some.parquet"))


def test_json(tmp_path):
    (tmp_path / "some.json").write_text('{"a":\n [1]}')
    assert read_json(tmp_path / "some.json") == {"a": [1]}


def test_accents_are_composed_and_halves_of_characters_replaced():
    assert compose("e\u0301\ud800x") == "\u00e9?x"


def test_links_are_followed_but_not_round(tmp_path):
    (tmp_path / "a" / "b.txt").mkdir(parents=True)
    for name in ("a/one.txt", "a/._two.txt", "a/b.txt/three.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    found = [path.removeprefix(str(tmp_path)) for path in files_below(tmp_path, lambda name: name.endswith(".txt"))]
    assert found == ["/a/b.txt/three.txt", "/a/one.txt", "/linked/b.txt/three.txt", "/linked/one.txt"]


@pytest.mark.parametrize("target", ["nowhere", "gone.txt"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, target):
    (tmp_path / "gone.txt").symlink_to(tmp_path / target)
    with pytest.raises(GlocalError, match=r"gone.txt is a link to .*, which leads nowhere; restore it, or remove"):
        list(files_below(tmp_path, lambda name: name.endswith(".txt")))


def test_a_column_alone_may_hold_its_own_name(tmp_path):
    (tmp_path / "some.csv").write_text("text\ntext\n")
    assert list(read_records(tmp_path / "some.csv")) == [{"text": "text"}]
