"""Routes of the playground and of the endpoint, as a Starlette application."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError, nearest
from fewstep.report.images import to_pil
from fewstep.serving import requests
from fewstep.serving.columns import Column
from fewstep.serving.votes import Votes
from fewstep.serving.worker import Worker

QUEUE, TIMEOUT = 32, 120.0
"""Requests that may run or wait, and seconds until one is given up."""


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """An HTTP answer other than 200: (status, message)."""


def playground(
    load: Callable[[], Sequence[Column]], votes: Votes, queue: int = QUEUE, timeout: float = TIMEOUT
) -> Starlette:
    """The application. `load` is called in the worker once the server stands; until it is done requests get 503.

    Args:
        load: -> the columns.
        votes: where votes are kept.
        queue: requests that may run or wait; the next gets 429.
        timeout: seconds after which a request gets 504.
    """
    worker = Worker(queue)

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        app.state.columns = worker.submit(load)
        yield
        await asyncio.to_thread(worker.close)

    async def ready(request: Request) -> dict[str, Column]:
        loading = request.app.state.columns
        if not loading.done():
            raise Refused(503, "the model is still loading")
        if loading.exception() is not None:
            raise Refused(500, f"the model could not be opened: {loading.exception()}")
        return {column.name: column for column in loading.result()}

    async def drawn(request: Request, work: Callable[[], Any]) -> Any:
        """What the worker makes of it; dropped from the queue if the client leaves or waits too long."""
        future = worker.submit(work)
        if future is None:
            raise Refused(429, f"{queue} requests are waiting already")
        waiting, end = asyncio.wrap_future(future), time.monotonic() + timeout
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=0.25)
                if time.monotonic() > end:
                    raise Refused(504, f"not drawn within {timeout:g} s")
                if not waiting.done() and await request.is_disconnected():
                    raise Refused(499, "the client left")
            if waiting.cancelled():
                raise Refused(503, "the server is closing")
            return waiting.result()
        finally:
            waiting.cancel()

    async def page(request: Request) -> Response:
        return HTMLResponse(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))

    async def health(request: Request) -> Response:
        return JSONResponse({"ready": request.app.state.columns.done()})

    async def models(request: Request) -> Response:
        columns = await ready(request)
        return JSONResponse({"object": "list", "data": [column.about() for column in columns.values()]})

    async def images(request: Request) -> Response:
        columns = await ready(request)
        asked: requests.Images = await _read(request, requests.Images)
        name = asked.model or next(iter(columns))
        if name not in columns:
            raise Refused(404, f"there is no model {name!r}. {nearest(name, columns)}")
        if asked.response_format != "b64_json":
            raise FewstepError("response_format", value=asked.response_format, hint='Only "b64_json" is answered.')
        size, seeds = asked.pixels(), [(asked.seed + k) % (1 << 63) for k in range(asked.n)]
        pictures, milliseconds = await drawn(request, lambda: columns[name].draw(asked.prompt, seeds, size))
        data = [{"b64_json": _png(picture), "seed": seed} for picture, seed in zip(pictures, seeds, strict=True)]
        about = columns[name].about()
        return JSONResponse(
            {
                "created": int(time.time()), "data": data, "model": name, "milliseconds": milliseconds,
                "plan": about["plan"], "steps": about["steps"],
            }
        )  # fmt: skip

    async def compare(request: Request) -> Response:
        columns = await ready(request)
        asked: requests.Comparison = await _read(request, requests.Comparison)
        found = await drawn(request, lambda: [_shown(column, asked) for column in columns.values()])
        name = votes.shown(asked.prompt, asked.seed, {row["id"]: final for row, final in found})
        return JSONResponse({"comparison": name, "columns": [row for row, _ in found]})

    async def vote(request: Request) -> Response:
        asked: requests.Vote = await _read(request, requests.Vote)
        pairs = await asyncio.to_thread(votes.vote, asked.comparison, asked.chosen)
        return JSONResponse({"pairs": pairs, "file": str(votes.file)})

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/v1/models", models),
        *(
            Route(path, answer, methods=["POST"])
            for path, answer in {"/v1/images/generations": images, "/compare": compare, "/votes": vote}.items()
        ),
    ]
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        Refused: _refused, FewstepError: _mistake, Exception: _broken
    }  # fmt: skip
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=living)


async def _read(request: Request, kind: type[Any]) -> Any:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > requests.LARGEST_BODY:
            raise Refused(413, f"a request has at most {requests.LARGEST_BODY} bytes")
    return requests.read(kind, body)


def _shown(column: Column, asked: requests.Comparison) -> tuple[dict[str, Any], Tensor]:
    """What the page shows of a column, and its picture."""
    pictures, milliseconds = column.draw(asked.prompt, [asked.seed])
    steps = [_png(picture) for picture in column.previews(asked.prompt, asked.seed)] if asked.previews else []
    row = {**column.about(), "milliseconds": milliseconds, "image": _png(pictures[0]), "previews": steps}
    return row, pictures[0]


def _png(picture: Tensor) -> str:
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _answer(status: int, message: str, kind: str) -> Response:
    headers = {"Retry-After": "2"} if status in (429, 503) else {}
    return JSONResponse({"error": {"message": message, "type": kind}}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    status, message = error.args
    return _answer(status, message, "refused")


async def _mistake(request: Request, error: Exception) -> Response:
    if isinstance(error, NonFiniteError):
        return _answer(500, str(error), "not_finite")
    return _answer(400, str(error), "invalid_request")


async def _broken(request: Request, error: Exception) -> Response:
    return _answer(500, f"{type(error).__name__}: {error}", "server")
