"""What a format consists of, and what is given to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.export import FORMATS
from glocal.files import JSONObject, short
from glocal.layers.block import BlockConfig
from glocal.models import Model
from glocal.tasks.spec import AnyTaskSpec
from glocal.training.run import flat

Precision = Literal["float32", "fp16", "bf16", "int8"]
"""Of the weights that are written."""


@dataclass(frozen=True)
class Settings:
    """How a model is written."""

    precision: Precision = "float32"
    """Of the weights."""
    cache: bool = False
    """Whether a generative model is also written as a single step with a cache of keys and values."""
    license: str = "unknown"
    """The model's license, for its card: an identifier of the hub, such as apache-2.0."""


@dataclass(frozen=True)
class Exported:
    """What is exported: a model in evaluation mode, and what was found beside it."""

    source: str
    """The run, folder or hub id, as it was given."""
    model: Model
    task: AnyTaskSpec | None
    """The task whose predictor takes the model; None for a head that no task has."""
    tokenizer: Tokenizer | None
    recipe: JSONObject
    """The sections of the run's recipe; empty without a run."""
    report: JSONObject
    """The run's report.json; empty without a run."""

    @property
    def fields(self) -> JSONObject:
        """Fields of the recipe by their dotted names."""
        return flat(self.recipe)

    @property
    def name(self) -> str:
        """The last part of the source, for titles."""
        path = Path(self.source).resolve() if Path(self.source).exists() else Path(self.source)
        return path.parent.name if path.name == "model" else path.name


@dataclass(frozen=True)
class Format:
    """One layout. What it cannot hold is refused before anything is written."""

    name: str
    reader: str
    """The program that reads it, as it writes its name."""
    refusal: Callable[[Exported], str | None]
    """Returns why a model cannot be written, as the end of a sentence; None where it can."""
    write: Callable[[Exported, Path, Settings], None]
    """Writes the files into an empty folder. Raises GlocalError if they would not compute what the model does."""
    usage: Callable[[Exported], str]
    """Returns the lines of Python that load the result; `FOLDER` stands for its folder."""
    library: str
    """What the hub calls the program (`library_name`)."""
    packages: tuple[str, ...] = ()
    """Packages of the extra `export` that it needs."""
    precisions: tuple[Precision, ...] = ("float32",)
    cached: tuple[str, ...] = ()
    """Families that can be written as a single step with a cache."""


def find_format(name: str) -> Format:
    """Return the format of that name. Raises GlocalError if there is none."""
    if not isinstance(name, str) or name not in FORMATS:
        raise GlocalError(f"format {short(name)}; expected one of {', '.join(FORMATS)}")
    found: Format = import_module(f"glocal.export.{name}").FORMAT
    return found


def check(format: Format, exported: Exported, settings: Settings) -> None:
    """Raise GlocalError if a format cannot hold a model, or not so; the error names the formats that can."""
    if reason := format.refusal(exported):
        others = [name for name in FORMATS if find_format(name).refusal(exported) is None]
        raise GlocalError(
            f"{exported.source} cannot be written for {format.name}: {reason}; it can be for {', '.join(others)}"
        )
    if settings.precision not in format.precisions:
        known = ", ".join(format.precisions)
        raise GlocalError(f"{format.name} in {short(settings.precision)}; expected the precision {known}")
    if settings.cache and exported.model.family not in format.cached:
        raise GlocalError(
            f"{format.name} of a {exported.model.family} with a cache; single steps are written by onnx, of gpt and "
            "transformer"
        )
    for package in format.packages:
        require(package)


def require(package: str) -> None:
    """Raise GlocalError if a package is not installed."""
    try:
        import_module(package)
    except ImportError:
        raise GlocalError(f"this export needs {package}, which is missing; pip install 'glocal[export]'") from None


def misfit(blocks: Sequence[BlockConfig], expected: Mapping[str, object], whose: str) -> str | None:
    """Return which field of blocks is not as another program's, or that the blocks differ; None where all is right.

    Rates of dropout belong to training, and are not compared.
    """
    for name, value in expected.items():
        if given := [getattr(block, name) for block in blocks if getattr(block, name) != value]:
            return f"its blocks have {name} {given[0]!r}, and {whose} have {value!r}"
    if len({replace(block, dropout=0.0, attn_drop=0.0, drop_path=0.0) for block in blocks}) > 1:
        return f"its blocks differ, and {whose} are alike"
    return None
