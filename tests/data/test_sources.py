"""Every kind of source, and one clear line for each way in which one can be wrong."""

import gzip
import os
import socket
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from glocal.data.decoding import open_image
from glocal.data.sources import open_source
from glocal.errors import GlocalError
from glocal.tasks.image_predictor import find_images

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def no_network(*_):
        raise AssertionError("a local source reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)


def write_image(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 5), grey).save(path)


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            write_image(root / folder / f"{number}.png")
    return root


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def table(labels, **columns) -> datasets.Dataset:
    images = [{"bytes": _png(number), "path": None} for number in range(len(labels))]
    return datasets.Dataset.from_dict({"image": images, "label": labels, **columns})


def _png(grey: int) -> bytes:
    buffer = BytesIO()
    Image.new("L", (6, 5), grey).save(buffer, "png")
    return buffer.getvalue()


def line_of(name: object, **arguments) -> str:
    with pytest.raises(GlocalError) as caught:
        open_source(str(name), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits():
    source = open_source("digits")
    assert len(source.labels) == 1797
    assert source.classes == [str(number) for number in range(10)]
    assert (source.items[0].max(), source.items[0].shape) == (239, (8, 8))  # 15 of 16 greys


def test_folder(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 2, "dog": 3, ".hidden": 1})
    write_image(tmp_path / "pets" / "dog" / "puppies" / "small.JPG")
    (tmp_path / "pets" / "dog" / "notes.txt").write_text("no image")
    source = open_source(f"{tmp_path}/pets/")
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert list(source.splits) == ["train"]
    assert source.describe(0) == str(tmp_path / "pets" / "cat" / "0.png")


def test_links_hidden_files_and_folders_named_as_images(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 2, "dog": 2, "dog/.ipynb_checkpoints": 1, "cat/album.png": 1})
    (tmp_path / "pets" / "cat" / "._0.png").write_bytes(b"\0")
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "pets" / name)
    (tmp_path / "pets" / "dog" / "round").symlink_to(tmp_path / "pets" / "dog")
    for folder in ("pets", "linked"):
        found = open_source(str(tmp_path / folder)).items
        assert found == list(map(str, find_images(tmp_path / folder)))
        assert [Path(item).name for item in found] == ["0.png", "1.png", "0.png", "0.png", "1.png"]


def test_classes_may_be_called_as_splits_and_written_in_either_form(tmp_path):
    source = open_source(str(write_folder(tmp_path, {"car": 1, "train": 1, "cafe\u0301": 1, "caf\u00e9": 1})))
    assert (source.classes, source.labels.tolist()) == (["caf\u00e9", "car", "train"], [0, 0, 1, 2])


def test_eval_is_validation(tmp_path):
    source = open_source(str(write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "eval/dog": 1})))
    assert source.labels[source.splits["val"]].tolist() == [1]


def test_a_split_that_is_no_folder_is_named(tmp_path):
    write_folder(tmp_path, {"train/cat": 2, "train/dog": 2})
    (tmp_path / "test.zip").write_bytes(b"")
    with pytest.warns(UserWarning, match="test.zip named after a split, but not read, and left out"):
        assert set(open_source(str(tmp_path)).splits) == {"train"}


def test_a_test_split_alone_tests_a_model(tmp_path):
    source = open_source(str(write_folder(tmp_path, {"test/dog": 2, "test/cat": 1})), classes=["dog", "cat"])
    assert source.labels[source.splits["test"]].tolist() == [1, 0, 0]


