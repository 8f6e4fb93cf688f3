"""`/v1/completions` of OpenAI's protocol, for causal models."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from glocal.files import JSONObject
from glocal.generation import DecodingConfig, Progress, cut_at_stop, stable_length
from glocal.serve.errors import error_body
from glocal.serve.generation import Generator, Prompt
from glocal.serve.requests import check_decoding, check_inputs, check_size
from glocal.serve.routing import await_answer, find_model
from glocal.tasks import TextGenerator

router = APIRouter()


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    """A last chunk counts the tokens."""


class CompletionRequest(BaseModel):
    """The body of a request, with the protocol's names and defaults; what is not here is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    prompt: str | list[str] | list[int] | list[list[int]]
    """Texts, or the tokens of texts."""
    max_tokens: int | None = Field(default=16, ge=1)
    temperature: float | None = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    n: int | None = Field(default=1, ge=1)
    """Texts for each prompt."""
    stop: str | list[str] | None = None
    seed: int | None = None
    """Text i of a prompt is sample i of this seed; without one, each request draws its own."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Most probable tokens that are listed for each token."""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Is accepted, and not read."""
    top_k: int | None = Field(default=None, ge=1)
    """Beyond the protocol, as in `DecodingConfig`."""
    repetition_penalty: float = 1.0
    """Beyond the protocol, as in `DecodingConfig`."""
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = None
    suffix: None = None
    presence_penalty: float | None = Field(default=0, ge=0, le=0)
    frequency_penalty: float | None = Field(default=0, ge=0, le=0)
    logit_bias: None = None

    def decoding(self) -> DecodingConfig:
        """Return how each text is generated. Raises GlocalError for what it cannot be."""
        sampled = self.temperature is None or self.temperature > 0
        return DecodingConfig(
            extra_length=16 if self.max_tokens is None else self.max_tokens,
            temperature=(1.0 if self.temperature is None else self.temperature) if sampled else None,
            top_p=self.top_p if sampled and self.top_p != 1 else None,
            top_k=self.top_k if sampled else None,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            repetition_penalty=self.repetition_penalty,
            stop=tuple([self.stop] if isinstance(self.stop, str) else self.stop or []),
        )

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one or many, as texts or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]


class Choice:
    """One text of a response, as it grows."""

    def __init__(self, index: int, prompt: Prompt, predictor: TextGenerator) -> None:
        self.index, self.prompt, self.predictor = index, prompt, predictor
        self.progress: Progress | None = None
        self.sent = 0
        """Characters that a stream has sent."""
        self.sent_tokens = 0
        """Tokens whose probabilities a stream has sent."""

    @property
    def ids(self) -> list[int]:
        """Its tokens so far."""
        return [] if self.progress is None else self.progress.ids

    def text(self) -> str:
        """Return its text so far, up to a stop string."""
        return self.predictor.text_of(self.prompt.input_ids, self.ids, self.prompt.config.stop)

    def whole(self) -> JSONObject:
        """Return the finished text in the protocol's form."""
        return self.form(self.text(), self.logprobs(0), self.finish_reason())

    def piece(self) -> JSONObject | None:
        """Return what is new since the last piece, whole characters of it; None where there is nothing."""
        assert self.progress is not None
        text, finished = self.text(), self.progress.finished
        end = len(text) if finished else stable_length(text, self.prompt.config.stop)
        if end <= self.sent and not finished:
            return None
        piece = self.form(text[self.sent : end], self.logprobs(self.sent_tokens), self.finish_reason())
        self.sent, self.sent_tokens = max(end, self.sent), len(self.ids)
        return piece

    def form(self, text: str, logprobs: JSONObject | None, finish_reason: str | None) -> JSONObject:
        """Return a text in the protocol's form."""
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def finish_reason(self) -> str | None:
        """Return `stop` after an end of the text or a stop string, `length` after the last token, else None."""
        if self.progress is None or not self.progress.finished:
            return None
        if self.ids[-1] == self.predictor.model.config.eos_id or self.was_stopped():
            return "stop"
        return "length"

    def was_stopped(self) -> bool:
        """Whether the text has a stop string."""
        whole = self.predictor.text_of(self.prompt.input_ids, self.ids, ())
        return cut_at_stop(whole, self.prompt.config.stop) != whole

    def logprobs(self, first: int) -> JSONObject | None:
        """Return the log probabilities of the tokens from `first` on, in the protocol's form; None unless wanted."""
        if self.progress is None or self.progress.logprobs is None:
            return None
        found = self.progress.logprobs[first:]
        before = [self.predictor.text_of(self.prompt.input_ids, self.ids[:n], ()) for n in range(first, len(self.ids))]
        return {
            "tokens": self.decode([each.id for each in found]),
            "token_logprobs": [each.logprob for each in found],
            "top_logprobs": [
                dict(zip(self.decode([id for id, _ in each.top]), [value for _, value in each.top], strict=True))
                for each in found
            ],
            "text_offset": list(map(len, before)),
        }

    def decode(self, ids: list[int]) -> list[str]:
        """Return the text of each token by itself."""
        return self.predictor.tokenizer.decode([[id] for id in ids])


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts, as OpenAI's endpoint of this name; with `stream`, token by token as server-sent events."""
    served, config = find_model(request, body.model), request.app.state.config
    predictor, generator = served.predictor, served.generator
    if generator is None or not isinstance(predictor, TextGenerator):
        raise HTTPException(400, f"{served.name} does not continue texts; give /v1/{served.name}/predict its inputs")
    given, n, decoding = body.prompts(), body.n or 1, body.decoding()
    check_decoding(decoding, config)
    check_inputs(len(given) * n, config)
    texts = [each for each in given if isinstance(each, str)]
    for text in texts:
        check_size(text, config)
    encoded = iter(await asyncio.to_thread(predictor.encode_prompts, texts))
    prompts = [next(encoded) if isinstance(each, str) else each for each in given]
    choices = [
        Choice(place * n + sample, Prompt(ids, decoding, body.logprobs, sample), predictor)
        for place, ids in enumerate(prompts)
        for sample in range(n)
    ]
    request.scope["glocal"].inputs = len(choices)
    head: JSONObject = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion"}
    head |= {"created": int(time.time()), "model": served.name}
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = stream_events(generator, choices, head, with_usage, config.timeout)
        first = await await_answer(request, anext(events))  # a prompt that is refused has a status of its own
        return StreamingResponse(chain(first, events), media_type="text/event-stream")
    await await_answer(request, finish(generator, choices))
    return JSONResponse(head | {"choices": [choice.whole() for choice in choices], "usage": usage(choices)})


