"""What clients know: which requests were acknowledged, refused, or are in doubt."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a row was answered: our prediction's id, and which version said what."""

    prediction_id: str
    version: int
    predicted: str
    probabilities: Mapping[str, float]


@dataclass(kw_only=True)
class Row:
    """One prediction that a client asked for, and every label that was acknowledged for it, oldest first."""

    id: str | None
    features: Mapping[str, Any]
    answer: Answer | None = None
    labels: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Request:
    """A body for `/predict` and its rows."""

    rows: Sequence[Row]
    truths: Sequence[str | None]

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent, each time the same."""
        named = {} if self.rows[0].id is None else {"ids": [row.id for row in self.rows]}
        labelled = {"true_labels": list(self.truths)} if any(self.truths) else {}
        return {"raw_features": [dict(row.features) for row in self.rows], **named, **labelled}


class Ledger:
    """All rows of all clients. One thread owns a row, so what it notes of it is in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acknowledged: list[Row] = []
        self._checked = 0
        self.refused: set[str] = set()
        self.unnamed_in_doubt = 0
        self.broken: list[str] = []
        self.dropped: list[float] = []
        self.counts = dict.fromkeys(("acknowledged", "refused", "unavailable", "dropped", "unrecorded"), 0)

    def acknowledge(self, request: Request) -> None:
        """Every row of it was answered and stored."""
        with self._lock:
            self.acknowledged += request.rows
            self.counts["acknowledged"] += 1

    def refuse(self, ids: Sequence[str]) -> None:
        """A 4xx: none of these ids may be found."""
        with self._lock:
            self.refused.update(ids)
            self.counts["refused"] += 1

    def take_unchecked(self) -> list[Row]:
        """The acknowledged rows since the last call."""
        with self._lock:
            found = self.acknowledged[self._checked :]
            self._checked = len(self.acknowledged)
        return found

    def doubt(self, outcome: str) -> None:
        """A 503, a dropped line, or an answer that wasn't recorded: perhaps stored."""
        with self._lock:
            self.counts[outcome] += 1

    def doubt_unnamed(self, rows: int) -> None:
        """Rows without ids of the client's own: nobody can settle whether they are stored."""
        with self._lock:
            self.unnamed_in_doubt += rows

    def drop(self, at: float) -> None:
        """The line broke before an answer, at that time (monotonic)."""
        with self._lock:
            self.dropped.append(at)

    def breach(self, what: str) -> None:
        """A promise was seen broken."""
        with self._lock:
            self.broken.append(what)