def test_folder_with_splits(tmp_path):
    write_folder(tmp_path, {"train/cat": 2, "train/dog": 2, "Validation/dog": 1, "test/cat": 3})
    source = open_source(str(tmp_path))
    assert {name: source.labels[indices].tolist() for name, indices in source.splits.items()} == {
        "train": [0, 0, 1, 1], "val": [1], "test": [0, 0, 0],
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    pixels = np.arange(5 * 28 * 28).reshape(5, 28, 28).astype(np.uint8)
    for split, count in {"train": 5, "t10k": 2}.items():
        write_idx(tmp_path / f"{split}-images-idx3-ubyte{suffix}", pixels[:count])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte{suffix}", np.arange(count) % 3)
    source = open_source(str(tmp_path))
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert source.splits["test"].tolist() == [5, 6]
    assert np.array_equal(source.items[4], pixels[4])


@pytest.mark.parametrize("labels", [[0, 1, 0, 2], ["ant", "bee", "ant", "cow"]])
def test_parquet_file(tmp_path, labels):
    table(labels).to_parquet(tmp_path / "all.parquet")
    source = open_source(str(tmp_path / "all.parquet"))
    assert source.classes == (["0", "1", "2"] if labels[0] == 0 else ["ant", "bee", "cow"])
    assert source.labels.tolist() == [0, 1, 0, 2]
    assert open_image(source.items[3], 1).getpixel((0, 0)) == 3


def test_parquet_folder(tmp_path):
    names = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    (tmp_path / "insects").mkdir()
    for split, labels in {"train": [0, 1, 1], "validation": [1], "test": [0, 1]}.items():
        table(labels).cast(names).to_parquet(tmp_path / "insects" / f"{split}-00000-of-00001.parquet")
    source = open_source(str(tmp_path / "insects"))
    assert source.classes == ["ant", "bee"]
    assert {name: source.labels[indices].tolist() for name, indices in source.splits.items()} == {
        "train": [0, 1, 1], "val": [1], "test": [0, 1],
    }  # fmt: skip


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not beside this repository")
def test_cifar10():
    source = open_source(str(CIFAR10))
    assert (source.classes[0], len(source.classes)) == ("airplane", 10)
    assert {name: len(indices) for name, indices in source.splits.items()} == {"train": 50_000, "test": 10_000}
    assert np.bincount(source.labels[source.splits["test"]]).tolist() == [1000] * 10
    assert open_image(source.items[0]).size == (32, 32)


def test_hub_is_asked_only_for_what_is_no_path(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, **arguments):
        asked.append(name)
        return datasets.DatasetDict({"train": table([0, 1]), "test": table([1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert list(open_source("owner/insects").splits) == ["train", "test"]
    write_folder(tmp_path / "data" / "pets", {"cat": 1, "dog": 1})
    open_source("data/pets")
    for wrong in ("data/petz", "pets", "/nowhere/pets", "../nowhere", "a/b/c"):
        assert "no folder or file" in line_of(wrong)
    assert asked == ["owner/insects"]


@pytest.mark.parametrize("name", ["", "~no-such-user/pets"])
def test_no_name_and_no_home_are_no_folder(tmp_path, monkeypatch, name):
    write_folder(tmp_path, {"cat": 1, "dog": 1})
    monkeypatch.chdir(tmp_path)
    assert line_of(name).startswith("no folder or file ''" if not name else f"{name!r} names no home folder")


def test_what_the_library_logs_and_draws_is_not_shown(tmp_path, capfd):
    table([0, 1, 0, 1]).to_parquet(tmp_path / "all.parquet")
    (tmp_path / "damaged.parquet").write_bytes((tmp_path / "all.parquet").read_bytes()[:-9])
    capfd.readouterr()
    open_source(str(tmp_path / "all.parquet"))
    assert "magic bytes not found" in line_of(tmp_path / "damaged.parquet")
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_images_that_are_not_read_are_counted(tmp_path):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "test/cat": 1})
    for name in ("train/cat/1.HEIC", "train/dog/2.heic", "test/cat/3.svg", "test/cat/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"^{tmp_path}: 2 \.heic, 1 \.svg left out, which are not read"):
        open_source(str(tmp_path))
    with pytest.warns(UserWarning, match=rf"^{tmp_path}: 2 \.heic, 1 \.svg left out"):
        assert len(find_images(tmp_path)) == 3


def test_images_beside_the_class_folders_are_counted(tmp_path):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "test/cat": 1})
    assert len(open_source(str(tmp_path)).items) == 3
    for name in ("train/stray.png", "a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="2 images beside the class folders were left out, such as a.jpg; move each"):
        assert len(open_source(str(tmp_path)).items) == 3


def test_hub_failure_is_one_line(monkeypatch):
    def load_dataset(name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert line_of("owner/insects") == "'owner/insects' cannot be loaded as a table of images: no route to host"


def test_a_trained_models_classes(tmp_path):
    write_folder(tmp_path, {"dog": 2})
    source = open_source(str(tmp_path), classes=["cat", "dog"])
    assert source.labels.tolist() == [1, 1]
    assert source.splits["test"].tolist() == [0, 1]
    assert "class 'dog'" in line_of(tmp_path, classes=["cat", "cow"])


def test_fingerprint_follows_the_data_not_its_place(tmp_path):
    first = open_source(str(write_folder(tmp_path / "a", {"cat": 2, "dog": 2}))).fingerprint()
    assert open_source(str(write_folder(tmp_path / "b", {"cat": 2, "dog": 2}))).fingerprint() == first
    (tmp_path / "b" / "cat" / "0.png").rename(tmp_path / "b" / "cat" / "9.png")
    assert open_source(str(tmp_path / "b")).fingerprint() != first


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({}, "holds no folder; expected one folder a class"),
        ({"cat": 0, "dog": 0}, "holds no images"),
        ({"cat": 2}, "one class only ('cat')"),
        ({"cat": 2, "dog": 0}, "class 'dog' of"),
        ({"train/cat": 1, "train/dog": 1, "val/cow": 1}, "the train folder has no class 'cow'"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "validation/a": 1}, "has several val sets: val, validation"),
        ({"train/a": 1, "train/b": 1, "cow": 1}, "holds train, a split of class folders, beside cow, which is none"),
        ({"val/a": 1, "val/b": 1}, "holds no train images"),
        ({"train": 1, "test": 1}, "lie in no class folder"),
        ({"0.5": 1, "1": 1}, "has label 0.5; expected a name or a whole number"),
        ({"\x1b[1m": 1, "1": 1}, "cannot be printed"),
    ],
)
def test_wrong_folders(tmp_path, folders, expected):
    assert expected in line_of(write_folder(tmp_path, folders))


def test_images_without_class_folders(tmp_path):
    write_image(tmp_path / "0.png")
    assert "lie in no class folder" in line_of(tmp_path)


def test_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write_folder(tmp_path, {"cat": 1, "dog": 1})
    listing = os.scandir

    def scandir(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listing(folder)

    monkeypatch.setattr("glocal.data.sources.os.scandir", scandir)
    assert line_of(tmp_path) == f"{tmp_path / 'dog'} cannot be read: permission denied"


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, -1], ["ant", "bee"], "image 1 of"),
        ([0, None], None, "image 1 of"),
        ([0.5, 1.0], None, "has label 0.5; expected a name or a whole number"),
        ([[0], [1]], None, "has a label of kind list"),
        ([0, 0], ["ant"], "one class only ('ant')"),
    ],
)
def test_wrong_labels(tmp_path, labels, names, expected):
    rows = table(labels)
    if names:
        rows = rows.cast_column("label", datasets.ClassLabel(names=names))
    rows.to_parquet(tmp_path / "all.parquet")
    assert expected in line_of(tmp_path / "all.parquet")


