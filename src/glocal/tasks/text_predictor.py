"""What predictors of texts share: checks of inputs, batches of texts of similar length, and text generation."""

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glocal.data.encoding import Row, collate, encode_sentences
from glocal.data.files import compose
from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError
from glocal.explain import TokenAttention, explain_text
from glocal.files import JSONObject
from glocal.generation import DecodingConfig, GenerationOutput, Hypothesis, generate
from glocal.models import Model
from glocal.models.device import Precision, prepare
from glocal.models.generative import EncoderDecoder, GenerationState, Generative
from glocal.tasks.predictor import Predictor, ReadBatch, Result, by_length

Text = str | tuple[str, str]
"""A text, or a pair of texts."""
TextInput = TypeVar("TextInput", bound=str | Sequence[str])


class TextPredictor(Predictor[TextInput, Result]):
    """A trained text model and its tokenizer. The model is moved to the device, and its weights are packed in place."""

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

    def configure(self, report: JSONObject) -> None:
        """Set what the report of the model's run says of its data; nothing by default."""

    def map_batches(self, inputs: TextInput | Iterable[TextInput], read: ReadBatch, batch_size: int) -> list[Tensor]:
        """Return what `read` returns for each text, or pair of texts, in float32 on the CPU, in the order given."""
        return self.run_batches(self.encode_texts(inputs), batch_size, read)

    def encode_texts(self, texts: object) -> list[Row]:
        """Return the model's inputs for each text, or for each pair of texts: `input_ids` and, with them, segments.

        A text longer than the model's maximum loses its end, with a warning; of a pair, the longer text does. Raises
        GlocalError where some inputs are pairs and some are not, and where a text has no tokens.
        """
        longest = getattr(self.model.config, "max_length", math.inf)
        if isinstance(self.model, EncoderDecoder):
            first = read_texts(texts)
            encoded = [encode_source(ids, longest) for ids in self.tokenizer.encode(first)]
        else:
            given = read_inputs(texts, 1, 2)
            first = [text if isinstance(text, str) else text[0] for text in given]
            second = [text[1] for text in given if not isinstance(text, str)]
            if second and len(second) < len(first):
                raise GlocalError(f"{len(second)} pairs among {len(first)} texts; give texts only, or pairs only")
            encoded = encode_sentences(self.tokenizer, first, second or None, int(longest))
        if cut := sum(overlong for _, overlong in encoded):
            warnings.warn(
                f"{cut} of {len(first)} texts have more than the {longest} tokens that the model takes, and lost their "
                "end",
                stacklevel=4,
            )
        return [row if len(row["input_ids"]) else self.empty_row() for row, _ in encoded]

    def empty_row(self) -> Row:
        """Return the row of a text without tokens: the token that begins a text. Raises GlocalError without one."""
        begin = getattr(self.model.config, "bos_id", None)
        if begin is None:
            raise GlocalError("an empty text for a model without a token that begins a text; give it a word")
        return {"input_ids": np.array([begin])}

    def run_batches(self, rows: Sequence[Row], batch_size: int, read: ReadBatch) -> list[Tensor]:
        """Return what `read` returns for each row, in float32 on the CPU, in the order of the rows."""

        def run(rows: list[Row]) -> list[Tensor]:
            batch = collate(rows, getattr(self.model.config, "pad_id", None) or 0)
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            return [output.float().cpu() for output in read(batch)]

        with torch.inference_mode():
            return by_length(rows, lambda row: len(row["input_ids"]), run, batch_size)


class SingleStackTextPredictor(TextPredictor[TextInput, Result]):
    """A text model with one stack of blocks: an encoder alone (BERT), or a decoder alone (GPT)."""

    def explain(self, text: Text) -> TokenAttention:
        """Return the attention of every head in a text, or a pair of texts."""
        return explain_text(self, read_text_or_pair(text))


