"""From a model to sentences: which token comes next, asked again and again until a sentence ends.

    greedy         the most probable token
    beam search    the k most probable beginnings, side by side (Vaswani et al. 2017, section 6.1)
    sampling       a token drawn by its probability, or among the likeliest alone

All three walk one loop, `generate`, and differ in how a token is chosen. A sentence has `width` slots, one a
hypothesis. One that has ended keeps its slot (Sutskever et al. 2014, section 3.2), so a beam of one is greedy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.errors import GlocalError
from glocal.models.generative import EncoderDecoder


@dataclass(frozen=True)
class DecodingConfig:
    """How translations are looked for. The defaults are the paper's (section 6.1); contradictions raise GlocalError."""

    beams: int | None = None
    """Hypotheses of a sentence that are followed side by side; 1 is greedy. By default 4, where nothing is drawn."""
    length_penalty: float = 0.6
    """α of ((5 + length)/6)^α, by which log P is divided to give a score (Wu et al. 2016, equation 14)."""
    extra_length: int = 50
    """Tokens that a translation may have more than its source; there it is cut off."""
    nbest: int = 1
    """Translations of a sentence: the best of the beams, or as many draws."""
    temperature: float | None = None
    """Draw instead, from the model's distribution at 1; below, what is likely becomes likelier."""
    top_k: int | None = None
    """Draw among so many of the likeliest tokens (Fan et al. 2018)."""
    top_p: float | None = None
    """Draw among the fewest tokens that together have this probability (Holtzman et al. 2020)."""
    seed: int = 0
    """Draws are a function of it and of the sentence."""

    def __post_init__(self) -> None:
        def expect(right: bool, given: str, expected: str) -> None:
            if not right:
                raise GlocalError(f"decoding was given {given}; expected {expected}")

        expect(self.beams is None or self.beams >= 1, f"beams {self.beams}", "1, which is greedy, or more")
        expect(self.length_penalty >= 0, f"length_penalty {self.length_penalty}", "0, which is none, or more")
        expect(self.extra_length >= 0, f"extra_length {self.extra_length}", "0 or more")
        if self.temperature is None:
            expect(self.top_k is None, f"top_k {self.top_k}, but no temperature to draw at", "both or neither")
            expect(self.top_p is None, f"top_p {self.top_p}, but no temperature to draw at", "both or neither")
            expect(1 <= self.nbest <= self.width, f"nbest {self.nbest} of {self.width} beams", "1 to as many as beams")
        else:
            expect(self.beams is None, f"beams {self.beams} and a temperature", "either, to search or to draw")
            expect(self.temperature > 0, f"temperature {self.temperature}", "more than 0; beams 1 is greedy")
            expect(self.top_k is None or self.top_k >= 1, f"top_k {self.top_k}", "1 or more")
            expect(self.top_p is None or 0 < self.top_p <= 1, f"top_p {self.top_p}", "more than 0, at most 1")
            expect(self.nbest >= 1, f"nbest {self.nbest}", "1 or more")

    @property
    def width(self) -> int:
        """Hypotheses of a sentence at a time."""
        if self.temperature is not None:
            return self.nbest
        return 4 if self.beams is None else self.beams

    def penalty(self, length: int | Tensor) -> float | Tensor:
        """((5 + length)/6)^α: log P falls with each token, and without it short translations would win."""
        return ((5 + length) / 6) ** self.length_penalty


class Hypothesis(NamedTuple):
    """One translation of a sentence."""

    ids: list[int]
    """Its tokens, with the one that ends a sentence as the last, if it was not cut off."""
    score: float | None
    """log P(ids | source) over the length penalty; None of a greedy one, which needs no probabilities."""


def longest(model: EncoderDecoder) -> int | float:
    """Tokens of the longest sentence that a model takes; an LSTM takes any."""
    return getattr(model.config, "max_length", math.inf)


