"""What all predictors of texts have in common: a model, its tokenizer, and batches of inputs of like length."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from glocal.data.files import compose
from glocal.data.progress import progress
from glocal.data.text import Tokenizer
from glocal.data.text.encoding import Batch, Row, collate
from glocal.errors import GlocalError
from glocal.inference.answer import check_count
from glocal.inference.device import Precision, prepare
from glocal.models import Model
from glocal.models.generative import EncoderDecoder

Input = TypeVar("Input")
Output = TypeVar("Output")


def head_of(model: Model) -> str | None:
    """What a model of texts answers: the head that its config names, or a translation; None of another model."""
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


class TextPredictor:
    """A trained model and its tokenizer; the model is prepared in place for a device and a precision of its weights."""

    head: ClassVar[str]
    """What the model answers (see `head_of`)."""
    predict: Callable[..., list[Any]]
    """What it answers to each input, in the order given."""

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

    def _ask(self, rows: Sequence[Row], batch_size: int, read: Callable[[Batch], Iterable[Tensor]]) -> list[Tensor]:
        """What `read` makes of each row of a batch, in float32 on the CPU."""

        def answer(rows: list[Row]) -> Iterable[Tensor]:
            batch = collate(rows, getattr(self.model.config, "pad_id", None) or 0)
            return [answer.float().cpu() for answer in read({name: t.to(self.device) for name, t in batch.items()})]

        with torch.inference_mode():
            return by_length(rows, lambda row: len(row["input_ids"]), answer, batch_size)


def read_texts(given: Any, parts: Sequence[int] = (1,)) -> list[Any]:
    """Return one text, or many, as a list, with composed accents (Unicode NFC).

    `parts` says of how many texts each may consist, 0 of any number. Raises GlocalError for what is no text.
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


def is_unicode(text: object) -> bool:
    """Whether this is a text that can be written in UTF-8, which half of a character cannot."""
    return isinstance(text, str) and text == text.encode("utf-8", errors="ignore").decode()


def by_length(
    inputs: Sequence[Input],
    length: Callable[[Input], int],
    answer: Callable[[list[Input]], Iterable[Output]],
    batch_size: int,
) -> list[Output]:
    """Answer in batches of like length, the longest first; the answers stand in the order of the inputs."""
    check_count("batch_size", batch_size)
    order = sorted(range(len(inputs)), key=lambda i: length(inputs[i]), reverse=True)
    found: dict[int, Output] = {}
    for batch in progress([order[i : i + batch_size] for i in range(0, len(order), batch_size)]):
        found |= zip(batch, answer([inputs[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(inputs))]
