"""The model of a recipe: fresh weights of a named size, or a model that was trained before, fitted to the data."""

from dataclasses import asdict, replace
from typing import NamedTuple

from glocal.data import Images
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.files import JSONObject
from glocal.models import NAMED_CONFIGS, Model, create_model, load_model
from glocal.models.folders import find_folder, read_config
from glocal.recipes import Recipe
from glocal.tasks.spec import TaskData
from glocal.tasks.text_predictor import check_vocabulary
from glocal.training import RunFolder, this_process
from glocal.training.interfaces import Objective


class ModelSource(NamedTuple):
    """A recipe's section `model`, taken apart."""

    name: str | None
    """A named size."""
    start: str | None
    """A run, a folder or a hub id to fine-tune; it overrides the name."""
    fields: JSONObject
    """Fields of the model's config to change."""

    @staticmethod
    def of(recipe: Recipe) -> "ModelSource":
        """Read the section. Raises GlocalError if it names neither a size nor a model."""
        fields = dict(recipe.model)
        name, start = fields.pop("name", None), fields.pop("from", None)
        if name is None and start is None:
            raise GlocalError("the recipe names no model; give model.name (`glocal list models`) or --from RUN")
        return ModelSource(name, start, fields)

    def build(self, tokenizer: Tokenizer, **fitting: object) -> Model:
        """Build or load a text model for a vocabulary, with the fields `fitting` that the task decides."""
        if self.start is not None:
            model = load_model(self.start, **self.fields | fitting)
            check_vocabulary(tokenizer, model)
            return model
        _, config = NAMED_CONFIGS.get(str(self.name), (None, None))
        tokens = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id") if hasattr(config, name)}
        return create_model(str(self.name), **tokens | self.fields | fitting, vocab_size=tokenizer.vocab_size)


class Trainable(NamedTuple):
    """What `training.fit` needs, fitted to each other."""

    model: Model
    data: TaskData
    objective: Objective


def prepare(recipe: Recipe, run: RunFolder) -> Trainable:
    """Return the recipe's model, its data and its objective; splits and tokenizer are written into the run."""
    build = build_image_model if recipe.spec.modality == "image" else build_text_model
    model, data = build(recipe, run)
    return Trainable(model, data, recipe.spec.objective(recipe.task, data, load_teacher(recipe, data)))


def build_image_model(recipe: Recipe, run: RunFolder) -> tuple[Model, Images]:
    """Return an image model and its images.

    The data decides channels, resolution and classes. A model that was trained before decides how pixels are scaled;
    its head stays where it has the same classes in the same order, and its outputs mean the same; else it starts anew.
    """
    spec = recipe.spec
    name, start, fields = ModelSource.of(recipe)
    given = load_model(start) if start is not None else None
    with this_process().main_process_first():  # the first process writes the splits that the others read
        images = spec.open_data(recipe.data, run.path, model=given)
    assert isinstance(images, Images)
    fields = fields | input_fields(images)
    labels, outputs = images.labels or None, len(images.labels) or spec.num_outputs
    meaning = labels, outputs, spec.problem_type
    if given is None or start is None:
        model = create_model(str(name), **fields, num_classes=outputs)
    elif (given.labels, given.config.num_classes, given.problem_type) == meaning:
        model = load_model(start, **fields)
    else:
        model = load_model(start, **fields, num_classes=outputs, ignore_keys=given.head_names())
    model.labels, model.problem_type, model.preprocessing = labels, spec.problem_type, asdict(images.preprocessing)
    return model, images


def build_text_model(recipe: Recipe, run: RunFolder) -> tuple[Model, TaskData]:
    """Return a text model and its data.

    A model that was trained before brings its tokenizer; without one the data learns a vocabulary. The model's head is
    the task's, and starts anew where the model had other classes, or its outputs another meaning.
    """
    spec, source = recipe.spec, ModelSource.of(recipe)
    if spec.needs_pretrained and source.start is None and not Tokenizer.is_in(run.path):
        raise GlocalError(
            f"{recipe.name} fine-tunes a pre-trained model with its tokenizer; give --from RUN, or with a folder or a "
            "hub id"
        )
    with this_process().main_process_first():  # the first process learns the vocabulary that the others read
        if source.start is not None and not Tokenizer.is_in(run.path):
            Tokenizer.load(find_folder(source.start)).save(run.path)
        tokenizer = Tokenizer.load(run.path) if Tokenizer.is_in(run.path) else None
        data = spec.open_data(recipe.data, run.path, tokenizer)
    fitting: JSONObject = {}
    if spec.head != "translation":
        fitting = {"head": spec.head, "num_classes": len(data.labels) or spec.num_outputs}
    model = source.build(data.tokenizer, **fitting)
    meaning = data.labels or None, spec.problem_type
    if (model.labels, model.problem_type) not in ((None, None), meaning):
        model = source.build(data.tokenizer, **fitting, ignore_keys="head.classifier.*")
    model.labels, model.problem_type = meaning
    check_length(model, recipe.data.max_length)
    return model, data


def check_length(model: Model, max_length: int) -> None:
    """Raise GlocalError if the data makes longer rows than the model has positions for."""
    longest = getattr(model.config, "max_length", max_length)
    if max_length > longest:
        raise GlocalError(
            f"data.max_length is {max_length}, and the model has {longest} positions; set data.max_length to "
            f"{longest} or less"
        )


def fit_length(recipe: Recipe) -> tuple[Recipe, str | None]:
    """Lower `data.max_length` to the positions of the pre-trained model, and return a line that says so, or None.

    It applies to the recipe's own length; one that the user gives is refused where the model is shorter.
    """
    start = recipe.model.get("from")
    if start is None or not hasattr(recipe.data, "max_length"):
        return recipe, None
    longest = recipe.model.get("max_length", read_config(start).get("max_length"))
    if not isinstance(longest, int) or isinstance(longest, bool) or longest >= recipe.data.max_length:
        return recipe, None
    line = f"data: rows of {longest} tokens, the positions of {start}, instead of the recipe's {recipe.data.max_length}"
    return replace(recipe, data=replace(recipe.data, max_length=longest)), line


def load_teacher(recipe: Recipe, data: TaskData) -> Model | None:
    """Return the model to distil: a run, a folder, a hub id, or `timm:NAME` with its own weights; None without one."""
    name: str | None = getattr(recipe.task, "teacher", None)
    if name is None:
        return None
    if not isinstance(data, Images):
        return load_model(name)
    if name.startswith("timm:"):
        return create_model(name, pretrained=True, **input_fields(data))
    return load_model(name, image_size=data.image_size)


def input_fields(images: Images) -> JSONObject:
    """Return the fields of a model's config that the images decide."""
    return {"image_size": images.image_size, "in_chans": images.channels}