@torch.inference_mode()
def generate(
    model: EncoderDecoder,
    input_ids: Int[Tensor, "sentences source"],
    attention_mask: Bool[Tensor, "sentences source"],
    config: DecodingConfig = DecodingConfig(),
) -> list[list[Hypothesis]]:
    """Translate sentences, padded behind; return the `nbest` hypotheses of each, the best first.

    A sentence leaves the batch once its best are settled, which is exact. What is found does not depend on the batch
    that a sentence is in, but for the rounding of sums. Only a tiny vocabulary has fewer hypotheses than were asked.
    """
    lengths = attention_mask.sum(dim=1).tolist()
    limits = [min(length + config.extra_length, longest(model)) for length in lengths]
    slots = Slots(model.config, config, limits, input_ids.device)
    never = torch.tensor([model.config.pad_id, model.config.bos_id], device=input_ids.device)
    choose: Callable[[Tensor, Slots, int], Choice] = best_children if config.width > 1 else most_probable
    if config.temperature is not None:
        sources = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths, strict=True)]
        choose = partial(draw, chance=chances(sources, config, max(limits)).to(input_ids.device))
    scored = choose is not most_probable

    state = model.start(input_ids, attention_mask, config.width, max(limits))
    for length in range(1, max(limits) + 1):
        logits = model.step(slots.token.flatten(), state)
        if scored:  # greedy, which needs no probabilities, is spared reading the vocabulary once more
            logits = logits.log_softmax(dim=-1, dtype=torch.float32)
        choice = choose(logits.index_fill_(1, never, -math.inf), slots, length)
        slots.add(choice, length)
        going = slots.unsettled()
        some_leave = len(going) < len(choice.token)
        if some_leave:
            slots.keep(going)
        if not len(going):
            break
        if some_leave or choice.parent is not None:
            state.select(choice.rows()[going].flatten(), going if some_leave else None)
    return slots.best(scored)


class Choice(NamedTuple):
    """What the next token makes of each slot."""

    total: Float[Tensor, "sentences width"]
    """log P of the hypothesis with that token; 0 in a greedy search."""
    token: Int[Tensor, "sentences width"]
    """The token; any where the hypothesis has ended."""
    parent: Int[Tensor, "sentences width"] | None = None
    """The slot of the hypothesis that it continues; without it, each continues its own."""

    def rows(self) -> Int[Tensor, "sentences width"]:
        """Return the parents' places among all slots of all sentences."""
        own = torch.arange(self.token.numel(), device=self.token.device).view_as(self.token)
        return own if self.parent is None else own.gather(1, self.parent)


class Slots:
    """What has been written of the sentences in the batch, and what was found of those that left it."""

    def __init__(self, special: Any, config: DecodingConfig, limits: Sequence[int], device: torch.device) -> None:
        shape = len(limits), config.width
        self.config, self.pad_id, self.eos_id = config, special.pad_id, special.eos_id
        self.place = torch.arange(len(limits), device=device)  # of each sentence, among all that were given
        self.limit = torch.tensor(limits, device=device)  # tokens of its longest translation
        self.ids = torch.full((*shape, max(limits)), self.pad_id, device=device)
        self.token = torch.full(shape, special.bos_id, device=device)  # the last
        self.total = torch.zeros(shape, device=device)  # log P of what goes on; -∞ in an empty slot
        if config.temperature is None:
            self.total[:, 1:] = -math.inf  # all beams would begin alike
        self.score = torch.full(shape, -math.inf, device=device)  # log P over the penalty of what has ended, or -∞
        self.found_ids, self.found_score = self.ids.clone(), self.score.clone()

    def add(self, choice: Choice, length: int) -> None:
        """Write the token that makes hypotheses `length` tokens long."""
        self.total, self.token, parent = choice
        if parent is not None:
            self.ids, self.score = self.ids.take_along_dim(parent[..., None], 1), self.score.gather(1, parent)
        ended = self.score > -math.inf
        self.ids[:, :, length - 1] = self.token.masked_fill(ended, self.pad_id)
        ends = ((self.token == self.eos_id) | (self.limit[:, None] <= length)) & ~ended
        self.score = torch.where(ends, self.total / self.config.penalty(length), self.score)

    def unsettled(self) -> Int[Tensor, " unsettled"]:
        """Sentences of which a hypothesis that goes on may still become one of the best: the step's one wait.

        Its log P only falls from here, and nothing divides it by more than the penalty of the longest.
        """
        going = self.total.masked_fill(self.score > -math.inf, -math.inf).amax(dim=1)
        worst = self.score.topk(self.config.nbest).values[:, -1]
        return (worst < going / self.config.penalty(self.limit)).nonzero().flatten()

    def keep(self, sentences: Int[Tensor, " kept"]) -> None:
        """Go on with these sentences."""
        self.found_ids[self.place], self.found_score[self.place] = self.ids, self.score
        for name in ("place", "limit", "ids", "token", "total", "score"):
            setattr(self, name, getattr(self, name)[sentences])

    def best(self, scored: bool) -> list[list[Hypothesis]]:
        """Return the best hypotheses of all sentences."""
        scores, slots = self.found_score.topk(self.config.nbest)
        ids = self.found_ids.take_along_dim(slots[..., None], 1)
        return [
            [
                Hypothesis([token for token in tokens if token != self.pad_id], score if scored else None)
                for tokens, score in zip(*hypotheses, strict=True)
                if score > -math.inf
            ]
            for hypotheses in zip(ids.tolist(), scores.tolist(), strict=True)
        ]


