"""Images and their classes: a model, its data and its task, each fitted to the others."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from glocal.data import DataConfig, Images, open_data
from glocal.data.splits import describe_splits
from glocal.errors import shortened
from glocal.experiment.origin import Origin
from glocal.inference import count, figures
from glocal.models import Model, create_model, load_model
from glocal.models.loading import adapt_preprocessing
from glocal.ops import Precision
from glocal.recipes import ImageRecipe
from glocal.tasks import Classification, ClassificationConfig
from glocal.training import RunFolder, evaluate, open_accelerator, this_process


class Job:
    """What a recipe asks for, ready to be trained."""

    speak = None

    def __init__(self, recipe: ImageRecipe, run: RunFolder) -> None:
        self.model, self.data = assemble(recipe, run)
        self.task = Classification(recipe.task, len(self.data.classes), build_teacher(recipe, self.data))

    def describe(self) -> str:
        """Count the images and their classes."""
        sizes = {split: len(images) for split, images in self.data.splits.items()}
        return f"{self.data.source.name}: {describe_splits(sizes, 'images')}, in {len(self.data.classes)} classes"

    def report(self) -> dict[str, Any]:
        """What the report says of this kind of job."""
        macs = count(self.model, self.data.image_size, self.data.channels).macs
        return {"macs": macs, "image_size": self.data.image_size, "skipped": self.data.skipped}

    def save(self, folder: Path) -> None:
        """Nothing is needed beside the model."""

    @staticmethod
    def test(recipe: ImageRecipe, folder: RunFolder, source: str | None, precision: Precision | None) -> dict[str, Any]:
        """Return what `tasks.Classification` measures, and draw the confusion matrix."""
        model = load_model(folder.path)
        config = prepared_as(recipe.data, model)
        if source is None:
            images = open_data(config, folder.splits)
        else:
            images = open_data(replace(config, source=source), classes=model.labels)
        task = Classification(ClassificationConfig(), len(images.classes))
        accelerator = open_accelerator("float32" if precision else recipe.train.precision)
        batches = images.eval_batches(
            "test", recipe.train.batch_size, rank=accelerator.process_index, world=accelerator.num_processes
        )
        metrics = evaluate(model, task, batches, accelerator, precision)
        metrics |= {
            "examples": len(images.splits["test"]),
            "source": str(images.config.source),
            "labels": images.classes,
        }
        if accelerator.is_main_process:
            confusion = figures.confusion_matrix(np.array(metrics["confusion"]), images.classes)
            figures.save(confusion, folder.figures / "confusion.png")
        return metrics

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """Each class, and all of them together."""
        yield f"{test['examples']} test images"
        yield from by_class(test)
        yield f"confusion matrix: {run.figures / 'confusion.png'}"


def by_class(test: dict[str, Any]) -> Iterator[str]:
    """Say how good a classifier is, class by class and altogether."""
    labels = [shortened(label, 40) for label in test["labels"]]
    width = max(map(len, ["class", *labels])) + 2
    yield f"{'class':{width}}precision   recall       F1"
    for label, *scores in zip(labels, test["precision"], test["recall"], test["f1"], strict=True):
        yield f"{label:{width}}" + "".join(f"{score:9.3f}" for score in scores)
    for name in ("top1", "top5"):
        if name in test:
            yield f"{name} {test[name]:.2%}"
    yield f"macro F1 {test['macro_f1']:.4f}, Matthews correlation {test['matthews']:.4f}"


def assemble(recipe: ImageRecipe, run: RunFolder) -> tuple[Model, Images]:
    """Build the recipe's model and open its data, each fitted to the other.

    The data decides channels, resolution and classes. A model that was trained before (`model.from`) decides how pixels
    are scaled; its head stays where it knows the same classes in the same order, and starts anew elsewhere.
    """
    name, start, fields = Origin.of(recipe)
    given = load_model(start) if start is not None else None
    with this_process().main_process_first():  # the first process writes the splits that the others read
        images = open_data(prepared_as(recipe.data, given) if given else recipe.data, run.splits)
    fields = fields | input_of(images)
    if given is None or start is None:
        model = create_model(str(name), **fields, num_classes=len(images.classes))
    elif given.labels == images.classes:
        model = load_model(start, **fields)
    else:
        model = load_model(start, **fields, num_classes=len(images.classes), ignore_keys=given.head_names())
    model.labels, model.preprocessing = images.classes, asdict(images.preprocessing)
    return model, images


def build_teacher(recipe: ImageRecipe, images: Images) -> Model | None:
    """Return the network that the student imitates: a run, a folder, a hub id, or `timm:NAME` with its own weights."""
    name = recipe.task.teacher
    if name is None:
        return None
    if name.startswith("timm:"):
        return create_model(name, pretrained=True, **input_of(images))
    return load_model(name, image_size=images.image_size)


def input_of(images: Images) -> dict[str, Any]:
    """Return what a model must be built for to take these images."""
    return {"image_size": images.image_size, "in_chans": images.channels}


def prepared_as(config: DataConfig, model: Model) -> DataConfig:
    """Scale pixels as a trained model is used to, unless the recipe says otherwise."""
    if config.mean is not None or model.preprocessing is None:
        return config
    known = adapt_preprocessing(model.preprocessing, replace(model.config, in_chans=config.channels))
    return replace(config, mean=tuple(known["mean"]), std=tuple(known["std"]))
