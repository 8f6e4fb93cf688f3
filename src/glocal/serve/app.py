"""The HTTP API as an ASGI application."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse

from glocal import __version__
from glocal.serve import completions, embeddings, look
from glocal.serve.config import ServeConfig
from glocal.serve.errors import add_handlers
from glocal.serve.metrics import Metrics
from glocal.serve.middleware import Gate
from glocal.serve.openapi import predict_body
from glocal.serve.requests import length_of, read_request
from glocal.serve.routing import await_answer, find_model
from glocal.serve.served import Prediction, ServedModel, check_names
from glocal.tasks.predictor import AnyPredictor

router = APIRouter()


def build_app(models: Mapping[str, AnyPredictor], config: ServeConfig) -> FastAPI:
    """Return the application (see `glocal.serve.create_app`)."""
    check_names(models)
    metrics = Metrics()
    served = {name: ServedModel(name, predictor, config, metrics) for name, predictor in models.items()}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for model in served.values():
                model.start()
                stack.push_async_callback(model.close)
            yield

    # FastAPI's own pages of the documentation load their scripts from elsewhere
    app = FastAPI(title="glocal", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.served, app.state.config, app.state.metrics = served, config, metrics
    app.post("/v1/{model}/predict", openapi_extra=predict_body(served.values()))(predict)
    for part in (router, completions.router, embeddings.router, look.router):
        app.include_router(part)
    add_handlers(app)
    app.add_middleware(Gate, config=config, metrics=metrics)
    return app


async def predict(model: str, request: Request) -> dict[str, object]:
    """Return the result of each input, as `glocal predict --json` prints it, in the order given.

    The body is JSON: `input`, one, or `inputs`, a list; and the options of the model's task, which `/v1/models` lists
    (`{"inputs": ["A good film."], "top": 2}`). An image is the base64 of its file. A form (multipart/form-data) may
    hold files of images in their place.
    """
    served, config = find_model(request, model), request.app.state.config
    question = await read_request(request, served.predictor, served.Request, config)
    request.scope["glocal"].inputs = len(question.inputs)
    are_texts = isinstance(question.inputs[0], str)
    call = Prediction(served.predictor, question.options, are_texts, config.max_batch)
    length = max(map(length_of, question.inputs))
    results = await await_answer(request, served.batcher.compute(call, question.inputs, length))
    predictor = served.predictor
    return {"model": model, "results": [{predictor.json_key: predictor.to_json(result)} for result in results]}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, object]:
    """Return the models, each with its task, its input and its options."""
    return {"object": "list", "data": [served.describe() for served in request.app.state.served.values()]}


@router.get("/v1/models/{model}")
async def model(model: str, request: Request) -> dict[str, object]:
    """Return one model."""
    return find_model(request, model).describe()


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the server answers."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> PlainTextResponse:
    """Return counts, latencies, sizes of batches and lengths of queues, for Prometheus."""
    return PlainTextResponse(request.app.state.metrics.text())
