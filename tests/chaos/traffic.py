"""Steady labelled traffic from a few clients, who keep a ledger and settle whatever is in doubt."""

import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx

from cli.data import CLASSES, PLANS_TARGET, plans
from tests.chaos.ledger import Answer, Ledger, Request, Row
from tests.conftest import BOOTSTRAP_ROWS

CLIENTS = 3
PAUSE_SECONDS = 0.12
"""Between two requests of a client: about twenty requests a second in all."""
SETTLE_SECONDS = 60.0

Op = Callable[[], bool]
"""Sends something; True once it was acknowledged, False while it is in doubt."""


class Client(threading.Thread):
    """One client: sends new rows, labels, corrections, repeats and nonsense, one request at a time."""

    def __init__(self, name: str, urls: Sequence[str], ledger: Ledger, seed: str) -> None:
        super().__init__(name=name)
        self._urls = itertools.cycle(urls)
        self._ledger = ledger
        self._rng = random.Random(seed)
        self._rows = _endless(self._rng.randrange(10**6))
        self._number = itertools.count()
        self._http = httpx.Client(timeout=30, trust_env=False)
        self._mine: list[Request] = []
        self._busy: set[int] = set()
        self._doubtful: deque[Op] = deque()
        self._asked = threading.Event()

    def run(self) -> None:
        """Send until asked to stop; then send again what is in doubt, until it no longer is."""
        try:
            self._play()
        except Exception as exc:
            self._ledger.breach(f"{self.name}: {exc!r}")
            raise

    def _play(self) -> None:
        actions = [self._ask, self._label, self._repeat, self._contradict, self._err]
        while not self._asked.wait(PAUSE_SECONDS * self._rng.uniform(0.5, 1.5)):
            (action,) = self._rng.choices(actions, weights=[12, 5, 2, 1, 1])
            self._try(action())
            self._retry()
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._doubtful and time.monotonic() < deadline:
            self._retry()
            time.sleep(0.05)
        if self._doubtful:
            self._ledger.breach(f"{self.name}: {len(self._doubtful)} requests could not be settled")
        self._http.close()

    def stop(self) -> None:
        """Send nothing new."""
        self._asked.set()

    def _try(self, op: Op | None) -> None:
        if op is not None and not op():
            self._doubtful.append(op)

    def _retry(self) -> None:
        if self._doubtful:
            self._try(self._doubtful.popleft())

    def _ask(self) -> Op:
        named = self._rng.random() < 0.8
        given = list(itertools.islice(self._rows, self._rng.randint(1, 4)))
        rows = [Row(id=self._new_id() if named else None, features=features) for features, _ in given]
        truths = [truth if self._rng.random() < 0.6 else None for _, truth in given]
        request = Request(rows=rows, truths=truths)
        return lambda: self._predict(request)

    def _label(self) -> Op | None:
        """A label for a row that has none, or a correction of the one it has."""
        row = self._free_row()
        if row is None or row.answer is None:
            return None
        value = self._rng.choice(CLASSES)
        by_id = row.id is not None and self._rng.random() < 0.5
        named = {"id": row.id} if by_id else {"prediction_id": row.answer.prediction_id}
        body = {"labels": [{**named, "true_label": value}]}
        self._busy.add(id(row))

        def put() -> bool:
            if self._post("/labels", body, labelled=True) is None:
                return False
            if not row.labels or row.labels[-1] != value:
                row.labels.append(value)
            self._busy.discard(id(row))
            return True

        return put

    def _repeat(self) -> Op | None:
        """A late retry: it is answered as the first time, and reverts no correction."""
        request = self._rng.choice(self._mine) if self._mine else None
        if request is None or request.rows[0].id is None or any(id(r) in self._busy for r in request.rows):
            return None
        return lambda: self._predict(request, again=True)

    def _contradict(self) -> Op | None:
        """A known id with other features: refused, whatever else is in the request."""
        row = self._free_row()
        if row is None or row.id is None:
            return None
        features, new = {**row.features, "monthly_spend": 1234.5}, self._new_id()
        body = {"raw_features": [features, dict(row.features)], "ids": [row.id, new]}
        return lambda: self._refused(body, [new], HTTPStatus.CONFLICT)

    def _err(self) -> Op:
        (features, _), ids = next(self._rows), [self._new_id(), self._new_id()]
        bad: Mapping[str, Any] = self._rng.choice(
            [{"monthly_spend": "a lot"}, {"colour": "red"}, {"lines": 1e39}, {"plan_type": "a\x00b"}]
        )
        body = {"raw_features": [features, {**features, **bad}], "ids": ids}
        return lambda: self._refused(body, ids, HTTPStatus.UNPROCESSABLE_ENTITY)

    def _predict(self, request: Request, *, again: bool = False) -> bool:
        answer = self._post("/predict", request.body, labelled=any(request.truths))
        if answer is None or answer["prediction_ids"] is None:
            if answer is not None:
                self._ledger.doubt("unrecorded")
            if request.rows[0].id is None:
                self._ledger.doubt_unnamed(len(request.rows))
                return True  # to send it again could store it twice: the client knows, and lets it be
            return False
        answers = [
            Answer(prediction_id=key, version=version, predicted=predicted, probabilities=probabilities)
            for key, version, predicted, probabilities in zip(
                answer["prediction_ids"],
                answer["model_versions"],
                answer["predictions"],
                answer["probabilities"],
                strict=True,
            )
        ]
        if again:
            self._compare(request, answers)
            return True
        for row, truth, found in zip(request.rows, request.truths, answers, strict=True):
            row.answer = found
            row.labels += [truth] if truth else []
        self._mine.append(request)
        self._ledger.acknowledge(request)
        return True

    def _compare(self, request: Request, answers: Sequence[Answer]) -> None:
        for row, found in zip(request.rows, answers, strict=True):
            if found != row.answer:
                self._ledger.breach(f"{row.id} was answered {row.answer}, and again {found}")

    def _refused(self, body: Mapping[str, Any], ids: Sequence[str], status: HTTPStatus) -> bool:
        response = self._send("/predict", body)
        if response is None:
            return False
        if response.status_code == HTTPStatus.OK and response.json()["prediction_ids"] is None:
            self._ledger.doubt("unrecorded")  # nobody could look the ids up
            return False
        if response.status_code != status:
            self._ledger.breach(f"{response.status_code} where {status} is right: {response.text[:300]}")
        self._ledger.refuse(ids)
        return True

    def _post(self, path: str, body: Mapping[str, Any], *, labelled: bool) -> Any:
        """The answer, or None if it is in doubt."""
        response = self._send(path, body)
        if response is None:
            return None
        if response.status_code != HTTPStatus.OK:
            self._ledger.breach(f"{path} answered {response.status_code}: {response.text[:300]}")
            return None
        answer = response.json()
        if answer.get("unknown"):
            self._ledger.breach(f"acknowledged, and unknown now: {answer['unknown']}")
        if path == "/predict" and labelled and answer["prediction_ids"] is None:
            self._ledger.breach("labels were answered 200 and not recorded")
        return answer

    def _send(self, path: str, body: Mapping[str, Any]) -> httpx.Response | None:
        url = next(self._urls)
        try:
            response = self._http.post(url + path, json=body)
        except httpx.TransportError:
            self._ledger.doubt("dropped")
            self._ledger.drop(time.monotonic())
            return None
        if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            self._ledger.doubt("unavailable")
            if "Retry-After" not in response.headers:
                self._ledger.breach(f"503 without Retry-After: {response.text[:300]}")
            return None
        return response

    def _free_row(self) -> Row | None:
        if not self._mine:
            return None
        row = self._rng.choice(self._rng.choice(self._mine).rows)
        return None if id(row) in self._busy else row

    def _new_id(self) -> str:
        return f"{self.name}-{next(self._number)}"


class Traffic:
    """The clients of a while: they start with the block and stop with it, nothing in doubt any more."""

    def __init__(self, urls: Sequence[str], ledger: Ledger, name: str, seed: int) -> None:
        self._clients = [
            Client(f"{name}-{n}", urls, ledger, seed=f"{seed}/{name}/{n}") for n in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.stop()
        for client in self._clients:
            client.join()


def _endless(start: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Customers that the first model never saw, and the plan that suits each."""
    for first in itertools.count(BOOTSTRAP_ROWS + start * 1000, 200):
        frame = plans(200, start=first)
        truths = frame.pop(PLANS_TARGET)
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        for row, truth in zip(rows, truths, strict=True):
            yield {str(name): value for name, value in row.items()}, str(truth)
