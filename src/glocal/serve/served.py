"""A model that is served: its predictor, and what computes its requests."""

import re
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glocal.errors import GlocalError
from glocal.generation import ContinuousBatch
from glocal.models.device import Precision
from glocal.serve.batching import Batcher
from glocal.serve.config import ServeConfig
from glocal.serve.generation import Generator
from glocal.serve.metrics import Metrics
from glocal.serve.requests import PredictRequest, request_model
from glocal.tasks import TextGenerator, load, task_of
from glocal.tasks.predictor import AnyPredictor

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a model may be called, since its name stands in addresses."""


class ServedModel:
    """A predictor with a name. Its requests are computed in threads, which run from `start` to `close`."""

    def __init__(self, name: str, predictor: AnyPredictor, config: ServeConfig, metrics: Metrics) -> None:
        self.name, self.predictor, self.created = name, predictor, int(time.time())
        self.Request: type[PredictRequest] = request_model(predictor)
        observe = metrics.batch_size.labels(name).observe
        self.batcher = Batcher(config.max_batch, config.max_wait, config.max_queue, observe)
        self.generator = (
            Generator(lambda: ContinuousBatch(predictor.model, predictor.tokenizer, config.slots), config.max_queue)
            if isinstance(predictor, TextGenerator)
            else None
        )
        metrics.queue_length.labels(name).set_function(self.queue_length)

    def start(self) -> None:
        """Begin to compute."""
        self.batcher.start()
        if self.generator is not None:
            self.generator.start()

    async def close(self) -> None:
        """End the threads."""
        await self.batcher.close()
        if self.generator is not None:
            self.generator.close()

    def queue_length(self) -> int:
        """Return how many requests wait for a batch, and how many texts are not finished."""
        return self.batcher.queue_length() + (0 if self.generator is None else self.generator.waiting)

    def describe(self) -> dict[str, object]:
        """Return what `/v1/models` says of it, in OpenAI's form and beyond."""
        predictor, model = self.predictor, self.predictor.model
        task = task_of(model)
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "glocal",
            "task": task.name if task else None,
            "family": model.family,
            "labels": model.labels,
            "input": predictor.json_input,
            "options": list(predictor.options),
            "precision": predictor.precision,
            "device": str(predictor.device),
        }


@dataclass(frozen=True)
class Prediction:
    """What requests of equal options have in common: they share batches."""

    predictor: AnyPredictor
    options: tuple[tuple[str, Hashable], ...]
    are_texts: bool
    """Whether the inputs are single texts; they are not computed together with pairs of texts."""
    max_batch: int

    def __call__(self, inputs: list[object]) -> Sequence[object]:
        """Return the result of each input."""
        return self.predictor.predict(inputs, **dict(self.options), batch_size=self.max_batch)


def load_models(
    models: Sequence[str], device: str | None = None, precision: Precision = "auto"
) -> dict[str, AnyPredictor]:
    """Load models that are given as RUN or NAME=RUN, by their names. Raises GlocalError as `parse_names` and `load`."""
    return {name: load(run, device, precision) for name, run in parse_names(models).items()}


def parse_names(models: Sequence[str]) -> dict[str, str]:
    """Return the run of each name. A run without a name has that of its folder, or of the hub's model.

    Raises GlocalError if a name is no part of an address, or two models have the same.
    """
    runs: dict[str, str] = {}
    for given in models:
        first, equals, rest = given.partition("=")
        named = bool(equals) and not Path(given).exists()
        name, run = (first, rest) if named else (name_of(given), given)
        if not NAME.fullmatch(name):
            raise GlocalError(
                f"{name!r:.80} is not a valid model name; give NAME={run or 'RUN'} with letters, digits, '.', '_' and "
                "'-'"
            )
        if name in runs:
            raise GlocalError(f"{runs[name]} and {run} are both called {name}; give one another name: NAME={run}")
        runs[name] = run
    return runs


def name_of(run: str) -> str:
    """Return the name of a run's folder; of RUN/model, that of RUN."""
    path = Path(run).resolve() if Path(run).exists() else Path(run)
    return path.parent.name if path.name == "model" else path.name


def check_names(models: Mapping[str, AnyPredictor]) -> None:
    """Raise GlocalError if a name is no part of an address, or there is no model."""
    for name in models:
        if not NAME.fullmatch(name):
            raise GlocalError(f"{name!r:.80} is not a valid model name; expected letters, digits, '.', '_' and '-'")
    if not models:
        raise GlocalError("no model is given; give one or more")
