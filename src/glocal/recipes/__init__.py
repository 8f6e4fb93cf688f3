"""A recipe is one experiment: a YAML file of a few sections, each the config of the room that reads it.

Which sections there are follows from the task's name: `RECIPES` are the kinds.
Any field is overridden by its dotted name, on the command line as `--train.epochs 3` and in Python as
`{"train.epochs": 3}`. Unknown fields and values of the wrong type are errors.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader

from glocal.data import DataConfig
from glocal.data.text import (
    CompletionsConfig,
    CorpusConfig,
    MaskedCorpusConfig,
    PairsConfig,
    QuestionsConfig,
    SentencesConfig,
    TaggedConfig,
)
from glocal.errors import GlocalError, check_path
from glocal.inference.decoding import DecodingConfig
from glocal.models.config import SHAPE
from glocal.search.config import SearchConfig
from glocal.tasks import (
    CausalConfig,
    ClassificationConfig,
    MaskedConfig,
    SpansConfig,
    TaggingConfig,
    TranslationConfig,
)
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
    train: TrainConfig = TrainConfig()
    """How it learns."""
    run: RunConfig = RunConfig()
    """Where the run is kept."""
    name: str = "recipe"
    """The recipe's name, for the run folder."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,100}", self.name) or self.name in (".", ".."):
            raise GlocalError(f"name {self.name!r} of a recipe; expected a name that a folder can have")

    def to_yaml(self) -> str:
        """Return the text that `load_recipe` reads back to an equal recipe."""
        fields = asdict(self)
        if fields.get("search") == asdict(SearchConfig()):
            del fields["search"]
        return yaml.dump(json.loads(json.dumps(fields)), Dumper=Dumper, sort_keys=False)


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """Images and their classes."""

    data: DataConfig = DataConfig()
    """What it learns from."""
    task: ClassificationConfig = ClassificationConfig()
    """What it is asked to do."""
    search: SearchConfig = SearchConfig()
    """How its architecture is searched for, by `glocal search`."""


@dataclass(frozen=True)
class TranslationRecipe(Recipe):
    """Sentences and their translations."""

    data: PairsConfig = PairsConfig()
    """What it learns from."""
    task: TranslationConfig = TranslationConfig()
    """What it is asked to do."""
    decoding: DecodingConfig = DecodingConfig()
    """How it is asked, in tests and in the progress log."""


@dataclass(frozen=True)
class MaskedRecipe(Recipe):
    """Documents, for BERT to be pre-trained on."""

    data: MaskedCorpusConfig = MaskedCorpusConfig()
    """What it learns from."""
    task: MaskedConfig = MaskedConfig()
    """What it is asked to do."""


@dataclass(frozen=True)
class CausalRecipe(Recipe):
    """Documents, for GPT to be pre-trained or trained further on."""

    data: CorpusConfig = CorpusConfig()
    """What it learns from."""
    task: CausalConfig = CausalConfig()
    """What it is asked to do."""


@dataclass(frozen=True)
class SentencesRecipe(Recipe):
    """Sentences, or pairs of them, and their classes."""

    data: SentencesConfig = SentencesConfig()
    """What it learns from."""
    task: ClassificationConfig = ClassificationConfig("text-classification")
    """What it is asked to do."""


@dataclass(frozen=True)
class TaggedRecipe(Recipe):
    """Sentences of words, and their tags."""

    data: TaggedConfig = TaggedConfig()
    """What it learns from."""
    task: TaggingConfig = TaggingConfig()
    """What it is asked to do."""


@dataclass(frozen=True)
class QuestionsRecipe(Recipe):
    """Questions, and where their answers stand."""

    data: QuestionsConfig = QuestionsConfig()
    """What it learns from."""
    task: SpansConfig = SpansConfig()
    """What it is asked to do."""


@dataclass(frozen=True)
class CompletionsRecipe(Recipe):
    """Prompts, and what is to be written after each."""

    data: CompletionsConfig = CompletionsConfig()
    """What it learns from."""
    task: CausalConfig = CausalConfig("completion")
    """What it is asked to do."""
    decoding: DecodingConfig = DecodingConfig(beams=1)
    """How it is asked, in tests."""


RECIPES: dict[str, type[Recipe]] = {
    "classification": ImageRecipe,
    "translation": TranslationRecipe,
    "masked": MaskedRecipe,
    "causal": CausalRecipe,
    "text-classification": SentencesRecipe,
    "tagging": TaggedRecipe,
    "spans": QuestionsRecipe,
    "completion": CompletionsRecipe,
}
"""By the task's name."""


