"""Causal language modelling: the next token of documents, and text generation.

Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*, equation 1
Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.data.packed import PackedDocuments
from glocal.data.text_config import DocumentsConfig
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.generation import (
    DecodingConfig,
    GenerationOutput,
    Hypothesis,
    TokenLogprob,
    cut_at_stop,
    max_length_of,
    stable_length,
    stream,
    token_logprobs,
)
from glocal.models import Model
from glocal.ops import IGNORED, cross_entropy
from glocal.tasks.objective import TokenObjective, model_inputs
from glocal.tasks.predictor import check_count
from glocal.tasks.spec import TaskSpec, TestRun
from glocal.tasks.text_predictor import GeneratingTextPredictor, SingleStackTextPredictor, read_texts
from glocal.training.interfaces import Batch, Metrics
from glocal.training.run import RunFolder


def open_data(
    config: DocumentsConfig, run: Path | None = None, tokenizer: Tokenizer | None = None, model: Model | None = None
) -> PackedDocuments:
    """Open documents, packed into windows (see `TaskSpec.open_data`)."""
    return PackedDocuments.open(config, run, tokenizer, testing=model is not None)


# ------------------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class CausalLMConfig:
    """The task of predicting the next token."""

    name: Literal["causal-lm", "completion"] = "causal-lm"
    """The task, which decides the fields of the sections `data` and `task`: of documents, or of prompts and
    completions."""


class LanguageModel(Protocol):
    """A model with logits for the next token."""

    def forward_features(self, **inputs: Tensor) -> Float[Tensor, "batch tokens dim"]:
        """Return the refined tokens."""
        ...

    def logits(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Return the logits of the token after each."""
        ...


class CausalLMObjective(TokenObjective):
    """Cross entropy of the next token: a batch's `labels` (B, L) are the tokens that follow `input_ids` (B, L)."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean cross entropy over the labels, in nats, computed in float32.

        On the CPU, logits are computed for tokens with a label alone. Elsewhere they are computed for all, because a
        GPU would wait for the number of labels, and torch.compile would split its graph there.
        """
        if batch["labels"].device.type == "cpu" and not torch.compiler.is_compiling():
            return super().loss(model, batch)
        language_model = cast(LanguageModel, model)
        logits = language_model.logits(language_model.forward_features(**model_inputs(batch)))
        return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def predictions_and_targets(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, "tokens vocab"], Int[Tensor, " tokens"]]:
        """Return the logits and labels of the tokens that have a label."""
        real = batch["labels"] != IGNORED
        language_model = cast(LanguageModel, model)
        x = language_model.forward_features(**model_inputs(batch))
        return language_model.logits(x[real]), batch["labels"][real]


# ------------------------------------------------------------------------------------------------------------ predictor


@dataclass(frozen=True)
class TokenProbability:
    """A token of a text, and how probable it was after the tokens before it."""

    id: int
    token: str
    """As `Tokenizer.tokens` shows it: ▁ is a space, ⏎ a new line."""
    probability: float | None
    """None for the first token of a text, which follows no other."""
    top: list["TokenProbability"] = field(default_factory=list)
    """The most probable tokens at its position, the most probable first."""


