"""Cross entropy, log-sum-exp and top-k over a large vocabulary, in pieces that fit into the cache.

    L = -(1 - ε) log p_y - ε mean_j log p_j        ∂L/∂z_j = p_j - ε/V - (1 - ε) [j = y]

(Szegedy et al. 2015, *Rethinking the Inception Architecture for Computer Vision*, section 7.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from glocal.ops.choice import PLAIN, Key, choose, dtype_name, size_class, step
from glocal.ops.products import eager_cpu

IGNORED = -100
"""The label of padding."""

PIECE = 2**18
"""Logits of a piece: 1 MB in float32."""
COLUMNS = 128
"""Columns of which `topk` takes one maximum."""
LARGEST_TIMED = 2**22
"""Logits up to which an operation is timed at its own size."""


def cross_entropy(
    logits: Float[Tensor, "labels classes"],
    labels: Int[Tensor, " labels"],
    reduction: Literal["mean", "none"] = "mean",
    label_smoothing: float = 0.0,
) -> Float[Tensor, "*labels"]:
    """`F.cross_entropy(logits.float(), labels, ...)` in nats: the mean over labels but -100, or of each, 0 where -100.

    The mean over no labels is 0, not NaN as in torch, so that a process without labels adds nothing to a step.

    torch's function stores logits, log p and two gradients in float32. In pieces, only the gradient is stored, in the
    type of the logits.
    """
    if reduction == "none":
        rows = max(PIECE // logits.shape[1], 1) if logits.device.type == "cpu" else max(len(logits), 1)
        pieces = zip(logits.split(rows), labels.split(rows), strict=True)
        losses = partial(F.cross_entropy, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing)
        return torch.cat([losses(z.float(), y) for z, y in pieces])
    if torch.is_grad_enabled() and eager_cpu(logits) and _in_pieces("cross entropy", logits, _cross_entropies):
        return cross_entropy_in_pieces(logits, labels, label_smoothing)
    return cross_entropy_at_once(logits, labels, label_smoothing)


def cross_entropy_at_once(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean by torch's own function, in which 0 · log p of an impossible class is not NaN."""
    loss = F.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    return loss / (labels != IGNORED).sum().clamp(min=1)


def cross_entropy_in_pieces(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the same, computed for some rows at a time."""
    loss: Tensor = _CrossEntropy.apply(logits, labels, label_smoothing)
    return loss


def logsumexp(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows 1"]:
    """Return `logits.float().logsumexp(dim=1, keepdim=True)`: log Z of each row; log P of a token is z - log Z."""
    if eager_cpu(logits) and _in_pieces("logsumexp", logits, _normalisers):
        return logsumexp_in_pieces(logits)
    return logits.float().logsumexp(dim=1, keepdim=True)


def logsumexp_in_pieces(logits: Tensor) -> Tensor:
    """Return the same, computed for some rows at a time."""
    rows = max(PIECE // logits.shape[1], 1)
    return torch.cat([some.float().logsumexp(dim=1, keepdim=True) for some in logits.split(rows)])


def topk(scores: Float[Tensor, "rows columns"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return `scores.topk(k)`: values, the largest first, and their columns."""
    large = eager_cpu(scores) and 2 * k * COLUMNS <= scores.shape[1]
    if large and _in_pieces("topk", scores, lambda z: _topks(z, k), k):
        return topk_of_maxima(scores, k)
    return scores.topk(k)


def topk_of_maxima(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the same by the maxima of pieces of 128 columns: the k best scores are in the k pieces with the largest.

    A CPU computes the maximum of many columns at once, whereas torch's topk first pairs each score with its column.
    """
    whole = scores.shape[1] // COLUMNS * COLUMNS
    pieces = scores[:, :whole].unflatten(1, (-1, COLUMNS)).amax(dim=2).topk(k, sorted=False).indices
    columns = (pieces[..., None] * COLUMNS + torch.arange(COLUMNS, device=scores.device)).flatten(1)
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    best, places = scores.gather(1, columns).topk(k)
    return best, columns.gather(1, places)


Candidates = dict[str, Callable[[], object]]


def _in_pieces(name: str, logits: Tensor, candidates: Callable[[Tensor], Candidates], *options: int) -> bool:
    """Whether the implementation in pieces is faster."""
    columns = logits.shape[1]
    rows = min(size_class(max(len(logits), 1)), max(LARGEST_TIMED // columns, 1))
    key: Key = (name, dtype_name(logits.dtype), rows, columns, *options)
    return choose(key, lambda: candidates(torch.randn(rows, columns, dtype=logits.dtype))) != PLAIN


def _cross_entropies(logits: Tensor) -> Candidates:
    labels = torch.zeros(len(logits), dtype=torch.long)

    return {
        PLAIN: step(lambda z: cross_entropy_at_once(z, labels, 0.1), logits),
        "pieces": step(lambda z: cross_entropy_in_pieces(z, labels, 0.1), logits),
    }


def _normalisers(logits: Tensor) -> Candidates:
    return {
        PLAIN: lambda: logits.float().logsumexp(dim=1, keepdim=True),
        "pieces": lambda: logsumexp_in_pieces(logits),
    }


def _topks(scores: Tensor, k: int) -> Candidates:
    return {PLAIN: lambda: scores.topk(k), "maxima": lambda: topk_of_maxima(scores, k)}


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        logits, labels, smoothing = inputs
        exact = torch.promote_types(logits.dtype, torch.float32)
        real = (labels != IGNORED).to(exact)
        places, weights = labels.masked_fill(labels == IGNORED, 0)[:, None], real / real.sum().clamp(min=1)
        classes, gradient = logits.shape[1], torch.empty_like(logits)
        rows = max(PIECE // classes, 1)
        loss = torch.zeros((), dtype=exact)
        for z, place, weight, out in zip(
            *(tensor.split(rows) for tensor in (logits, places, weights, gradient)), strict=True
        ):
            log_p = z.log_softmax(dim=-1, dtype=exact)
            each = (1 - smoothing) * log_p.gather(1, place)[:, 0] + smoothing * log_p.mean(dim=1)
            loss -= weight @ each
            dz = log_p.exp_().sub_(smoothing / classes)
            dz.scatter_add_(1, place, torch.full_like(place, smoothing - 1, dtype=dz.dtype))
            out.copy_(dz.mul_(weight[:, None]))
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        (scale,) = grads  # 1 where nothing was done to the loss: then the largest tensor of a step is not copied
        return gradient if scale == 1 else gradient * scale.to(gradient.dtype), None, None
