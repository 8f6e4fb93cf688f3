"""What the routes share: the model that a request names, and waiting for its answer."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from glocal.serve.served import ServedModel

T = TypeVar("T")


def find_model(request: Request, name: str) -> ServedModel:
    """Return the model of a name, and note it for the log. Raises HTTPException if there is none."""
    served: dict[str, ServedModel] = request.app.state.served
    if name not in served:
        raise HTTPException(404, f"no model {name!r:.60}; expected one of {', '.join(served)}")
    request.scope["glocal"].model = name
    return served[name]


async def await_answer(request: Request, work: Coroutine[object, None, T]) -> T:
    """Return what work returns. It is cancelled where the client goes away, or the time is up.

    Raises ClientDisconnect and HTTPException for these, and whatever the work raises.
    """
    timeout = request.app.state.config.timeout
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientDisconnect
        raise HTTPException(504, f"no result after {timeout:g} s; send a smaller request, or try again later")
    finally:
        working.cancel()
        leaving.cancel()


async def wait_for_disconnect(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
