"""The wrapper around the whole app: an id for every answer, one count for each, a line for some."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import structlog
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from api.errors import problem
from api.metrics import Metrics
from api.observe import Observe
from shared.errors import Conflict, Overloaded

TEMPLATES = ("/predict", "/models", "/models/{version}", "/labels")
HEX = re.compile(r"[0-9a-f]{32}")
OVERLOADED = problem(Overloaded("too much at once"))


class App:
    """Answers with a status; `does` may do something else."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.bound: list[object] = []

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self.bound.append(structlog.contextvars.get_contextvars().get("request_id"))
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})


class Raises(App):
    """Raises, before or after the answer has begun."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        if self.begun:
            await send({"type": "http.response.start", "status": 200})
        raise RuntimeError("nobody foresaw it")


class Silent(App):
    """Never answers: its client went away."""

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        return


def scope_of(path: str = "/models", *given: bytes, **more: Any) -> Scope:
    """A request with X-Request-ID headers."""
    headers = [(b"host", b"a"), *((b"x-request-id", value) for value in given)]
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": headers,
        "client": ("192.0.2.1", 9),
        **more,
    }


def send_to(observe: Observe, scope: Scope) -> list[Message]:
    """Send a request; what comes back."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(observe(scope, receive, send))  # type: ignore[arg-type]
    return sent


def observed(app: App, **more: Any) -> Observe:
    """The wrapper around an app."""
    return Observe(app, Metrics(), TEMPLATES, **{"access_log": 0.0, **more})


def ids_of(message: Message) -> list[str]:
    """The ids in an answer's head."""
    return [value.decode() for name, value in message["headers"] if name == b"x-request-id"]


def figures(observe: Observe) -> str:
    """What a scrape would read now."""
    observe.metrics.flush()
    return observe.metrics.text().decode()


def counted(observe: Observe) -> set[str]:
    """The lines of requests that were counted."""
    lines = figures(observe).splitlines()
    return {line for line in lines if line.startswith("ratchet_requests_total") and not line.endswith(" 0.0")}


@pytest.mark.parametrize("given", ["a", "4bf92f3577b34da6-a3ce", "!~{}\"'\\", "x" * 128])
def test_an_id_that_can_be_used_comes_back(given: str) -> None:
    app = App()
    (start, *_) = send_to(observed(app), scope_of("/models", given.encode()))
    assert ids_of(start) == [given]
    assert (b"a", b"b") in start["headers"]
    assert app.bound == [given]


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b" ",
        b"a b",
        b"x" * 129,
        "größe".encode(),
        b"a\tb",
        b"a\r\nSet-Cookie: b",
        b"a\x00",
        b"\x1b[31m",
        b"\n",
    ],
)
def test_another_id_is_replaced_by_a_new_one(given: bytes) -> None:
    app = App()
    (start, *_) = send_to(observed(app), scope_of("/models", given))
    assert [HEX.fullmatch(found) is not None for found in ids_of(start)] == [True]
    assert app.bound == ids_of(start)


def test_without_an_id_each_request_gets_a_uuid() -> None:
    observe = observed(App())
    found = {ids_of(send_to(observe, scope_of())[0])[0] for _ in range(100)}
    assert len(found) == 100
    assert {UUID(id_).version for id_ in found} == {4}  # None where the variant is another


def test_an_answer_that_is_used_again_does_not_collect_ids() -> None:
    class Refuses(App):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await OVERLOADED(scope, receive, send)

    observe = observed(Refuses())
    assert [len(ids_of(send_to(observe, scope_of("/predict"))[0])) for _ in range(3)] == [1, 1, 1]
    assert 'ratchet_rejected_rows_total{reason="overloaded"} 3.0' in figures(observe)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/predict", "/predict"),
        ("/models", "/models"),
        ("/models/7", "/models/{version}"),
        ("/models/any thing", "/models/{version}"),
        ("/models/7/more", "other"),
        ("/models/", "other"),
        ("/" + "x" * 5000, "other"),
        ("", "other"),
        ("/PREDICT", "other"),
    ],
)
def test_an_answer_counts_once_for_its_route(path: str, route: str) -> None:
    observe = observed(App(status=418))
    send_to(observe, scope_of(path))
    assert counted(observe) == {f'ratchet_requests_total{{route="{route}",status="418"}} 1.0'}
    assert f'ratchet_request_seconds_count{{route="{route}"}} 1.0' in figures(observe)


