"""The model card: what a folder's model is, what it was trained on and measured at, and how it is loaded.

Its front matter is the hub's (https://huggingface.co/docs/hub/model-cards). Paths of the machine that trained the model
are left out: of a local path, only the last name stays.
"""

import re
from importlib.metadata import version
from pathlib import Path

import yaml

from glocal.data.files import TABLES
from glocal.errors import printable
from glocal.export.format import Exported, Format, Settings
from glocal.files import JSONObject, write_text
from glocal.models.loading import bytes_of

CARD = "README.md"
SHOWN = 100
"""Classes whose names are listed."""
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(/[\w.-]+)?")
"""OWNER/NAME of the hub, or OWNER/NAME/SUBSET."""
FILES = (*TABLES, "txt", "json", "conll", "gz")
"""Endings of files, which a path may have that is not here any more."""
PATHS = ("source", "from", "teacher", "files", "arch", "dir")
"""Fields of a recipe that may be paths."""
COUNTS = ("epoch", "step", "examples", "questions", "tokens", "total")
"""Numbers of a report that count what was measured, and are no scores, by the end of their names."""
HUB_METRICS = {
    "accuracy": "accuracy",
    "top1": "accuracy",
    "f1": "f1",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "exact_match": "exact_match",
    "exact": "exact_match",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "bleu": "bleu",
    "chrf": "chrf",
    "perplexity": "perplexity",
    "mae": "mae",
    "mse": "mse",
}
"""The hub's names of metrics, by ours."""


def write_card(exported: Exported, format: Format, settings: Settings, folder: Path) -> None:
    """Write README.md into the folder of a finished export."""
    parts = [
        f"---\n{yaml.safe_dump(front_matter(exported, format, settings), sort_keys=False, allow_unicode=True)}---",
        f"# {exported.name}",
        "\n".join(summary(exported, format, settings)),
        f"## How to load it\n\n```python\n{format.usage(exported)}\n```",
        *outputs(exported),
        *metrics(exported),
        *recipe(exported),
        f"Written by glocal {version('glocal')}.",
    ]
    write_text(folder / CARD, "\n\n".join(parts) + "\n")


def front_matter(exported: Exported, format: Format, settings: Settings) -> JSONObject:
    """Return what the hub reads of the card."""
    task, source = exported.task, str(exported.fields.get("data.source", ""))
    named = sorted({HUB_METRICS[name] for name in scores(exported) if name in HUB_METRICS})
    found = {
        "library_name": format.library,
        "pipeline_tag": None if task is None else task.pipeline_tag or task.name,
        "license": settings.license,
        "datasets": ["/".join(source.split("/")[:2])] if is_hub_id(source) else None,
        "metrics": named or None,
        "tags": ["glocal", exported.model.family],
    }
    return {name: value for name, value in found.items() if value is not None}


def summary(exported: Exported, format: Format, settings: Settings) -> list[str]:
    """Return the lines that say what the model is."""
    model, task, fields = exported.model, exported.task, exported.fields
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = bytes_of(model.parameters()) / 1e6
    lines = [f"A {type(model).__name__} of {parameters:,} parameters, in the layout of {format.reader}."]
    if task is not None:
        lines.append(f"Its task is {task.name}: {task.description}.")
    if start := fields.get("model.from"):
        lines.append(f"It was fine-tuned from {shared_name(start)}.")
    if source := fields.get("data.source"):
        lines.append(f"It was trained on {shared_name(source)}.")
    written = "" if settings.precision == "float32" else f"; the weights here are in {settings.precision}"
    return [*lines, f"In float32 its weights take {size:,.1f} MB{written}."]


def outputs(exported: Exported) -> list[str]:
    """Return the section about the classes; none where the model has no classes."""
    labels, problem = exported.model.labels, exported.model.problem_type
    if problem == "regression":
        return ["## Output\n\nOne number, not scaled."]
    if not labels:
        return []
    meaning = {
        None: "The classes exclude each other: their probabilities are the softmax of the logits.",
        "multi_label_classification": "An input has any number of the classes: the probability of each is the sigmoid "
        "of its logit.",
    }[problem]
    shown = ", ".join(map(printable, labels[:SHOWN]))
    shown += f", and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return [f"## Classes\n\n{meaning} In the order of the logits:\n\n{shown}"]


def scores(exported: Exported) -> dict[str, float]:
    """Return the numbers that the run's test has measured, or, without a test, its validation."""
    found = exported.report.get("test") or exported.report.get("val") or {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.endswith(COUNTS)
    }


def metrics(exported: Exported) -> list[str]:
    """Return the section about the scores; none without a report."""
    found = scores(exported)
    if not found:
        return []
    test = exported.report.get("test")
    count = f" of {test['examples']:,} examples" if test and isinstance(test.get("examples"), int) else ""
    measured = f"the test split{count}" if test else "the validation split, by which these weights were chosen"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in found.items())
    return [f"## Metrics\n\nOn {measured}:\n\n| metric | value |\n| --- | --- |\n{rows}"]


def recipe(exported: Exported) -> list[str]:
    """Return the section with the recipe; none without a run."""
    sections = {name: section for name, section in exported.recipe.items() if name != "run"}
    if not sections:
        return []
    shared = yaml.safe_dump(without_paths(sections), sort_keys=False, allow_unicode=True)
    return [f"## Recipe\n\n`glocal train` takes it as a YAML file, with your own data.\n\n```yaml\n{shared}```"]


def without_paths(value: object, name: str = "") -> object:
    """Return a recipe with the last name alone of each local path."""
    if isinstance(value, dict):
        return {key: without_paths(inner, key) for key, inner in value.items()}
    return shared_name(value) if name in PATHS and isinstance(value, str) else value


def shared_name(source: str) -> str:
    """Return a hub id as it is, and the last name of a path."""
    return source if is_hub_id(source) else Path(source).name


def is_hub_id(source: str) -> bool:
    """Whether a source names something on the hub: it has the form of a hub id, and no such path exists here."""
    return bool(HUB_ID.fullmatch(source)) and not source.endswith(FILES) and not Path(source).exists()
