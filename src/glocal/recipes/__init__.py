"""A recipe is one experiment: a YAML file of a few sections, each the config of one package.

Which fields the sections `data` and `task` have follows from the task's name.
Any field is overridden by its dotted name, on the command line as `--train.epochs 3` and in Python as
`{"train.epochs": 3}`. Unknown fields and values of the wrong type are errors.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader

from glocal.errors import GlocalError, check_path
from glocal.files import JSONObject
from glocal.generation import DecodingConfig
from glocal.models.config import SHAPE
from glocal.search.config import SearchConfig
from glocal.tasks import TASKS, AnyTaskSpec
from glocal.training import TrainConfig


@dataclass(frozen=True)
class RunConfig:
    """Where the run is kept."""

    dir: str | None = None
    """The run folder; without it, runs/RECIPE-TIME."""


@dataclass(frozen=True)
class Recipe:
    """One experiment, resolved. The task's name decides which fields `data` and `task` have."""

    model: JSONObject
    """`name` of a model and any field of its config; or `from`, a run, a folder or a hub id to fine-tune."""
    data: Any
    """The training data: the config of the task's data."""
    task: Any
    """The objective: the config of the task."""
    train: TrainConfig = TrainConfig()
    """The optimisation."""
    decoding: DecodingConfig | None = None
    """How text is generated, in tests and in the log, for tasks that generate text."""
    search: SearchConfig | None = None
    """The architecture search of `glocal search`, for tasks that need no pre-trained model."""
    run: RunConfig = RunConfig()
    """Where the run is kept."""
    name: str = "recipe"
    """The recipe's name, for the run folder."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,100}", self.name) or self.name in (".", ".."):
            raise GlocalError(f"name {self.name!r} of a recipe; expected a name that a folder can have")

    @property
    def spec(self) -> AnyTaskSpec:
        """The task."""
        return TASKS[self.task.name]

    def to_yaml(self) -> str:
        """Return the text that `load_recipe` reads back to an equal recipe."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        if fields.get("search") == asdict(SearchConfig()):
            del fields["search"]
        return yaml.dump(json.loads(json.dumps(fields)), Dumper=Dumper, sort_keys=False)


SECTIONS = ("model", "data", "task", "train", "search", "decoding", "run")
LENGTHS = ("epochs", "steps", "minutes")
"""Fields of which a training has one."""
MAX_VALUES = 10_000
"""Values of the largest recipe."""
PLAIN = {
    "null": r"|~|null|Null|NULL",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
"""How a word without quotes is written that is no text."""


class Loader(yaml.SafeLoader):
    """Reads YAML by the rule of version 1.2, where truth values are true and false, and numbers are decimal.

    By the rule of version 1.1, PyYAML's own, the language `no` is a truth value, the name 12:30 is 750, and 1e-4 a
    text.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012


class Dumper(yaml.SafeDumper):
    """Writes YAML that the rules of both versions read alike: what either takes for no text is in quotes."""


for _kind, _pattern in PLAIN.items():
    for _each in (Loader, Dumper):
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"({_pattern})$"), None)


def read_yaml(text: str) -> object:
    """Return what a YAML text holds. Raises ValueError if it is none, or its values nest too deeply."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None


set_loader("recipe", read_yaml, (ValueError,))


def list_recipes() -> dict[str, str]:
    """Every shipped recipe and the first line of its header."""
    files = sorted(Path(str(resources.files(__name__))).glob("*.yaml"))
    return {file.stem: file.read_text().splitlines()[0].lstrip("# ") for file in files}


def load_recipe(recipe: str | Path, overrides: Mapping[str, object] | Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or any YAML file, with fields overridden by their dotted names.

    A model named in `overrides` comes alone: the recipe's other model fields belong to the model they were written for.
    So does an architecture: its file takes the place of all that the recipe says of blocks. A length (epochs, steps or
    minutes) takes the place of the recipe's own, and of fewer epochs than the recipe averages, all are averaged.
    """
    path = find_recipe(recipe)
    fields = read_fields(path)
    if isinstance(overrides, Mapping):
        try:
            overrides = [
                f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()
            ]
        except (TypeError, ValueError) as error:
            raise GlocalError(f"a field of recipe {path.stem} was given what YAML cannot write: {error}") from None
    if odd := [word for word in overrides if "\0" in word]:
        raise GlocalError(f"{odd[0]} of recipe {path.stem} has a NUL character, which no value has")
    given = {word.split("=")[0] for word in overrides}
    model, task = fields.get("model", {}), fields.get("task", {}).get("name", "image-classification")
    if given & {"--model.name", "--model.from"}:
        fields["model"] = {}
    if "--model.arch" in given:
        fields["model"] = {name: value for name, value in model.items() if name not in SHAPE}
    spec = TASKS.get(str(task))
    if spec is None:
        raise GlocalError(f"recipe {path.stem}: unknown task {task!r}; known are {', '.join(TASKS)}")
    fields["task"] = {"name": spec.name} | fields.get("task", {})
    parser = recipe_parser(spec.name)
    try:
        config = parser.parse_object({"name": path.stem} | fields)
        config = parser.parse_args(list(overrides), namespace=config)
        for section in ("train", "search.supernet"):
            names = [f"{section}.{length}" for length in LENGTHS]
            lengths = [name for name in names if f"--{name}" in given and config[name] is not None]
            if len(lengths) == 1:
                for name in set(names) - set(lengths):
                    config[name] = None
        if "--train.epochs" in given and config["train.epochs"] and "--train.average" not in given:
            config["train.average"] = min(config["train.average"], config["train.epochs"])
        return Recipe(**vars(parser.instantiate(config)))
    except (ArgumentError, TypeError) as error:
        known = {f"--{name}" for name, _ in parser.get_defaults().items()}
        near = [name for word in given - known for name in difflib.get_close_matches(word, known, n=1, cutoff=0.8)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise GlocalError(f"recipe {path.stem}: {' '.join(str(error).split())}{hint}") from None


def is_given(field: str, recipe: str | Path, overrides: Mapping[str, object] | Sequence[str] = ()) -> bool:
    """Whether a field's value is the user's, by an override or a recipe of theirs, and not a shipped recipe's."""
    if field in {word.split("=")[0].removeprefix("--") for word in overrides}:
        return True
    section, _, name = field.partition(".")
    path = find_recipe(recipe)
    return path.parent != Path(str(resources.files(__name__))) and name in read_fields(path).get(section, {})


def read_fields(path: Path) -> JSONObject:
    """Read a recipe's sections. Raises GlocalError if the file is no YAML, or holds something else.

    Aliases can make a small file arbitrarily large, so the expanded values are counted first.
    """
    try:
        fields = read_yaml(path.read_text(encoding="utf-8"))
        size = expanded_size(fields)
    except (ValueError, RecursionError) as error:
        raise GlocalError(f"{path} is not YAML: {error}; expected text in UTF-8, with sections") from None
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name, {}), dict) for name in SECTIONS):
        raise GlocalError(f"{path} holds no recipe; expected sections {', '.join(SECTIONS)}, each with its fields")
    if size > MAX_VALUES:
        raise GlocalError(f"{path} has {size:,.0f} values, its aliases expanded; a recipe has at most {MAX_VALUES:,}")
    return fields


