"""What traffic came to: answers, labels, failures and times."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MESSAGES = 5
"""So many failures are kept word by word; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One prediction request that was answered. `sent` is `time.monotonic()` at the first attempt,
    `seconds` the time from there to the answer, resends included; `version` the live one it named."""

    sent: float
    seconds: float
    version: int


@dataclass(kw_only=True)
class Tally:
    """What one connection has seen so far."""

    requests: int = 0
    resent: int = 0
    faulty_sent: int = 0
    faulty_refused: int = 0
    failures: int = 0
    messages: list[str] = field(default_factory=list)
    labels_sent: int = 0
    late_labels: int = 0
    corrected: int = 0
    counted: list[tuple[float, int]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    labelled: Counter[int] = field(default_factory=Counter)
    right: Counter[int] = field(default_factory=Counter)

    def fail(self, message: str) -> None:
        """Count a failure, and keep the text of the first few."""
        self.failures += 1
        if len(self.messages) < MESSAGES:
            self.messages.append(message[:300])


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What all connections have seen.

    `failures` are those that were not meant, `faulty_*` those that were. `labels_sent` are labels that
    the API has acknowledged, `late_labels` those of them that came by POST /labels. `counted` holds
    (`time.monotonic()`, new labels) in order. `versions` holds answered rows per version, `accuracy`
    (right, labelled) rows per version.
    """

    requests: int
    resent: int
    faulty_sent: int
    faulty_refused: int
    failures: int
    messages: tuple[str, ...]
    labels_sent: int
    late_labels: int
    corrected: int
    counted: tuple[tuple[float, int], ...]
    answers: tuple[Answer, ...]
    versions: dict[int, int]
    accuracy: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> "Traffic":
        """The sum of what each connection has seen."""
        all_ = list(tallies)
        versions, labelled, right = Counter[int](), Counter[int](), Counter[int]()
        for tally in all_:
            versions += tally.versions
            labelled += tally.labelled
            right += tally.right
        return cls(
            requests=sum(t.requests for t in all_),
            resent=sum(t.resent for t in all_),
            faulty_sent=sum(t.faulty_sent for t in all_),
            faulty_refused=sum(t.faulty_refused for t in all_),
            failures=sum(t.failures for t in all_),
            messages=tuple(text for t in all_ for text in t.messages)[:MESSAGES],
            labels_sent=sum(t.labels_sent for t in all_),
            late_labels=sum(t.late_labels for t in all_),
            corrected=sum(t.corrected for t in all_),
            counted=tuple(sorted(entry for t in all_ for entry in t.counted)),
            answers=tuple(sorted((a for t in all_ for a in t.answers), key=lambda a: a.sent)),
            versions=dict(sorted(versions.items())),
            accuracy={version: (right[version], n) for version, n in sorted(labelled.items())},
        )

    @property
    def new_labels(self) -> int:
        """Labels that the API counted as the first of their prediction."""
        return sum(n for _, n in self.counted)

    def percentiles(self) -> dict[str, float | None]:
        """Milliseconds that answers took: p50, p95, p99 and max; null without any answer."""
        times = np.array([answer.seconds for answer in self.answers]) * 1000
        points = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
        return {
            k: round(float(np.percentile(times, q)), 2) if times.size else None for k, q in points.items()
        }

    def first_answer(self, version: int) -> float | None:
        """`time.monotonic()` of the first answer that named this version or a later one as live."""
        return min((a.sent + a.seconds for a in self.answers if a.version >= version), default=None)

    def reached(self, labels: int) -> float | None:
        """`time.monotonic()` at which so many new labels had been counted."""
        total = 0
        for moment, n in self.counted:
            total += n
            if total >= labels:
                return moment
        return None

    def longest(self, since: float, until: float) -> float | None:
        """The longest answer, in seconds, of the requests under way between two `time.monotonic()`."""
        under_way = (a.seconds for a in self.answers if a.sent <= until and a.sent + a.seconds >= since)
        return max(under_way, default=None)

    def to_json(self) -> dict[str, Any]:
        """The sums as plain data, without the single answers."""
        return {
            "requests": self.requests,
            "resent": self.resent,
            "faulty_sent": self.faulty_sent,
            "faulty_refused": self.faulty_refused,
            "failures": self.failures,
            "messages": list(self.messages),
            "labels_sent": self.labels_sent,
            "late_labels": self.late_labels,
            "counted": self.new_labels,
            "corrected": self.corrected,
            "latency_ms": self.percentiles(),
            "versions": [
                {"version": v, "rows": n, "right": self.accuracy.get(v, (0, 0))[0],
                 "labelled": self.accuracy.get(v, (0, 0))[1]}
                for v, n in self.versions.items()
            ],
        }  # fmt: skip
