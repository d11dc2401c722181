"""What the routes share: the typed state of the process, and reading a request."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from functools import partial
from types import coroutine
from typing import Annotated, Any, TypeVar

import orjson
from celery import Celery
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from redis import Redis
from sqlalchemy import Engine
from starlette.requests import ClientDisconnect

from api.admission import undeclared_limit
from api.auth import Auth
from api.jobmetrics import JobMetrics
from api.metrics import Metrics
from api.recorder import Recorder
from api.serving import Serving
from api.tally import Tally
from shared.database import Sessions
from shared.errors import (
    MAX_FAULTS,
    Fault,
    FaultKind,
    Invalid,
    NotJSON,
    RequestTimeout,
    TooLarge,
    UnsupportedMediaType,
)
from shared.settings import Settings
from shared.signature import MAX_TEXT

Model = TypeVar("Model", bound=BaseModel)

THREAD_BYTES = 64 * 1024
THREAD_ROWS = 256

_KINDS: dict[str, FaultKind] = {"true_label": "label", "id": "id", "prediction_id": "id"}
"""What is wrong when one of these fields is."""


@dataclass(frozen=True, kw_only=True)
class AppState:
    """Everything a request may need, made once by the lifespan."""

    settings: Settings
    auth: Auth
    engine: Engine
    sessions: Sessions
    serving: Serving
    recorder: Recorder
    tally: Tally
    redis: Redis
    celery: Celery
    metrics: Metrics
    job_metrics: JobMetrics


def state_of(request: Request) -> AppState:
    """The state of the process that serves this request."""
    state: AppState = request.app.state.ratchet
    return state


State = Annotated[AppState, Depends(state_of)]


def require_api_key(request: Request, state: State) -> None:
    """Refuse a caller without a key, where keys are configured."""
    state.auth.check_api(request.headers.get("authorization"))


def require_admin(request: Request, state: State) -> str:
    """The name of the admin who calls."""
    return state.auth.check_admin(request.headers.get("authorization"))


Admin = Annotated[str, Depends(require_admin)]


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, never much more than `max_body` bytes of it in memory.

    Raises:
        TooLarge: it is longer.
        RequestTimeout: it did not arrive within `body_seconds`.
        UnsupportedMediaType: it is declared as something else than JSON.
    """
    declared = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if declared != "application/json":
        raise UnsupportedMediaType(f"the body must be application/json, not {declared[:100] or 'nothing'}")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedMediaType(f"the body must not be encoded, and this is {coding[:100] or 'unclear'}")
    declared_length = request.headers.get("content-length")
    limit = settings.max_body if declared_length else undeclared_limit(settings.max_body)
    length = declared_length or "0"
    fits = length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= limit
    body = await _in_time(_receive(request, limit), settings.body_seconds) if fits else b""
    if not fits or len(body) > limit:
        which = "RATCHET_MAX_BODY" if declared_length else "what one without Content-Length may have"
        raise TooLarge(f"the body is longer than {which}, {limit} bytes")
    return body


async def _receive(request: Request, limit: int) -> bytes:
    """What arrives until the body ends or is longer than `limit`."""
    chunks = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        if not chunks and not message.get("more_body"):
            return chunk
        chunks += chunk
        if not message.get("more_body") or len(chunks) > limit:
            return bytes(chunks)


async def _in_time(reading: Coroutine[Any, Any, bytes], seconds: float) -> bytes:
    """The body, within so many seconds; one that is there already, as most are, pays for no timer."""
    try:
        waited = reading.send(None)
    except StopIteration as arrived:
        body: bytes = arrived.value
        return body
    try:
        async with asyncio.timeout(seconds):
            return await _rest(reading, waited)
    except TimeoutError:
        raise RequestTimeout(
            f"the body did not arrive within RATCHET_BODY_SECONDS, {seconds:g} s; nothing was written"
        ) from None


@coroutine
def _rest(started: Coroutine[Any, Any, bytes], waited: Any) -> Generator[Any, Any, bytes]:
    """Go on with a coroutine that has run up to its first wait."""
    yield waited
    body: bytes = yield from started  # an await would refuse what has begun
    return body


def parse_json(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        NotJSON: it is none (NaN and Infinity included); the text says where.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise NotJSON(f"not JSON: {_wrong_byte(body) or exc}") from None


def _wrong_byte(body: bytes) -> str | None:
    """Where a text stops being UTF-8, which orjson doesn't tell."""
    try:
        body.decode()
    except UnicodeDecodeError as exc:
        line = body.count(b"\n", 0, exc.start) + 1
        column = exc.start - body.rfind(b"\n", 0, exc.start)
        return f"a byte that is not UTF-8: line {line} column {column} (byte {exc.start})"
    return None


def json_body(
    model: type[Model], *, optional: bool = False, rows: str | None = None
) -> Callable[..., Coroutine[Any, Any, Model]]:
    """A dependency that reads the body as `model`; faults are named by row and field.

    Args:
        optional: no body at all is an empty object.
        rows: the field that holds the rows; more than `max_rows` of them are refused unread.
    """

    async def read(request: Request, state: State) -> Model:
        body = await read_body(request, state.settings)
        work = partial(_validate, model, body, optional=optional, rows=rows, most=state.settings.max_rows)
        return await asyncio.to_thread(work) if is_large(body) else work()

    return read


def is_large(body: bytes) -> bool:
    """Whether a body is better read in a thread, so that others don't wait: many bytes, or many rows."""
    return len(body) > THREAD_BYTES or body.count(b"{") + body.count(b"[") > THREAD_ROWS


def _validate(model: type[Model], body: bytes, *, optional: bool, rows: str | None, most: int) -> Model:
    value = {} if optional and not body.strip() else parse_json(body)
    found = value.get(rows) if rows and isinstance(value, dict) else None
    if isinstance(found, list) and len(found) > most:
        raise TooLarge(f"{len(found)} {rows} where RATCHET_MAX_ROWS allows {most}")
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        faults = [_fault(error) for error in exc.errors(include_url=False, include_input=False)]
        raise Invalid(summary(faults), faults=faults) from None


def summary(faults: list[Fault]) -> str:
    """One line about a list of faults."""
    one = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    one = f"more than {MAX_FAULTS} faults" if len(faults) > MAX_FAULTS else one
    return f"{one}; nothing was written. First: {describe(faults[0])}"


def describe(fault: Fault) -> str:
    """A fault as a line of text."""
    where = [f"row {fault.row}"] if fault.row is not None else []
    where += [repr(fault.feature)] if fault.feature is not None else []
    return ", ".join([*where, fault.detail])


def _fault(error: Any) -> Fault:
    row = next((part for part in error["loc"] if isinstance(part, int)), None)
    names = [part for part in error["loc"] if isinstance(part, str)]
    return Fault(
        detail=error["msg"].removeprefix("Value error, "),
        row=row,
        feature=names[-1][:MAX_TEXT] if names else None,
        kind="missing" if error["type"] == "missing" else _KINDS.get(names[-1] if names else "", "other"),
    )
