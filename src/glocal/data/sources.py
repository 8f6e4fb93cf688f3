"""Where images come from. Every source becomes the same four things: items, labels, classes and splits."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from glocal.data.decoding import Encoded, images_below, is_image_name, warn_of_unread
from glocal.data.files import entries, files_below, read_chunks, source_path
from glocal.data.hub import load_dataset
from glocal.data.labels import class_name, in_order
from glocal.data.progress import progress
from glocal.data.splits import SPLITS, by_split
from glocal.errors import GlocalError

SPLIT_NAMES = {each for names in SPLITS.values() for each in names}


@dataclass(frozen=True)
class Source:
    """Images that are not decoded yet, with their labels."""

    name: str
    """As the user gave it."""
    items: Sequence[Encoded] | np.ndarray
    """What `open_image` takes."""
    labels: np.ndarray
    """int64, each an index of `classes`."""
    classes: list[str]
    splits: dict[str, np.ndarray]
    """Indices into `items`, for each of train, val and test that the source names; `train` is always there."""

    def describe(self, index: int) -> str:
        """Name one image in an error: its path, or its number in the source."""
        item = self.items[index] if isinstance(self.items, list) else None
        return item if isinstance(item, str) else f"image {index} of {self.name}"

    def fingerprint(self) -> str:
        """Tell this data from data that has gained, lost, renamed or relabelled an image; moving it changes nothing."""
        files = [item.removeprefix(self.name) for item in self.items] if isinstance(self.items, list) else []
        text = json.dumps([self.classes, self.labels.tolist(), files])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_source(name: str, classes: list[str] | None = None) -> Source:
    """Open the built-in `digits`, a folder, a Parquet file or, where no such path exists, a data set of the hub.

    With the `classes` of a trained model it is opened for testing only: labels become indices of those classes, which
    need not all occur, and all of its images are the test split unless it names one.

    Raises GlocalError where there is nothing to learn from: no path, no images, one class only, a label out of range,
    a class without a training image.
    """
    path = source_path(name)
    try:
        if name == "digits":
            source = _digits()
        elif path.is_file():
            source = _table(str(path), {"train": str(path)})
        elif name and path.is_dir():
            source = _folder(path)
        elif len(Path(name).parts) == 2 and not path.is_absolute() and not path.parent.exists():
            source = _table(name)
        else:
            raise GlocalError(
                f"no folder or file {name!r}; expected a folder of class folders, a Parquet file, a folder of Parquet "
                "or IDX files, 'digits', or OWNER/NAME of a data set of the hub"
            )
    except OSError as error:
        raise GlocalError(
            f"{error.filename or name} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    _check_labels(source)
    if classes is not None:
        return _for_testing(source, classes)
    if not len(source.splits["train"]):
        raise GlocalError(f"{source.name} holds no train images; expected a split named train")
    check_trainable(source, source.splits["train"])
    return source


def _check_labels(source: Source) -> None:
    labels, classes = source.labels, source.classes
    if len(labels) == 0:
        raise GlocalError(f"{source.name} holds no images")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise GlocalError(
            f"{source.describe(int(wrong[0]))} has label {labels[wrong[0]]}; "
            f"expected 0 to {len(classes) - 1} for {len(classes)} classes"
        )


def check_trainable(source: Source, indices: np.ndarray) -> None:
    """Raise GlocalError unless `indices` hold two classes or more, and every class at least once."""
    classes = source.classes
    if len(classes) < 2:
        raise GlocalError(f"{source.name} holds one class only ({classes[0]!r}); expected two or more to tell apart")
    counts = np.bincount(source.labels[indices], minlength=len(classes))
    if not counts.all():
        empty = classes[int(counts.argmin())]
        raise GlocalError(f"class {empty!r} of {source.name} has no training image; add some or remove the class")


def _for_testing(source: Source, classes: list[str]) -> Source:
    places = {class_name(name, "the model"): place for place, name in enumerate(classes)}
    unknown = sorted(set(source.classes) - places.keys())
    if unknown:
        raise GlocalError(f"class {unknown[0]!r} of {source.name} is none of the model's: {', '.join(classes)}")
    index = np.array([places[name] for name in source.classes], dtype=np.int64)
    none = np.arange(0)
    splits = {"train": none, "val": none, "test": source.splits.get("test", np.arange(len(source.labels)))}
    return replace(source, labels=index[source.labels], classes=classes, splits=splits)


def _digits() -> Source:
    """1,797 handwritten digits of 8×8 pixels in 17 greys, from scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    classes = [str(name) for name in digits.target_names]
    return Source("digits", images, digits.target.astype(np.int64), classes, {"train": np.arange(len(images))})


def _folder(path: Path) -> Source:
    files = [entry.name for entry in entries(path) if entry.is_file()]
    if any("-ubyte" in file for file in files):
        return _idx(str(path), path, files)
    # The first file that says what it is decides: a large folder of photographs is not searched twice.
    first = next(files_below(path, lambda name: name.lower().endswith(".parquet") or is_image_name(name)), "")
    if first.lower().endswith(".parquet"):
        return _table(str(path))
    return _class_folders(str(path), path)


# --------------------------------------------------------------------------------------------- folders of class folders


