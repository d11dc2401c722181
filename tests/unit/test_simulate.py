"""The simulator against a small HTTP server that behaves, and misbehaves, as the API may."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cli import simulate as module
from cli.outcome import Answer, Tally, Traffic
from cli.simulate import simulate

Hook = Callable[[int, dict[str, Any]], Response | None]


class Recorder:
    """An API that keeps what it was sent. `hook` may answer a prediction request in its place."""

    def __init__(self) -> None:
        self.predictions: dict[str, dict[str, Any]] = {}
        self.labels: dict[str, str] = {}
        self.late: dict[str, float] = {}
        self.calls = 0
        self.keys: set[str | None] = set()
        self.hook: Hook = lambda _call, _body: None
        self.strict = True
        self.url = ""

    async def predict(self, request: Request) -> Response:
        body = await request.json()
        self.calls += 1
        self.keys.add(request.headers.get("Authorization"))
        row, labels = body["raw_features"][0], body.get("true_labels") or [None] * len(body["ids"])
        known = set(row) == {"x", "c"} and isinstance(row["x"], float)
        if self.strict and not (known and "" not in labels and len(labels) == len(body["ids"])):
            return JSONResponse({"detail": "faulty"}, 422)
        if (answer := self.hook(self.calls, body)) is not None:
            return answer
        return self.record(body, labels)

    def record(self, body: dict[str, Any], labels: list[str | None]) -> Response:
        counted = 0
        for key, row, label in zip(body["ids"], body["raw_features"], labels, strict=True):
            self.predictions.setdefault(f"p-{key}", row)
            if label is not None and f"p-{key}" not in self.labels:
                self.labels[f"p-{key}"] = label
                counted += 1
        version = 1 if self.calls <= 20 else 2
        return JSONResponse(
            {
                "predictions": ["yes" for _ in body["ids"]],
                "prediction_ids": [f"p-{key}" for key in body["ids"]],
                "model_version": version,
                "model_versions": [version for _ in body["ids"]],
                "counted": counted,
            }
        )

    async def label(self, request: Request) -> Response:
        unknown = []
        accepted = 0
        for item in (await request.json())["labels"]:
            key = item["prediction_id"]
            if key not in self.predictions:
                unknown.append(key)
                continue
            accepted += key not in self.labels
            self.labels[key] = item["true_label"]
            self.late[key] = time.monotonic()
        return JSONResponse({"accepted": accepted, "corrected": 0, "repeated": 0, "unknown": unknown})


@pytest.fixture
def api() -> Iterator[Recorder]:
    recorder = Recorder()
    routes = [
        Route("/predict", recorder.predict, methods=["POST"]),
        Route("/labels", recorder.label, methods=["POST"]),
    ]
    # With the protocol named, asyncio turns Nagle's algorithm off: 40 ms less an answer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        recorder.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield recorder
        finally:
            server.should_exit = True
            thread.join()


def rows_of(count: int) -> tuple[list[dict[str, float | str | None]], list[str | None]]:
    return [{"x": float(n), "c": "k"} for n in range(count)], ["yes" if n % 3 else "no" for n in range(count)]


def test_every_row_and_label_arrives_once(api: Recorder) -> None:
    rows, labels = rows_of(60)
    heard: list[int] = []
    traffic = simulate(
        api.url, rows, labels, connections=4, label_delay=0, report=lambda n, _: heard.append(n), api_key="k"
    )
    assert sorted(row["x"] for row in api.predictions.values()) == [row["x"] for row in rows]
    assert {row["x"]: api.labels[key] for key, row in api.predictions.items()} == {
        row["x"]: label for row, label in zip(rows, labels, strict=True)
    }
    assert traffic.failures == 0
    assert (traffic.requests, traffic.labels_sent, traffic.late_labels, traffic.new_labels) == (
        60,
        60,
        30,
        60,
    )
    assert sum(heard) == 60
    assert api.keys == {"Bearer k"}


def test_versions_and_live_accuracy_are_told_apart(api: Recorder) -> None:
    rows, _ = rows_of(30)
    traffic = simulate(api.url, rows, ["yes"] * 20 + ["no"] * 5 + [None] * 5, connections=1)
    assert traffic.versions == {1: 20, 2: 10}
    assert traffic.accuracy == {1: (20, 20), 2: (0, 5)}
    assert traffic.labels_sent == 25
    first = traffic.first_answer(2)
    assert first is not None
    assert traffic.answers[19].sent < first


def test_late_labels_keep_their_delay_and_none_is_lost_at_the_end(api: Recorder) -> None:
    rows, labels = rows_of(30)
    start = time.monotonic()
    traffic = simulate(api.url, rows, labels, rate=60, connections=2, late_share=1.0, label_delay=60.0)
    assert traffic.late_labels == traffic.labels_sent == len(api.labels) == 30
    assert (
        min(api.late.values()) > start + 0.4
    )  # none before the traffic's end, which the rate puts at 0.48 s


def test_one_row_in_a_hundred_is_faulty_beside_the_good_ones(api: Recorder) -> None:
    rows, labels = rows_of(400)
    traffic = simulate(api.url, rows, labels, connections=4, errors=True, label_delay=0)
    assert (traffic.faulty_sent, traffic.faulty_refused, traffic.failures) == (4, 4, 0)
    assert len(api.predictions) == len(api.labels) == 400


def test_a_faulty_row_that_is_let_in_is_a_failure(api: Recorder) -> None:
    api.strict = False
    rows, labels = rows_of(100)
    traffic = simulate(api.url, rows, labels, errors=True, label_delay=0)
    assert (traffic.faulty_sent, traffic.faulty_refused, traffic.failures) == (1, 0, 1)
    assert "a faulty row got 200" in traffic.messages[0]


def test_a_batch_is_one_request(api: Recorder) -> None:
    rows, labels = rows_of(25)
    traffic = simulate(api.url, rows, labels, batch=10, connections=2)
    assert traffic.requests == 3
    assert len(api.predictions) == traffic.labels_sent == 25


def test_503_and_a_lost_recording_are_sent_again_with_the_same_id(api: Recorder) -> None:
    seen: list[str] = []

    def hook(call: int, body: dict[str, Any]) -> Response | None:
        seen.extend(body["ids"])
        if call == 2:
            return JSONResponse({"detail": "in doubt"}, 503, {"Retry-After": "0"})
        if call == 4:
            answer = {
                "predictions": ["no"],
                "prediction_ids": None,
                "model_version": 1,
                "model_versions": [1],
            }
            return JSONResponse(answer | {"counted": 0})
        return None

    api.hook = hook
    rows, labels = rows_of(8)
    traffic = simulate(api.url, rows, labels, connections=1)
    assert (traffic.failures, traffic.resent, traffic.requests) == (0, 2, 8)
    assert len(seen) == 10
    assert len(set(seen)) == 8
    assert traffic.labels_sent == len(api.labels) == 8


def test_an_unexpected_answer_is_a_failure_and_the_traffic_goes_on(api: Recorder) -> None:
    api.hook = lambda call, _: JSONResponse({"detail": "broken here"}, 500) if call == 3 else None
    rows, labels = rows_of(6)
    traffic = simulate(api.url, rows, labels, connections=1)
    assert traffic.failures == 1
    assert "broken here" in traffic.messages[0]
    assert len(api.predictions) == 5


def test_a_dead_api_ends_the_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    rows, labels = rows_of(1000)
    traffic = simulate(f"http://127.0.0.1:{port}", rows, labels, connections=2)
    assert 1 <= traffic.failures <= 2
    assert traffic.requests <= 2
    assert "lost its connection" in traffic.messages[0]


def test_traffic_that_is_stopped_labels_what_was_predicted(api: Recorder) -> None:
    stop = threading.Event()
    rows, labels = rows_of(500)
    traffic = simulate(
        api.url,
        rows,
        labels,
        connections=2,
        label_delay=60,
        late_share=1.0,
        stop=stop,
        report=lambda *_: stop.set(),
    )
    assert 1 <= traffic.requests <= 4
    assert traffic.labels_sent == len(api.predictions)
    assert traffic.failures == 0


def test_times_are_summed_up_over_connections() -> None:
    one, two = Tally(), Tally()
    one.answers = [Answer(sent=10.0, seconds=0.010, version=1), Answer(sent=11.0, seconds=0.500, version=1)]
    two.answers = [Answer(sent=10.5, seconds=0.030, version=1), Answer(sent=12.0, seconds=0.020, version=2)]
    one.counted, two.counted = [(10.0, 1), (11.5, 2)], [(10.6, 1)]
    traffic = Traffic.of([one, two])
    assert traffic.percentiles() == {"p50": 25.0, "p95": 429.5, "p99": 485.9, "max": 500.0}
    assert traffic.first_answer(2) == pytest.approx(12.02)
    assert traffic.first_answer(3) is None
    assert traffic.longest(11.9, 12.5) == 0.020
    assert traffic.longest(11.4, 12.5) == 0.500
    assert traffic.reached(2) == 10.6
    assert traffic.reached(4) == 11.5
    assert traffic.reached(5) is None
    assert Traffic.of([]).percentiles()["p50"] is None
