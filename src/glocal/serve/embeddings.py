"""`/v1/embeddings` of OpenAI's protocol: one vector for each input, from the features of any model."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, Request
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, JsonValue

from glocal.serve.requests import check_inputs, check_size, length_of
from glocal.serve.routing import await_answer, find_model
from glocal.tasks import TextPredictor
from glocal.tasks.feature_extraction import Pooling, choose_pooling
from glocal.tasks.predictor import AnyPredictor

router = APIRouter()


class EmbeddingRequest(BaseModel):
    """The body of a request, with the protocol's names; what is not here is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    input: str | list[JsonValue]
    """One input or many, as the model's `predict` takes them."""
    encoding_format: Literal["float", "base64"] = "float"
    """base64: of the float32 numbers, the lower byte first."""
    user: str | None = None
    """Is accepted, and not read."""
    dimensions: None = None
    pooling: Pooling | None = None
    """Beyond the protocol: which tokens the vector is of (see `feature_extraction.poolings`)."""
    normalise: bool = True
    """Beyond the protocol, where vectors have the length 1: false leaves them as they are."""


class Embedding(NamedTuple):
    """The vector of an input, and how many tokens it has; of an image, 0."""

    vector: Float[np.ndarray, " dim"]
    tokens: int


@dataclass(frozen=True)
class Features:
    """What requests of equal options have in common: they share batches."""

    predictor: AnyPredictor
    pooling: Pooling | None
    normalise: bool
    are_texts: bool
    max_batch: int

    def __call__(self, inputs: list[object]) -> Sequence[Embedding]:
        """Return the vector of each input."""
        predictor = self.predictor
        counts = [0] * len(inputs)
        if isinstance(predictor, TextPredictor):
            counts = [len(row["input_ids"]) for row in predictor.encode_texts(inputs)]
        vectors = predictor.features(inputs, self.pooling, self.normalise, self.max_batch)
        return list(map(Embedding, vectors, counts))


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request) -> dict[str, object]:
    """Return a vector for each input, as OpenAI's endpoint of this name."""
    served, config = find_model(request, body.model), request.app.state.config
    predictor = served.predictor
    given = [body.input] if isinstance(body.input, str) else body.input
    check_inputs(len(given), config)
    inputs = [predictor.read_json(value) for value in given]
    for one in inputs:
        check_size(one, config)
    if body.pooling is not None:
        choose_pooling(predictor.model, body.pooling)
    request.scope["glocal"].inputs = len(inputs)
    call = Features(predictor, body.pooling, body.normalise, isinstance(inputs[0], str), config.max_batch)
    found = await await_answer(request, served.batcher.compute(call, inputs, max(map(length_of, inputs))))
    tokens = sum(each.tokens for each in found)
    return {
        "object": "list",
        "model": served.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": write_vector(each.vector, body.encoding_format)}
            for index, each in enumerate(found)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def write_vector(vector: Float[np.ndarray, " dim"], encoding: Literal["float", "base64"]) -> list[float] | str:
    """Return a vector as JSON holds it."""
    return vector.tolist() if encoding == "float" else b64encode(vector.astype("<f4").tobytes()).decode()