def test_label_beyond_the_named_classes(tmp_path, monkeypatch):
    rows = table([0, 1, 7])
    rows.info.features["label"] = datasets.ClassLabel(names=["ant", "bee"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": rows}))
    assert "has label 7; expected 0 to 1 for 2 classes" in line_of("owner/insects")


def test_wrong_tables(tmp_path):
    datasets.Dataset.from_dict({"picture": [1], "label": [0]}).to_parquet(tmp_path / "a.parquet")
    assert "the columns picture, label; expected one named image or img" in line_of(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no table")
    assert "cannot be loaded as a table" in line_of(tmp_path / "b.parquet")


def test_wrong_idx(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    write_idx(images, np.zeros((3, 4, 4)))
    assert "lacks a file" in line_of(tmp_path)
    write_idx(labels, np.zeros(2))
    assert "3 train images beside 2 labels" in line_of(tmp_path)
    labels.write_bytes(b"text")
    assert "not an IDX file of unsigned bytes with 1 axes" in line_of(tmp_path)
    images.write_bytes(images.read_bytes()[:-1])
    assert "holds 47 bytes; expected 48" in line_of(tmp_path)
    images.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"text")
    assert "not a complete gzip file" in line_of(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"text" * 9)[:12] + b"\xff" * 9)
    assert "not a complete gzip file" in line_of(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    images.write_bytes(bytes([0, 0, 8, 3]) + np.array([-1, -3, 1], ">i4").tobytes() + bytes(3))
    assert "holds 3 bytes; expected" in line_of(tmp_path)
