"""What happens to every request: the token, the size and the time of its body, the log's line, the counts."""

import asyncio
import logging
import time
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glocal.serve.config import ServeConfig
from glocal.serve.errors import error_response
from glocal.serve.look import FILES
from glocal.serve.metrics import Metrics

log = logging.getLogger("glocal.serve")
OPEN = {"/health", "/openapi.json", "/", *(f"/{name}" for name in FILES)}
"""Paths that need no token; the page asks for it, and sends it with its own requests."""


@dataclass
class Record:
    """What the log says of a request beyond its status; nothing of its content."""

    model: str = "-"
    inputs: int = 0
    status: int = 499
    """Of the response; without one, the client went away."""


class Gate:
    """Lets a request in, and records how it ended."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; one without the token, or with too large a body, is refused."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        record = scope["glocal"] = Record()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self.admit(scope, receive, noted)
        except Exception:  # a fault of ours, which the log has and the client need not see
            log.exception("a request failed")
            if record.status == 499:
                await error_response(500, "the server failed; its log says why")(scope, receive, noted)
        finally:
            self.record(scope, record, time.perf_counter() - start)

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it has the token and a body of the right size."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if scope["path"] not in OPEN and not self.config.allows(headers.get(b"authorization", b"")):
            wanted = {"WWW-Authenticate": "Bearer"}
            response = error_response(401, "the token is missing or wrong; give Authorization: Bearer TOKEN", wanted)
            await response(scope, receive, send)
        elif length.isdigit() and int(length) > self.config.max_body:
            await error_response(413, self.too_large())(scope, receive, send)
        else:
            await self.app(scope, self.limited(receive), send)

    def limited(self, receive: Receive) -> Receive:
        """Return `receive` for a body that is to come within the time, and is not to be too large."""
        deadline = asyncio.get_running_loop().time() + self.config.timeout
        size, complete = 0, False

        async def limited() -> Message:
            nonlocal size, complete
            try:
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {self.config.timeout:g} s") from None
            size += len(message.get("body", b""))
            complete = complete or not message.get("more_body", False)
            if size > self.config.max_body:
                raise HTTPException(413, self.too_large())
            return message

        return limited

    def too_large(self) -> str:
        """Say that a body is too large."""
        return f"the body has more than {self.config.max_body:,} bytes; send less at a time"

    def record(self, scope: Scope, record: Record, seconds: float) -> None:
        """Count a request, and write its line into the log."""
        route = getattr(scope.get("route"), "path", "-")
        self.metrics.requests.labels(route, record.model, str(record.status)).inc()
        self.metrics.latency.labels(route, record.model).observe(seconds)
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "-"
        log.info(
            "%s %s %s %d %.1f ms %d inputs", method, route, record.model, record.status, 1000 * seconds, record.inputs
        )
