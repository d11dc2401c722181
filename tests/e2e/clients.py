"""Clients that send labelled requests until they are refused, and keep a ledger of what became of each."""

import http.client
import threading
import time
from typing import Any, Self

import httpx
import orjson

from shared.settings import Settings
from tests.live import query
from tests.serving import example

SENDERS = 6
REFUSALS = 5
PATIENCE = 60.0


class Sender(threading.Thread):
    """One connection: rows with labels, rows without, and labels for those, by turns.

    `answered` has the status of each request, `unanswered` those whose connection was closed instead.
    """

    def __init__(self, number: int, port: int, row: dict[str, Any], label: str) -> None:
        super().__init__(name=f"sender-{number}")
        self.answered: dict[str, int] = {}
        self.unanswered: list[str] = []
        self.labelled: list[str] = []
        self.faults: list[str] = []
        self.waits = False
        self._number, self._port, self._row, self._label = number, port, row, label

    def run(self) -> None:
        """Send until the server refuses connections, and goes on refusing them."""
        refused = number = 0
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        while refused < REFUSALS and not self.faults:
            try:
                self._turn(connection, f"{self._number}-{number}", number % 3)
                if refused:
                    self.faults.append("a connection was accepted after one was refused")
            except ConnectionRefusedError:
                refused += 1
                time.sleep(0.02)
            except (OSError, http.client.HTTPException) as exc:
                if isinstance(exc, TimeoutError):
                    self.faults.append(repr(exc))
                connection.close()
            number += 1
        connection.close()

    def _turn(self, connection: http.client.HTTPConnection, key: str, kind: int) -> None:
        if connection.sock is None:
            connection.connect()
        body: dict[str, Any] = {"raw_features": [self._row], "ids": [key]}
        if kind == 0:
            body["true_labels"] = [self._label]
        if self._send(connection, key, "/predict", body) and kind == 0:
            self.labelled.append(key)
        elif kind == 1:
            later = {"labels": [{"id": key, "true_label": self._label}]}
            if self._send(connection, f"{key}-label", "/labels", later):
                self.labelled.append(key)

    def _send(self, connection: http.client.HTTPConnection, key: str, path: str, body: object) -> bool:
        self.waits = True
        try:
            connection.request("POST", path, orjson.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self.unanswered.append(key)
            raise
        finally:
            self.waits = False
        self.answered[key] = response.status
        documented = response.status == http.HTTPStatus.OK or (
            response.status == http.HTTPStatus.SERVICE_UNAVAILABLE and response.getheader("Retry-After")
        )
        if not documented:
            self.faults.append(f"{path} {key}: {response.status} {text!r}")
        return response.status == http.HTTPStatus.OK


class Clients:
    """Several senders at once, from the beginning of the block until each is refused."""

    def __init__(self, settings: Settings, port: int) -> None:
        self._settings = settings
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            body = example(client)
        self.senders = [
            Sender(number, port, body["raw_features"][0], body["true_labels"][0]) for number in range(SENDERS)
        ]

    def __enter__(self) -> Self:
        for sender in self.senders:
            sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        for sender in self.senders:
            sender.join(PATIENCE)
            assert not sender.is_alive(), "it is neither answered nor refused"

    @property
    def answers(self) -> int:
        """How many requests have been answered."""
        return sum(len(sender.answered) for sender in self.senders)

    @property
    def faults(self) -> list[str]:
        """What no client may see."""
        return [fault for sender in self.senders for fault in sender.faults]

    def all_wait(self) -> bool:
        """Whether every sender waits for an answer, and has for a moment."""
        before = self.answers
        waiting = all(sender.waits for sender in self.senders)
        time.sleep(0.1)
        return waiting and all(sender.waits for sender in self.senders) and self.answers == before

    def check_ledger(self) -> None:
        """What was answered is in Postgres once, and nothing else is: what was accepted was answered."""
        answered = {key: status for sender in self.senders for key, status in sender.answered.items()}
        acknowledged = {key for key, status in answered.items() if status == http.HTTPStatus.OK}
        in_doubt = set(answered) - acknowledged
        labelled = {key for sender in self.senders for key in sender.labelled}
        stored = query(
            self._settings,
            "SELECT p.id, r.id AS key, count(l.id) AS labels FROM predictions p"
            " LEFT JOIN request_ids r ON r.prediction_id = p.id"
            " LEFT JOIN labels l ON l.prediction_id = p.id GROUP BY 1, 2",
        )
        keys = {row["key"] for row in stored}
        predicted = {key for key in acknowledged if not key.endswith("label")}
        assert len(keys) == len(stored)
        assert predicted <= keys <= predicted | in_doubt
        with_label = {row["key"] for row in stored if row["labels"]}
        doubtful = {key.removesuffix("-label") for key in in_doubt}
        assert labelled <= with_label <= labelled | doubtful
        assert all(row["labels"] <= 1 for row in stored)
