"""Every error as `application/problem+json` (RFC 9457), rendered in one place."""

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shared.database import is_cut_off
from shared.errors import (
    MAX_FAULTS,
    Fault,
    Invalid,
    NotFound,
    RatchetError,
    RequestTimeout,
    Unauthorized,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
REFUSAL = "ratchet.refusal"
"""Where a request's scope says with which error it was answered."""

log = structlog.get_logger()


class Problem(Response):
    """A domain error as an answer; it tells whoever counts, through the request's scope."""

    def __init__(self, error: RatchetError, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(body, error.status, headers, MEDIA_TYPE)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope[REFUSAL] = self._error
        await super().__call__(scope, receive, send)


def problem(error: RatchetError) -> Response:
    """The response for a domain error."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if error.faults:
        body["errors"] = [
            {name: value for name, value in asdict(fault).items() if value is not None and name != "kind"}
            for fault in error.faults[:MAX_FAULTS]
        ]
        body["error_count"] = len(error.faults)
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"  # what still comes of the body is read by nobody
    return Problem(error, orjson.dumps(body), headers)


def install(app: FastAPI) -> None:
    """Render every error of the app as a problem."""
    app.add_exception_handler(RatchetError, _domain)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(Exception, _unexpected)


async def _domain(_: Request, exc: Exception) -> Response:
    return problem(exc if isinstance(exc, RatchetError) else RatchetError("internal error"))


async def _http(_: Request, exc: Exception) -> Response:
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    error = (
        NotFound("there is nothing at this path")
        if status == NotFound.status
        else RatchetError(HTTPStatus(status).description or HTTPStatus(status).phrase)
    )
    response = problem(error)
    if status != error.status:
        body = {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": error.detail,
        }
        response = Response(orjson.dumps(body), status, getattr(exc, "headers", None), MEDIA_TYPE)
    return response


async def _validation(_: Request, exc: Exception) -> Response:
    found = exc.errors() if isinstance(exc, RequestValidationError) else []
    faults = [Fault(detail=e["msg"], feature=str(e["loc"][-1])) for e in found]
    return problem(Invalid("the path or the query is wrong", faults=faults))


async def _database(request: Request, exc: Exception) -> Response:
    if isinstance(exc, DBAPIError) and not is_cut_off(exc):
        raise exc  # what was asked is wrong, and asking again helps nobody
    request.app.state.ratchet.metrics.database_failed("request")
    log.warning("Postgres did not do what a request needs", error=type(exc).__name__)
    return problem(Unavailable("Postgres does not answer; send it again"))


async def _gone(_: Request, _exc: Exception) -> Response:
    return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is there to read it


async def _unexpected(_: Request, exc: Exception) -> Response:
    log.error("unexpected error", exc_info=exc)
    return problem(RatchetError("internal error; the log of this process says more"))
