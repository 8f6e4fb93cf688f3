"""Trained models behind an address: an HTTP API, with batches of the requests that wait.

    glocal.serve(["runs/reviews", "tagger=runs/conll"], glocal.serve.ServeConfig(port=8080))      # until SIGTERM

    from glocal.serve.app import create_app
    app = create_app({"reviews": glocal.load("runs/reviews")})      # an ASGI application, for another server

The way of a request is `app` (routes, limits) → `requests` (what the body says) → `batching` or `generation` (computed
together with others) → the response. No task is named here: `Predictor` reads inputs, options and results.
"""

from glocal.modules import make_callable
from glocal.serve.config import ServeConfig

__all__ = ["ServeConfig"]

make_callable(__name__, "glocal.serve.server", "serve")
