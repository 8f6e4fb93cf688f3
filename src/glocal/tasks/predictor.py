"""What predictors share: checks of inputs, batches of like length, and how inputs are read and results printed."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glocal.data.encoding import Batch, Row, collate, encode_sentences
from glocal.data.files import TABLES, compose
from glocal.data.progress import progress
from glocal.data.tables import read_prompts
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, printable
from glocal.explain import TokenAttention, explain_text
from glocal.files import short
from glocal.generation import DecodingConfig, GenerationOutput, Hypothesis, generate
from glocal.models import Model
from glocal.models.device import Precision, prepare
from glocal.models.generative import EncoderDecoder, Generative
from glocal.tasks.feature_extraction import Pooling, choose_pooling, pooled_features, stack_features

Input = TypeVar("Input")
Output = TypeVar("Output")

Probabilities = list[tuple[str, float]]
"""Labels or words and their probabilities, the most probable first."""


class Predictor:
    """A trained model that turns raw inputs into results, and the ways in and out on the command line."""

    json_key: ClassVar[str] = "labels"
    """What the result is called in JSON."""
    json_input: ClassVar[str] = "a text"
    """What `read_json` takes, in words."""
    options: ClassVar[tuple[str, ...]] = ("top",)
    """Arguments of `predict` that a user chooses for each call: how many results, how text is generated, ..."""
    tables: ClassVar[Sequence[str]] = TABLES
    """Endings of the files that `read_table` reads; any other file has an input a line."""
    model: Model
    device: torch.device
    precision: str
    predict: Callable[..., list[Any]]
    """Returns the result of each input, in the order given."""
    explain: Callable[..., Any]
    """Returns the attention of every head for one input."""
    map_batches: Callable[[Any, Callable[[Batch], Iterable[Tensor]], int], list[Tensor]]
    """`map_batches(inputs, read, batch_size)` returns what `read` makes of each input, in float32 on the CPU."""

    def features(
        self, inputs: Any, pooling: Pooling | None = None, normalise: bool = False, batch_size: int = 32
    ) -> Float[np.ndarray, "inputs dim"]:
        """Return one vector for each input, float32, in the order given; a vector does not depend on other inputs.

        A model needs no head for it. A text longer than the model's maximum loses its end, with a warning.

        Args:
            inputs: images as `predict` takes them; texts, or pairs of texts.
            pooling: `cls`, `mean` or `last`; by default the first of `feature_extraction.poolings`.
            normalise: divide each vector by its length.
            batch_size: inputs at a time.

        Raises GlocalError for a pooling that the model does not allow, and for what is no input.
        """
        read = partial(pooled_features, self.model, pooling=choose_pooling(self.model, pooling))
        return stack_features(self.map_batches(inputs, read, batch_size), normalise)

    @staticmethod
    def read_line(line: str) -> Any:
        """Return the input that a line of text stands for."""
        return line

    @classmethod
    def read_json(cls, value: object) -> Any:
        """Return the input that a value of JSON stands for, or the content of a file, as bytes.

        Names of files are texts like any other: nothing is opened. Raises GlocalError for a value that is no input.
        """
        if not isinstance(value, str):
            raise cls.no_input(value)
        return value

    @classmethod
    def no_input(cls, value: object) -> GlocalError:
        """Return the error for a value of JSON, or the content of a file, that is no input."""
        given = f"a file of {len(value)} bytes" if isinstance(value, bytes) else short(value)
        return GlocalError(f"{given} was given; expected {cls.json_input}")

    @staticmethod
    def read_table(path: Path) -> Iterator[Any]:
        """Yield the inputs of a table, one a row, read as in training; "" for a row without one."""
        return read_prompts(path)

    @staticmethod
    def format(given: str, result: Any) -> str:
        """Return the lines that are printed for an input and its result; by default the input and its labels."""
        return f"{printable(given)}  {format_probabilities(result)}"

    @staticmethod
    def to_json(result: Any) -> Any:
        """Return the result as JSON holds it; by default the labels and their probabilities."""
        return probabilities_to_json(result, "label")


class TextPredictor(Predictor):
    """A trained text model and its tokenizer. The model is moved to the device and its weights are packed in place."""

    head: ClassVar[str]
    """The head that the model must have (see `head_of`)."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, device: str | None = None, precision: Precision = "float32"
    ) -> None:
        if head_of(model) != self.head:
            has = f"whose head is for {head_of(model)}" if head_of(model) else "which reads no texts"
            raise GlocalError(
                f"a {type(model).__name__}, {has}, was given to a {type(self).__name__}; expected one for {self.head}: "
                "glocal.load opens each as what it is"
            )
        check_vocabulary(tokenizer, model)
        self.device, self.precision = prepare(model, device, precision)
        self.model = model
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        tokens, where = f"{self.tokenizer.vocab_size:,} tokens", f"{self.precision} on {self.device}"
        return f"{type(self).__name__}({type(self.model).__name__}, {tokens}, {where})"

    def configure(self, report: dict[str, Any]) -> None:
        """Take over what the report of the model's run says of its data; nothing by default."""

    def map_batches(self, texts: Any, read: Callable[[Batch], Iterable[Tensor]], batch_size: int) -> list[Tensor]:
        """Return what `read` makes of each text, or pair of texts, in float32 on the CPU, in the order given."""
        return self.run_batches(self.encode_texts(texts), batch_size, read)

    def encode_texts(self, texts: Any) -> list[Row]:
        """Return the tokens of each text, or of each pair of texts, as the model reads them.

        A text longer than the model's maximum loses its end, of a pair the longer text, with a warning. Raises
        GlocalError where some inputs are pairs and some are not, and where a text has no tokens.
        """
        longest = getattr(self.model.config, "max_length", math.inf)
        if isinstance(self.model, EncoderDecoder):
            given = read_texts(texts)
            encoded = [encode_source(ids, longest) for ids in self.tokenizer.encode(given)]
        else:
            given = read_texts(texts, parts=(1, 2))
            first = [text if isinstance(text, str) else text[0] for text in given]
            second = [text[1] for text in given if not isinstance(text, str)]
            if second and len(second) < len(first):
                raise GlocalError(f"{len(second)} pairs among {len(first)} texts; give one kind or the other")
            encoded = encode_sentences(self.tokenizer, first, second or None, int(longest))
        if cut := sum(overlong for _, overlong in encoded):
            warnings.warn(
                f"{cut} of {len(given)} texts have more than the {longest} tokens that the model takes, and lost their "
                "end",
                stacklevel=4,
            )
        return [row if len(row["input_ids"]) else self.empty_row() for row, _ in encoded]

    def empty_row(self) -> Row:
        """Return the row of a text without tokens: what begins a text. Raises GlocalError where nothing does."""
        begin = getattr(self.model.config, "bos_id", None)
        if begin is None:
            raise GlocalError("an empty text for a model without a token that begins a text; give it a word")
        return {"input_ids": np.array([begin])}

    def run_batches(
        self, rows: Sequence[Row], batch_size: int, read: Callable[[Batch], Iterable[Tensor]]
    ) -> list[Tensor]:
        """Return what `read` makes of each row of a batch, in float32 on the CPU, in the order of the rows."""

        def run(rows: list[Row]) -> Iterable[Tensor]:
            batch = collate(rows, getattr(self.model.config, "pad_id", None) or 0)
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            return [output.float().cpu() for output in read(batch)]

        with torch.inference_mode():
            return by_length(rows, lambda row: len(row["input_ids"]), run, batch_size)