SECTIONS = ("model", "data", "task", "train", "search", "decoding", "run")
LENGTHS = ("train.epochs", "train.steps", "train.minutes")
"""Fields of which a recipe has one."""
LARGEST = 10_000
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


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds. Raises ValueError where it is none, or its values nest too deeply."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None


set_loader("recipe", read_yaml, (ValueError,))


def list_recipes() -> dict[str, str]:
    """Every shipped recipe and the first line of its header."""
    files = sorted(Path(str(resources.files(__name__))).glob("*.yaml"))
    return {file.stem: file.read_text().splitlines()[0].lstrip("# ") for file in files}


def load_recipe(recipe: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
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
    model, task = fields.get("model", {}), fields.get("task", {}).get("name", "classification")
    if given & {"--model.name", "--model.from"}:
        fields["model"] = {}
    if "--model.arch" in given:
        fields["model"] = {name: value for name, value in model.items() if name not in SHAPE}
    kind = RECIPES.get(str(task))
    if kind is None:
        raise GlocalError(f"recipe {path.stem}: unknown task {task!r}; known are {', '.join(RECIPES)}")
    parser = recipe_parser(kind)
    try:
        config = parser.parse_object({"name": path.stem} | fields)
        config = parser.parse_args(list(overrides), namespace=config)
        lengths = [name for name in LENGTHS if f"--{name}" in given and config[name] is not None]
        if len(lengths) == 1:
            for name in set(LENGTHS) - set(lengths):
                config[name] = None
        if lengths == ["train.epochs"] and "--train.average" not in given:
            config["train.average"] = min(config["train.average"], config["train.epochs"])
        return kind(**vars(parser.instantiate(config)))
    except (ArgumentError, TypeError) as error:
        known = {f"--{name}" for name, _ in parser.get_defaults().items()}
        near = [name for word in given - known for name in difflib.get_close_matches(word, known, n=1, cutoff=0.8)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise GlocalError(f"recipe {path.stem}: {' '.join(str(error).split())}{hint}") from None


def is_given(field: str, recipe: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> bool:
    """Whether a field's value is the user's, by an override or a recipe of theirs, and not a shipped recipe's."""
    if field in {word.split("=")[0].removeprefix("--") for word in overrides}:
        return True
    section, _, name = field.partition(".")
    path = find_recipe(recipe)
    return path.parent != Path(str(resources.files(__name__))) and name in read_fields(path).get(section, {})


def read_fields(path: Path) -> dict[str, Any]:
    """Read a recipe's sections. Raises GlocalError where the file is no YAML, or holds something else.

    Aliases can make a file of a few lines as large as one likes, so that what they stand for is counted first.
    """
    try:
        fields = read_yaml(path.read_text(encoding="utf-8"))
        size = expanded_size(fields)
    except (ValueError, RecursionError) as error:
        raise GlocalError(f"{path} is not YAML: {error}; expected text in UTF-8, with sections") from None
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name, {}), dict) for name in SECTIONS):
        raise GlocalError(f"{path} holds no recipe; expected sections {', '.join(SECTIONS)}, each with its fields")
    if size > LARGEST:
        raise GlocalError(f"{path} has {size:,.0f} values, its aliases expanded; a recipe has at most {LARGEST:,}")
    return fields


def expanded_size(value: Any, known: dict[int, float] | None = None) -> float:
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


def recipe_parser(kind: type[Recipe]) -> ArgumentParser:
    """Return the parser of every field of a recipe; its help lists them all."""
    parser = ArgumentParser(
        prog="glocal train|search RECIPE", exit_on_error=False, allow_abbrev=False, parser_mode="recipe"
    )
    parser.add_class_arguments(kind, as_group=False)
    return parser


def read_decoding(words: Sequence[str]) -> DecodingConfig:
    """Read `--decoding.FIELD VALUE` words, as a recipe's overrides are."""
    parser = ArgumentParser(prog="glocal predict", exit_on_error=False, allow_abbrev=False, parser_mode="recipe")
    parser.add_class_arguments(DecodingConfig, "decoding")
    try:
        return parser.instantiate(parser.parse_args(list(words))).decoding
    except (ArgumentError, TypeError) as error:
        raise GlocalError(" ".join(str(error).split())) from None
