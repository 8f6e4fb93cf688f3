"""Collects what the page shows of an input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from glocal.errors import GlocalError
from glocal.explain import AttentionKind, attention_projections, attention_weights
from glocal.explain.texts import Text
from glocal.page.contract import Numbers, Part, Result
from glocal.page.layers import (
    MAX_BYTES,
    bytes_of,
    describe_attention,
    describe_model,
    describe_positions,
    describe_vectors,
)
from glocal.page.readings import (
    AnyReader,
    Given,
    Reading,
    read_image,
    read_text,
    read_translation,
    read_written,
)
from glocal.page.results import fill_masks, predict_image, predict_text
from glocal.page.trees import Width, beam_tree, path_to, writing_tree
from glocal.tasks import (
    AnyPredictor,
    FillMask,
    ImagePredictor,
    QuestionAnswerer,
    SingleStackTextPredictor,
    TextGenerator,
    Translator,
    task_of,
)
from glocal.tasks.text_predictor import read_text_or_pair, read_texts

PARTS: tuple[Part, ...] = ("result", "attention", "vectors", "positions", "masks")
Found = TypeVar("Found")
INPUTS = ("image", "question", "context", "text", "pair")
"""Fields of a payload that hold an input, in the order in which `read_json` takes them."""


@dataclass(frozen=True)
class Wanted:
    """Which numbers of an input are wanted; the fields are those of `Payload`."""

    parts: Sequence[Part] = PARTS[:-1]
    layer: int | None = None
    kind: str | None = None
    token: int | None = None
    path: Sequence[int] | None = None
    width: Width = Width(branches=0)
    """How large the tree of a generated text is."""


def numbers(predictor: AnyPredictor, payload: Mapping[str, object]) -> Numbers:
    """Return what the page shows of an input, for a request of the page (`contract.Payload`).

    Raises GlocalError, in one line, for a payload that does not fit the model.
    """
    given = read_input(predictor, payload)
    parts = payload.get("parts", Wanted.parts)
    if not isinstance(parts, list | tuple) or not set(map(str, parts)) <= set(PARTS):
        raise GlocalError(f"parts {parts!r:.80}; expected a list of {', '.join(PARTS)}")
    path = payload.get("path")
    if path is not None and not (isinstance(path, list) and all(is_token(predictor, each) for each in path)):
        raise GlocalError(f"path {path!r:.80}; expected a list of ids of tokens")
    kind = None if payload.get("kind") is None else str(payload["kind"])
    wanted = Wanted(tuple(parts), read_number(payload, "layer"), kind, read_number(payload, "token"), path)
    return look(predictor, given, wanted)


def read_input(predictor: AnyPredictor, payload: Mapping[str, object]) -> Given:
    """Return the input in a payload: an image, a text or a pair of texts; nothing is opened by its name.

    Raises GlocalError if the predictor takes no such input.
    """
    values = [payload[name] for name in INPUTS if payload.get(name) is not None]
    given: Given = predictor.read_json(values[0] if len(values) == 1 else values)
    return given


def read_number(payload: Mapping[str, object], name: str) -> int | None:
    """Return a number of the payload, from 0. Raises GlocalError if it is none."""
    value = payload.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise GlocalError(f"{name} {value!r:.40}; expected a whole number from 0")
    return value


def is_token(predictor: AnyPredictor, value: object) -> bool:
    """Whether a value is the id of a token of a text model."""
    vocabulary = getattr(predictor.model.config, "vocab_size", 0)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary


@torch.inference_mode()
def look(predictor: AnyPredictor, given: Given, wanted: Wanted = Wanted()) -> Numbers:
    """Return the wanted numbers of an input: an image, a text, a pair of texts, or a question and its context."""
    reading, result = read(predictor, given, wanted)
    task = task_of(predictor.model)
    assert task is not None  # it has a predictor
    found: Numbers = {"task": task.name, "model": describe_model(predictor.model), "input": reading.given}
    model, inputs, limit = predictor.model, reading.inputs, MAX_BYTES
    if "result" in wanted.parts:
        found["result"] = result
    if "attention" in wanted.parts:
        weights = only(attention_weights(model, *inputs), wanted.kind)
        found["attention"] = describe_attention(model, reading, weights, wanted.layer)
        limit -= bytes_of(found["attention"])
    if "vectors" in wanted.parts:
        projections = only(attention_projections(model, *inputs), wanted.kind)
        found["vectors"] = describe_vectors(projections, wanted.layer, limit)
    if "positions" in wanted.parts and (positions := describe_positions(model)):
        found["positions"] = positions
    if "masks" in wanted.parts and isinstance(predictor, FillMask):
        assert isinstance(given, str | tuple)
        found["masks"] = fill_masks(predictor, given, wanted.token)
    return found


def only(found: dict[AttentionKind, Found], kind: str | None) -> dict[AttentionKind, Found]:
    """Return what was found of one kind of attention, or of all. Raises GlocalError if there is no such kind."""
    if kind is not None and kind not in found:
        raise GlocalError(f"kind {kind!r:.40}; this model has {', '.join(found)}")
    return {each: value for each, value in found.items() if kind in (None, each)}


def read(predictor: AnyPredictor, given: Given, wanted: Wanted) -> tuple[Reading, Result]:
    """Return an input as the model reads it, and what it predicts where that is wanted."""
    predicts = "result" in wanted.parts
    if isinstance(predictor, ImagePredictor):
        assert not isinstance(given, tuple)
        return read_image(predictor, given), predict_image(predictor, given) if predicts else {}
    if isinstance(predictor, Translator):
        (source,) = read_texts([given])
        return translate(predictor, source, wanted)
    if isinstance(predictor, TextGenerator):
        (prompt,) = read_texts([given])
        return continue_text(predictor, prompt, wanted)
    assert isinstance(predictor, SingleStackTextPredictor)
    parts = read_text_or_pair(given)
    return read_given(predictor, parts), predict_text(predictor, parts) if predicts else {}


def read_given(predictor: AnyReader, text: Text) -> Reading:
    """Return a text as an encoder reads it; a question and its context by these names."""
    reading = read_text(predictor, text)
    if isinstance(predictor, QuestionAnswerer):
        reading.given.update({"question": text[0], "context": text[1]})
    return reading


def translate(translator: Translator, text: str, wanted: Wanted) -> tuple[Reading, Result]:
    """Return a sentence with its translation, and what beam search followed."""
    (source,) = translator.tokenizer.encode([text])
    if wanted.path is not None:
        return read_translation(translator, text, source, list(wanted.path)), {}
    tree, hypotheses = beam_tree(translator, source)
    written = path_to(tree, hypotheses[0]["node"])
    ids = [tree.nodes[node]["id"] for node in written]
    result: Result = {"tree": tree.nodes, "written": written, "hypotheses": hypotheses}
    return read_translation(translator, text, source, ids), result


def continue_text(generator: TextGenerator, text: str, wanted: Wanted) -> tuple[Reading, Result]:
    """Return a prompt with what follows it, and what else might have followed."""
    (encoding,) = generator.tokenizer.encodings([text], special=False)
    prompt = encoding.ids or [generator.model.config.bos_id]
    prompt += wanted.path or []
    longest = int(generator.model.config.max_length)
    if "result" not in wanted.parts:
        return read_written(generator, text, prompt[-longest:]), {}
    tree, written = writing_tree(generator, prompt, wanted.width)
    ids = prompt + [tree.nodes[node]["id"] for node in written]
    result: Result = {"tree": tree.nodes, "written": written, "prompt": generator.tokenizer.tokens(prompt)}
    return read_written(generator, text, ids[-longest:]), result
