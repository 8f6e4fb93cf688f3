"""The next token: how greedy search, beam search and sampling choose it from the logits.

An input has `width` hypotheses. Rows are all hypotheses of all inputs, those of one input together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.ops import topk

TOP_P_TOKENS = 1000
"""Tokens that top-p sampling sorts at first; sorting a whole vocabulary takes a CPU as long as many matrix products."""


class Choice(NamedTuple):
    """The next token of each hypothesis."""

    total: Float[Tensor, "inputs width"]
    """log P of the hypothesis with that token; 0 in a greedy search."""
    token: Int[Tensor, "inputs width"]
    """The token; arbitrary where the hypothesis has ended."""
    parent: Int[Tensor, "inputs width"] | None = None
    """The hypothesis that is continued, 0 to width - 1; None: each continues itself."""

    def rows(self) -> Int[Tensor, "inputs width"]:
        """Return the rows of the parents."""
        own = torch.arange(self.token.numel(), device=self.token.device).view_as(self.token)
        return own if self.parent is None else own.gather(1, self.parent)


def greedy_step(logits: Float[Tensor, "rows vocab"], total: Float[Tensor, "inputs width"]) -> Choice:
    """Choose the most probable token."""
    return Choice(total, topk(logits, 1)[1].view_as(total))


def beam_step(
    logits: Float[Tensor, "rows vocab"],
    log_z: Float[Tensor, "rows 1"],
    total: Float[Tensor, "inputs width"],
    ended: Bool[Tensor, "inputs width"],
) -> Choice:
    """Choose the `width` most probable hypotheses of one more token.

    Hypotheses that have ended are kept unchanged, before all others. `log_z` is the logits' log-sum-exp.
    """
    inputs, width = total.shape
    best, tokens = topk(logits, min(width, logits.shape[1]))  # no hypothesis has more than `width` of the best children
    log_p = best - log_z
    unchanged = torch.full_like(log_p[0], -math.inf)
    unchanged[0] = math.inf
    children = total[..., None] + log_p.view(inputs, width, -1)
    children = torch.where(ended[..., None], unchanged, children)
    total, child = children.flatten(1).topk(width)
    return Choice(total, tokens.view(inputs, -1).gather(1, child), child // log_p.shape[1])


def sample_step(
    logits: Float[Tensor, "rows vocab"],
    log_z: Float[Tensor, "rows 1"],
    total: Float[Tensor, "inputs width"],
    noise: Float[Tensor, "inputs width"],
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Choice:
    """Draw a token for each hypothesis (see `draw`). `log_z` is the logits' log-sum-exp."""
    token = draw(logits, noise.flatten(), temperature, top_k, top_p)
    log_p = logits.gather(1, token) - log_z
    return Choice(total + log_p.view_as(total), token.view_as(total))


def draw(
    logits: Float[Tensor, "rows vocab"],
    noise: Float[Tensor, " rows"],
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Tensor, "rows 1"]:
    """Draw a token from each row's distribution, among the `top_k` or the `top_p` most probable ones where given.

    The inverse of the cumulative distribution is taken at `noise`, uniform in [0, 1).
    """
    kept, tokens = logits, torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    if top_k is not None:
        kept, tokens = topk(logits, min(top_k, logits.shape[1]))
    p = (kept.float() / temperature).softmax(dim=-1)
    if top_p is not None and top_k is None:
        p, tokens = sort_top_p(p, top_p)
    cumulative = p.cumsum(dim=-1)
    whole = cumulative[:, -1:] if top_p is None or top_k is not None else 1.0
    last = (cumulative < whole * (top_p or 1)).sum(dim=-1, keepdim=True).clamp(max=cumulative.shape[1] - 1)
    point = noise[:, None] * cumulative.gather(1, last)
    drawn = torch.searchsorted(cumulative, point, right=True).minimum(last)  # rounding may put the point on the end
    return tokens.gather(1, drawn)


def sort_top_p(
    p: Float[Tensor, "rows vocab"], top_p: float
) -> tuple[Float[Tensor, "rows some"], Int[Tensor, "rows some"]]:
    """Return probabilities and their tokens, the most probable first, at least as many as sum to `top_p`."""
    best, tokens = topk(p, min(TOP_P_TOKENS, p.shape[1]))
    if bool((best.sum(dim=-1) >= top_p).all()):
        return best, tokens
    return p.sort(dim=-1, descending=True)


def uniform_noise(
    inputs: Sequence[Sequence[int]], width: int, length: int, seed: int
) -> Float[Tensor, "inputs width length"]:
    """Return uniform numbers in [0, 1) for each token of each hypothesis.

    They are a function of the seed, the hypothesis and the input's tokens, so that a sample does not depend on its
    batch.
    """

    def numbers(*key: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash(key))  # hashes of integers are equal in all processes
        return torch.rand(length, generator=generator)

    return torch.stack([torch.stack([numbers(seed, draw, *ids) for draw in range(width)]) for ids in inputs])


def penalise(
    logits: Float[Tensor, "rows vocab"], input_ids: Int[Tensor, "rows tokens"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Return logits in which the tokens of `input_ids` are less likely (Keskar et al. 2019, CTRL, section 4.1).

    The paper divides their logits by θ, which makes a token with a negative logit more likely; as in transformers, a
    negative logit is multiplied instead.
    """
    given = logits.gather(1, input_ids)
    return logits.scatter(1, input_ids, torch.where(given > 0, given / penalty, given * penalty))
