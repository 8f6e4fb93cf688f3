"""Decoding: the loop that turns a model's next-token logits into texts.

    greedy         the most probable token
    beam search    the k most probable hypotheses, side by side (Vaswani et al. 2017, section 6.1)
    sampling       a token drawn from the distribution, or from its most probable part

All three are one loop and differ in how a token is chosen (see sampling.py). An input has `width` hypotheses. One that
has ended keeps its place (Sutskever et al. 2014, section 3.2), so a beam of one is greedy.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.generation.config import DecodingConfig
from glocal.generation.limits import check_stop, limit_of, max_length_of, never_generated
from glocal.generation.sampling import Choice, beam_step, greedy_step, penalise, sample_step, uniform_noise
from glocal.models.generative import Generative
from glocal.ops import logsumexp

EMPTY = -1
"""Fills a hypothesis behind its end, in place of a token."""


class Hypothesis(NamedTuple):
    """One text for an input."""

    ids: list[int]
    """Its tokens, without a prompt; the last is the one that ends a text, unless the text was cut off."""
    score: float | None
    """log P(ids | input) over the length penalty; None after a greedy search, which computes no probabilities."""


@torch.inference_mode()
def generate(
    model: Generative,
    input_ids: Int[Tensor, "inputs tokens"],
    attention_mask: Bool[Tensor, "inputs tokens"],
    config: DecodingConfig = DecodingConfig(),
    tokenizer: Tokenizer | None = None,
) -> list[list[Hypothesis]]:
    """Return the `nbest` texts of each input, the best first.

    Sources of a translation are padded on the right, prompts on the left. The results do not depend on the batch,
    except for rounding. An input leaves the batch as soon as its best hypotheses cannot be beaten, which is exact.
    There are fewer than `nbest` texts only where a tiny vocabulary has not as many.

    Args:
        model: a causal language model or an encoder-decoder.
        input_ids: the prompts, of a token or more, or the sources.
        attention_mask: True at tokens.
        config: how text is generated.
        tokenizer: decodes the texts, where `config.stop` names strings.

    Raises GlocalError if a prompt fills the model, and for stop strings without a tokenizer.
    """
    decoder = Decoder(model, input_ids, attention_mask, config, tokenizer)
    deque(decoder.run(), maxlen=0)
    return decoder.best()


def stream(
    model: Generative,
    input_ids: Int[Tensor, "1 tokens"],
    config: DecodingConfig = DecodingConfig(),
    tokenizer: Tokenizer | None = None,
) -> Iterator[list[int]]:
    """Generate one text, and yield its tokens so far after each new one; the last are those that `generate` returns.

    Raises GlocalError if several hypotheses are followed.
    """
    decoder = Decoder(model, input_ids, torch.ones_like(input_ids, dtype=torch.bool), config, tokenizer)
    if decoder.width > 1:
        raise GlocalError(
            f"{decoder.width} hypotheses of a text that is streamed, of which the best is known only at the end; give "
            "beams 1 or a temperature, and nbest 1"
        )
    for length in decoder.run():
        yield decoder.state.ids[0, 0, :length].tolist()


@dataclass(frozen=True)
class BeamState:
    """The hypotheses of the inputs that are still in the batch."""

    index: Int[Tensor, " inputs"]
    """Number of each input among all that were given."""
    limit: Int[Tensor, " inputs"]
    """Tokens of each input's longest text."""
    prompt: Int[Tensor, "inputs prompt"]
    """Tokens of the prompts, for the repetition penalty; none of a translation."""
    noise: Float[Tensor, "inputs width drawn"]
    """Uniform numbers, one a token, for sampling."""
    ids: Int[Tensor, "inputs width tokens"]
    """Tokens of each hypothesis."""
    token: Int[Tensor, "inputs width"]
    """The last token of each hypothesis."""
    total: Float[Tensor, "inputs width"]
    """log P of each hypothesis; -∞ where there is none."""
    score: Float[Tensor, "inputs width"]
    """log P over the length penalty of each hypothesis that has ended, else -∞."""

    @property
    def ended(self) -> Bool[Tensor, "inputs width"]:
        """Which hypotheses have ended."""
        return self.score > -math.inf

    def select(self, inputs: Int[Tensor, " kept"]) -> "BeamState":
        """Return the state of these inputs alone."""
        return BeamState(**{name: value[inputs] for name, value in vars(self).items()})


