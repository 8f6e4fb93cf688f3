"""Probabilities of tokens: those that were chosen or written, beside the most probable ones."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from glocal.ops import logsumexp, topk


class TokenLogprob(NamedTuple):
    """A token of a text and its probability."""

    id: int
    """The token."""
    logprob: float
    """log P(token | the tokens before it), in nats."""
    top: list[tuple[int, float]]
    """The most probable tokens in its place, each with its log probability, the most probable first."""


def token_logprobs(logits: Float[Tensor, "tokens vocab"], ids: Int[Tensor, " tokens"], top: int) -> list[TokenLogprob]:
    """Return the log probability of each token and of the `top` most probable ones, from the logits in its place."""
    log_z = logsumexp(logits)
    chosen = (logits.gather(1, ids[:, None]).float() - log_z)[:, 0]
    best, best_ids = topk(logits, min(top, logits.shape[1]))
    rows = zip(ids.tolist(), chosen.tolist(), best_ids.tolist(), (best.float() - log_z).tolist(), strict=True)
    return [TokenLogprob(id, logprob, list(zip(*of_best, strict=True))) for id, logprob, *of_best in rows]
