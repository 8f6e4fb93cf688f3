"""Sources of images: each is opened as images, labels, classes and splits."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from glocal.data.decoding import images_below, is_image_name, warn_of_unread
from glocal.data.files import entries, files_below, read_chunks, source_path
from glocal.data.image_source import (
    SINGLE,
    LabelFormat,
    Source,
    check_labels,
    check_trainable,
    for_testing,
    with_values,
)
from glocal.data.image_tables import SPLIT_NAMES, load_tables, open_listed, open_table
from glocal.data.labels import in_order, warn_of_alike
from glocal.data.progress import progress
from glocal.data.splits import by_split, warn_of_unread_splits
from glocal.errors import GlocalError


def open_source(name: str, classes: list[str] | None = None, form: LabelFormat = SINGLE) -> Source:
    """Open the built-in `digits`, a folder, a table or, where no such path exists, a data set of the hub.

    With the `classes` of a trained model (none if its labels are numbers), the source is opened for testing: labels
    become indices of these classes, and all images are the test split, unless the source names one.

    Raises GlocalError if there is no such path, no image, one class only, a label out of range, or a class without a
    training image.
    """
    path = source_path(name)
    try:
        if name == "digits":
            source = _digits()
        elif path.is_file():
            source = open_table(path, form)
        elif name and path.is_dir():
            source = _folder(path, form)
        elif len(Path(name).parts) == 2 and not path.is_absolute() and not path.parent.exists():
            source = load_tables(name, form)
        else:
            raise GlocalError(
                f"no folder or file {name!r}; expected a folder of class folders, a table (.csv, .tsv, .jsonl, "
                ".parquet), a folder of tables or of IDX files, 'digits', or OWNER/NAME of a data set of the hub"
            )
    except OSError as error:
        raise GlocalError(
            f"{error.filename or name} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    check_labels(source)
    if form.problem_type is not None:
        source = with_values(source, form.problem_type, classes)
    if classes is not None:
        return for_testing(source, classes)
    if not len(source.splits["train"]):
        raise GlocalError(f"{source.name} holds no train images; expected a split named train")
    check_trainable(source, source.splits["train"])
    warn_of_alike(source.name, source.classes)
    return source


def _digits() -> Source:
    """Return 1,797 handwritten digits of 8×8 pixels in 17 greys, from scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    classes = [str(name) for name in digits.target_names]
    return Source("digits", images, digits.target.astype(np.int64), classes, {"train": np.arange(len(images))})


def _folder(path: Path, form: LabelFormat) -> Source:
    if source := open_listed(path, form):
        return source
    files = [entry.name for entry in entries(path) if entry.is_file()]
    if any("-ubyte" in file for file in files):
        return _idx(str(path), path, files)
    # The first image or Parquet file decides, so that a large folder of photographs is not searched twice.
    first = next(files_below(path, lambda name: name.lower().endswith(".parquet") or is_image_name(name)), "")
    if first.lower().endswith(".parquet"):
        return load_tables(str(path), form)
    return _class_folders(str(path), path, form)


# --------------------------------------------------------------------------------------------- folders of class folders


def _class_folders(name: str, path: Path, form: LabelFormat) -> Source:
    roots = _split_folders(name, path)
    only_train = "train" in roots and form.problem_type is None  # without training images, all folders name classes
    known = [roots["train"]] if only_train else list(roots.values())
    classes = in_order(_class_of(folder, form) for root in known for folder in _subfolders(root))
    items: list[str] = []
    labels: list[int] = []
    splits = {}
    left_out: Counter[str] = Counter()
    warn_of_loose_images(name, {str(path), *roots.values()})
    for split, root in roots.items():
        first = len(items)
        for folder in progress(_subfolders(root), f"Listing {root}"):
            label = _class_of(folder, form)
            if label not in classes:
                raise GlocalError(f"{folder.path}: the train folder has no class {label!r}")
            found = images_below(folder.path, left_out)
            items += found
            labels += [classes.index(label)] * len(found)
        splits[split] = np.arange(first, len(items))
    warn_of_unread(name, left_out)
    return Source(name, items, np.array(labels, dtype=np.int64), classes, {"train": np.arange(0)} | splits)


def warn_of_loose_images(name: str, folders: Iterable[str]) -> None:
    """Warn of images that lie beside class folders, not in them."""
    loose = sorted(entry.name for folder in folders for entry in entries(folder) if is_image_name(entry.name))
    if loose:
        warnings.warn(
            f"{name}: {len(loose)} images beside the class folders were left out, such as {loose[0]}; move each into "
            "the folder of its class",
            stacklevel=3,
        )


def _split_folders(name: str, path: Path) -> dict[str, str]:
    """Return the folder of class folders of each split; a folder of class folders is `train` itself.

    A folder that is named after a split and holds no folders is a class.
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
    warn_of_unread_splits(name, [entry.name for entry in entries(path)], [folder.name for folder in folders])
    splits = by_split(name, [folder.name for folder in parted], "train")
    return {split: str(path / part) for split, (part,) in splits.items()}


def _class_of(folder: os.DirEntry[str], form: LabelFormat) -> str:
    name = form.parse(folder.name, folder.path)
    if name is None:
        raise GlocalError(f"{folder.path} has a name that no class can have; rename the folder")
    return name


def _subfolders(folder: str | Path) -> list[os.DirEntry[str]]:
    return [entry for entry in entries(folder) if entry.is_dir()]


# ---------------------------------------------------------------------------------------------------------- IDX (MNIST)


def _idx(name: str, path: Path, files: list[str]) -> Source:
    """Read files in MNIST's format: {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or gzipped."""
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
        raise GlocalError(f"{path} is not an IDX file of unsigned bytes with {axes} axes")
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        raise GlocalError(
            f"{path} holds {len(content) - start} bytes; expected {math.prod(shape)} for its shape {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
