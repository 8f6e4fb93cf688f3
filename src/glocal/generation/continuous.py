"""Continuous batching: requests join and leave a running batch token by token.

    Yu et al. 2022, *Orca: A Distributed Serving System for Transformer-Based Generative Models*, section 3.1
    https://www.usenix.org/conference/osdi22/presentation/yu
    Agrawal et al. 2023, *SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills*, section 4.2
    https://arxiv.org/abs/2308.16369

A step reads a part of a waiting prompt, then adds one token to every running text. A text that has ended leaves its
place to the next request at once, and a long prompt does not hold up the texts that are running.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, check_range
from glocal.generation.config import DecodingConfig
from glocal.generation.limits import check_stop, limit_of, max_length_of, never_generated
from glocal.generation.probabilities import TokenLogprob, token_logprobs
from glocal.generation.sampling import draw, penalise, uniform_noise
from glocal.layers.decoder import DecoderState
from glocal.models.generative import DecoderOnly, Generative
from glocal.ops import topk

PROMPT_TOKENS = 64
"""Tokens of prompts that are read between two steps."""


class Progress(NamedTuple):
    """A request after a step."""

    number: int
    """The request."""
    ids: list[int]
    """Its tokens so far, without the prompt."""
    logprobs: list[TokenLogprob] | None
    """The probability of each token, where the request asks for it."""
    finished: bool
    """Whether these are all tokens; then the request has left the batch."""


@dataclass
class Request:
    """A text that is generated, or waits for a place in the batch."""

    number: int
    prompt: list[int]
    config: DecodingConfig
    limit: int
    """Tokens of the longest text."""
    top: int | None
    """Most probable tokens that are listed beside each token; None where no probabilities are requested."""
    noise: list[float]
    """A uniform number for each token, for sampling."""
    ids: list[int] = field(default_factory=list)
    """Tokens so far, without the prompt."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    state: DecoderState | None = None
    """What was read of the prompt, until the text joins the batch."""

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are to be read before the text joins; the last one is its first step's."""
        return len(self.prompt) - 1 - (0 if self.state is None else self.state.length)

    @property
    def last(self) -> int:
        """The last token of the prompt and the text, which the next step reads."""
        return self.ids[-1] if self.ids else self.prompt[-1]


