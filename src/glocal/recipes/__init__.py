"""A recipe is one experiment: a YAML file of five sections, each the config of the room that reads it.

Any field is overridden by its dotted name, on the command line as `--train.epochs 3` and in Python as
`{"train.epochs": 3}`. Unknown fields and values of the wrong type are errors.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from glocal.data import DataConfig
from glocal.errors import GlocalError
from glocal.models.config import SHAPE
from glocal.search.config import SearchConfig
from glocal.tasks import ClassificationConfig
from glocal.training import TrainConfig


@dataclass(frozen=True)
class RunConfig:
    """Where the run is kept."""

    dir: str | None = None
    """The run folder; without it, runs/RECIPE-TIME."""


@dataclass(frozen=True)
class Recipe:
    """One experiment, resolved."""

    model: dict[str, Any]
    """`name` of a model and any field of its config; or `from`, a run, a folder or a hub id to fine-tune."""
    data: DataConfig = DataConfig()
    """What it learns from."""
    task: ClassificationConfig = ClassificationConfig()
    """What it is asked to do."""
    train: TrainConfig = TrainConfig()
    """How it learns."""
    search: SearchConfig = SearchConfig()
    """How its architecture is searched for, by `glocal search`."""
    run: RunConfig = RunConfig()
    """Where the run is kept."""
    name: str = "recipe"
    """The recipe's name, for the run folder."""

    def to_yaml(self) -> str:
        """Return the text that `load_recipe` reads back to an equal recipe."""
        fields = {
            name: value for name, value in asdict(self).items() if name != "search" or self.search != SearchConfig()
        }
        return yaml.safe_dump(json.loads(json.dumps(fields)), sort_keys=False)


def list_recipes() -> dict[str, str]:
    """Every shipped recipe and the first line of its header."""
    files = sorted(Path(str(resources.files(__name__))).glob("*.yaml"))
    return {file.stem: file.read_text().splitlines()[0].lstrip("# ") for file in files}


def load_recipe(recipe: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or any YAML file, with fields overridden by their dotted names.

    A model named in `overrides` comes alone: the recipe's other model fields belong to the model they were written for.
    So does an architecture: its file takes the place of all that the recipe says of blocks.
    """
    path = find_recipe(recipe)
    try:
        fields = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise GlocalError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise GlocalError(f"{path} holds no recipe; expected sections model, data, task, train")
    if isinstance(overrides, Mapping):
        overrides = [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()
        ]
    given = {word.split("=")[0] for word in overrides}
    if given & {"--model.name", "--model.from"}:
        fields["model"] = {}
    if "--model.arch" in given:
        fields["model"] = {name: value for name, value in fields["model"].items() if name not in SHAPE}
    parser = recipe_parser()
    try:
        config = parser.parse_object({"name": path.stem} | fields)
        config = parser.parse_args(list(overrides), namespace=config)
        return Recipe(**vars(parser.instantiate(config)))
    except (ArgumentError, TypeError) as error:
        raise GlocalError(f"recipe {path.stem}: {' '.join(str(error).split())}") from None


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe given by name or by path."""
    shipped = Path(str(resources.files(__name__))) / f"{recipe}.yaml"
    if shipped.is_file():
        return shipped
    if Path(recipe).is_file():
        return Path(recipe)
    near = difflib.get_close_matches(str(recipe), list_recipes(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`glocal list recipes` names them"
    raise GlocalError(f"no recipe {str(recipe)!r}: neither a shipped one nor a YAML file; {hint}")


def recipe_parser() -> ArgumentParser:
    """Return the parser of every field of a recipe; its help lists them all."""
    parser = ArgumentParser(prog="glocal train RECIPE", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Recipe, as_group=False)
    return parser
