"""Errors as OpenAI's protocol has them, which its clients read: `{"error": {"message", "type", "param", "code"}}`."""

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from glocal.errors import GlocalError, shortened
from glocal.serve.batching import OverloadError

GONE = 499
"""The status, in log and metrics, of a request whose client went away; nobody receives it."""
RETRY_AFTER = "1"
"""Seconds after which a client may try again."""
MAX_LENGTH = 300
"""Characters of a message; what was given may be long."""


def error_body(status: int, message: str) -> dict[str, object]:
    """Return the body of an error."""
    kinds = {401: "authentication_error", 404: "not_found_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": shortened(message, MAX_LENGTH), "type": kind, "param": None, "code": None}}


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error."""
    return JSONResponse(error_body(status, message), status, headers)


def first_error(error: ValidationError | RequestValidationError) -> str:
    """Return the first thing that is wrong with a request's fields, in one line."""
    first = error.errors()[0]
    place = ".".join(str(name) for name in first["loc"] if name != "body")
    cause = first.get("ctx", {}).get("error")
    said = str(cause) if isinstance(cause, GlocalError) else first["msg"]
    return f"{place}: {said}" if place else said


def add_handlers(app: FastAPI) -> None:
    """Have an application answer with these errors."""

    @app.exception_handler(StarletteHTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(GlocalError)
    async def bad_input(request: Request, error: GlocalError) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(400, first_error(error))

    @app.exception_handler(ValidationError)
    async def bad_fields(request: Request, error: ValidationError) -> JSONResponse:
        return error_response(400, first_error(error))

    @app.exception_handler(OverloadError)
    async def overloaded(request: Request, error: OverloadError) -> JSONResponse:
        return error_response(503, str(error), {"Retry-After": RETRY_AFTER})

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return error_response(GONE, "the client went away")
