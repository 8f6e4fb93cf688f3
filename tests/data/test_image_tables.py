"""Tables of images: what they may look like, what is learned of each image, and one line for what is wrong."""

import csv
import gc
import json
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from glocal.data import AugmentConfig, open_images
from glocal.data.image_source import LabelFormat
from glocal.data.sources import open_source
from glocal.errors import GlocalError
from glocal.tasks.image_predictor import find_images
from glocal.tasks.image_regression import ImageRegressionDataConfig
from glocal.tasks.multi_label_image_classification import MultiLabelImageDataConfig

REGRESSION, SEVERAL = LabelFormat("regression"), LabelFormat("multi_label_classification")


@pytest.fixture
def folder(tmp_path):
    """A folder with eight images in `images`."""
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def write(path, labels, names=("file_name", "label"), folder="images/", first=0):
    """Write a table of images numbered from `first`, in the format that its name says."""
    path.parent.mkdir(exist_ok=True)
    files = [f"{folder}{number}.png" for number in range(first, first + len(labels))]
    rows = [dict(zip(names, row, strict=True)) for row in zip(files, labels, strict=True)]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def line_of(*arguments, **more):
    with pytest.raises(GlocalError) as caught:
        open_source(*map(str, arguments), **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["file_name", "image", "path"])
def test_every_format_names_the_same_images(suffix, column, folder):
    source = open_source(str(write(folder / f"t.{suffix}", ["b", "a", "b"], (column, "label"))))
    assert source.items == [str(folder / "images" / f"{number}.png") for number in range(3)]
    assert (source.classes, source.labels.tolist(), source.values) == (["a", "b"], [1, 0, 1], None)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_numbers(suffix, folder):
    path = write(folder / f"t.{suffix}", [1.5, -2.0, 1e3], ("file_name", "age"))
    source = open_source(str(path), form=replace(REGRESSION, column="age"))
    assert (source.classes, source.labels.tolist()) == ([], [0, 0, 0])
    assert source.targets(np.array([2, 0])).tolist() == [1000.0, 1.5]
    assert source.targets(np.array([0])).dtype == np.float32


@pytest.mark.parametrize(
    ("suffix", "labels", "separator"),
    [
        ("csv", ["dog,cat", "", " cat "], ","),
        ("tsv", ["dog; cat", "", "cat"], ";"),
        ("jsonl", [["dog", "cat"], [], ["cat"]], ","),
        ("jsonl", ["cat|dog", "", "cat"], "|"),
        ("parquet", [["dog", "cat"], [], ["cat"]], ","),
    ],
)
def test_any_number_of_classes(suffix, labels, separator, folder):
    source = open_source(str(write(folder / f"t.{suffix}", labels)), form=replace(SEVERAL, separator=separator))
    assert source.classes == ["cat", "dog"]
    assert source.targets(np.arange(3)).tolist() == [[1, 1], [0, 0], [1, 0]]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the datasets library
@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_metadata_as_the_hubs(metadata, folder):
    write(folder / "images" / metadata, ["a", "b"], folder="")
    source = open_source(str(folder / "images"))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder / "images"), cache_dir=str(folder / "cache"))
    rows = loaded["train"].cast_column("image", datasets.Image(decode=False))
    assert [(row["image"]["path"], row["label"]) for row in rows] == list(zip(source.items, "ab", strict=True))
    gc.collect()


def test_metadata_in_the_folder_of_each_split(folder):
    for split, labels in {"train": ["a", "b"], "validation": ["b"], "test": ["a"]}.items():
        shutil.copytree(folder / "images", folder / "all" / split)
        write(folder / "all" / split / "metadata.csv", labels, folder="")
    source = open_source(str(folder / "all"))
    assert {name: source.labels[places].tolist() for name, places in source.splits.items()} == {
        "train": [0, 1], "val": [1], "test": [0],
    }  # fmt: skip
    assert source.items[source.splits["val"][0]] == str(folder / "all" / "validation" / "0.png")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_named_after_splits(suffix, folder):
    for first, (split, labels) in enumerate({"train": [1, 2, 3], "dev": [4], "test": [5, 6]}.items()):
        write(folder / f"{split}.{suffix}", labels, first=first)
    source = open_source(str(folder), form=REGRESSION)
    found = {name: source.targets(places).tolist() for name, places in source.splits.items()}
    assert found == {"train": [1, 2, 3], "val": [4], "test": [5, 6]}


