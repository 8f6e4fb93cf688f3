"""From a model to texts: which token comes next, asked again and again until a text ends.

    greedy         the most probable token
    beam search    the k most probable beginnings, side by side (Vaswani et al. 2017, section 6.1)
    sampling       a token drawn by its probability, or among the likeliest alone

All three walk one loop, and differ in how a token is chosen (see sampling.py). A text has `width` slots, one a
hypothesis. One that has ended keeps its slot (Sutskever et al. 2014, section 3.2), so a beam of one is greedy.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.generation.config import DecodingConfig
from glocal.generation.sampling import Choice, beam_step, greedy_step, penalise, sample_step, uniform_noise
from glocal.models.generative import Generative
from glocal.ops import logsumexp


class Hypothesis(NamedTuple):
    """One text for an input."""

    ids: list[int]
    """Its tokens, without a prompt; the one that ends a text is the last, if it was not cut off."""
    score: float | None
    """log P(ids | input) over the length penalty; None of a greedy one, which needs no probabilities."""


def max_length_of(model: Generative) -> int | float:
    """Tokens of the longest text that a model takes; an LSTM takes any."""
    return getattr(model.config, "max_length", math.inf)


@torch.inference_mode()
def generate(
    model: Generative,
    input_ids: Int[Tensor, "inputs tokens"],
    attention_mask: Bool[Tensor, "inputs tokens"],
    config: DecodingConfig = DecodingConfig(),
    tokenizer: Tokenizer | None = None,
) -> list[list[Hypothesis]]:
    """Write the `nbest` texts of each input, the best first.

    Sentences to be translated are padded behind, prompts in front; a prompt has a token or more. The `tokenizer` reads
    what is written, where there are strings to stop at. An input leaves the batch once its best are settled, which is
    exact. What is found does not depend on the batch that an input is in, but for the rounding of sums. Only a tiny
    vocabulary has fewer hypotheses than were asked. Raises GlocalError where a prompt fills the model.
    """
    slots = BeamState(model, input_ids, attention_mask, config, tokenizer)
    deque(_write(model, input_ids, attention_mask, slots), maxlen=0)
    return slots.best()


def stream(
    model: Generative,
    input_ids: Int[Tensor, "1 tokens"],
    config: DecodingConfig = DecodingConfig(),
    tokenizer: Tokenizer | None = None,
) -> Iterator[list[int]]:
    """Write one text, and give its tokens so far each time that it has one more: those that `generate` ends with.

    Raises GlocalError where several hypotheses are followed.
    """
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    slots = BeamState(model, input_ids, attention_mask, config, tokenizer)
    if slots.width > 1:
        raise GlocalError(
            f"{slots.width} hypotheses of a text that is given as it is written; another may turn out the best: give "
            "beams 1 or a temperature, and nbest 1"
        )
    for length in _write(model, input_ids, attention_mask, slots):
        yield slots.ids[0, 0, :length].tolist()


def _write(model: Generative, input_ids: Tensor, attention_mask: Tensor, slots: "BeamState") -> Iterator[int]:
    """Add token after token to all texts, and yield their number each time."""
    room = slots.ids.shape[2]
    with torch.inference_mode():
        state = model.start(input_ids, attention_mask, slots.width, room)
    for length in range(1, room + 1):
        with torch.inference_mode():
            choice = slots.choose(model.step(slots.token.flatten(), state), length)
            slots.add(choice, length)
        yield length
        with torch.inference_mode():
            going = slots.unsettled()
            some_leave = len(going) < len(choice.token)
            if some_leave:
                slots.keep(going)
            if not len(going):
                return
            if some_leave or choice.parent is not None:
                state.select(choice.rows()[going].flatten(), going if some_leave else None)


EMPTY = -1
"""What stands in a slot behind the end of its hypothesis, in place of a token."""


class BeamState:
    """What has been written for the inputs in the batch, and what was found for those that left it."""

    def __init__(
        self,
        model: Generative,
        input_ids: Int[Tensor, "inputs tokens"],
        attention_mask: Bool[Tensor, "inputs tokens"],
        config: DecodingConfig,
        tokenizer: Tokenizer | None,
    ) -> None:
        if config.stop and tokenizer is None:
            raise GlocalError(f"stop {list(config.stop)} of a text that nobody reads; give generate a tokenizer")
        device, special, lengths = input_ids.device, model.config, attention_mask.sum(dim=1).tolist()
        if model.is_decoder_only:
            limits = [min(config.extra_length, max_length_of(model) - length) for length in lengths]
        else:
            limits = [min(length + config.extra_length, max_length_of(model)) for length in lengths]
        if min(limits) < 1:
            raise GlocalError(
                f"a prompt of {max(lengths)} tokens and extra_length {config.extra_length}; the model takes "
                f"{max_length_of(model)} tokens, prompt and text together: shorten the prompt, or let it write a token"
            )
        self.config, self.tokenizer, self.width = config, tokenizer, config.width(model.is_decoder_only)
        self.eos_id = special.eos_id
        self.never = torch.tensor(list({special.pad_id, special.bos_id} - {special.eos_id, None}), device=device).long()
        self.place = torch.arange(len(limits), device=device)  # of each input, among all that were given
        self.limit = torch.tensor(limits, device=device)  # tokens of its longest text
        shape = len(limits), self.width
        if model.is_decoder_only:
            self.token = input_ids[:, -1:].expand(shape)  # the last
            self.prompt = torch.where(attention_mask, input_ids, input_ids[:, -1:])
        else:
            self.token = torch.full(shape, special.bos_id, device=device)
            self.prompt = input_ids[:, :0]
        self.ids = torch.full((*shape, int(max(limits))), EMPTY, device=device)
        self.total = torch.zeros(shape, device=device)  # log P of what goes on; -∞ in an empty slot
        self.score = torch.full(shape, -math.inf, device=device)  # log P over the penalty of what has ended, or -∞
        self.noise = torch.empty(*shape, 0, device=device)  # where in [0, 1) each token of a draw is taken
        if config.temperature is None:
            self.total[:, 1:] = -math.inf  # all beams would begin alike
        else:
            inputs = [ids[own].tolist() for ids, own in zip(input_ids, attention_mask, strict=True)]
            self.noise = uniform_noise(inputs, self.width, self.ids.shape[2], config.seed).to(device)
        self.found_ids, self.found_score = self.ids.clone(), self.score.clone()

    @property
    def ended(self) -> Bool[Tensor, "inputs width"]:
        """Which hypotheses have."""
        return self.score > -math.inf

    @property
    def scored(self) -> bool:
        """Greedy, which needs no probabilities, is spared reading the vocabulary once more."""
        return self.width > 1 or self.config.temperature is not None

    def choose(self, logits: Float[Tensor, "rows vocab"], length: int) -> Choice:
        """Choose the token that makes hypotheses `length` tokens long."""
        config = self.config
        if config.repetition_penalty > 1:
            text = self.ids[..., : length - 1].clamp(min=0)  # any token stands behind an end, where nothing follows
            seen = torch.cat([self.prompt[:, None].expand(-1, self.width, -1), text], dim=2)
            logits = penalise(logits, seen.flatten(0, 1), config.repetition_penalty)
        log_z = logsumexp(logits) if self.scored else None
        logits = logits.index_fill_(1, self.never, -math.inf)
        if log_z is None:
            return greedy_step(logits, self.total)
        if config.temperature is None:
            return beam_step(logits, log_z, self.total, self.ended)
        chance = self.noise[:, :, length - 1]
        return sample_step(logits, log_z, self.total, chance, config.temperature, config.top_k, config.top_p)

    def add(self, choice: Choice, length: int) -> None:
        """Write the token that makes hypotheses `length` tokens long."""
        self.total, self.token, parent = choice
        if parent is not None:
            self.ids, self.score = self.ids.take_along_dim(parent[..., None], 1), self.score.gather(1, parent)
        ended = self.ended
        self.ids[:, :, length - 1] = self.token.masked_fill(ended, EMPTY)
        ends = (self.token == self.eos_id) | (self.limit[:, None] <= length)
        if self.config.stop:
            ends |= self.stopped(length)
        self.score = torch.where(ends & ~ended, self.total / self.config.penalty(length), self.score)

    def stopped(self, length: int) -> Bool[Tensor, "inputs width"]:
        """Which hypotheses say what they were to stop at: read as text, in whatever tokens it came."""
        assert self.tokenizer is not None
        rows = self.ids[..., :length].flatten(0, 1).tolist()
        texts = self.tokenizer.decode([[token for token in row if token != EMPTY] for row in rows])
        said = [any(stop in text for stop in self.config.stop) for text in texts]
        return torch.tensor(said, device=self.ids.device).view(-1, self.width)

    def unsettled(self) -> Int[Tensor, " unsettled"]:
        """Inputs for which a hypothesis that goes on may still become one of the best: the step's one wait.

        Its log P only falls from here, and nothing divides it by more than the penalty of the longest.
        """
        going = self.total.masked_fill(self.ended, -math.inf).amax(dim=1)
        worst = self.score.topk(self.config.nbest).values[:, -1]
        return (worst < going / self.config.penalty(self.limit)).nonzero().flatten()

    def keep(self, inputs: Int[Tensor, " kept"]) -> None:
        """Go on with these inputs."""
        self.found_ids[self.place], self.found_score[self.place] = self.ids, self.score
        for name in ("place", "limit", "prompt", "noise", "ids", "token", "total", "score"):
            setattr(self, name, getattr(self, name)[inputs])

    def best(self) -> list[list[Hypothesis]]:
        """Return the best hypotheses of all inputs."""
        scores, slots = self.found_score.topk(self.config.nbest)
        ids = self.found_ids.take_along_dim(slots[..., None], 1)
        return [
            [
                Hypothesis([token for token in tokens if token != EMPTY], score if self.scored else None)
                for tokens, score in zip(*hypotheses, strict=True)
                if score > -math.inf
            ]
            for hypotheses in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
