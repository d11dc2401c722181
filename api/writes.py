"""What the recorder is given and what it answers."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prediction to store: `features` is canonical JSON, `probabilities` in the order of classes."""

    id: str
    predicted: str
    probabilities: Sequence[float]
    features: bytes
    label: str | None = None
    caller_id: str | None = None


def labels_of(rows: Sequence[Row]) -> list[str]:
    """The labels that rows bring."""
    return [row.label for row in rows if row.label is not None]


@dataclass(frozen=True, kw_only=True)
class Write:
    """All rows of one request, scored by one version."""

    deployment_id: int
    version: int
    signature_id: int
    source: str
    rows: Sequence[Row]

    @cached_property
    def caller_ids(self) -> Mapping[str, Row]:
        """The rows that came with a caller's id."""
        return {row.caller_id: row for row in self.rows if row.caller_id is not None}

    @property
    def labels(self) -> int:
        """How many rows bring a label."""
        return sum(row.label is not None for row in self.rows)

    @cached_property
    def json(self) -> bytes:
        """All rows, as `to_json` has them."""
        return self.to_json(self.rows)

    def to_json(self, rows: Sequence[Row]) -> bytes:
        """Rows as JSON objects with commas between them, for `json_to_recordset`."""
        return orjson.dumps([self._entry(row) for row in rows])[1:-1]

    def _entry(self, row: Row) -> dict[str, Any]:
        return {
            "id": row.id,
            "d": self.deployment_id,
            "v": self.version,
            "s": self.signature_id,
            "c": row.predicted,
            "p": row.probabilities,
            "f": orjson.Fragment(row.features),
            "o": self.source,
            "l": row.label,
            "i": row.caller_id,
        }


@dataclass(frozen=True, kw_only=True)
class First:
    """The first answer to a caller's id."""

    prediction_id: str
    version: int
    predicted: str
    probabilities: Sequence[float]
    classes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What was stored. `repeats`: the caller ids that were known, with their first answers.

    `counted` are first labels of their prediction; `new_labels` are labels that wait for a job now.
    `classes` are those of all labels that were stored, corrections among them, for the metrics.
    """

    repeats: Mapping[str, First] = field(default_factory=dict)
    counted: int = 0
    new_labels: int = 0
    classes: Sequence[str] = field(default=(), compare=False)


def new_prediction_id() -> str:
    """A UUIDv7: milliseconds since 1970, then random, so that ids grow with time (RFC 9562)."""
    number = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    number = (number & ~(0xF << 76)) | (0x7 << 76)
    number = (number & ~(0x3 << 62)) | (0x2 << 62)
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
