"""Which token comes next: how decoding reads a model's scores of its vocabulary.

A text has `width` slots, one a hypothesis; rows are all slots of all texts, those of one text together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.ops import topk


class Choice(NamedTuple):
    """What the next token makes of each slot."""

    total: Float[Tensor, "texts width"]
    """log P of the hypothesis with that token; 0 in a greedy search."""
    token: Int[Tensor, "texts width"]
    """The token; any where the hypothesis has ended."""
    parent: Int[Tensor, "texts width"] | None = None
    """The slot of the hypothesis that it continues; without it, each continues its own."""

    def rows(self) -> Int[Tensor, "texts width"]:
        """Return the parents' places among all rows."""
        own = torch.arange(self.token.numel(), device=self.token.device).view_as(self.token)
        return own if self.parent is None else own.gather(1, self.parent)


def greedy_step(logits: Float[Tensor, "rows vocab"], total: Float[Tensor, "texts width"]) -> Choice:
    """Greedy: whatever follows, take the best token now."""
    return Choice(total, topk(logits, 1)[1].view_as(total))


def beam_step(
    logits: Float[Tensor, "rows vocab"],
    log_z: Float[Tensor, "rows 1"],
    total: Float[Tensor, "texts width"],
    ended: Bool[Tensor, "texts width"],
) -> Choice:
    """Beam search: of all that the beams could become with one more token, keep the most probable.

    Those that have ended stay what they are, each its own only child and before all others.
    """
    texts, width = total.shape
    best, tokens = topk(logits, min(width, logits.shape[1]))  # no beam has more children than there are beams
    log_p = best - log_z
    itself = torch.full_like(log_p[0], -math.inf)
    itself[0] = math.inf
    children = total[..., None] + log_p.view(texts, width, -1)
    children = torch.where(ended[..., None], itself, children)
    total, child = children.flatten(1).topk(width)
    return Choice(total, tokens.view(texts, -1).gather(1, child), child // log_p.shape[1])


def sample_step(
    logits: Float[Tensor, "rows vocab"],
    log_z: Float[Tensor, "rows 1"],
    total: Float[Tensor, "texts width"],
    chance: Float[Tensor, "texts width"],
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Choice:
    """Sampling: lay the tokens side by side, each as wide as it is probable, and take where `chance` points.

    Where `top_k` and `top_p` cut off what stands last, the likeliest come first.
    """
    some, tokens = logits, torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    if top_k is not None:
        some, tokens = topk(logits, min(top_k, logits.shape[1]))
    wide = (some.float() / temperature).softmax(dim=-1)
    if top_p is not None and top_k is None:
        wide, tokens = nucleus(wide, top_p)
    ends = wide.cumsum(dim=-1)
    whole = ends[:, -1:] if top_p is None or top_k is not None else 1.0
    last = (ends < whole * (top_p or 1)).sum(dim=-1, keepdim=True).clamp(max=ends.shape[1] - 1)
    point = chance.reshape(-1, 1) * ends.gather(1, last)
    drawn = torch.searchsorted(ends, point, right=True).minimum(last)  # rounding may put the point on the very end
    token = tokens.gather(1, drawn)
    log_p = logits.gather(1, token) - log_z
    return Choice(total + log_p.view_as(total), token.view_as(total))


def nucleus(
    p: Float[Tensor, "rows vocab"], top_p: float
) -> tuple[Float[Tensor, "rows some"], Int[Tensor, "rows some"]]:
    """Tokens and their probabilities, the likeliest first, until they come to `top_p` together, and maybe further.

    A thousand are mostly enough; to sort a whole vocabulary takes a CPU as long as many a model's products.
    """
    best, tokens = topk(p, min(1000, p.shape[1]))
    if bool((best.sum(dim=-1) >= top_p).all()):
        return best, tokens
    return p.sort(dim=-1, descending=True)


def uniform_noise(
    inputs: Sequence[Sequence[int]], draws: int, room: int, seed: int
) -> Float[Tensor, "inputs draws room"]:
    """Numbers of [0, 1) for each token of each draw, by a generator of its own that the input seeds."""

    def numbers(*key: int) -> Tensor:
        return torch.rand(room, generator=torch.Generator().manual_seed(hash(key)))  # equal in all processes, of ints

    return torch.stack([torch.stack([numbers(seed, draw, *ids) for draw in range(draws)]) for ids in inputs])


def penalise(
    logits: Float[Tensor, "rows vocab"], seen: Int[Tensor, "rows tokens"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Make tokens that were seen less likely, by one factor (Keskar et al. 2019, CTRL, section 4.1).

    The paper divides their logits by θ, which makes a negative one likelier; that is multiplied, as in transformers.
    """
    theirs = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(theirs > 0, theirs / penalty, theirs * penalty))