def _class_folders(name: str, path: Path) -> Source:
    roots = _split_folders(name, path)
    known = [roots["train"]] if "train" in roots else list(roots.values())  # without one, there is but to test
    classes = in_order(_class_of(folder) for root in known for folder in _subfolders(root))
    items: list[str] = []
    labels: list[int] = []
    splits = {}
    left_out: Counter[str] = Counter()
    for split, root in roots.items():
        first = len(items)
        for folder in progress(_subfolders(root), f"Listing {root}"):
            label = _class_of(folder)
            if label not in classes:
                raise GlocalError(f"{folder.path}: the train folder has no class {label!r}")
            found = images_below(folder.path, left_out)
            items += found
            labels += [classes.index(label)] * len(found)
        splits[split] = np.arange(first, len(items))
    warn_of_unread(name, left_out)
    return Source(name, items, np.array(labels, dtype=np.int64), classes, {"train": np.arange(0)} | splits)


def _split_folders(name: str, path: Path) -> dict[str, str]:
    """Return the folder of class folders of each split; of a folder whose own folders are the classes, it is `train`.

    A folder named after a split is one where it holds folders itself; else its name is a class's like others.
    """
    folders = _subfolders(path)
    parted = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES and _subfolders(folder.path)]
    if not parted:
        if not folders or all(folder.name.lower() in SPLIT_NAMES for folder in folders):
            loose = next(files_below(path, is_image_name), None)
            why = "its images lie in no class folder" if loose else "it holds no folder"
            raise GlocalError(f"{name}: {why}; expected one folder a class, named after it, with the class's images")
        return {"train": str(path)}
    for folder in folders:
        if folder.name not in {part.name for part in parted} and next(files_below(folder.path, is_image_name), None):
            raise GlocalError(
                f"{name} holds {parted[0].name}, a split of class folders, beside {folder.name}, which is none; "
                "expected splits alone, or classes alone"
            )
    splits = by_split(name, [folder.name for folder in parted], "train")
    return {split: str(path / part) for split, (part,) in splits.items()}


def _class_of(folder: os.DirEntry[str]) -> str:
    name = class_name(folder.name, folder.path)
    if name is None:
        raise GlocalError(f"{folder.path} is named like no class; rename the folder")
    return name


def _subfolders(folder: str | Path) -> list[os.DirEntry[str]]:
    return [entry for entry in entries(folder) if entry.is_dir()]


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


def _table(name: str, files: dict[str, str] | None = None) -> Source:
    """Load Parquet files, or a data set of the hub, with the `datasets` library."""
    import datasets

    what = "a table of images"
    loaded = load_dataset(name, what, "parquet", data_files=files) if files else load_dataset(name, what, name)
    splits = by_split(name, loaded, "train")
    tables = {split: datasets.concatenate_datasets([loaded[part] for part in parts]) for split, parts in splits.items()}
    features = next(iter(tables.values())).features
    image = _column(name, features, datasets.Image, ("image", "img"))
    label = _column(name, features, datasets.ClassLabel, ("label", "labels", "fine_label"))
    table = datasets.concatenate_datasets([table.select_columns([image, label]) for table in tables.values()])
    labels, classes = _labels(name, table.data.column(label).to_pylist(), getattr(features[label], "names", None))
    ends = np.cumsum([len(table) for table in tables.values()])
    places = {split: np.arange(end - len(tables[split]), end) for split, end in zip(tables, ends, strict=True)}
    return Source(name, _Rows(table, image), labels, classes, {"train": np.arange(0)} | places)


def _column(name: str, features: dict[str, Any], kind: type, usual: Iterable[str]) -> str:
    """Find the column of one kind: the only one that declares it, else the first with a usual name."""
    declared = [column for column, feature in features.items() if isinstance(feature, kind)]
    candidates = declared if len(declared) == 1 else [column for column in usual if column in features]
    if not candidates:
        raise GlocalError(f"{name!r} has the columns {', '.join(features)}; expected one named {' or '.join(usual)}")
    return candidates[0]


def _labels(name: str, values: list[Any], names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Turn a column of labels into indices and the names of the classes; whole numbers may index `names`."""
    if names is not None and all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64), [class_name(each, name) or each for each in names]
    found = [class_name(value, f"image {place} of {name}") for place, value in enumerate(values)]
    if None in found:
        raise GlocalError(f"image {found.index(None)} of {name} has no label; expected one in every row")
    classes = in_order(label for label in found if label is not None)
    index = {label: place for place, label in enumerate(classes)}
    return np.array([index[str(label)] for label in found], dtype=np.int64), classes


# ---------------------------------------------------------------------------------------------------------- IDX (MNIST)


def _idx(name: str, path: Path, files: list[str]) -> Source:
    """Read the files of MNIST and its likes: {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or gzipped."""
    images, labels, splits = [], [], {}
    first = 0
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        parts = [next((file for file in files if f"{prefix}-{part}" in file), None) for part in ("images", "labels")]
        if None in parts:
            if split == "train" or any(parts):
                raise GlocalError(f"{name} lacks a file {prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte")
            continue
        pixels, digits = (_read_idx(path / str(part), axes) for part, axes in zip(parts, (3, 1), strict=True))
        if len(pixels) != len(digits):
            raise GlocalError(f"{name}: {len(pixels)} {split} images beside {len(digits)} labels; expected as many")
        images.append(pixels)
        labels.append(digits)
        splits[split] = np.arange(first, first + len(digits))
        first += len(digits)
    numbers = np.concatenate(labels).astype(np.int64)
    classes = [str(number) for number in range(numbers.max(initial=-1) + 1)]
    return Source(name, np.concatenate(images), numbers, classes, splits)


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Read one file: 0, 0, 8 for unsigned bytes, the number of axes, their lengths as big-endian words, the data."""
    content = b"".join(read_chunks(path))
    start = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) < start:
        raise GlocalError(f"{path} is no IDX file of unsigned bytes with {axes} axes")
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        raise GlocalError(
            f"{path} holds {len(content) - start} bytes; expected {math.prod(shape)} for its shape {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