class TextGenerator(GeneratingTextPredictor, SingleStackTextPredictor[str, GenerationOutput]):
    """A causal language model and its tokenizer."""

    head = "language"
    json_key = "texts"

    def predict(
        self, prompts: str | Iterable[str], decoding: DecodingConfig = DecodingConfig(), batch_size: int = 32
    ) -> list[GenerationOutput]:
        """Continue prompts, in the order given; the default is greedy.

        An empty prompt begins a text. A single continuation that reaches the model's maximum length continues from the
        last half of its tokens; several continuations end there. Raises GlocalError if a prompt has as many tokens
        as the model takes.
        """
        given = self.encode_prompts(prompts)
        found = self._extend(given, self.generate(given, decoding, batch_size), decoding, batch_size)
        results = []
        for ids, hypotheses in zip(given, found, strict=True):
            nbest = [(self.text_of(ids, one.ids, decoding.stop), one.score) for one in hypotheses]
            results.append(GenerationOutput(*nbest[0], nbest))
        return results

    def stream(self, prompt: str, decoding: DecodingConfig = DecodingConfig()) -> Iterator[str]:
        """Continue one prompt, and yield each piece of text as it is generated; joined, they are the text of `predict`.

        Pieces consist of whole characters. Text that may be the beginning of a stop string is held back until the next
        tokens decide. Raises GlocalError if the decoding has several hypotheses.
        """
        (ids,) = self.encode_prompts(prompt)
        text, shown = "", 0
        done: list[int] = []
        while not done or self._is_unfinished(ids, done, decoding):
            window, rest = self._window(ids, done), replace(decoding, extra_length=decoding.extra_length - len(done))
            new: list[int] = []
            for new in stream(self.model, torch.tensor([window], device=self.device), rest, self.tokenizer):
                text = self.text_of(ids, done + new, decoding.stop)
                end = stable_length(text, decoding.stop)
                if end > shown:
                    yield text[shown:end]
                    shown = end
            done += new
        if text[shown:]:
            yield text[shown:]

    @torch.inference_mode()
    def token_probabilities(self, text: str, top: int = 5) -> list[TokenProbability]:
        """Return each token of a text with its probability and the `top` most probable tokens at its position.

        Where a text is longer than the model's maximum, a token's context is at least half of that maximum: the tokens
        right before it, as in `predict`. Raises GlocalError for an input that is not a text, and for a `top` below 1.
        """
        check_count("top", top)
        (ids,) = self.encode_prompts(text)
        longest = max(int(max_length_of(self.model)), 2)  # a window of one token has no next token
        known: list[TokenLogprob] = []
        while (done := 1 + len(known)) < len(ids):
            start = max(done - longest // 2, 0) if known else 0
            window = torch.tensor(ids[start : start + longest], device=self.device)
            logits = self.model(window[None])[0, done - start - 1 : -1]
            known += token_logprobs(logits, window[done - start :], top)

        def named(id: int, logprob: float) -> TokenProbability:
            return TokenProbability(id, self.tokenizer.tokens([id])[0], math.exp(logprob))

        rest = [replace(named(id, logprob), top=[named(*each) for each in best]) for id, logprob, best in known]
        return [TokenProbability(ids[0], self.tokenizer.tokens(ids[:1])[0], None), *rest]

    @staticmethod
    def format(given: str, result: GenerationOutput) -> str:
        """Return the prompt with each of its continuations, on a line each."""
        return "\n".join(given + text for text, _ in result.nbest)

    def _extend(
        self,
        given: Sequence[list[int]],
        found: list[list[Hypothesis]],
        decoding: DecodingConfig,
        batch_size: int,
    ) -> list[list[Hypothesis]]:
        """Continue texts that ended because they reached the model's maximum length."""
        if decoding.width(is_decoder_only=True) > 1:
            return found
        texts = [one for (one,) in found]
        while unfinished := [i for i, ids in enumerate(given) if self._is_unfinished(ids, texts[i].ids, decoding)]:
            left = max(decoding.extra_length - len(texts[i].ids) for i in unfinished)
            windows = [self._window(given[i], texts[i].ids) for i in unfinished]
            more = self.generate(windows, replace(decoding, extra_length=left), batch_size)
            for i, (one,) in zip(unfinished, more, strict=True):
                ids = (texts[i].ids + one.ids)[: decoding.extra_length]
                texts[i] = Hypothesis(ids, None)  # no score: the parts were scored after different beginnings
        return [[one] for one in texts]

    def _is_unfinished(self, prompt: Sequence[int], ids: Sequence[int], decoding: DecodingConfig) -> bool:
        """Whether a text has neither its full length, nor an end token, nor a stop string."""
        if len(ids) >= decoding.extra_length or ids[-1] == self.model.config.eos_id:
            return False
        (text,) = self.tokenizer.decode([[*prompt, *ids]])
        return not any(stop in text[len(self.tokenizer.decode([prompt])[0]) :] for stop in decoding.stop)

    def _window(self, prompt: list[int], ids: list[int]) -> list[int]:
        """Return the tokens to continue: the prompt, or half the model's maximum of what was generated after it."""
        return (prompt + ids)[-(int(max_length_of(self.model)) // 2) :] if ids else prompt

    def encode_prompts(self, prompts: str | Iterable[str]) -> list[list[int]]:
        """Return the ids of prompts, without a token that ends the text; an empty one begins a text."""
        begin = self.model.config.bos_id
        rows = [encoding.ids for encoding in self.tokenizer.encodings(read_texts(prompts), special=False)]
        if begin is None and not all(rows):
            raise GlocalError("an empty prompt for a model without a token that begins a text; give it a word")
        return [row or [begin] for row in rows]

    def text_of(self, prompt: Sequence[int], ids: Sequence[int], stop: Sequence[str]) -> str:
        """Decode ids after their prompt, since a first token may be half a character; cut at a stop string."""
        begun, whole = self.tokenizer.decode([prompt, [*prompt, *ids]])
        return cut_at_stop(whole[len(begun) :], stop)


# ----------------------------------------------------------------------------------------------------------------- test

SAMPLE = DecodingConfig(temperature=0.8, extra_length=60)
PROMPT = 12
"""Tokens of a document that the log's samples continue."""


def sample(model: nn.Module, data: PackedDocuments, number: int) -> str:
    """Continue a passage of the validation split, which depends on the number."""
    tokens = data.columns["val"]["tokens"]
    start = number * data.config.max_length % max(len(tokens) - PROMPT, 1)
    (prompt,) = data.tokenizer.decode([tokens[start : start + PROMPT].tolist()])
    device = str(next(model.parameters()).device)
    assert isinstance(model, Model)
    (result,) = TextGenerator(model, data.tokenizer, device).predict([prompt], SAMPLE)
    return f"{prompt}|{result.text}"


def unigram_entropy(test: TestRun[PackedDocuments, object]) -> Metrics:
    """Return the unigram entropy of the text in nats: the loss of a model that knows token frequencies alone."""
    return test.data.unigram_entropy("test")


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the loss beside the unigram entropy."""
    yield f"{metrics['tokens']:,} test tokens, whose unigram entropy is {metrics['unigram_loss']:.3f} nats"
    yield f"loss {metrics['loss']:.4f} nats per token, perplexity {metrics['perplexity']:.3f}"
    yield f"next token: {metrics['accuracy']:.2%} right"


CAUSAL_LM = TaskSpec(
    name="causal-lm",
    description="documents → the next token; prompts → text (GPT's pre-training, text-generation)",
    pipeline_tag="text-generation",
    data=DocumentsConfig,
    config=CausalLMConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: CausalLMObjective(),
    predictor=TextGenerator,
    further_metrics=unigram_entropy,
    format_test=format_test,
    sample=sample,
)
