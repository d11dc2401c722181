"""Versions swap under load: no request fails, and no answer mixes two versions."""

import http.client
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from api.serving import load_model
from shared import counter, registry
from shared.settings import Settings
from tests.live import publish_another, query
from tests.processes import api_processes
from tests.serving import example
from worker.run import Context

SWAPS = 500
CLIENTS = 2
ROWS = 3
PATIENCE = 20.0
TOLERANCE = 1e-6


class Clients:
    """Threads that send the same rows until stopped, and check what each answer says.

    `targets` are the versions deployed so far; `served` the positions of those that answered a request
    begun after their deployment.
    """

    def __init__(
        self, url: str, rows: list[dict[str, Any]], known: Mapping[int, list[list[float]]], live: int
    ) -> None:
        self.faults: list[str] = []
        self.targets = [live]
        self.served: set[int] = set()
        self.answers = 0
        self._address = urlsplit(url).netloc
        self._body = orjson.dumps({"raw_features": rows})
        self._known = known
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            while not self._stop.is_set() and not self.faults:
                self._send(connection)
        except (OSError, http.client.HTTPException) as exc:
            self.faults.append(repr(exc))
        finally:
            connection.close()

    def _send(self, connection: http.client.HTTPConnection) -> None:
        position = len(self.targets) - 1
        connection.request("POST", "/predict", self._body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != http.HTTPStatus.OK:
            self.faults.append(f"{response.status}: {text!r}")
            return
        answer = orjson.loads(text)
        version = answer["model_version"]
        if answer["model_versions"] != [version] * ROWS or answer["prediction_ids"] is None:
            self.faults.append(f"mixed or not recorded: {answer}")
        for known, probabilities in zip(self._known[version], answer["probabilities"], strict=True):
            if distance(known, list(probabilities.values())) > TOLERANCE:
                self.faults.append(f"not what version {version} says: {probabilities}")
        with self._lock:
            self.answers += 1
            if version == self.targets[position]:
                self.served.add(position)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two lists of probabilities."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def known_answers(context: Context, rows: list[dict[str, Any]]) -> tuple[int, list[list[float]]]:
    """The live version, and its probabilities from its own artifacts, without the API."""
    with context.sessions() as session:
        live = registry.live(session)
    assert live is not None
    model = load_model(live, context.store)
    canonical = [model.signature.canonical(row, n, []) for n, row in enumerate(rows)]
    return model.version, model.score_rows(canonical).tolist()


def deploy(context: Context, version: int, previous: int) -> int:
    """Make a version live; answers the deployment's id."""
    with context.sessions.begin() as session:
        made = registry.deploy(session, version=version, previous=previous, actor="test", reason="swap")
    counter.announce(context.redis, made.id)
    return made.id


def test_500_swaps_under_load_fail_no_request_and_mix_no_answer(
    live_settings: Settings, context: Context, tmp_path: Path
) -> None:
    settings = live_settings.model_copy(update={"poll_seconds": 0.05})
    with api_processes(settings, tmp_path) as (url,):
        with httpx.Client(base_url=url, trust_env=False) as client:
            row = example(client)["raw_features"][0]
        rows = [{**row, "monthly_spend": 20.0 + 30 * n, "lines": n} for n in range(ROWS)]
        known = dict([known_answers(context, rows)])
        assert publish_another(context) == 2
        known.update([known_answers(context, rows)])
        # as far apart as it takes to tell one from the other, row by row
        assert all(distance(*pair) > 1000 * TOLERANCE for pair in zip(known[1], known[2], strict=True))
        with Clients(url, rows, known, live=2) as clients:
            swap(context, clients)
        assert clients.faults == []
    assert clients.answers >= SWAPS
    agrees_with_the_deployments(live_settings, clients.answers)


def swap(context: Context, clients: Clients) -> None:
    """Make the two versions live by turns, each as soon as the one before has answered somebody."""
    with context.sessions() as session:
        deployment = registry.newest_deployment(session)
    assert deployment is not None
    for position in range(SWAPS + 1):
        if position > 0:
            version = 1 + position % 2
            deployment = deploy(context, version, deployment)
            clients.targets.append(version)
        deadline = time.monotonic() + PATIENCE
        while position not in clients.served:
            if clients.faults:
                return
            assert time.monotonic() < deadline, f"deployment {deployment} was never served"
            time.sleep(0.0005)


def agrees_with_the_deployments(settings: Settings, answers: int) -> None:
    """Every stored row names a deployment of its own version, and every deployment served somebody."""
    (found,) = query(
        settings,
        "SELECT count(*) AS rows, count(DISTINCT deployment_id) FILTER (WHERE d.actor = 'test') AS swaps,"
        " count(*) FILTER (WHERE p.version <> d.champion) AS mixed"
        " FROM predictions p JOIN deployments d ON d.id = p.deployment_id",
    )
    assert found == {"rows": answers * ROWS, "swaps": SWAPS, "mixed": 0}
