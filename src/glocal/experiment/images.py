"""Images and their classes: a model, its data and its task, each fitted to the others."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from glocal.data import DataConfig, Images, open_data
from glocal.errors import GlocalError
from glocal.inference import count, figures
from glocal.models import Model, create_model, load_model
from glocal.recipes import ImageRecipe
from glocal.tasks import Classification, ClassificationConfig
from glocal.training import RunFolder, evaluate, open_accelerator, this_process


class Job:
    """What a recipe asks for, ready to be trained."""

    speak = None

    def __init__(self, recipe: ImageRecipe, run: RunFolder) -> None:
        self.model, self.data = assemble(recipe, run)
        self.task = Classification(recipe.task, len(self.data.classes), build_teacher(recipe, self.data))

    def report(self) -> dict[str, Any]:
        """What the report says of this kind of job."""
        macs = count(self.model, self.data.image_size, self.data.channels).macs
        return {"macs": macs, "image_size": self.data.image_size, "skipped": self.data.skipped}

    def save(self, run: RunFolder) -> None:
        """Nothing is needed beside the model."""


def test(recipe: ImageRecipe, folder: RunFolder, source: str | None) -> dict[str, Any]:
    """Return what `tasks.Classification` measures, and draw the confusion matrix."""
    model = load_model(folder.path)
    config = prepared_as(recipe.data, model)
    if source is None:
        images = open_data(config, folder.splits)
    else:
        images = open_data(replace(config, source=source), classes=model.labels)
    task = Classification(ClassificationConfig(), len(images.classes))
    accelerator = open_accelerator(recipe.train.precision)
    batches = images.eval_batches(
        "test", recipe.train.batch_size, rank=accelerator.process_index, world=accelerator.num_processes
    )
    metrics = evaluate(model, task, batches, accelerator)
    metrics |= {"examples": len(images.splits["test"]), "source": str(images.config.source), "labels": images.classes}
    if accelerator.is_main_process:
        confusion = figures.confusion_matrix(np.array(metrics["confusion"]), images.classes)
        confusion.savefig(folder.figures / "confusion.png")
    return metrics


def assemble(recipe: ImageRecipe, run: RunFolder) -> tuple[Model, Images]:
    """Build the recipe's model and open its data, each fitted to the other.

    The data decides channels, resolution and classes. A model that was trained before (`model.from`) decides how pixels
    are scaled; its head stays where it knows the same classes in the same order, and starts anew elsewhere.
    """
    fields = dict(recipe.model)
    name, start = fields.pop("name", None), fields.pop("from", None)
    if name is None and start is None:
        raise GlocalError("the recipe names no model; give model.name (`glocal list models`) or --from RUN")
    given = load_model(start) if start else None
    with this_process().main_process_first():  # the first process writes the splits that the others read
        images = open_data(prepared_as(recipe.data, given) if given else recipe.data, run.splits)
    fields |= input_of(images)
    if given is None:
        model = create_model(name, **fields, num_classes=len(images.classes))
    elif given.labels == images.classes:
        model = load_model(start, **fields)
    else:
        model = load_model(start, **fields, num_classes=len(images.classes), excuse=given.head_names())
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
    known = model.preprocessing or {}
    if config.mean is not None or len(known.get("mean", ())) != config.channels:
        return config
    return replace(config, mean=tuple(known["mean"]), std=tuple(known["std"]))
