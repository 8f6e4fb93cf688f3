"""Figures of runs, models and searches in one style.

Every function returns a new matplotlib `Figure`, for `save(figure, path)` or a page. No window opens, and matplotlib's
global settings do not change.
"""

from pathlib import Path

from matplotlib.figure import Figure

from glocal.files import atomic_write
from glocal.reports.figures.attention import (
    attention_examples,
    attention_heads,
    attention_map,
    position_similarity,
)
from glocal.reports.figures.runs import confusion_matrix, macs_bars, training_curves
from glocal.reports.figures.search import (
    Point,
    Stages,
    architecture,
    rank_correlation,
    score_against_cost,
    score_by_generation,
)
from glocal.reports.figures.text import attention_words, gradient_reach, head_patterns, sinusoids

__all__ = [
    "Point",
    "Stages",
    "architecture",
    "attention_examples",
    "attention_heads",
    "attention_map",
    "attention_words",
    "confusion_matrix",
    "gradient_reach",
    "head_patterns",
    "macs_bars",
    "position_similarity",
    "rank_correlation",
    "save",
    "score_against_cost",
    "score_by_generation",
    "sinusoids",
    "training_curves",
]


def save(figure: Figure, path: Path) -> None:
    """Write a figure, all or nothing, in the format of the path's ending."""
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))