class GeneratingTextPredictor(TextPredictor[str, GenerationOutput]):
    """A text model that generates text, token by token."""

    model: Generative[GenerationState]
    options = ("decoding",)

    def generate(
        self, inputs: Sequence[list[int]], decoding: DecodingConfig, batch_size: int
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each input, given as token ids, in batches of similar length."""

        def run(inputs: list[list[int]]) -> list[list[Hypothesis]]:
            side = "left" if self.model.is_decoder_only else "right"
            pad = partial(pad_sequence, batch_first=True, padding_side=side)
            rows = [torch.tensor(ids) for ids in inputs]
            input_ids = pad(rows, padding_value=self.model.config.pad_id or 0)
            mask = pad([torch.ones_like(row, dtype=torch.bool) for row in rows])
            return generate(self.model, input_ids.to(self.device), mask.to(self.device), decoding, self.tokenizer)

        return by_length(inputs, len, run, batch_size)

    @staticmethod
    def to_json(result: GenerationOutput) -> list[dict[str, object]]:
        """Return all texts with their scores."""
        return [{"text": text, "score": score} for text, score in result.nbest]


def head_of(model: Model) -> str | None:
    """Return the head that a text model's config names, "translation" for an encoder-decoder, None for other models."""
    return "translation" if isinstance(model, EncoderDecoder) else getattr(model.config, "head", None)


def check_vocabulary(tokenizer: Tokenizer, model: Model) -> None:
    """Raise GlocalError if a tokenizer has more tokens than the model; warn where it has less than half as many.

    Published models have up to some hundred embeddings more than tokens, so that their number is a round one.
    """
    tokens, embeddings = tokenizer.vocab_size, model.config.vocab_size
    both = f"a tokenizer of {tokens} tokens for a model of {embeddings}"
    if tokens > embeddings:
        raise GlocalError(f"{both}; take the one that the model was trained with")
    if 2 * tokens < embeddings:
        warnings.warn(f"{both}: is it the one that the model was trained with?", stacklevel=3)


# --------------------------------------------------------------------------------------------------------------- inputs


def read_texts(given: object) -> list[str]:
    """Return one text, or many, as a list (see `read_inputs`)."""
    return [text if isinstance(text, str) else text[0] for text in read_inputs(given, 1)]


def read_text_or_pair(given: object) -> Text:
    """Return one text, or a pair of texts (see `read_inputs`)."""
    (text,) = read_inputs([given], 1, 2)
    return text if isinstance(text, str) else (text[0], text[-1])


def read_inputs(given: object, *counts: int, allow_word_lists: bool = False) -> list[str | tuple[str, ...]]:
    """Return one input, or many, as a list, with composed accents (Unicode NFC).

    An input consists of as many texts as one of `counts`, or of any number of words. Raises GlocalError for anything
    else.
    """
    if isinstance(given, bytes | Tensor) or not isinstance(given, str | Iterable):
        raise GlocalError(f"{given!r:.80} was given for a text; expected a text, or a list of them")
    inputs = [given] if isinstance(given, str) else list(given)
    for one in inputs:
        texts = [one] if isinstance(one, str) else one
        if not isinstance(texts, list | tuple) or not (allow_word_lists or len(texts) in counts):
            names = {1: "a text", 2: "a pair of texts"}
            expected = "words" if allow_word_lists else " or ".join(names[count] for count in counts)
            raise GlocalError(f"{one!r:.80} was given; expected {expected}")
        if not all(map(is_unicode, texts)):
            raise GlocalError(f"{one!r:.80} was given for a text, and a part of it is not a text")
    return [compose(one) if isinstance(one, str) else tuple(map(compose, one)) for one in inputs]


def encode_source(ids: Sequence[int], longest: int | float) -> tuple[Row, bool]:
    """Return the row of a sentence to translate, and whether it was cut; the token that ends it stays."""
    overlong = len(ids) > longest
    return {"input_ids": np.array([*ids[: int(longest) - 1], ids[-1]] if overlong else ids)}, overlong


def is_unicode(text: object) -> bool:
    """Whether this is a text that can be encoded in UTF-8; a lone surrogate cannot."""
    return isinstance(text, str) and text == text.encode("utf-8", errors="ignore").decode()
