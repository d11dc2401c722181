"""X-Request-ID on every answer of a real server and in every log line of its request; the access log."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from cli.ports import free_port
from shared.settings import Settings
from tests.integration.test_admission import Wire, eventually, held
from tests.integration.test_metrics import scrape, value
from tests.integration.test_recorder import url_of
from tests.live import Live, live
from tests.processes import api_processes
from tests.serving import ADMIN, serve

MINE = {"X-Request-ID": "order-7/retry-1"}


def id_of(answer: httpx.Response) -> str:
    """The one id of an answer."""
    (found,) = answer.headers.get_list("x-request-id")
    return str(found)


def is_new(request_id: str) -> bool:
    """Whether an id was made here."""
    return len(request_id) == 32 and set(request_id) <= set("0123456789abcdef")


ANSWERS = [
    ("GET", "/health", 200),
    ("GET", "/ready", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/metrics", 401),
    ("POST", "/admin/retrain", 401),
    ("GET", "/nothing", 404),
    ("GET", "/predict", 405),
    ("POST", "/predict", 400),
    ("POST", "/labels", 400),
    ("GET", "/models/0", 422),
]


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_carries_the_id_that_came_or_a_new_one(
    api: Live, method: str, path: str, status: int
) -> None:
    given = api.client.request(method, path, headers=MINE)
    assert (given.status_code, id_of(given)) == (status, MINE["X-Request-ID"])
    new = [id_of(api.client.request(method, path)) for _ in range(2)]
    assert is_new(new[0])
    assert is_new(new[1])
    assert new[0] != new[1]


def test_a_prediction_carries_it_whatever_its_size(api: Live) -> None:
    for rows in (1, 1000):  # scored on the event loop, and in a thread
        answer = api.client.post("/predict", json={"raw_features": [api.row] * rows}, headers=MINE)
        assert (answer.status_code, id_of(answer)) == (200, MINE["X-Request-ID"])


def test_a_refusal_carries_it(live_settings: Settings) -> None:
    limits = {"max_in_flight": 1, "body_seconds": 60.0, "threshold": 10**9}
    with live(live_settings.model_copy(update=limits)) as api, held(api, 1):
        busy = api.client.post("/predict", json={}, headers=MINE)
        assert (busy.status_code, id_of(busy)) == (503, MINE["X-Request-ID"])
        with closing(Wire(api)) as wire:
            status, headers, _ = wire.answer()
            assert status == 503
            assert is_new(headers["x-request-id"])
    with serve(live_settings.model_copy(update={"rate_limit": "1/hour"})) as client:
        client.get("/models")
        limited = client.get("/models", headers=MINE)
        assert (limited.status_code, id_of(limited)) == (429, MINE["X-Request-ID"])


HOSTILE = [
    b"",
    b"x" * 129,
    b"a b",
    b"a\tb",
    "größe".encode(),
    b"\xff\xfe",
    b"a\x7fb",
    b"a\r\n b",
    b"a\r\nX-Request-ID: " + b"y" * 200,
]


@pytest.mark.parametrize("given", HOSTILE)
def test_an_id_that_could_harm_is_not_repeated(api: Live, given: bytes) -> None:
    url = api.client.base_url
    with socket.create_connection((url.host, url.port), 10) as connection:
        head = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: " + given
        connection.sendall(head + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    lines = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"x-request-id")]
    if answer.startswith(b"HTTP/1.1 400"):  # the server has read no request at all
        assert lines == []
        return
    (line,) = lines
    found = line.partition(b": ")[2].decode("ascii")
    assert is_new(found) or found == "a"  # the first of two
    assert len(found) <= 128


@contextmanager
def logged(settings: Settings, folder: Path, **changes: Any) -> Iterator[tuple[httpx.Client, Any]]:
    """An API as a process; yields a client, and a function that reads the lines of its log so far."""
    given = {"log_format": "json", "log_level": "info", "threshold": 10**9, **changes}

    def lines() -> list[dict[str, Any]]:
        (log,) = folder.glob("api-*.log")
        text = log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in text if line.startswith("{")]

    with (
        api_processes(settings.model_copy(update=given), folder) as (url,),
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        yield client, lines


def rename(settings: Settings, table: str, name: str) -> None:
    """Rename a table."""
    with psycopg.connect(url_of(settings), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(*map(sql.Identifier, (table, name))))


def test_every_line_of_a_request_has_its_id(live_settings: Settings, tmp_path: Path) -> None:
    """On the event loop, in a thread of a sync route, and of an error that nobody foresaw."""
    nobody = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    with logged(live_settings, tmp_path, redis_url=nobody, access_log=0.000001) as (client, lines):
        asked = client.post("/admin/retrain", json={"force": True}, headers={**ADMIN, "X-Request-ID": "one"})
        assert asked.status_code == 202
        rename(live_settings, "deployments", "hidden")
        broken = client.get("/models?key=secret", headers={"X-Request-ID": "two"})
        rename(live_settings, "hidden", "deployments")
        assert (broken.status_code, id_of(broken)) == (500, "two")
        eventually(lambda: {"one", "two"} <= {line.get("request_id") for line in lines()})
        found = lines()
    of_one = [line["event"] for line in found if line.get("request_id") == "one"]
    assert of_one == ["job message not sent; the sweeper will"]  # from a thread, after the answer
    of_two = {line["event"]: line for line in found if line.get("request_id") == "two"}
    assert {"unexpected error", "request"} <= set(of_two)
    assert (of_two["request"]["status"], of_two["request"]["route"]) == (500, "/models")
    assert "secret" not in json.dumps(of_two["request"])


def test_the_access_log_is_off_unless_asked_for(live_settings: Settings, tmp_path: Path) -> None:
    with logged(live_settings, tmp_path) as (client, lines):
        for _ in range(20):
            client.get("/models", headers=MINE)
        client.get("/metrics", headers=ADMIN)
        assert [line for line in lines() if line["event"] == "request"] == []
        assert MINE["X-Request-ID"] not in json.dumps(lines())


def test_at_one_every_request_has_a_line(live_settings: Settings, tmp_path: Path) -> None:
    with logged(live_settings, tmp_path, access_log=1.0) as (client, lines):
        before = len([line for line in lines() if line["event"] == "request"])
        assert before > 0  # of whoever asked whether it is ready
        client.get("/models/7?a=b", headers=MINE)
        client.post("/predict", content=b"{", headers=MINE)
        eventually(
            lambda: len([line for line in lines() if line.get("request_id") == MINE["X-Request-ID"]]) == 2
        )
        asked, refused = [line for line in lines() if line.get("request_id") == MINE["X-Request-ID"]]
        assert {asked["method"], asked["path"], asked["route"]} == {"GET", "/models/7", "/models/{version}"}
        assert (asked["status"], asked["client"], asked["level"]) == (404, "127.0.0.1", "info")
        assert 0 <= asked["ms"] < 60_000
        assert (refused["method"], refused["route"], refused["status"]) == ("POST", "/predict", 400)
        assert value(scrape(client), "requests_total", "/predict", "400") == 1
