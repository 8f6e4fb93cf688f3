"""From logits to names with probabilities."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from glocal.models import Model

Answer = list[tuple[str, float]]
"""Labels, or words, and their probabilities, the most probable first."""


def likeliest(logits: Float[Tensor, "rows classes"], name: Callable[[int], str], top: int) -> list[Answer]:
    """Return the `top` classes of each row."""
    best = logits.float().softmax(dim=-1).topk(min(top, logits.shape[1]))
    return [
        [(name(number), probability) for number, probability in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def label_names(model: Model) -> list[str]:
    """What a classifier's classes are called: their labels, or their numbers where it has none."""
    return model.labels or [str(number) for number in range(model.config.num_classes)]