def test_a_parquet_that_holds_images_is_read_as_before(folder):
    images = [{"bytes": (folder / "images" / f"{n}.png").read_bytes(), "path": None} for n in range(4)]
    rows = {"file_name": list("wxyz"), "image": images}
    datasets.Dataset.from_dict(rows | {"score": [0.5, 1, 2, 3]}).to_parquet(folder / "n.parquet")
    assert open_source(str(folder / "n.parquet"), form=REGRESSION).targets(np.arange(4)).tolist() == [0.5, 1, 2, 3]
    names = datasets.Features({"labels": datasets.Sequence(datasets.ClassLabel(names=["ant", "bee"]))})
    several = datasets.Dataset.from_dict({"labels": [[0, 1], [], [1], [0]]}, features=names)
    several.add_column("image", images).to_parquet(folder / "s.parquet")
    source = open_source(str(folder / "s.parquet"), form=SEVERAL)
    assert (source.classes, source.targets(np.arange(4)).tolist()) == (["ant", "bee"], [[1, 1], [0, 0], [0, 1], [1, 0]])


def test_folders_of_class_folders_are_numbers_and_classes_too(folder):
    for name in ("1.5", "2"):
        shutil.copytree(folder / "images", folder / "all" / name)
    assert set(open_source(str(folder / "all"), form=REGRESSION).targets(np.arange(16)).tolist()) == {1.5, 2.0}
    (folder / "all" / "1.5").rename(folder / "all" / "2,3")
    source = open_source(str(folder / "all"), form=SEVERAL)
    assert (source.classes, source.targets(np.array([0, 15])).tolist()) == (["2", "3"], [[1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("labels", "form", "expected"),
    [
        (["1", "two", "3"], REGRESSION, "row 2 has label 'two'; expected a number"),
        (["1", "nan", "3"], REGRESSION, "row 2 has no label; expected one in every row"),
        (["1", "1_000", "3"], REGRESSION, "row 2 has label '1_000'; expected a number"),
        (["1", "inf", "3"], REGRESSION, "row 2 has label 'inf'; expected a number"),
        (["1", "1e300", "3"], REGRESSION, "row 2 has label 1e+300; expected numbers up to"),
        (["1", "", "3"], REGRESSION, "row 2 has no label; expected one in every row"),
        (["a", "", "b"], LabelFormat(), "row 2 has no label"),
        (["a", "0.5", "b"], LabelFormat(), "row 2 has label 0.5; expected a name or a whole number"),
        (["a", "a"], LabelFormat(), "one class only"),
        (["a", "0.5"], SEVERAL, "row 2 has label 0.5"),
        (["", ""], SEVERAL, "holds no classes"),
        ([], REGRESSION, "holds no images"),
        (["1"], replace(REGRESSION, column="age"), "has no column 'age'; expected data.label to name some of"),
    ],
)
def test_wrong_labels_are_one_line(labels, form, expected, folder):
    assert expected in line_of(write(folder / "t.csv", labels), form=form)


@pytest.mark.parametrize("form", [REGRESSION, SEVERAL, LabelFormat()])
def test_a_list_without_a_label_is_one_line(form, folder):
    assert "row 2 has no label" in line_of(write(folder / "t.jsonl", ["1", None]), form=form)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("picture,label\n0.png,1\n", "has the columns picture, label; expected one of image files, named file_name"),
        ("image,name\n0.png,1\n", "has the columns image, name; expected label, or another that data.label names"),
        ("image,label\n0.png,1\n,2\n", "row 2 has no image, or not as many fields as the first line"),
        ("image,label\n0.png,1\n0.png\n", "row 2 has no image, or not as many fields as the first line"),
    ],
)
def test_wrong_tables_are_one_line(content, expected, folder):
    (folder / "t.csv").write_text(content)
    assert expected in line_of(folder / "t.csv")


def test_two_tables_of_metadata_are_one_line(folder):
    for name in ("metadata.csv", "metadata.jsonl"):
        write(folder / name, ["a", "b"])
    assert "has metadata.csv, metadata.jsonl; keep one of them" in line_of(folder)


def test_a_class_that_training_lacks_is_one_line(folder):
    write(folder / "train.csv", ["a", "a,b"])
    write(folder / "test.csv", ["b,c"])
    assert "class 'c' of" in line_of(folder, form=SEVERAL)
    assert "not one of the training classes: x, y" in line_of(folder, form=SEVERAL, classes=["x", "y"])