class Decoder:
    """One call of `generate`: the state of the batch, and the hypotheses of the inputs that left it."""

    def __init__(
        self,
        model: Generative,
        input_ids: Int[Tensor, "inputs tokens"],
        attention_mask: Bool[Tensor, "inputs tokens"],
        config: DecodingConfig,
        tokenizer: Tokenizer | None,
    ) -> None:
        check_stop(config, tokenizer)
        self.model, self.input_ids, self.attention_mask = model, input_ids, attention_mask
        self.config, self.tokenizer, self.width = config, tokenizer, config.width(model.is_decoder_only)
        self.eos_id = model.config.eos_id
        self.never = never_generated(model).to(input_ids.device)
        self.state = self.begin(self.limits())
        self.found_ids, self.found_score = self.state.ids.clone(), self.state.score.clone()

    def limits(self) -> list[int]:
        """Return the tokens of each input's longest text. Raises GlocalError if a prompt fills the model."""
        lengths, longest = self.attention_mask.sum(dim=1).tolist(), max_length_of(self.model)
        extra = self.config.extra_length
        if self.model.is_decoder_only:
            return [limit_of(length, extra, longest) for length in lengths]
        return [int(min(length + extra, longest)) for length in lengths]

    def begin(self, limits: list[int]) -> BeamState:
        """Return the state before the first token."""
        input_ids, device = self.input_ids, self.input_ids.device
        shape = len(limits), self.width
        ids = torch.full((*shape, max(limits)), EMPTY, device=device)
        total = torch.zeros(shape, device=device)
        if self.config.temperature is None:
            total[:, 1:] = -math.inf  # all hypotheses would begin alike
            noise = torch.empty(*shape, 0, device=device)
        else:
            inputs = [row[own].tolist() for row, own in zip(input_ids, self.attention_mask, strict=True)]
            noise = uniform_noise(inputs, self.width, max(limits), self.config.seed).to(device)
        if self.model.is_decoder_only:
            token = input_ids[:, -1:].expand(shape)
            prompt = torch.where(self.attention_mask, input_ids, input_ids[:, -1:])
        else:
            token = torch.full(shape, self.model.config.bos_id, device=device)
            prompt = input_ids[:, :0]
        return BeamState(
            index=torch.arange(len(limits), device=device),
            limit=torch.tensor(limits, device=device),
            prompt=prompt,
            noise=noise,
            ids=ids,
            token=token,
            total=total,
            score=torch.full(shape, -math.inf, device=device),
        )

    def run(self) -> Iterator[int]:
        """Add token after token to all hypotheses, and yield their length each time."""
        longest = self.state.ids.shape[2]
        with torch.inference_mode():
            cache = self.model.start(self.input_ids, self.attention_mask, self.width, longest)
        for length in range(1, longest + 1):
            # 1. The logits of the next token. 2. The choice of a token for each hypothesis. 3. Its addition.
            with torch.inference_mode():
                logits = self.model.step(self.state.token.flatten(), cache)
                choice = self.choose(logits, length)
                self.add(choice, length)
            yield length
            # 4. Inputs that are done leave the batch, and the model's cache follows the hypotheses that were chosen.
            with torch.inference_mode():
                open_inputs = self.unfinished()
                some_leave = len(open_inputs) < len(choice.token)
                if some_leave:
                    self.store()
                    self.state = self.state.select(open_inputs)
                if not len(open_inputs):
                    return
                if some_leave or choice.parent is not None:
                    rows = choice.rows()[open_inputs].flatten()
                    cache.select(rows, open_inputs if some_leave else None)

    def choose(self, logits: Float[Tensor, "rows vocab"], length: int) -> Choice:
        """Choose the tokens that make hypotheses `length` tokens long."""
        config, state = self.config, self.state
        if config.repetition_penalty > 1:
            text = state.ids[..., : length - 1].clamp(min=0)  # behind an end any token will do: nothing follows
            input_ids = torch.cat([state.prompt[:, None].expand(-1, self.width, -1), text], dim=2)
            logits = penalise(logits, input_ids.flatten(0, 1), config.repetition_penalty)
        log_z = logsumexp(logits) if self.is_scored else None
        logits = logits.index_fill_(1, self.never, -math.inf)
        if log_z is None:
            return greedy_step(logits, state.total)
        if config.temperature is None:
            return beam_step(logits, log_z, state.total, state.ended)
        noise = state.noise[:, :, length - 1]
        return sample_step(logits, log_z, state.total, noise, config.temperature, config.top_k, config.top_p)

    @property
    def is_scored(self) -> bool:
        """Whether hypotheses have a log probability; greedy search saves the pass over the vocabulary."""
        return self.width > 1 or self.config.temperature is not None

    def add(self, choice: Choice, length: int) -> None:
        """Add the chosen tokens, which make hypotheses `length` tokens long."""
        state, ids, score = self.state, self.state.ids, self.state.score
        if choice.parent is not None:
            ids, score = ids.take_along_dim(choice.parent[..., None], 1), score.gather(1, choice.parent)
        ended = score > -math.inf
        ids[:, :, length - 1] = choice.token.masked_fill(ended, EMPTY)
        ends = (choice.token == self.eos_id) | (state.limit[:, None] <= length)
        if self.config.stop:
            ends |= self.stopped(ids[..., :length])
        score = torch.where(ends & ~ended, choice.total / self.config.penalty(length), score)
        self.state = replace(state, ids=ids, token=choice.token, total=choice.total, score=score)

    def stopped(self, ids: Int[Tensor, "inputs width tokens"]) -> Bool[Tensor, "inputs width"]:
        """Return which hypotheses contain a stop string, in whatever tokens it was generated."""
        assert self.tokenizer is not None
        rows = ids.flatten(0, 1).tolist()
        texts = self.tokenizer.decode([[token for token in row if token != EMPTY] for row in rows])
        found = [any(stop in text for stop in self.config.stop) for text in texts]
        return torch.tensor(found, device=ids.device).view(-1, self.width)

    def unfinished(self) -> Int[Tensor, " unfinished"]:
        """Return the inputs of which a hypothesis that goes on may still become one of the best.

        Its log P can only fall, and is divided by the penalty of the longest text at most. This is the step's only wait
        for the device.
        """
        state = self.state
        going = state.total.masked_fill(state.ended, -math.inf).amax(dim=1)
        worst = state.score.topk(self.config.nbest).values[:, -1]
        return (worst < going / self.config.penalty(state.limit)).nonzero().flatten()

    def store(self) -> None:
        """Keep the hypotheses of all inputs in the batch, before some leave it."""
        self.found_ids[self.state.index], self.found_score[self.state.index] = self.state.ids, self.state.score

    def best(self) -> list[list[Hypothesis]]:
        """Return the best hypotheses of all inputs."""
        scores, order = self.found_score.topk(self.config.nbest)
        ids = self.found_ids.take_along_dim(order[..., None], 1)
        return [
            [
                Hypothesis([token for token in tokens if token != EMPTY], score if self.is_scored else None)
                for tokens, score in zip(*hypotheses, strict=True)
                if score > -math.inf
            ]
            for hypotheses in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
