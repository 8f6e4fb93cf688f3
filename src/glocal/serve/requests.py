"""What a request says: one input or a list, and the options that its model's task has."""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from inspect import signature
from typing import Any, get_type_hints

from fastapi import HTTPException, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, JsonValue, create_model
from starlette.datastructures import UploadFile

from glocal.errors import GlocalError
from glocal.generation import DecodingConfig
from glocal.serve.config import ServeConfig
from glocal.tasks.predictor import AnyPredictor


class PredictRequest(BaseModel):
    """The body of `/v1/{model}/predict`: `input` or `inputs`, and the options of the model's task."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    input: JsonValue = None
    inputs: list[JsonValue] | None = None

    def options(self) -> tuple[tuple[str, Hashable], ...]:
        """Return the options by their names; those that were not given have `predict`'s defaults."""
        return tuple((name, getattr(self, name)) for name in type(self).model_fields if name not in ("input", "inputs"))


def request_model(predictor: AnyPredictor) -> type[PredictRequest]:
    """Return the class of a predictor's requests: its options are arguments of `predict`, of the types given there."""
    hints, arguments = get_type_hints(predictor.predict), signature(predictor.predict).parameters
    options: dict[str, Any] = {name: (hints[name], arguments[name].default) for name in predictor.options}
    return create_model(f"{type(predictor).__name__}Request", __base__=PredictRequest, **options)


@dataclass(frozen=True)
class Question:
    """What is to be predicted: the inputs, and the options of all of them."""

    inputs: list[object]
    options: tuple[tuple[str, Hashable], ...]


async def read_request(
    request: Request, predictor: AnyPredictor, model: type[PredictRequest], config: ServeConfig
) -> Question:
    """Read the body of a prediction: JSON, or a form with files and the same fields.

    Raises GlocalError and pydantic's ValidationError for bad input, HTTPException for what exceeds a limit.
    """
    files: list[bytes] = []
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=config.max_inputs, max_fields=32) as form:
            files = [await each.read() for _, each in form.multi_items() if isinstance(each, UploadFile)]
            fields = {name: read_field(each) for name, each in form.multi_items() if isinstance(each, str)}
        body = model.model_validate_json(json.dumps(fields))
    elif kind == "application/json":
        body = model.model_validate_json(await request.body())
    else:
        raise HTTPException(
            415, f"the Content-Type is {kind or 'missing'}; give application/json or multipart/form-data"
        )
    sources = {"input": body.input is not None, "inputs": body.inputs is not None, "files": bool(files)}
    if sum(sources.values()) != 1:
        found = " and ".join(name for name, is_given in sources.items() if is_given) or "none of them"
        raise GlocalError(f"{found} was given; expected one of input, inputs, or files in a form")
    values: list[object] = [*files] or ([body.input] if body.inputs is None else [*body.inputs])
    check_inputs(len(values), config)
    inputs = [predictor.read_json(value) for value in values]
    for one in inputs:
        check_size(one, config)
    options = body.options()
    for _, value in options:
        if isinstance(value, DecodingConfig):
            check_decoding(value, config)
    return Question(inputs, options)


def read_field(text: str) -> JsonValue:
    """Return the JSON that a form's field holds, or its text where it is none."""
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


# --------------------------------------------------------------------------------------------------------------- limits


def check_inputs(count: int, config: ServeConfig) -> None:
    """Raise where a request has no input, or too many."""
    if count < 1:
        raise GlocalError("no input was given; give one or more")
    if count > config.max_inputs:
        raise HTTPException(
            413, f"{count} inputs were given; expected {config.max_inputs} at most: send several requests"
        )


def check_size(given: object, config: ServeConfig) -> None:
    """Raise where an input is too large."""
    if isinstance(given, Image.Image):
        if given.width * given.height > config.max_pixels:
            size = f"{given.width} x {given.height}"
            raise HTTPException(
                413, f"an image has {size} pixels; expected {config.max_pixels:,} at most: scale it down"
            )
    elif (length := length_of(given)) > config.max_text:
        raise HTTPException(413, f"an input has {length:,} characters; expected {config.max_text:,} at most: cut it")


def length_of(given: Any) -> int:
    """Return the characters of an input: a text, or several with a space between them; 0 for an image."""
    if isinstance(given, Image.Image):
        return 0
    return len(given if isinstance(given, str) else " ".join(given))


def check_decoding(decoding: DecodingConfig, config: ServeConfig) -> None:
    """Raise where a text would be too long, or searched for too widely."""
    if decoding.extra_length > config.max_tokens:
        raise HTTPException(400, f"{decoding.extra_length} tokens to generate; expected {config.max_tokens} at most")
    if max(decoding.beams or 1, decoding.nbest) > config.max_beams:
        wide = max(decoding.beams or 1, decoding.nbest)
        raise HTTPException(400, f"{wide} beams or texts; expected {config.max_beams} at most")
