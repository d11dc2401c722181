"""Traffic as production has it: several connections, labels now and later, faults, resends."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson

from cli.outcome import Answer, Tally, Traffic
from cli.turns import Row, Turn, make_turns

RETRY_SECONDS = 30.0
"""A request that found no answer in this time ends the traffic."""

STOPPED_SECONDS = 3.0
"""The same once the traffic was asked to stop."""

Report = Callable[[int, int], None]
"""Hears, from any thread, of rows that were answered: how many, and the version that is live."""


def simulate(
    api_url: str,
    rows: Sequence[Row],
    labels: Sequence[str | None],
    *,
    rate: float | None = None,
    connections: int = 8,
    label_delay: float = 1.0,
    late_share: float = 0.5,
    errors: bool = False,
    api_key: str | None = None,
    report: Report = lambda _rows, _version: None,
    batch: int = 1,
    stop: threading.Event | None = None,
) -> Traffic:
    """Send rows with their labels to a running API and answer what came of it.

    Every row has an id of its own, so that a request that got 503 or lost its connection is sent again
    without counting twice; it is a failure only if it finds no answer in `RETRY_SECONDS`, and then the
    rest is not sent.

    Args:
        rows: canonical rows.
        labels: the true class of each, None where it isn't known.
        rate: rows a second over all connections; None: as fast as they are answered.
        label_delay: seconds between a prediction and its late label; at the end, none waits.
        late_share: share of the labels that are sent later, by POST /labels.
        errors: send a faulty row beside one in a hundred.
        batch: rows a request.
        stop: once set, no further row is sent.
    """
    stop = stop or threading.Event()
    turns: queue.SimpleQueue[Turn] = queue.SimpleQueue()
    for turn in make_turns(rows, labels, rate=rate, batch=batch, late_share=late_share, errors=errors):
        turns.put(turn)
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    over = threading.Event()
    players = [
        _Player(turns, label_delay=label_delay, report=report, stop=stop, over=over)
        for _ in range(max(1, connections))
    ]
    _play_all(players, api_url, headers, stop)
    return Traffic.of(player.tally for player in players)


def _play_all(
    players: "Sequence[_Player]", api_url: str, headers: Mapping[str, str], stop: threading.Event
) -> None:
    def play(player: _Player) -> None:
        # trust_env: a proxy of the environment is not for a server of ours
        with httpx.Client(
            base_url=api_url, headers=headers, timeout=RETRY_SECONDS, trust_env=False
        ) as client:
            player.play(client)

    with ThreadPoolExecutor(len(players), thread_name_prefix="simulate") as pool:
        try:
            for done in [pool.submit(play, player) for player in players]:
                done.result()
        except BaseException:
            stop.set()
            raise


class _Player:
    """One connection: takes turns until there are none left."""

    def __init__(
        self,
        turns: "queue.SimpleQueue[Turn]",
        *,
        label_delay: float,
        report: Report,
        stop: threading.Event,
        over: threading.Event,
    ) -> None:
        self.tally = Tally()
        self._turns = turns
        self._delay = label_delay
        self._report = report
        self._stop = stop
        self._over = over
        self._late: deque[tuple[float, str, str]] = deque()

    def play(self, client: httpx.Client) -> None:
        while not self._over.is_set():
            try:
                turn = self._turns.get_nowait()
            except queue.Empty:
                break
            if self._stop.wait(max(0.0, turn.due - time.monotonic())):
                break
            if turn.faulty is not None:
                self._send_faulty(client, turn.faulty)
            self._send(client, turn)
            self._send_late(client, until=time.monotonic())
        self._send_late(client, until=float("inf"))

    def _send(self, client: httpx.Client, turn: Turn) -> None:
        body: dict[str, Any] = {"raw_features": turn.rows, "ids": turn.ids}
        if any(label is not None for label in turn.labels):
            body["true_labels"] = turn.labels
        sent = time.monotonic()
        self.tally.requests += 1
        # Without its id a prediction can't be labelled: it wasn't recorded, so it is sent again.
        answer = self._deliver(client, "/predict", body, complete=lambda found: bool(found["prediction_ids"]))
        if answer is None:
            return
        now = time.monotonic()
        self.tally.answers.append(Answer(sent=sent, seconds=now - sent, version=answer["model_version"]))
        self.tally.counted.append((now, answer["counted"]))
        self.tally.labels_sent += sum(label is not None for label in turn.labels)
        columns = (answer["predictions"], answer["prediction_ids"], answer["model_versions"])
        for label, truth, predicted, key, version in zip(turn.labels, turn.truths, *columns, strict=True):
            self.tally.versions[version] += 1
            if truth is not None:
                self.tally.labelled[version] += 1
                self.tally.right[version] += predicted == truth
            if truth is not None and label is None:
                self._late.append((now + self._delay, key, truth))
        self._report(len(turn.rows), answer["model_version"])

    def _send_late(self, client: httpx.Client, *, until: float) -> None:
        due = []
        while self._late and self._late[0][0] <= until:
            _, key, truth = self._late.popleft()
            due.append({"prediction_id": key, "true_label": truth})
        for first in range(0, len(due), 1000):
            part = due[first : first + 1000]
            answer = self._deliver(client, "/labels", {"labels": part})
            if answer is None:
                continue
            known = len(part) - len(answer["unknown"])
            if answer["unknown"]:
                self.tally.fail(f"/labels knows no prediction {answer['unknown'][0]}")
            self.tally.labels_sent += known
            self.tally.late_labels += known
            self.tally.corrected += answer["corrected"]
            self.tally.counted.append((time.monotonic(), answer["accepted"]))

    def _send_faulty(self, client: httpx.Client, body: Mapping[str, Any]) -> None:
        self.tally.requests += 1
        self.tally.faulty_sent += 1
        response = self._answered(client, "/predict", body)
        if response is None:
            return
        if response.status_code in (400, 422):
            self.tally.faulty_refused += 1
        else:
            self.tally.fail(f"a faulty row got {response.status_code}: {response.text}")

    def _deliver(
        self,
        client: httpx.Client,
        path: str,
        body: Mapping[str, Any],
        *,
        complete: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any] | None:
        """The answer to a request that is right; None if it was refused or there is none."""
        response = self._answered(client, path, body, complete=complete)
        if response is None:
            return None
        if response.status_code != httpx.codes.OK:
            self.tally.fail(f"{path} got {response.status_code}: {response.text}")
            return None
        found: dict[str, Any] = orjson.loads(response.content)
        return found

    def _answered(
        self,
        client: httpx.Client,
        path: str,
        body: Mapping[str, Any],
        *,
        complete: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> httpx.Response | None:
        content, sent = orjson.dumps(body), time.monotonic()
        while True:
            pause = 0.2
            try:
                response = client.post(path, content=content)
                if response.status_code == httpx.codes.OK and not complete(orjson.loads(response.content)):
                    reason = "answered, not recorded"
                elif response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                    reason = f"got 503: {response.text}"
                    pause = _seconds(response.headers.get("Retry-After"), pause)
                else:
                    return response
            except httpx.TransportError as exc:
                reason = f"lost its connection ({type(exc).__name__})"
            patience = STOPPED_SECONDS if self._stop.is_set() else RETRY_SECONDS
            if time.monotonic() + pause > sent + patience or self._over.is_set():
                self.tally.fail(f"{path} {reason}; no answer in {patience:.0f} s")
                self._over.set()
                return None
            self.tally.resent += 1
            time.sleep(pause)


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return min(max(float(header or otherwise), 0.05), 2.0)
    except ValueError:
        return otherwise