def most_probable(logits: Float[Tensor, "rows vocab"], slots: Slots, length: int) -> Choice:
    """Greedy: whatever follows, take the best token now."""
    return Choice(slots.total, top(logits, 1)[1].view_as(slots.token))


def best_children(log_p: Float[Tensor, "rows vocab"], slots: Slots, length: int) -> Choice:
    """Beam search: of all that the beams could become with one more token, keep the most probable.

    Those that have ended stay what they are, each its own only child and before all others.
    """
    sentences, width = slots.token.shape
    best, tokens = top(log_p, min(width, log_p.shape[1]))  # no beam has more children than there are beams
    itself = torch.full_like(best[0], -math.inf)
    itself[0] = math.inf
    children = slots.total[..., None] + best.view(sentences, width, -1)
    children = torch.where((slots.score > -math.inf)[..., None], itself, children)
    total, child = children.flatten(1).topk(width)
    return Choice(total, tokens.view(sentences, -1).gather(1, child), child // best.shape[1])


def draw(
    log_p: Float[Tensor, "rows vocab"], slots: Slots, length: int, chance: Float[Tensor, "all width room"]
) -> Choice:
    """Sampling: lay the tokens side by side, each as wide as it is probable, and take where `chance` points.

    The likeliest come first, so that `top_k` and `top_p` cut off what stands last.
    """
    config, vocab_size = slots.config, log_p.shape[1]
    best, tokens = top(log_p, min(config.top_k or vocab_size, vocab_size))
    ends = (best / (config.temperature or 1)).softmax(dim=-1).cumsum(dim=-1)
    last = (ends < ends[:, -1:] * (config.top_p or 1)).sum(dim=-1, keepdim=True)
    point = chance[slots.place, :, length - 1].view(-1, 1) * ends.gather(1, last)
    drawn = torch.searchsorted(ends, point, right=True).minimum(last)  # rounding may put the point on the very end
    total = slots.total + best.gather(1, drawn).view_as(slots.total)
    return Choice(total, tokens.gather(1, drawn).view_as(slots.token))


def chances(
    sources: Sequence[Sequence[int]], config: DecodingConfig, room: int
) -> Float[Tensor, "sentences width room"]:
    """Numbers of [0, 1) for each token of each draw, by a generator of its own that the sentence seeds."""

    def numbers(*key: int) -> Tensor:
        return torch.rand(room, generator=torch.Generator().manual_seed(hash(key)))  # equal in all processes, of ints

    return torch.stack(
        [torch.stack([numbers(config.seed, draw, *ids) for draw in range(config.nbest)]) for ids in sources]
    )


PIECE = 128


def top(scores: Float[Tensor, "rows columns"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """`scores.topk(k)`, in one quick reading of a large vocabulary.

    The k best stand in those k pieces of a row whose maxima are highest. A maximum is read off many columns at once,
    whereas on a CPU topk first pairs every score with its column, and then compares pair by pair.
    """
    whole = scores.shape[1] // PIECE * PIECE
    if 2 * k * PIECE > whole:
        return scores.topk(k)
    pieces = scores[:, :whole].unflatten(1, (-1, PIECE)).amax(dim=2).topk(k, sorted=False).indices
    columns = (pieces[..., None] * PIECE + torch.arange(PIECE, device=scores.device)).flatten(1)
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    best, places = scores.gather(1, columns).topk(k)
    return best, columns.gather(1, places)