def test_other_data_is_tested_with_the_models_classes(folder):
    path = write(folder / "t.csv", ["b", "", "c,b"])
    source = open_source(str(path), classes=["c", "a", "b"], form=SEVERAL)
    assert source.targets(source.splits["test"]).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 1]]
    source = open_source(str(write(folder / "n.csv", [1, 2])), classes=[], form=REGRESSION)
    assert source.targets(source.splits["test"]).tolist() == [1, 2]
    assert not len(source.splits["train"])


def test_the_fingerprint_follows_labels_and_files_and_no_place(folder, tmp_path_factory):
    path = write(folder / "t.csv", [1, 2, 3])
    before = open_source(str(path), form=REGRESSION).fingerprint()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "all"
    shutil.copytree(folder, elsewhere)
    assert open_source(str(elsewhere / "t.csv"), form=REGRESSION).fingerprint() == before
    for labels, first in (([1, 2, 3.5], 0), ([1, 2, 3], 1)):
        write(path, labels, first=first)
        assert open_source(str(path), form=REGRESSION).fingerprint() != before


def test_batches_hold_numbers_or_a_column_a_class(folder, tmp_path):
    fields = {"image_size": 8, "channels": 1, "test_fraction": 0.25, "val_fraction": 0.125}
    numbers = open_images(
        ImageRegressionDataConfig(source=str(write(folder / "n.csv", range(8))), **fields),
        tmp_path / "splits.json",
        problem_type="regression",
    )
    assert {name: len(some) for name, some in numbers.splits.items()} == {"train": 5, "val": 1, "test": 2}
    assert (numbers.labels, "classes" in numbers.describe()) == ([], False)
    batches = [*numbers.train_batches(5, 0), *numbers.eval_batches("val", 1), *numbers.eval_batches("test", 2)]
    assert all(batch["labels"].dtype == torch.float32 and batch["labels"].ndim == 1 for batch in batches)
    images = torch.cat([batch["pixel_values"] for batch in batches])[:, 0, 0, 0]
    labels = torch.cat([batch["labels"] for batch in batches])
    assert sorted(labels.tolist()) == list(range(8))
    torch.testing.assert_close(images * 0.5 + 0.5, labels * 10 / 255)  # each number is still its image's
    write(folder / "n.csv", [*range(7), 99])
    with pytest.raises(GlocalError, match="is not the data that"):
        open_images(numbers.config, tmp_path / "splits.json", problem_type="regression")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_mixed_images_have_the_mean_of_their_classes(workers, folder):
    path = write(folder / "t.csv", ["a", "a,b", "", "b", "a,b", "", "b", "a"])
    config = MultiLabelImageDataConfig(source=str(path), image_size=8, channels=1, val_fraction=0.0, test_fraction=0.0)
    mixed = replace(config, augment=AugmentConfig(mixup=1.0), workers=workers)
    several = {"problem_type": "multi_label_classification"}
    (given,), (batch,) = (open_images(each, **several).train_batches(8, 0) for each in (config, mixed))
    pixels, images = (each["pixel_values"] for each in (given, batch))
    share = ((images - pixels.flip(0)) / (pixels - pixels.flip(0))).flatten()[0]
    assert 0 < share < 1
    torch.testing.assert_close(images, share * pixels + (1 - share) * pixels.flip(0), atol=1e-5, rtol=1e-5)
    expected = share * given["labels"] + (1 - share) * given["labels"].flip(0)
    torch.testing.assert_close(batch["labels"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)])
def test_numbers_are_not_mixed(augment):
    with pytest.raises(GlocalError, match="labels of image-regression are numbers: set both to 0"):
        ImageRegressionDataConfig(augment=augment)


@pytest.mark.parametrize("problem_type", [None, "regression", "multi_label_classification"])
def test_broken_and_missing_images_stop_the_run_or_are_left_out(problem_type, folder):
    path = write(folder / "t.csv", ["1", "2", "1", "2", "1", "2", "1", "2"])
    (folder / "images" / "3.png").write_bytes(b"none")
    (folder / "images" / "5.png").unlink()
    config = MultiLabelImageDataConfig(source=str(path), image_size=8, channels=1)
    with pytest.raises(GlocalError, match=r"images/[35]\.png cannot be read as an image"):
        open_images(config, problem_type=problem_type)
    images = open_images(replace(config, on_error="skip"), problem_type=problem_type)
    assert images.skipped == [str(folder / "images" / f"{number}.png") for number in (3, 5)]
    assert sorted(number for split in images.splits.values() for number in split) == [0, 1, 2, 4, 6, 7]


def test_a_table_to_predict_is_its_images(folder):
    path = write(folder / "t.csv", [1, 2])
    assert find_images(str(path)) == [folder / "images" / "0.png", folder / "images" / "1.png"]