class TextReader(TextPredictor):
    """A model that reads texts: an encoder, or a decoder alone."""

    def explain(self, text: str | tuple[str, str]) -> TokenAttention:
        """Return the attention of every head in a text, or a pair of texts."""
        (given,) = read_texts([text], parts=(1, 2))
        return explain_text(self, given)


class TextWriter(TextPredictor):
    """A model that generates text, token by token."""

    model: Generative
    options = ("decoding",)

    def generate(
        self, inputs: Sequence[list[int]], decoding: DecodingConfig, batch_size: int
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each input, given as token ids, in batches of like length."""

        def run(inputs: list[list[int]]) -> list[list[Hypothesis]]:
            side = "left" if self.model.is_decoder_only else "right"
            pad = partial(pad_sequence, batch_first=True, padding_side=side)
            rows = [torch.tensor(ids) for ids in inputs]
            input_ids = pad(rows, padding_value=self.model.config.pad_id or 0)
            mask = pad([torch.ones_like(row, dtype=torch.bool) for row in rows])
            return generate(self.model, input_ids.to(self.device), mask.to(self.device), decoding, self.tokenizer)

        return by_length(inputs, len, run, batch_size)

    @staticmethod
    def to_json(result: GenerationOutput) -> list[dict[str, Any]]:
        """Return all texts with their scores."""
        return [{"text": text, "score": score} for text, score in result.nbest]


# --------------------------------------------------------------------------------------------------------------- models


def head_of(model: Model) -> str | None:
    """Return the head that a text model's config names, "translation" for an encoder-decoder, None for other models."""
    return "translation" if isinstance(model, EncoderDecoder) else getattr(model.config, "head", None)


def check_vocabulary(tokenizer: Tokenizer, model: Model) -> None:
    """Raise GlocalError where a tokenizer has more tokens than the model; warn where it has less than half as many.

    Published models have up to some hundred embeddings more than tokens, so that their number is a round one.
    """
    tokens, embeddings = tokenizer.vocab_size, model.config.vocab_size
    both = f"a tokenizer of {tokens} tokens for a model of {embeddings}"
    if tokens > embeddings:
        raise GlocalError(f"{both}; take the one that the model was trained with")
    if 2 * tokens < embeddings:
        warnings.warn(f"{both}: is it the one that the model was trained with?", stacklevel=3)


def require_classes(model: Model) -> None:
    """Raise GlocalError where a model is an encoder without a classifier."""
    if getattr(model.config, "num_classes", None) == 0:
        raise GlocalError(
            f"this {type(model).__name__} is an encoder without a classifier, so it predicts nothing; fine-tune it "
            "first: glocal train RECIPE --from it"
        )


def label_names(model: Model) -> list[str]:
    """Return the names of a classifier's classes, or their numbers where it has no names."""
    return model.labels or [str(number) for number in range(model.config.num_classes)]


# --------------------------------------------------------------------------------------------------------------- inputs


def read_texts(given: Any, parts: Sequence[int] = (1,)) -> list[Any]:
    """Return one text, or many, as a list, with composed accents (Unicode NFC).

    `parts` are the numbers of texts that an input may consist of; 0 allows any number. Raises GlocalError for what is
    no text.
    """
    if isinstance(given, bytes | Tensor) or not isinstance(given, str | Iterable):
        raise GlocalError(f"{given!r:.80} was given for a text; expected a text, or a list of them")
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        words = [text] if isinstance(text, str) else text
        if not isinstance(words, list | tuple) or (len(words) not in parts and 0 not in parts):
            expected = " or ".join({1: "a text", 2: "a pair of texts"}.get(count, "words") for count in parts)
            raise GlocalError(f"{text!r:.80} was given; expected {expected}")
        if not all(map(is_unicode, words)):
            raise GlocalError(f"{text!r:.80} was given for a text, and a part of it is none")
    return [compose(text) if isinstance(text, str) else tuple(map(compose, text)) for text in texts]


def encode_source(ids: Sequence[int], longest: int | float) -> tuple[Row, bool]:
    """Return the row of a sentence to translate, and whether it was cut; the token that ends it stays."""
    overlong = len(ids) > longest
    return {"input_ids": np.array([*ids[: int(longest) - 1], ids[-1]] if overlong else ids)}, overlong


def is_unicode(text: object) -> bool:
    """Whether this is a text that can be encoded in UTF-8; a lone surrogate cannot."""
    return isinstance(text, str) and text == text.encode("utf-8", errors="ignore").decode()


def check_count(name: str, value: int) -> None:
    """Raise GlocalError where an argument is not a whole number of 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GlocalError(f"{name} {value!r} was given; expected a whole number of 1 or more")


def by_length(
    inputs: Sequence[Input],
    length: Callable[[Input], int],
    run: Callable[[list[Input]], Iterable[Output]],
    batch_size: int,
) -> list[Output]:
    """Run batches of like length, the longest first, and return the outputs in the order of the inputs."""
    check_count("batch_size", batch_size)
    order = sorted(range(len(inputs)), key=lambda i: length(inputs[i]), reverse=True)
    found: dict[int, Output] = {}
    for batch in progress([order[i : i + batch_size] for i in range(0, len(order), batch_size)]):
        found |= zip(batch, run([inputs[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(inputs))]


# -------------------------------------------------------------------------------------------------------------- results


def most_probable(logits: Float[Tensor, "rows classes"], name: Callable[[int], str], top: int) -> list[Probabilities]:
    """Return the `top` classes of each row and their probabilities."""
    check_count("top", top)
    best = logits.float().softmax(dim=-1).topk(min(top, logits.shape[1]))
    return [
        [(name(number), probability) for number, probability in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def independent_probabilities(
    logits: Float[Tensor, "rows classes"], names: Sequence[str], threshold: float, top: int | None
) -> list[Probabilities]:
    """Return the classes of each row whose own probability reaches the threshold, or the `top` most probable ones."""
    if top is not None:
        check_count("top", top)
    results = []
    for row in logits.float().sigmoid().tolist():
        ordered = sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])
        results.append([pair for pair in ordered if pair[1] >= threshold] if top is None else ordered[:top])
    return results


def format_probabilities(result: Probabilities) -> str:
    """Return labels or words with their probabilities in percent."""
    return "  ".join(f"{printable(name)} {probability:.1%}" for name, probability in result)


def probabilities_to_json(result: Probabilities, name: str) -> list[dict[str, Any]]:
    """Return labels or words with their probabilities as JSON holds them; `name` is the key of the former."""
    return [{name: label, "probability": round(probability, 6)} for label, probability in result]
