"""Trained models behind an address: an HTTP API, with batches of the requests that wait.

    glocal.serve(["runs/reviews", "tagger=runs/conll"], glocal.serve.ServeConfig(port=8080))      # until SIGTERM

    app = glocal.serve.create_app({"reviews": glocal.load("runs/reviews")})      # for another ASGI server

The way of a request is `app` (routes, limits) → `requests` (what the body says) → `batching` or `generation` (computed
together with others) → the response. No task is named here: `Predictor` reads inputs, options and results.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from glocal.modules import make_callable
from glocal.serve.config import ServeConfig, check_packages

if TYPE_CHECKING:
    from glocal.tasks.predictor import AnyPredictor

__all__ = ["ServeConfig", "create_app"]

ASGIApp = Callable[..., Awaitable[None]]


def create_app(models: "Mapping[str, AnyPredictor]", config: ServeConfig = ServeConfig()) -> ASGIApp:
    """Return an ASGI application that serves predictors by their names; its threads run during its lifespan.

    Raises GlocalError if there is no model, a name is no part of an address, or the extra `serve` is not installed.
    """
    check_packages()
    from glocal.serve.app import build_app

    return build_app(models, config)


make_callable(__name__, "glocal.serve.server", "serve")
