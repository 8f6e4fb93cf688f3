"""Tables of images: files whose rows name an image and its label, Parquet files of images, data sets of the hub."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from glocal.data.decoding import Encoded
from glocal.data.files import TABLES, Record, check_columns, entries, kind_of, listed, read_records
from glocal.data.hub import load_dataset
from glocal.data.image_source import SINGLE, LabelFormat, Source, indexed
from glocal.data.labels import class_name, is_visible, names_of_classes, with_class_names
from glocal.data.progress import progress
from glocal.data.splits import SPLITS, by_split, split_of
from glocal.data.tables import LABELS
from glocal.errors import GlocalError

USUAL_LABELS = (*LABELS, "fine_label")
"""Usual names of a column of labels."""
FILES = ("file_name", "image", "path")
"""Usual names of a column of image files."""
IMAGES = ("image", "img")
"""Usual names of a column that holds images."""
METADATA = "metadata"
"""Name of a table, before its ending, that lists the images of its folder (the hub's imagefolder)."""
SPLIT_NAMES = {each for names in SPLITS.values() for each in names}


def open_table(path: Path, form: LabelFormat) -> Source:
    """Open a table that names image files, or a Parquet file of images."""
    if names_files(path):
        return read_tables(str(path), {"train": [path]}, form, path.parent)
    return load_tables(str(path), form, {"train": str(path)})


def open_listed(folder: Path, form: LabelFormat) -> Source | None:
    """Open the images that tables in a folder list; None where there are no such tables.

    They are `metadata.csv` (or another kind) in the folder or in its folders named after splits, or tables named after
    splits. Image files are relative to their table.
    """
    found = entries(folder)
    tables = [Path(entry) for entry in found if entry.is_file() and is_table(entry.name)]
    if own := the_metadata(tables):
        return read_tables(str(folder), {"train": [own]}, form, folder)
    folders = [Path(entry) for entry in found if entry.is_dir() and entry.name.lower() in SPLIT_NAMES]
    listed_below = {
        part.name: table
        for part in folders
        if (table := the_metadata([Path(entry) for entry in entries(part) if entry.is_file()]))
    }
    parts = listed_below or {table.name: table for table in tables if split_of(table.name) and names_files(table)}
    if not parts:
        return None
    names = by_split(str(folder), parts, "train.csv")
    splits = {split: [parts[name] for name in some] for split, some in names.items()}
    return read_tables(str(folder), splits, form, folder)


def the_metadata(tables: Sequence[Path]) -> Path | None:
    """Return the file that is the metadata of its folder, if any. Raises GlocalError if several are."""
    found = [table for table in tables if is_table(table.name) and table.name.partition(".")[0] == METADATA]
    if len(found) > 1:
        raise GlocalError(f"{found[0].parent} has {', '.join(table.name for table in found)}; keep one of them")
    return found[0] if found else None


def is_table(name: str) -> bool:
    """Whether a file is named as a table."""
    return kind_of(Path(name)) in TABLES


def names_files(path: Path) -> bool:
    """Whether a file is a table that names image files; a Parquet file may hold images instead."""
    if kind_of(path) != "parquet":
        return is_table(path.name)
    with suppress(pyarrow.ArrowException, OSError):
        types = {field.name: field.type for field in parquet.read_schema(path)}
        texts = [name for name in FILES if name in types and is_text(types[name])]
        return bool(texts) and not any(name in types and not is_text(types[name]) for name in IMAGES)
    return False


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether a column of Arrow's holds texts."""
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


# ------------------------------------------------------------------------------------------------------- names of files


def read_tables(name: str, tables: Mapping[str, Sequence[Path]], form: LabelFormat, root: Path) -> Source:
    """Read the tables of each split."""
    items: list[str] = []
    labels: list[str] = []
    splits = {"train": np.arange(0)}
    for split, paths in tables.items():
        first = len(items)
        for path in paths:
            for item, label in progress(read_rows(path, form), f"Reading {path.name}"):
                items.append(item)
                labels.append(label)
        splits[split] = np.arange(first, len(items))
    return Source(name, items, *indexed(labels), splits, root=str(root))


def read_rows(path: Path, form: LabelFormat) -> Iterator[tuple[str, str]]:
    """Yield the path of each image of a table, and its label. Raises GlocalError for a row that lacks either."""
    column = ""
    for number, (file, record) in enumerate(read_files(path), start=1):
        column = column or label_column(str(path), record, form)
        label = form.parse(record.get(column), f"{path} row {number}")
        if label is None:
            raise GlocalError(f"{path} row {number} has no {column}; expected one in every row")
        yield file, label


def read_files(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the path of each image of a table, and its row. Raises GlocalError for a row without one."""
    column = None
    for number, record in enumerate(read_records(path), start=1):
        column = column or next((name for name in FILES if name in record), None)
        if column is None:
            raise GlocalError(
                f"{path} has the columns {listed(record)}; expected one of image files, named {' or '.join(FILES)}"
            )
        file = record.get(column)
        if not isinstance(file, str) or not is_visible(file):
            raise GlocalError(
                f"{path} row {number} has no {column}, or not as many fields as the first line; expected an image "
                f"file, relative to {path.parent}"
            )
        yield os.path.join(path.parent, file), record  # noqa: PTH118  # as other sources name files: as texts


def label_column(name: str, columns: Iterable[str], form: LabelFormat) -> str:
    """Return the column of labels that the config names, or the first with a usual name."""
    present = list(columns)
    if form.column is not None:
        check_columns(name, present, [form.column], "data.label")
        return form.column
    found = next((column for column in USUAL_LABELS if column in present), None)
    if found is None:
        raise GlocalError(f"{name} has the columns {listed(present)}; expected label, or another that data.label names")
    return found


# -------------------------------------------------------------------------------------------------- Parquet and the hub


class _Rows(Sequence[Encoded]):
    """The encoded images of a table, read from its memory-mapped file one at a time."""

    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        value = self.table.data.column(self.column)[index].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        return value if isinstance(value, (bytes, str)) else b""


def load_tables(name: str, form: LabelFormat, files: dict[str, str] | None = None) -> Source:
    """Load Parquet files, or a data set of the hub, with the `datasets` library."""
    import datasets

    what = "a table of images"
    loaded = load_dataset(name, what, "parquet", data_files=files) if files else load_dataset(name, what, name)
    splits = by_split(name, loaded, "train")
    tables = {split: datasets.concatenate_datasets([loaded[part] for part in parts]) for split, parts in splits.items()}
    features = next(iter(tables.values())).features
    image = declared_column(features, datasets.Image) or next((column for column in IMAGES if column in features), None)
    if image is None:
        raise GlocalError(f"{name!r} has the columns {listed(features)}; expected one named {' or '.join(IMAGES)}")
    declared = declared_column(features, datasets.ClassLabel) if form == SINGLE else None
    label = declared or label_column(name, features, form)
    table = datasets.concatenate_datasets([table.select_columns([image, label]) for table in tables.values()])
    labels, classes = _labels(name, table.data.column(label).to_pylist(), features[label], form)
    ends = np.cumsum([len(table) for table in tables.values()])
    places = {split: np.arange(end - len(tables[split]), end) for split, end in zip(tables, ends, strict=True)}
    return Source(name, _Rows(table, image), labels, classes, {"train": np.arange(0)} | places)


def declared_column(features: Mapping[str, object], kind: type) -> str | None:
    """Return the only column that declares a kind, None where there is none, or several."""
    declared = [column for column, feature in features.items() if isinstance(feature, kind)]
    return declared[0] if len(declared) == 1 else None


def _labels(name: str, values: list[object], feature: object, form: LabelFormat) -> tuple[np.ndarray, list[str]]:
    """Turn a column of labels into indices and the names of the classes; whole numbers may index declared names."""
    names = names_of_classes(feature)
    if form.problem_type is None and names is not None and all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64), [class_name(each, name) or each for each in names]
    if form.problem_type == "multi_label_classification" and names is not None:
        values = [with_class_names(value, names) for value in values]
    found = [form.parse(value, f"image {place} of {name}") for place, value in enumerate(values)]
    if None in found:
        raise GlocalError(f"image {found.index(None)} of {name} has no label; expected one in every row")
    return indexed([label for label in found if label is not None])
