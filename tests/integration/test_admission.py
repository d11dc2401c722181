"""Requests in flight are bounded, unread; a slow body is refused; rows that wait are bounded."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest
from pydantic import SecretStr

from api import protocol
from api.writes import Recorded
from shared.errors import Overloaded
from shared.settings import Settings
from tests.integration.test_recorder import COUNTS, Counted, a_row, a_write, running, url_of
from tests.live import Live, live, query
from tests.proxy import proxied

PATIENCE = 20.0
PLACES = 3
MAX_BODY = 2**20


@pytest.fixture
def api(live_settings: Settings) -> Iterator[Live]:
    """An API with few places."""
    limits = {"max_in_flight": PLACES, "max_body": MAX_BODY, "body_seconds": 60.0, "threshold": 10**9}
    with live(live_settings.model_copy(update=limits)) as found:
        yield found


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class Wire:
    """A request of which only the head is sent at first. It expects to be told that its body is wanted."""

    def __init__(self, api: Live, *, path: str = "/predict", length: int | None = None) -> None:
        self.body = json.dumps({"raw_features": [api.row]}).encode()
        url = api.client.base_url
        self._socket = socket.create_connection((url.host, url.port), PATIENCE)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Expect: 100-continue\r\nContent-Length: {length or len(self.body)}\r\n\r\n"
        self._socket.sendall(head.encode())

    def let_in(self) -> None:
        """Wait until its body is asked for."""
        assert self._receive() == b"HTTP/1.1 100 Continue\r\n\r\n"

    def send(self, part: bytes) -> None:
        """Send some of the body."""
        self._socket.sendall(part)

    def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers (names in lower case) and body of the answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self._receive()
        return int(status.split()[1]), headers, json.loads(body)

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        assert data, "the connection was closed without an answer"
        return data

    def is_closed(self) -> bool:
        """Whether the server ended the connection; waits for it."""
        return self._socket.recv(1) == b""

    def close(self) -> None:
        """Go away, rudely."""
        self._socket.close()


def is_full(api: Live) -> bool:
    """Whether a prediction is refused for want of a place."""
    answer = api.predict()
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.json()["title"]) == (503, "Overloaded")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    return True


@contextmanager
def held(api: Live, count: int = PLACES, **request: Any) -> Iterator[list[Wire]]:
    """So many requests that were let in, and whose bodies don't come."""
    with ExitStack() as stack:
        wires = [stack.enter_context(closing(Wire(api, **request))) for _ in range(count)]
        for wire in wires:
            wire.let_in()
        yield wires


def test_past_the_limit_a_request_is_refused_before_its_body_is_there(api: Live) -> None:
    with held(api) as wires:
        assert is_full(api)
        with closing(Wire(api, length=MAX_BODY)) as late:
            status, headers, body = late.answer()  # not a byte of its body was sent
        assert (status, headers["retry-after"], body["title"]) == (503, "1", "Overloaded")
        assert api.client.get("/health").status_code == api.client.get("/ready").status_code == 200
        assert api.label({"id": "nobody", "true_label": "x"}).status_code == 200  # counted apart
        for wire in wires:
            wire.send(wire.body)
        assert [wire.answer()[0] for wire in wires] == [200] * PLACES
        assert not is_full(api)


def test_the_rest_is_bounded_too_and_keeps_no_prediction_out(api: Live) -> None:
    with held(api, path="/labels"):
        assert api.client.get("/retrain/status").status_code == 503
        assert api.client.get("/models").json()["title"] == "Overloaded"
        assert not is_full(api)
        assert api.client.get("/health").status_code == api.client.get("/ready").status_code == 200
    eventually(lambda: api.client.get("/retrain/status").status_code == 200)


def test_a_place_is_given_back_however_a_request_ends(api: Live) -> None:
    """More often than there are places, for each way out."""
    ends = {
        200: api.predict,
        400: lambda: api.client.post("/predict", content=b"{"),
        404: lambda: api.client.get("/nothing"),
        405: lambda: api.client.get("/predict"),
        413: lambda: api.client.post("/predict", content=b" " * (MAX_BODY + 1)),
        415: lambda: api.client.post("/predict", content=b"a", headers={"content-type": "text/plain"}),
        422: lambda: api.client.post("/labels", json={"labels": 1}),
    }
    for status, send in ends.items():
        assert [send().status_code for _ in range(PLACES + 1)] == [status] * (PLACES + 1)
    for path in ("/predict", "/labels"):
        for _ in range(2):
            with held(api, path=path) as wires:  # and all of them go away in the middle of a body
                assert is_full(api) or api.client.get("/models").status_code == 503
                for wire in wires:
                    wire.send(wire.body[:10])
            eventually(lambda: not is_full(api) and api.client.get("/models").status_code == 200)


