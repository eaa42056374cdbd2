"""Routes of the playground and of the endpoint, as a Starlette application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError, nearest
from fewstep.report.images import png_base64
from fewstep.serving.models import Served, ServedModel
from fewstep.serving.requests import LARGEST_BODY, Comparison, FrontPoint, Images, Vote, parse_request
from fewstep.serving.votes import Votes
from fewstep.serving.worker import Worker

QUEUE, TIMEOUT = 32, 120.0
"""Requests that may run or wait, and seconds until one is given up."""


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """An HTTP answer other than 200: (status, message)."""


def playground(load: Callable[[], Served], votes: Votes, queue: int = QUEUE, timeout: float = TIMEOUT) -> Starlette:
    """The application. `load` is called in the worker once the server stands; until it is done requests get 503.

    Args:
        load: -> what is served, the first column unless a request names another.
        votes: where votes are kept.
        queue: requests that may run or wait; the next gets 429.
        timeout: seconds after which a request gets 504.
    """

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        app.state.votes, app.state.timeout = votes, timeout
        app.state.worker = worker = Worker(queue)
        app.state.loading, app.state.point = worker.submit(load), None
        yield
        await asyncio.to_thread(worker.close)

    routes = [
        Route("/", _page),
        Route("/health", _health),
        Route("/v1/models", _models),
        Route("/v1/images/generations", _images, methods=["POST"]),
        Route("/compare", _compare, methods=["POST"]),
        Route("/front", _front),
        Route("/front", _load_point, methods=["POST"]),
        Route("/votes", _vote, methods=["POST"]),
    ]
    handlers: Any = {Refused: _refused, FewstepError: _mistake, Exception: _broken}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=living)


# --- routes ---------------------------------------------------------------------------------------------------------


async def _page(request: Request) -> Response:
    return HTMLResponse(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


async def _health(request: Request) -> Response:
    return JSONResponse({"ready": request.app.state.loading.done()})


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [model.about() for model in _served(request).values()]})


async def _images(request: Request) -> Response:
    served = _served(request)
    asked: Images = await _read(request, Images)
    name = asked.model or next(iter(served))
    if name not in served:
        raise Refused(404, f"there is no model {name!r}. {nearest(name, served)}")
    if asked.response_format != "b64_json":
        raise FewstepError("response_format", value=asked.response_format, hint='Only "b64_json" is answered.')
    model, size, seeds = served[name], asked.pixels(), [(asked.seed + k) % (1 << 63) for k in range(asked.n)]
    pictures, milliseconds = await _drawn(request, lambda: model.draw(asked.prompt, seeds, size))
    data = [{"b64_json": png_base64(picture), "seed": seed} for picture, seed in zip(pictures, seeds, strict=True)]
    return JSONResponse(
        {
            "created": int(time.time()), "data": data, "model": name, "milliseconds": milliseconds,
            "plan": model.plan.summary(), "steps": model.plan.steps,
        }
    )  # fmt: skip


async def _compare(request: Request) -> Response:
    served = _served(request)
    asked: Comparison = await _read(request, Comparison)
    found = await _drawn(request, lambda: [_column(model, asked) for model in served.values()])
    pictures = {column["id"]: picture for column, picture in found}
    name = request.app.state.votes.shown(asked.prompt, asked.seed, pictures)
    return JSONResponse({"comparison": name, "columns": [column for column, _ in found]})


async def _front(request: Request) -> Response:
    return JSONResponse({"points": list(_loaded(request).points)})


async def _load_point(request: Request) -> Response:
    found = _loaded(request)
    asked: FrontPoint = await _read(request, FrontPoint)
    request.app.state.point = model = await _drawn(request, lambda: found.point(asked.point))
    return JSONResponse(model.about())


async def _vote(request: Request) -> Response:
    asked: Vote = await _read(request, Vote)
    votes: Votes = request.app.state.votes
    pairs = await asyncio.to_thread(votes.vote, asked.comparison, asked.chosen)
    return JSONResponse({"pairs": pairs, "file": str(votes.file)})


# --- what they share ------------------------------------------------------------------------------------------------


def _served(request: Request) -> dict[str, ServedModel]:
    """The columns by name: those of the beginning, and the point of the front that was loaded last."""
    point = request.app.state.point
    return {model.name: model for model in (*_loaded(request).models, *([point] if point else []))}


def _loaded(request: Request) -> Served:
    loading = request.app.state.loading
    if not loading.done():
        raise Refused(503, "the model is still loading")
    if loading.exception() is not None:
        raise Refused(500, f"the model could not be opened: {loading.exception()}")
    found: Served = loading.result()
    return found


async def _drawn(request: Request, work: Callable[[], Any]) -> Any:
    """What the worker makes of it; dropped from the queue if the client leaves or waits too long."""
    timeout: float = request.app.state.timeout
    future = request.app.state.worker.submit(work)
    if future is None:
        raise Refused(429, "too many requests are waiting already")
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


async def _read(request: Request, kind: type[Any]) -> Any:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise Refused(413, f"a request has at most {LARGEST_BODY} bytes")
    return parse_request(kind, body)


def _column(model: ServedModel, asked: Comparison) -> tuple[dict[str, Any], Tensor]:
    """What the page shows of a model, and its picture."""
    (picture,), milliseconds = model.draw(asked.prompt, [asked.seed])
    image = png_base64(picture)
    previews = [*map(png_base64, model.previews(asked.prompt, asked.seed)), image] if asked.previews else []
    return {**model.about(), "milliseconds": milliseconds, "image": image, "previews": previews}, picture


# --- errors ---------------------------------------------------------------------------------------------------------


def _answer(status: int, message: str, kind: str) -> Response:
    headers = {"Retry-After": "2"} if status in (429, 503) else {}
    return JSONResponse({"error": {"message": message, "type": kind}}, status, headers)


async def _refused(request: Request, error: Refused) -> Response:
    status, message = error.args
    return _answer(status, message, "refused")


async def _mistake(request: Request, error: FewstepError) -> Response:
    if isinstance(error, NonFiniteError):
        return _answer(500, str(error), "not_finite")
    return _answer(400, str(error), "invalid_request")


async def _broken(request: Request, error: Exception) -> Response:
    return _answer(500, f"{type(error).__name__}: {error}", "server")
