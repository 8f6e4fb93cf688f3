"""From logits to names with probabilities."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from glocal.errors import GlocalError
from glocal.models import Model

Answer = list[tuple[str, float]]
"""Labels, or words, and their probabilities, the most probable first."""


def require_classes(model: Model) -> None:
    """Raise GlocalError where a model is an encoder alone, which names no classes."""
    if getattr(model.config, "num_classes", None) == 0:
        raise GlocalError(
            f"this {type(model).__name__} is an encoder without a classifier, so it predicts nothing; fine-tune it "
            "first: glocal train RECIPE --from it"
        )


def likeliest(logits: Float[Tensor, "rows classes"], name: Callable[[int], str], top: int) -> list[Answer]:
    """Return the `top` classes of each row."""
    check_count("top", top)
    best = logits.float().softmax(dim=-1).topk(min(top, logits.shape[1]))
    return [
        [(name(number), probability) for number, probability in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def label_names(model: Model) -> list[str]:
    """What a classifier's classes are called: their labels, or their numbers where it has none."""
    return model.labels or [str(number) for number in range(model.config.num_classes)]


def check_count(name: str, value: int) -> None:
    """Raise GlocalError where an argument that counts is not a whole number of 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GlocalError(f"{name} {value!r} was given; expected a whole number of 1 or more")