def expanded_size(value: object, known: dict[int, float] | None = None) -> float:
    """How many values a YAML value has with every alias written out; inf where one holds itself."""
    known = {} if known is None else known
    if not isinstance(value, dict | list):
        return 1.0
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is counted: what is met again before then holds itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1.0 + sum(expanded_size(part, known) for part in parts)
    return known[id(value)]


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe given by name or by path."""
    check_path(recipe, "a shipped recipe's name, or a YAML file")
    shipped = Path(str(resources.files(__name__))) / f"{recipe}.yaml"
    if shipped.is_file():
        return shipped
    if Path(recipe).is_file():
        return Path(recipe)
    near = difflib.get_close_matches(str(recipe), list_recipes(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`glocal list recipes` names them"
    raise GlocalError(f"no recipe {str(recipe)!r}: neither a shipped one nor a YAML file; {hint}")


@cache
def recipe_parser(task: str) -> ArgumentParser:
    """Return the parser of every field of a task's recipes."""
    spec = TASKS[task]
    parser = ArgumentParser(
        prog="glocal train|search RECIPE", exit_on_error=False, allow_abbrev=False, parser_mode="recipe"
    )
    parser.add_argument("--model", type=JSONObject, required=True)
    parser.add_class_arguments(spec.data, "data")
    parser.add_class_arguments(spec.config, "task")
    parser.add_class_arguments(TrainConfig, "train")
    if spec.decoding is not None:
        parser.add_class_arguments(DecodingConfig, "decoding")
        parser.set_defaults({f"decoding.{name}": value for name, value in asdict(spec.decoding).items()})
    if not spec.needs_pretrained:
        parser.add_class_arguments(SearchConfig, "search")
    parser.add_class_arguments(RunConfig, "run")
    parser.add_argument("--name", type=str, default="recipe")
    return parser


def read_decoding(words: Sequence[str]) -> DecodingConfig:
    """Read `--decoding.FIELD VALUE` words, as a recipe's overrides are."""
    parser = ArgumentParser(prog="glocal predict", exit_on_error=False, allow_abbrev=False, parser_mode="recipe")
    parser.add_class_arguments(DecodingConfig, "decoding")
    try:
        return parser.instantiate(parser.parse_args(list(words))).decoding
    except (ArgumentError, TypeError) as error:
        raise GlocalError(" ".join(str(error).split())) from None
