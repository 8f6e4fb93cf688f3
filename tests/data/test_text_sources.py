"""Every kind of source of sentence pairs, what is left out of it, and one clear line for each way to be wrong."""

import gzip
import json
import unicodedata
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from glocal.data.pairs import languages_of, open_pairs
from glocal.errors import GlocalError

SHARED = Path(__file__).parents[3] / "shared" / "data"
PAIRS = [("one apple", "một quả táo"), ("two", "hai"), ('say "three"', "nói “ba”"), ("a, b", "a, b")]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def tsv(pairs=PAIRS, header="en\tvi") -> str:
    return "".join(f"{line}\n" for line in [header, *("\t".join(pair) for pair in pairs)])


def aligned(root: Path, stem: str, pairs=PAIRS, gz: str = "") -> None:
    for side, language in enumerate(("en", "vi")):
        write(root / f"{stem}.{language}{gz}", "".join(f"{pair[side]}\n" for pair in pairs))


def corpus(source: object, testing: bool = False, languages=("en", "vi")):
    return open_pairs(str(source), languages, seed=0, testing=testing)


def texts(opened, split: str = "train") -> list[tuple[str, str]]:
    return list(opened.read(opened.splits[split]))


def line_of(source: object, **arguments) -> str:
    with pytest.raises(GlocalError) as caught:
        corpus(source, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- one file


def test_tsv_takes_quotation_marks_as_they_are(tmp_path):
    for name in ("some.tsv", "some.tsv.gz"):
        assert texts(corpus(write(tmp_path / name, tsv()))) == PAIRS


def test_columns_are_found_by_name_in_the_order_asked_for(tmp_path):
    path = write(tmp_path / "some.tsv", tsv([("1", "vier", "four")], "id\tde\ten"))
    assert texts(corpus(path, languages=("en", "de"))) == [("four", "vier")]
    assert texts(corpus(path, languages=("de", "en"))) == [("vier", "four")]


def test_csv(tmp_path):
    content = 'en,vi\r\none apple,một quả táo\r\ntwo,hai\r\n"say ""three""",nói “ba”\r\n"a,\n b","a, b"\r\n'
    assert texts(corpus(write(tmp_path / "some.csv", content))) == PAIRS


@pytest.mark.parametrize("nested", [False, True])
def test_jsonl(tmp_path, nested):
    records = [{"en": one, "vi": other} for one, other in PAIRS]
    records = [{"id": 3, "translation": record} for record in records] if nested else records
    lines = "".join(json.dumps(record) + "\n" for record in records)
    assert texts(corpus(write(tmp_path / "some.jsonl.gz", lines))) == PAIRS


def test_a_column_may_be_called_translation(tmp_path):
    path = write(tmp_path / "some.jsonl", json.dumps({"text": "two", "translation": "hai"}))
    assert texts(corpus(path, languages=("text", "translation"))) == [("two", "hai")]


def test_parquet(tmp_path):
    table = pa.table({"vi": [pair[1] for pair in PAIRS], "en": [pair[0] for pair in PAIRS]})
    parquet.write_table(table, tmp_path / "some.parquet")
    assert texts(corpus(tmp_path / "some.parquet")) == PAIRS


def test_two_aligned_files(tmp_path):
    aligned(tmp_path, "text", gz=".gz")
    assert texts(corpus(f"{tmp_path}/text.en.gz,{tmp_path}/text.vi.gz")) == PAIRS


def test_a_line_ends_at_its_newline_alone(tmp_path):
    aligned(tmp_path, "text", [("one\u2028two\x85three\x0cfour", "một\r")])
    assert texts(corpus(f"{tmp_path}/text.en, {tmp_path}/text.vi")) == [("one two three four", "một")]


# -------------------------------------------------------------------------------------------------------- many, the hub


def test_a_folder_of_aligned_files(tmp_path):
    aligned(tmp_path, "train", gz=".gz")
    aligned(tmp_path, "valid", PAIRS[:1])
    aligned(tmp_path, "test_2016_flickr", PAIRS[1:2], gz=".gz")
    write(tmp_path / "README.en", "about")
    opened = corpus(tmp_path)
    assert texts(opened, "val") == PAIRS[:1]
    assert texts(opened, "test") == PAIRS[1:2]
    assert texts(opened) == PAIRS[2:]  # those of val and test are left out
    assert opened.counts["duplicate"] == 2


def test_a_folder_of_tables_in_parts(tmp_path):
    for part, pairs in enumerate((PAIRS[:2], PAIRS[2:])):
        table = pa.table({"en": [pair[0] for pair in pairs], "vi": [pair[1] for pair in pairs]})
        parquet.write_table(table, tmp_path / f"train-0000{part}-of-00002.parquet")
    write(tmp_path / "dev.tsv.gz", tsv([("five", "năm")]))
    opened = corpus(tmp_path)
    assert (texts(opened), texts(opened, "val")) == (PAIRS, [("five", "năm")])
    assert "test" not in opened.splits


@pytest.mark.parametrize("name", ["someone/pairs", "someone/pairs/en-vi"])
def test_hub(monkeypatch, name):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        rows = [{"en": one, "vi": other} for one, other in PAIRS]
        splits = {"train": rows, "validation": [{"en": "five", "vi": "năm"}]}
        return {split: datasets.Dataset.from_dict({"translation": each}) for split, each in splits.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    opened = corpus(name)
    assert asked == [("someone/pairs", *name.split("/")[2:])]
    assert (texts(opened), texts(opened, "val")) == (PAIRS, [("five", "năm")])


def test_no_name_is_not_the_current_folder(tmp_path, monkeypatch):
    aligned(tmp_path, "train")
    monkeypatch.chdir(tmp_path)
    assert "no folder or file ''" in line_of("")
    assert "names no home folder" in line_of("~no-such-user/a.en,b.vi")


def test_languages_may_be_written_in_capitals(tmp_path):
    write(tmp_path / "train.EN", "one\n")
    write(tmp_path / "train.zh-CN", "yi\n")
    assert texts(corpus(tmp_path, languages=("EN", "zh-CN"))) == [("one", "yi")]


def test_a_hub_that_cannot_be_reached_is_one_line():
    assert "'someone/pairs' cannot be loaded as sentence pairs" in line_of("someone/pairs")


# ----------------------------------------------------------------------------------------------------- what is left out


def test_what_is_left_out_is_counted(tmp_path):
    rows = ["en\tvi", "one\tmột", "two", "three\tba\t3", "", "four\t ", "\tnăm", "one\tmột", "one \tmột", "one\tmốt"]
    opened = corpus(write(tmp_path / "some.tsv", "\n".join(rows)))
    assert texts(opened) == [("one", "một"), ("one", "mốt")]
    assert opened.counts == {"pairs": 8, "misaligned": 2, "empty": 2, "duplicate": 2}


def test_test_and_val_keep_what_they_repeat(tmp_path):
    write(tmp_path / "train.tsv", tsv(PAIRS[:3]))
    write(tmp_path / "test.tsv", tsv([PAIRS[3], PAIRS[3]]))
    assert texts(corpus(tmp_path), "test") == [PAIRS[3], PAIRS[3]]


def test_numbers_and_nothing_are_no_text(tmp_path):
    lines = [{"en": "one", "vi": "một"}, {"en": "one", "vi": 1}, {"en": None, "vi": "một"}, {"en": "one"}]
    opened = corpus(write(tmp_path / "some.jsonl", "\n".join(map(json.dumps, lines))))
    assert (len(list(opened.read())), opened.counts["misaligned"]) == (1, 3)


def test_accents_are_composed_and_kept(tmp_path):
    composed = "Tiếng Việt ở đây, được rồi"
    path = write(tmp_path / "some.tsv", "\ufeff" + tsv([("here", unicodedata.normalize("NFD", composed))]))
    assert texts(corpus(path)) == [("here", composed)]


# ---------------------------------------------------------------------------------------------------------- for testing


def test_other_data_is_tested_whole_unless_it_names_a_test_split(tmp_path):
    path = write(tmp_path / "train.tsv", tsv([*PAIRS, PAIRS[0]]))
    opened = corpus(path, testing=True)
    assert texts(opened, "test") == [*PAIRS, PAIRS[0]]
    assert texts(opened) == []
    aligned(tmp_path, "tst2012", PAIRS[:2])
    assert texts(corpus(tmp_path, testing=True), "test") == PAIRS[:2]


def test_a_fingerprint_tells_data_apart(tmp_path):
    path = write(tmp_path / "some.tsv", tsv())
    first = corpus(path).fingerprint()
    assert corpus(write(tmp_path / "other.tsv", tsv())).fingerprint() == first
    assert corpus(path, languages=("vi", "en")).fingerprint() != first
    assert corpus(path, testing=True).fingerprint() != first
    assert corpus(write(path, tsv(PAIRS[::-1]))).fingerprint() != first
    assert corpus(write(path, tsv(PAIRS[:3]))).fingerprint() != first


# --------------------------------------------------------------------------------------------------------------- errors


def test_files_of_unequal_length(tmp_path):
    write(tmp_path / "train.en", "one\ntwo\n")
    write(tmp_path / "train.vi", "một\n")
    line = line_of(tmp_path)
    assert f"{tmp_path}/train.en has 2 lines and {tmp_path}/train.vi has 1" in line


def test_a_file_without_its_partner(tmp_path):
    for language, other in (("en", "vi"), ("vi", "en")):
        write(tmp_path / language / f"train.{language}", "one\n")
        assert f"train.{language} has no train.{other} beside it" in line_of(tmp_path / language)


@pytest.mark.parametrize("name", ["some.tsv", "some.csv", "some.jsonl", "some.parquet"])
def test_a_column_that_is_not_there(tmp_path, name):
    table = pa.table({"en": ["one"], "de": ["eins"], "id": ["1"]})
    records = table.to_pylist()
    if name == "some.parquet":
        parquet.write_table(table, tmp_path / name)
    elif name == "some.jsonl":
        write(tmp_path / name, json.dumps(records[0]))
    else:
        rows = (records[0].keys(), records[0].values())
        write(tmp_path / name, "".join(("," if name == "some.csv" else "\t").join(row) + "\n" for row in rows))
    assert f"{name} has no column 'vi'; expected data.languages to name some of en, de, id" in line_of(tmp_path / name)


def test_not_utf8_names_file_and_line(tmp_path):
    (tmp_path / "some.tsv").write_bytes("en\tvi\none\tmột\n".encode() + "été\tsummer\n".encode("latin-1"))
    assert f"{tmp_path}/some.tsv line 3 is not UTF-8" in line_of(tmp_path / "some.tsv")


def test_damaged_files(tmp_path):
    write(tmp_path / "some.jsonl", '{"en": "one", "vi": "một"}\n["two"]\n')
    assert "some.jsonl line 2 is not a JSON object" in line_of(tmp_path / "some.jsonl")
    write(tmp_path / "some.csv", 'en,vi\n"one" more,một\n')
    assert "some.csv line 2 begins a row that is not CSV" in line_of(tmp_path / "some.csv")
    write(tmp_path / "some.parquet", "en,vi\n")
    assert "some.parquet is not a readable Parquet file" in line_of(tmp_path / "some.parquet")
    (tmp_path / "some.tsv.gz").write_bytes(gzip.compress(tsv().encode())[:-9])
    assert "some.tsv.gz is not a complete gzip file" in line_of(tmp_path / "some.tsv.gz")
    write(tmp_path / "plain.tsv.gz", "").write_text("en\tvi\n")
    assert "plain.tsv.gz is not a complete gzip file" in line_of(tmp_path / "plain.tsv.gz")


def test_nothing_to_learn_from(tmp_path):
    assert "no folder or file" in line_of(tmp_path / "missing")
    assert "missing.en cannot be read: no such file" in line_of(f"{tmp_path}/missing.en,{tmp_path}/missing.vi")
    assert "some.txt is not a file of columns by its name" in line_of(write(tmp_path / "some.txt", "one\n"))
    assert "holds no train pairs; expected one or more" in line_of(write(tmp_path / "some.tsv", ""))
    assert "holds no train pairs, of 1 pairs, 1 empty; expected one or more" in line_of(
        write(tmp_path / "some.tsv", "en\tvi\none\t\n")
    )
    assert "holds no part named after train, val or test" in line_of(tmp_path)
    (tmp_path / "some.tsv").unlink()
    aligned(tmp_path, "tst2012")
    assert "holds no train pairs, of 4 pairs; expected one or more" in line_of(tmp_path)


def test_a_set_that_is_not_read_is_named(tmp_path):
    aligned(tmp_path, "train")
    aligned(tmp_path, "dev", PAIRS[:1])
    for name in ("test.en_US", "README.vi"):
        write(tmp_path / name, "one")
    with pytest.warns(UserWarning, match="test.en_US named after a split, but not read, and left out"):
        assert set(corpus(tmp_path).splits) == {"train", "val"}


def test_several_sets_for_one_split(tmp_path):
    for name in ("train", "test_2016", "test_2017"):
        aligned(tmp_path, name)
    assert "has several test sets: test_2016.en, test_2017.en" in line_of(tmp_path)


def test_languages_are_needed():
    with pytest.raises(GlocalError, match="languages is not given; expected the names of the two columns"):
        languages_of("some.tsv", None)


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.skipif(not SHARED.exists(), reason="the real data is not here")
@pytest.mark.parametrize(
    ("folder", "languages", "sizes"),
    [
        ("multi30k", ("en", "de"), {"train": 28997, "val": 1014, "test": 1000}),  # three of 29,000 stand there twice
        ("en-vi-software", ("en", "vi"), {"train": 69330, "val": 1000, "test": 1000}),
        ("iwslt-en-vi", ("en", "vi"), {"train": 0, "test": 1553}),
    ],
)
def test_real_data(folder, languages, sizes):
    opened = corpus(SHARED / folder, testing=folder == "iwslt-en-vi", languages=languages)
    assert {name: len(indices) for name, indices in opened.splits.items()} == sizes
    assert opened.counts["misaligned"] == opened.counts["empty"] == 0
