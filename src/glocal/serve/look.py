"""The page, and `/v1/{model}/look`, which gives it the numbers of an input (see `glocal.page`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import JsonValue

from glocal.page import STATIC, Numbers, numbers
from glocal.serve.requests import check_size
from glocal.serve.routing import await_answer, find_model
from glocal.tasks.predictor import AnyPredictor

router = APIRouter()

FILES = {file.name: file for file in Path(str(STATIC)).iterdir()}
"""What the page consists of."""

Payload = dict[str, JsonValue]


@dataclass(frozen=True)
class Look:
    """Computes the numbers of inputs, one by one."""

    predictor: AnyPredictor

    def __call__(self, payloads: list[Payload]) -> Sequence[Numbers]:
        """Return the numbers of each input."""
        return [numbers(self.predictor, payload) for payload in payloads]


@router.post("/v1/{model}/look")
async def look(model: str, payload: Payload, request: Request) -> JSONResponse:
    """Return what the page shows of an input: the result, the attention of every head, and how it is computed."""
    served, config = find_model(request, model), request.app.state.config
    for name, value in payload.items():
        if isinstance(value, str):
            check_size(served.predictor.read_json(value) if name == "image" else value, config)
    (found,) = await await_answer(request, served.batcher.compute(Look(served.predictor), [payload]))
    return JSONResponse(found)


@router.get("/", include_in_schema=False)
@router.get("/{name}", include_in_schema=False)
async def page(name: str = "index.html") -> FileResponse:
    """Return a file of the page."""
    if name not in FILES:
        raise HTTPException(404, "Not Found")
    return FileResponse(FILES[name])
