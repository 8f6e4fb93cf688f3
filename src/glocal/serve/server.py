"""A process that serves: models are loaded, a port is opened, and requests are answered until a signal comes."""

import logging
import math
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from glocal.errors import GlocalError, printable
from glocal.models.device import Precision
from glocal.ops import native
from glocal.serve import ASGIApp
from glocal.serve.config import ServeConfig, check_packages


def serve(
    models: Sequence[str | Path] | Mapping[str, str | Path],
    config: ServeConfig = ServeConfig(),
    device: str | None = None,
    precision: Precision = "auto",
) -> None:
    """Serve models until SIGTERM or Ctrl+C; requests that were accepted by then are answered first.

    Args:
        models: runs, models' folders or hub ids, each as RUN or as NAME=RUN; or runs by name.
        config: address, batches and limits.
        device: as in `load`.
        precision: as in `load`; `auto` is the faster one of float32 and fp16.

    Raises GlocalError if a model cannot be loaded, the port is taken, or the extra `serve` is not installed.
    """
    check_packages()
    from glocal.serve.app import build_app
    from glocal.serve.served import load_models

    with open_port(config) as port:
        given = [f"{name}={run}" for name, run in models.items()] if isinstance(models, Mapping) else map(str, models)
        predictors = load_models(list(given), device, precision)
        native.load()  # compiles the kernels, which the first request would otherwise wait for
        app = build_app(predictors, config)
        for name, predictor in predictors.items():
            say(f"{name}: {predictor!r}")
        if config.token is None and config.host not in ("127.0.0.1", "::1", "localhost"):
            say("no token is set: whoever reaches this address may send requests")
        say(f"serving at {address(port)}; Ctrl+C or SIGTERM ends it")
        run_until_signal(app, port, config)


def run_until_signal(app: ASGIApp, port: socket.socket, config: ServeConfig) -> None:
    """Answer requests at an open port until SIGTERM or Ctrl+C, with a line for each in the log."""
    import uvicorn

    log_to_stderr()
    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(config.timeout) + 5,  # for clients that do not read their answers
    )
    before = signal.signal(signal.SIGTERM, ended)
    try:
        uvicorn.Server(settings).run(sockets=[port])
    finally:
        signal.signal(signal.SIGTERM, before)


def open_port(config: ServeConfig) -> socket.socket:
    """Listen at the address. Raises GlocalError if that is impossible."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        port = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0].lower()  # Python adds the address, which is named here already
        raise GlocalError(
            f"port {config.port} of {config.host} cannot be opened: {reason}; give another --port or --host"
        ) from None
    # connections inherit it: without, the second part of a response waits for 40 ms
    port.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return port


def address(port: socket.socket) -> str:
    """Return the address of an open port as a browser takes it."""
    host, number = port.getsockname()[:2]
    return f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"


def say(line: str) -> None:
    """Print a line at once."""
    print(printable(line), flush=True)


def log_to_stderr() -> None:
    """Write a line for each request to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    log = logging.getLogger("glocal.serve")
    log.setLevel(logging.INFO)
    log.handlers = [handler]
    log.propagate = False


def ended(number: int, frame: FrameType | None) -> None:
    """Do nothing: the server raises a signal again after it has ended by it."""