def test_behind_a_prefix_the_route_is_known() -> None:
    observe = observed(App())
    send_to(observe, scope_of("/api/models/7", root_path="/api"))
    assert counted(observe) == {'ratchet_requests_total{route="/models/{version}",status="200"} 1.0'}


def test_a_thousand_paths_are_one_series() -> None:
    observe = observed(App(status=404))
    for n in range(1000):
        send_to(observe, scope_of(f"/{n}"))
        send_to(observe, scope_of(f"/models/{n}"))
    assert len(counted(observe)) == 2


def test_an_error_that_nobody_answered_is_a_500_with_an_id_and_raised() -> None:
    observe = observed(Raises(begun=False))
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError):
        asyncio.run(observe(scope_of("/predict", b"mine"), None, send))  # type: ignore[arg-type]
    assert (sent[0]["status"], ids_of(sent[0])) == (500, ["mine"])
    assert b'"Internal error"' in sent[1]["body"]
    assert counted(observe) == {'ratchet_requests_total{route="/predict",status="500"} 1.0'}


def test_an_answer_that_broke_off_counts_and_one_that_never_came_does_not() -> None:
    broken, silent = observed(Raises(begun=True)), observed(Silent())
    with pytest.raises(RuntimeError):
        send_to(broken, scope_of())
    assert counted(broken) == {'ratchet_requests_total{route="/models",status="200"} 1.0'}
    assert send_to(silent, scope_of()) == []
    assert counted(silent) == set()


def test_what_is_no_request_passes() -> None:
    app = App()
    send_to(observed(app), {"type": "lifespan"})
    assert app.bound == [None]


def test_only_refusals_of_rows_are_rejected_rows() -> None:
    class Refuses(App):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await problem(Conflict("no"))(scope, receive, send)

    observe = observed(Refuses())
    for path in ("/predict", "/labels", "/models", "/nothing"):
        send_to(observe, scope_of(path))
    assert 'ratchet_rejected_rows_total{reason="conflict"} 2.0' in figures(observe)


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """The log."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as found:
        yield found


def test_a_line_says_what_was_asked_and_no_more(lines: list[Any]) -> None:
    observe = observed(App(), access_log=1.0)
    send_to(observe, scope_of("/models/\x1b[31m\nö" + "x" * 500, b"mine", query_string=b"key=secret"))
    (line,) = lines
    assert line.pop("ms") >= 0
    path = line.pop("path")
    assert path.startswith("/models/\\x1b[31m\\n\\xf6xxx")
    assert len(path) == 200
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "route": "/models/{version}",
        "status": 200,
        "client": "192.0.2.1",
        "request_id": "mine",
    }


@pytest.mark.parametrize(("share", "status", "expected"), [(0.0, 200, 0), (0.0, 503, 0), (1.0, 200, 200)])
def test_off_nothing_is_said_and_at_one_everything(
    lines: list[Any], share: float, status: int, expected: int
) -> None:
    observe = observed(App(status=status), access_log=share)
    for _ in range(200):
        send_to(observe, scope_of())
    assert len(lines) == expected


def test_a_share_is_said_and_every_server_error(lines: list[Any]) -> None:
    fine, failing = observed(App(), access_log=0.2), observed(App(status=503), access_log=0.0001)
    for _ in range(300):
        send_to(fine, scope_of())
    assert 10 < len(lines) < 150
    lines.clear()
    for _ in range(20):
        send_to(failing, scope_of(client=None))
    assert [(line["status"], line["log_level"], line["client"]) for line in lines] == [
        (503, "warning", None)
    ] * 20