async def finish(generator: Generator, choices: list[Choice]) -> None:
    """Generate texts to their ends."""
    async with aclosing(generator.generate([choice.prompt for choice in choices])) as updates:
        async for update in updates:
            for place, progress in update.items():
                choices[place].progress = progress


async def stream_events(
    generator: Generator, choices: list[Choice], head: JSONObject, with_usage: bool, timeout: float | int
) -> AsyncGenerator[str, None]:
    """Yield server-sent events: pieces of the texts as they are generated, at last `[DONE]`."""
    deadline = asyncio.get_running_loop().time() + timeout
    async with aclosing(generator.generate([choice.prompt for choice in choices])) as updates:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    update = await anext(updates, None)
            except TimeoutError:
                yield event(error_body(504, f"the texts are not finished after {timeout:g} s"))
                return
            if update is None:
                break
            for place, progress in update.items():
                choices[place].progress = progress
                piece = choices[place].piece()
                if piece is not None:
                    yield event(head | {"choices": [piece]})
    if with_usage:
        yield event(head | {"choices": [], "usage": usage(choices)})
    yield "data: [DONE]\n\n"


async def chain(first: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Yield the first event and the rest; closing it closes the rest."""
    async with aclosing(rest):
        yield first
        async for each in rest:
            yield each


def event(content: JSONObject) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def usage(choices: list[Choice]) -> dict[str, int]:
    """Count the tokens of the prompts, each once, and of the texts."""
    prompts = sum(len(choice.prompt.input_ids) for choice in choices if choice.prompt.sample == 0)
    texts = sum(len(choice.ids) for choice in choices)
    return {"prompt_tokens": prompts, "completion_tokens": texts, "total_tokens": prompts + texts}
