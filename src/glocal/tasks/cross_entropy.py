"""The cross entropy over a large vocabulary, with smoothed labels, without large tensors in float32.

    L = -(1 - ε) log p_y - ε mean_j log p_j        ∂L/∂z_j = p_j - ε/V - (1 - ε) [j = y]

(Szegedy et al. 2015, *Rethinking the Inception Architecture for Computer Vision*, section 7.) In bf16, torch's own
writes logits, log p and two gradients in float32, eight times what the logits take: on a CPU as long as a small model's
products. Here some rows at a time stay in the cache, and only their gradient is kept.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100
"""The label of padding."""

PIECE = 2**18
"""Logits at a time: 1 MB in float32."""


def cross_entropy(
    logits: Float[Tensor, "labels classes"], labels: Int[Tensor, " labels"], smoothing: float
) -> Float[Tensor, ""]:
    """`F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)`: in nats, mean over labels but -100."""
    if logits.device.type == "cpu" and torch.is_grad_enabled():
        loss: Tensor = _CrossEntropy.apply(logits, labels, smoothing)
        return loss
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, label_smoothing=smoothing)


def cross_entropies(
    logits: Float[Tensor, "labels classes"], labels: Int[Tensor, " labels"]
) -> Float[Tensor, " labels"]:
    """`F.cross_entropy(logits.float(), labels, reduction="none")`: in nats, 0 where a label is -100."""
    rows = max(PIECE // logits.shape[1], 1) if logits.device.type == "cpu" else max(len(logits), 1)
    pieces = zip(logits.split(rows), labels.split(rows), strict=True)
    return torch.cat([F.cross_entropy(z.float(), y, ignore_index=IGNORED, reduction="none") for z, y in pieces])


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        logits, labels, smoothing = inputs
        exact = torch.promote_types(logits.dtype, torch.float32)
        real = (labels != IGNORED).to(exact)
        places, weights = labels.clamp(min=0)[:, None], real / real.sum()
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
