"""The explorer's addresses. It answers this machine only, one origin only, and every error in one line of JSON."""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from copyscope.analyses.explorer.state import Explored
from copyscope.analyses.page.build import CSP, page, script_json
from copyscope.analyses.page.libraries import library
from copyscope.training.errors import InputError

MAX_BODY = 1 << 16
"""Bytes of a request's body."""
HOSTS = ("127.0.0.1", "localhost")
"""Names under which the server may be asked: a page elsewhere whose name was made to point here is refused."""
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": f"{CSP['server']}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def explorer_app(explored: Explored) -> Starlette:
    """The ASGI application; see docs/explorer.md for its addresses."""

    def answer(respond: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """With the headers that all answers have, and bad input as 400."""

        @wraps(respond)
        def endpoint(request: Request) -> Response:
            try:
                response = respond(request)
            except InputError as error:
                response = _error(str(error), 400)
            response.headers.update(HEADERS)
            return response

        return endpoint

    @answer
    def home(request: Request) -> Response:
        return Response(page({"title": explored.title}, {}, "server"), media_type="text/html; charset=utf-8")

    @answer
    def index(request: Request) -> Response:
        return Response(script_json(explored.index()), media_type="application/json")

    @answer
    def block(request: Request) -> Response:
        return Response(explored.block(request.path_params["name"]), media_type="application/octet-stream")

    @answer
    def code(request: Request) -> Response:
        return Response(library(request.path_params["name"]), media_type="text/javascript; charset=utf-8")

    @answer
    def changed(request: Request) -> Response:
        return JSONResponse({"stamp": explored.stamp()})

    async def prompt(request: Request) -> Response:
        # A page of another origin needs permission to send this type, and never gets it.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _error("send the prompt as application/json", 415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return _error(f"the prompt is too long: {MAX_BODY:,} bytes at most", 413)
        return await run_in_threadpool(answer(lambda _: _prompt(explored, body)), request)

    return Starlette(
        routes=[
            Route("/", home),
            Route("/index.json", index),
            Route("/block/{name:path}", block),
            Route("/lib/{name}.js", code),
            Route("/changed", changed),
            Route("/prompt", prompt, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False)],
        exception_handlers={HTTPException: _http_error, Exception: _surprise},  # type: ignore[dict-item]
    )


def _prompt(explored: Explored, body: bytes) -> Response:
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    return Response(script_json(explored.asked_prompt(asked)), media_type="application/json")


def _error(message: str, status: int) -> Response:
    line = " ".join(message.split())
    return Response(script_json({"error": line}), status, HEADERS, "application/json")


def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(f"{request.url.path}: {error.detail}", error.status_code)


def _surprise(request: Request, error: Exception) -> Response:
    return _error(f"{type(error).__name__}: {error}", 500)
