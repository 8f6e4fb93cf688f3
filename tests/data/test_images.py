"""Batches: pure functions of (seed, epoch, number), whole over the processes, unnoticed by the network's generators."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glocal.data import DEIT, LIGHT, AugmentConfig, DataConfig, Images, open_images
from glocal.data import memory as memory_room
from glocal.data.augment import borrowed_generators, seed_generators
from glocal.errors import GlocalError

# Python 3.12 and later warn of every fork of a process with threads, and torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

DIGITS = DataConfig(source="digits", image_size=8, channels=1)
EVERYTHING = replace(DEIT, crop="pad")


def photographs(root: Path, count: int = 24, size: tuple[int, int] = (40, 30)) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return root


def equal(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def plain(images: Images, **arguments) -> list[int]:
    """The indices of the images of a pass without augmentation, recognised by their pixels."""
    known = {
        images.transform(Image.fromarray(pixels)).numpy().tobytes(): i for i, pixels in enumerate(images.source.items)
    }
    return [known[x.numpy().tobytes()] for batch in images.train_batches(**arguments) for x in batch["pixel_values"]]


def test_shapes_and_types():
    images = open_images(DIGITS)
    batch = next(iter(images.train_batches(32, epoch=0)))
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((32, 1, 8, 8), torch.float32)
    assert (batch["labels"].shape, batch["labels"].dtype) == ((32,), torch.int64)
    mixed = next(iter(open_images(replace(DIGITS, augment=AugmentConfig(mixup=0.8))).train_batches(32, epoch=0)))
    assert (mixed["labels"].shape, mixed["labels"].dtype) == ((32, 10), torch.float32)
    assert torch.allclose(mixed["labels"].sum(dim=1), torch.ones(32))


def test_non_square_photographs(tmp_path):
    config = DataConfig(source=str(photographs(tmp_path)), image_size=(20, 12), crop_pct=0.9)
    for augment in (AugmentConfig(), LIGHT, DEIT):
        images = open_images(replace(config, augment=augment))
        assert next(iter(images.train_batches(4, epoch=0)))["pixel_values"].shape == (4, 3, 20, 12)
    assert images.transform(Image.new("RGB", (33, 50))).shape == (3, 20, 12)


def test_normalisation():
    images = open_images(replace(DIGITS, mean=(0.25,), std=(0.5,)))
    assert images.transform(Image.new("L", (8, 8), 255)).unique().tolist() == [1.5]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_from_the_middle_is_the_rest_of_the_whole(workers):
    images = open_images(replace(DIGITS, augment=EVERYTHING, workers=workers))
    whole = list(images.train_batches(128, epoch=3))
    alone = open_images(replace(DIGITS, augment=EVERYTHING))
    assert len(images.train_batches(128, epoch=3, start=7)) == len(whole) - 7
    assert equal(images.train_batches(128, epoch=3, start=7), whole[7:])
    assert equal(alone.train_batches(128, epoch=3), whole)
    next(iter(images.train_batches(128, epoch=4)))  # left early, as by early stopping
    assert equal(images.train_batches(128, epoch=3), whole)
    assert equal(images.eval_batches("val", 64), alone.eval_batches("val", 64))


def test_workers_leave_ctrl_c_to_the_training_process():
    images = open_images(replace(DIGITS, workers=1))
    known = set(multiprocessing.active_children())
    batches = iter(images.train_batches(32, epoch=0))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - known
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == len(images.train_batches(32, epoch=0)) - 1
    assert worker.is_alive()


BROKEN = """
from glocal.data import DataConfig, open_images
batches = iter(open_images(DataConfig(source="digits", image_size=8, channels=1, workers=1)).train_batches(32, epoch=0))
next(batches)
raise RuntimeError("something else broke")
"""


def test_workers_end_with_a_process_that_an_error_ends():
    """Which Python tells them by SIGTERM, and then waits for them for ever."""
    ended = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stderr.strip().endswith("RuntimeError: something else broke")
    assert ended.returncode == 1


def test_epochs_and_seeds_differ():
    images, other = open_images(DIGITS), open_images(replace(DIGITS, seed=1))
    first, second = plain(images, batch_size=32, epoch=0), plain(images, batch_size=32, epoch=1)
    assert first != second
    assert len(set(first)) == len(first)
    assert set(first) <= set(images.splits["train"])
    assert images.splits != other.splits


def test_training_over_processes_is_disjoint_whole_and_even():
    images = open_images(DIGITS)
    parts = [plain(images, batch_size=30, epoch=2, rank=rank, world_size=3) for rank in range(3)]
    assert {len(part) for part in parts} == {len(images.splits["train"]) // 90 * 30}
    together = [index for part in parts for index in part]
    assert len(set(together)) == len(together) > len(images.splits["train"]) - 90
    whole = plain(images, batch_size=90, epoch=2)
    assert set(together) == set(whole)
    assert set(whole[:90]) == {index for part in parts for index in part[:30]}  # step by step


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_evaluation_over_processes_sees_every_image_once(world_size):
    images = open_images(DIGITS)
    labels = [torch.cat([batch["labels"] for batch in images.eval_batches("test", 32, rank, world_size)])
              for rank in range(world_size)]  # fmt: skip
    assert sum(len(part) for part in labels) == len(images.splits["test"])
    for rank, part in enumerate(labels):
        assert part.tolist() == images.source.labels[images.splits["test"][rank::world_size]].tolist()


def test_repeated_augmentation_gives_copies_to_different_processes():
    images = open_images(replace(DIGITS, augment=AugmentConfig(repeats=3)))
    parts = [plain(images, batch_size=16, epoch=0, rank=rank, world_size=3) for rank in range(3)]
    assert parts[0] == parts[1] == parts[2]
    assert len(set(parts[0])) == len(parts[0])


def test_copies_are_augmented_differently():
    images = open_images(replace(DIGITS, augment=AugmentConfig(crop="pad", random_erasing=1.0, repeats=2)))
    pixels = next(iter(images.train_batches(16, epoch=0)))["pixel_values"]
    assert not torch.equal(pixels[0], pixels[1])


def test_the_networks_generators_are_left_alone():
    images = open_images(replace(DIGITS, augment=EVERYTHING))
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(images.train_batches(512, epoch=0))
    list(images.eval_batches("val", 64))
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    # Python's own generator cannot be watched over a whole pass here: beartype draws from it to check lists.
    state = random.getstate()
    with borrowed_generators():
        seed_generators(1, 2, 3)
    assert random.getstate() == state


def test_a_batch_is_never_larger_than_the_data_and_even_where_it_is_mixed(tmp_path):
    config = DataConfig(source=str(photographs(tmp_path, 30)), image_size=8, augment=AugmentConfig(mixup=0.8))
    images = open_images(config)
    assert len(images.splits["train"]) == 24
    assert [len(batch["labels"]) for batch in images.train_batches(64, epoch=0)] == [24]
    assert [len(batch["labels"]) for batch in images.train_batches(64, epoch=0, world_size=5)] == [4]
    with pytest.raises(GlocalError, match="leaves an empty batch; expected two images or more"):
        images.train_batches(64, epoch=0, world_size=13)


def test_the_split_file_decides(tmp_path):
    file = tmp_path / "splits.json"
    first = open_images(DIGITS, file)
    again = open_images(replace(DIGITS, seed=5, val_fraction=0.3), file)
    assert again.splits == first.splits
    assert open_images(replace(DIGITS, seed=5)).splits != first.splits


@pytest.mark.parametrize("limit", [memory_room.LIMIT, 0])
def test_broken_images(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(memory_room, "LIMIT", limit)
    root, file = photographs(tmp_path / "pets"), tmp_path / "splits.json"
    for name, content in {"cat/03.png": b"", "dog/10.png": (root / "dog" / "10.png").read_bytes()[:2000]}.items():
        (root / name).write_bytes(content)
    config = DataConfig(source=str(root), image_size=8, val_fraction=0.0, test_fraction=0.0)
    with pytest.raises(GlocalError, match=r"cat/03.png cannot be read as an image: it is empty|dog/10.png cannot"):
        list(open_images(replace(config)).train_batches(24, epoch=0))
    skipping = replace(config, on_error="skip")
    images = open_images(skipping, file)
    assert images.skipped == [str(root / "cat" / "03.png"), str(root / "dog" / "10.png")]
    assert sum(len(batch["labels"]) for batch in images.train_batches(22, epoch=0)) == 22
    assert open_images(skipping, file).skipped == images.skipped
    for path in root.glob("cat/*"):
        path.write_bytes(b"")
    with pytest.raises(GlocalError, match=r"class 'cat' of .* has no training image"):
        open_images(skipping)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_later_is_one_line(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(memory_room, "LIMIT", 0)
    root = photographs(tmp_path)
    images = open_images(DataConfig(source=str(root), image_size=8, workers=workers))
    (root / "dog" / "10.png").unlink()  # after twelve cats and five dogs
    (split,) = (name for name, indices in images.splits.items() if 17 in indices)
    batches = images.train_batches(2, epoch=0) if split == "train" else images.eval_batches(split, 2)
    with pytest.raises(GlocalError) as caught:
        list(batches)
    assert str(caught.value) == f"{root}/dog/10.png cannot be read as an image: no such file or directory"


def test_held_and_encoded_images_give_the_same_batches(tmp_path, monkeypatch):
    config = DataConfig(source=str(photographs(tmp_path)), image_size=16, augment=DEIT)
    held = open_images(config)
    monkeypatch.setattr(memory_room, "LIMIT", 0)
    encoded = open_images(config)
    assert isinstance(held.source.items[0], np.ndarray)
    assert isinstance(encoded.source.items[0], str)
    assert equal(held.train_batches(8, epoch=0), encoded.train_batches(8, epoch=0))


def test_a_split_without_images():
    with pytest.raises(GlocalError, match="digits has no val images; name a val set in it"):
        open_images(replace(DIGITS, val_fraction=0.0)).eval_batches("val", 8)


def test_other_data_for_a_trained_model(tmp_path):
    images = open_images(DataConfig(source=str(photographs(tmp_path)), image_size=8), classes=["cow", "dog", "cat"])
    labels = torch.cat([batch["labels"] for batch in images.eval_batches("test", 5)])
    assert labels.bincount().tolist() == [0, 12, 12]


def test_images_that_are_training_images_too_are_counted(tmp_path, monkeypatch):
    photographs(tmp_path / "data" / "train", 4)
    for split, same, other in (("val", 2, 1), ("test", 1, 0)):
        photographs(tmp_path / "data" / split, same)
        for number in range(other):
            image = Image.new("RGB", (9, 9), (number, 7, 7))
            image.save(next((tmp_path / "data" / split).iterdir()) / f"other-{number}.png")
    config = DataConfig(str(tmp_path / "data"), 16)
    images = open_images(config)
    assert "3 to validate (2 of them in training, too), 1 to test (1 of them in training, too)" in images.describe()
    assert images.report == {"images": 8, "skipped": [], "val_in_training": 2, "test_in_training": 1}
    monkeypatch.setattr(memory_room, "LIMIT", 0)
    assert open_images(config).report == {"images": 8, "skipped": []}  # images that stay on the disk are not compared