def test_the_bytes_of_large_bodies_are_bounded(live_settings: Settings) -> None:
    limits = {"max_body": MAX_BODY, "body_seconds": 60.0, "threshold": 10**9}
    large = {"content": b" " * MAX_BODY, "headers": {"content-type": "application/json"}}
    with live(live_settings.model_copy(update=limits)) as api:

        def refused(body: bytes | Iterator[bytes]) -> bool:
            answer = api.client.post("/predict", content=body)
            assert answer.status_code in {400, 503}
            return answer.status_code == 503

        assert not refused(large["content"])
        with held(api, 7, length=MAX_BODY), held(api, 1, length=MAX_BODY - 100_000):
            assert refused(b" " * 100_001)
            assert not refused(b" " * 100_000)
            assert refused(iter([b" "]))  # of unknown length: an eighth of the largest
            assert not refused(b" ")
            assert api.predict().status_code == 200  # a small one needs a place only
        eventually(lambda: not refused(large["content"]))


def test_a_client_that_reads_no_answer_keeps_no_place(
    live_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer on a connection waits until the first is read."""
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 3.0)
    settings = live_settings.model_copy(update={"max_in_flight": 1, "threshold": 10**9})
    with live(settings) as api, socket.socket() as deaf, ThreadPoolExecutor(1) as pool:
        request = api.client.build_request("POST", "/predict", json={"raw_features": [api.row] * 2000})
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(request.content)}\r\n\r\n"
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(3 * PATIENCE)
        deaf.connect((api.client.base_url.host, api.client.base_url.port))
        pool.submit(deaf.sendall, (head.encode() + request.content) * 100)
        eventually(lambda: all(is_full(api) for _ in range(10)))
        eventually(lambda: not any(is_full(api) for _ in range(50)))


@pytest.mark.parametrize("path", ["/predict", "/labels"])
@pytest.mark.parametrize("sent", [0, 10])
def test_a_body_that_does_not_come_is_refused_and_its_connection_closed(
    live_settings: Settings, path: str, sent: int
) -> None:
    with live(live_settings.model_copy(update={"body_seconds": 0.3, "threshold": 10**9})) as api:
        before = api.stored()
        with held(api, 1, path=path) as (wire,):
            wire.send(wire.body[:sent])
            status, headers, body = wire.answer()
            assert (status, headers["content-type"]) == (408, "application/problem+json")
            assert (body["title"], headers["connection"]) == ("Request timeout", "close")
            with suppress(ConnectionError):
                wire.send(wire.body[sent:])
                assert wire.is_closed()
        assert api.stored() == before
        assert api.predict().status_code == 200


def test_a_body_that_comes_in_pieces_is_one(api: Live) -> None:
    with held(api, 1) as (wire,):
        for n in range(0, len(wire.body), 50):
            wire.send(wire.body[n : n + 50])
            time.sleep(0.005)
        status, _, body = wire.answer()
    assert (status, len(body["prediction_ids"])) == (200, 1)


def test_rows_that_wait_are_bounded_and_a_large_request_is_written_alone(live_settings: Settings) -> None:
    async def scenario() -> None:
        async with running(url_of(live_settings), Counted()) as recorder:
            recorder._max_rows = 10
            sizes = [25, 1]
            calls = [recorder.record(a_write(*(a_row() for _ in range(size)))) for size in sizes]
            large, late = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(large, Recorded)
            assert isinstance(late, Overloaded)
            for _ in range(3):  # what is written no longer counts
                calls = [recorder.record(a_write(*(a_row() for _ in range(5)))) for _ in range(2)]
                await asyncio.gather(*calls)

    asyncio.run(scenario())
    assert query(live_settings, COUNTS)[0]["predictions"] == 25 + 3 * 10


def test_rows_that_were_in_doubt_no_longer_wait(live_settings: Settings) -> None:
    async def scenario(url: str) -> None:
        async with running(url, Counted(), deadline=0.3) as recorder:
            recorder._max_rows = 2
            await recorder.record(a_write(a_row()))
            proxy.silence()
            for _ in range(3):
                calls = [recorder.record(a_write(a_row())) for _ in range(3)]
                kinds = [type(o).__name__ for o in await asyncio.gather(*calls, return_exceptions=True)]
                assert kinds == ["Unavailable", "Unavailable", "Overloaded"]
            proxy.speak()

    with proxied(url_of(live_settings)) as proxy:
        asyncio.run(scenario(proxy.url))


def test_past_the_recorders_bound_unlabelled_requests_are_refused_too(live_settings: Settings) -> None:
    """It is no outage, in which an answer is worth more than a record."""
    with proxied(url_of(live_settings)) as proxy:
        changes = {"database_url": SecretStr(proxy.url), "max_queued_rows": 10, "record_deadline": 6.0}
        with live(live_settings.model_copy(update=changes)) as api, ThreadPoolExecutor(4) as pool:
            api.predict()
            proxy.silence()
            answers = sorted(pool.map(api.predict, [20] * 4), key=lambda answer: answer.status_code)
            assert [answer.status_code for answer in answers] == [200, 503, 503, 503]
            assert answers[0].json()["prediction_ids"] is None  # it waited, alone, and in vain
            for refused in answers[1:]:
                assert (refused.json()["title"], refused.headers["retry-after"]) == ("Overloaded", "1")
            proxy.speak()
            eventually(lambda: api.predict(20).json().get("prediction_ids") is not None)