class ContinuousBatch:
    """A running batch of one model, called by one thread: `submit` requests, and call `step` while it is `busy`.

    Each text equals that of `generate` for its prompt alone, greedy or sampled, but for rounding: sums of floats depend
    on the number of rows, and at int8 the inputs of more than 6 rows have fewer levels.

    Args:
        model: a model that continues prompts, in evaluation mode.
        tokenizer: decodes the texts, where a request names strings to stop at.
        slots: texts at a time; further requests wait.
        max_length: tokens of the longest prompt and text together, by default the model's. The cache is allocated for
            `slots` texts of this length.

    Raises GlocalError for other models, no slots, and a `max_length` beyond the model's.
    """

    def __init__(
        self, model: Generative, tokenizer: Tokenizer | None = None, slots: int = 8, max_length: int | None = None
    ) -> None:
        if not isinstance(model, DecoderOnly):
            raise GlocalError(
                f"a {type(model).__name__} in a continuous batch; expected a model that continues prompts"
            )
        longest = int(max_length_of(model))
        max_length = longest if max_length is None else max_length
        if slots < 1 or not 2 <= max_length <= longest:
            raise GlocalError(
                f"{slots} slots of {max_length} tokens; expected 1 slot or more, and 2 to the model's {longest} tokens"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.slots = slots
        self.max_length = max_length
        self.device = next(model.parameters()).device
        self.never = never_generated(model).to(self.device)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        """In the order of the rows of `state`."""
        self.submitted = 0
        with torch.inference_mode():
            self.state = model.new_slots(slots, max_length)

    @property
    def busy(self) -> bool:
        """Whether requests are running or waiting."""
        return bool(self.running or self.waiting)

    def submit(self, input_ids: list[int], config: DecodingConfig, logprobs: int | None = None, sample: int = 0) -> int:
        """Add a request, and return its number.

        Args:
            input_ids: the prompt, of a token or more.
            config: how the text is generated; one text, greedy or sampled.
            logprobs: list the probability of each token, and as many of the most probable tokens beside it.
            sample: which of the samples that `generate` draws for this input, where `nbest` asks for several.

        Raises GlocalError for a prompt that is empty, holds unknown tokens or fills the model, and for beam search.
        """
        vocab_size = self.model.config.vocab_size
        if not input_ids or not all(0 <= token < vocab_size for token in input_ids):
            raise GlocalError(
                f"a prompt of {len(input_ids)} tokens; expected 1 or more, each an id of 0 to {vocab_size - 1}"
            )
        if (width := config.width(is_decoder_only=True)) > 1:
            raise GlocalError(f"{width} hypotheses in a continuous batch; give beams 1 or a temperature, and nbest 1")
        check_stop(config, self.tokenizer)
        check_range("logprobs", logprobs, least=0)
        check_range("sample", sample, least=0)
        limit = limit_of(len(input_ids), config.extra_length, self.max_length)
        noise = []
        if config.temperature is not None:
            noise = uniform_noise([input_ids], sample + 1, limit, config.seed)[0, sample].tolist()
        self.submitted += 1
        self.waiting.append(Request(self.submitted, list(input_ids), config, limit, logprobs, noise))
        return self.submitted

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Remove a request; nothing happens where it has finished."""
        self.waiting = deque(request for request in self.waiting if request.number != number)
        self._remove([row for row, request in enumerate(self.running) if request.number == number])

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Read waiting prompts, add a token to every running text, and return the requests that have a new token."""
        self._admit()
        if not self.running:
            return []
        last = torch.tensor([request.last for request in self.running], device=self.device)
        logits = self.model.step(last, self.state)
        progress = self._extend(self._choose(logits), logits)
        self._remove([row for row, each in enumerate(progress) if each.finished])
        return progress

    def _admit(self) -> None:
        """Read up to `PROMPT_TOKENS` tokens of the prompts that wait for a free slot; texts join once they are read."""
        budget = PROMPT_TOKENS
        while self.waiting and len(self.running) < self.slots:
            request = self.waiting[0]
            new = min(request.unread, budget)
            budget -= new
            request.state = self._read(request, new)
            if request.unread:
                return
            self.state.add(request.state)
            request.state = None
            self.running.append(self.waiting.popleft())

    def _read(self, request: Request, new: int) -> DecoderState:
        """Read so many tokens more of a prompt, and return its state."""
        if request.state is None:
            # the model leaves the last token that it is given unread
            ids = torch.tensor([request.prompt[: new + 1]], device=self.device)
            rest = len(request.prompt) - 1 - new
            return self.model.start(ids, torch.ones_like(ids, dtype=torch.bool), 1, rest)
        if new:
            start = request.state.length
            ids = torch.tensor([request.prompt[start : start + new]], device=self.device)
            self.model.forward_cached(ids, request.state)
        return request.state

    def _choose(self, logits: Float[Tensor, "rows vocab"]) -> list[int]:
        """Choose a token for each row: those of equal settings together."""
        logits = logits.index_fill(1, self.never, -torch.inf)
        alike: dict[tuple[float | None, int | None, float | None], list[int]] = defaultdict(list)
        for row, request in enumerate(self.running):
            config = request.config
            if config.repetition_penalty > 1:
                input_ids = torch.tensor([request.prompt + request.ids], device=self.device)
                logits[row] = penalise(logits[row, None], input_ids, config.repetition_penalty)[0]
            alike[config.temperature, config.top_k, config.top_p].append(row)
        tokens = torch.empty(len(logits), 1, dtype=torch.long, device=self.device)
        for rows in alike.values():
            tokens[rows] = choose_alike(logits[rows], [self.running[row] for row in rows])
        return tokens.flatten().tolist()

    def _extend(self, tokens: list[int], logits: Float[Tensor, "rows vocab"]) -> list[Progress]:
        """Add a token to each text, and return the requests as they are then."""
        progress = []
        for request, token, own in zip(self.running, tokens, logits, strict=True):
            request.ids.append(token)
            logprobs = None
            if request.top is not None:
                request.logprobs += token_logprobs(own[None], torch.tensor([token], device=self.device), request.top)
                logprobs = list(request.logprobs)
            progress.append(Progress(request.number, list(request.ids), logprobs, self._is_finished(request)))
        return progress

    def _is_finished(self, request: Request) -> bool:
        """Whether a text ends here: by its last token, by its length, or by a stop string."""
        if request.ids[-1] == self.model.config.eos_id or len(request.ids) == request.limit:
            return True
        if not request.config.stop:
            return False
        assert self.tokenizer is not None
        (text,) = self.tokenizer.decode([request.ids])
        return any(stop in text for stop in request.config.stop)

    def _remove(self, rows: list[int]) -> None:
        """Remove texts from the batch; the last ones take the places that they leave."""
        if not rows:
            return
        kept = [row for row in range(len(self.running)) if row not in rows]
        moving = iter([row for row in kept if row >= len(kept)])
        order = [next(moving) if row in rows else row for row in range(len(kept))]
        self.running = [self.running[row] for row in order]
        self.state.select(torch.tensor(order, dtype=torch.long, device=self.device))


def choose_alike(logits: Float[Tensor, "requests vocab"], requests: Sequence[Request]) -> Int[Tensor, "requests 1"]:
    """Choose a token for each of some requests with equal settings."""
    config = requests[0].config
    if config.temperature is None:
        return topk(logits, 1)[1]
    noise = torch.tensor([request.noise[len(request.ids)] for request in requests], device=logits.device)
    return draw(logits, noise, config.temperature, config.top_k, config.top_p)
