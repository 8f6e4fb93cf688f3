"""One rule for the names of classes: what each value of each format is called, and what is no class."""

import datetime
import json
from decimal import Decimal

import pyarrow as pa
import pytest
from pyarrow import parquet

from glocal.data.labels import class_name, in_order, is_visible
from glocal.errors import GlocalError
from glocal.tasks.text_classification import TextClassificationDataConfig, open_data


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        (" 1. ", "1"),
        ("-2.00", "-2"),
        (Decimal("3.0"), "3"),
        ("1e2", "100"),
        (1e2, "100"),
        (2**70, str(2**70)),
        ("007", "007"),
        (True, "true"),
        ("True", "true"),
        ("FALSE", "false"),
        ("no", "no"),
        ("GPT 3.5", "GPT 3.5"),
        ("cafe\u0301 ", "caf\u00e9"),
        (None, None),
        (float("nan"), None),
        ("nan", None),
        ("", None),
        (" \u200b\ufeff", None),
    ],
)
def test_names(label, name):
    assert class_name(label, "here") == name


@pytest.mark.parametrize(
    ("label", "line"),
    [
        (0.5, r"here has label 0.5; expected a name or a whole number"),
        ("0.5", r"here has label 0.5"),
        ("1e-3", r"here has label 1e-3"),
        (float("inf"), r"here has label inf"),
        ("1e999999999", r"here has label 1e999999999"),
        (["a"], r"here has a label of kind list; expected one name"),
        ({"a": 1}, r"of kind dict"),
        (b"a", r"of kind bytes"),
        (datetime.date(2020, 1, 1), r"of kind date"),
        ("\x1b[31mred", r"'\\x1b\[31mred', which cannot be printed on one line"),
        ("a\nb", r"cannot be printed"),
    ],
)
def test_what_is_no_class(label, line):
    with pytest.raises(GlocalError, match=line):
        class_name(label, "here")


def test_order():
    assert in_order(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert in_order(["b", "10", "9"]) == ["10", "9", "b"]


def test_what_is_seen():
    assert is_visible("\U0001f600")
    assert is_visible("\ue000")  # a font's own sign
    assert not is_visible("\u2028 \x00\u200d")


def test_a_column_means_the_same_in_every_format(tmp_path, speller):
    labels = [1, 0, 1, 0]
    rows = [{"text": f"t{number}", "label": label} for number, label in enumerate(labels)]
    written = {
        "a.jsonl": "".join(json.dumps(row | {"label": float(row["label"])}) + "\n" for row in rows),
        "b.jsonl": "".join(json.dumps(row | {"label": str(row["label"])}) + "\n" for row in rows),
        "c.csv": "text,label\n" + "".join(f"{row['text']},{row['label']}.0\n" for row in rows),
        "d.tsv": "".join(f"{row['text']}\t{row['label']}\n" for row in rows),
    }
    for name, content in written.items():
        (tmp_path / name).write_text(content)
    parquet.write_table(pa.table({"text": [row["text"] for row in rows], "label": labels}), tmp_path / "e.parquet")
    for name in (*written, "e.parquet"):
        config = TextClassificationDataConfig(str(tmp_path / name), val_fraction=0.0, test_fraction=0.0)
        data = open_data(config, None, speller)
        assert (data.labels, [item.label for item in data.examples("train")]) == (["0", "1"], ["1", "0", "1", "0"])
