"""What traffic sends: requests in order, when each is due, and faults in between."""

import itertools
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FAULTY_EVERY = 100
Row = Mapping[str, float | str | None]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One request: its rows, their ids, the labels to send with it (None: not now) and all that is
    known of them; `faulty` is a body to send before it that the API must refuse."""

    due: float
    rows: Sequence[Row]
    ids: Sequence[str]
    labels: Sequence[str | None]
    truths: Sequence[str | None]
    faulty: Mapping[str, Any] | None


def make_turns(
    rows: Sequence[Row],
    labels: Sequence[str | None],
    *,
    rate: float | None,
    batch: int,
    late_share: float,
    errors: bool,
) -> Iterator[Turn]:
    """Rows as requests of `batch` rows, due at `rate` rows a second; every row gets an id of its own.

    `late_share` of the labels are left for later; with `errors`, one row in a hundred has a faulty one
    beside it.
    """
    run, start = secrets.token_hex(6), time.monotonic()
    faults = itertools.cycle(_FAULTS)
    for first in range(0, len(rows), batch):
        numbers = range(first, min(first + batch, len(rows)))
        # Evenly spread, and the same in every run: late_share of the rows up to any row are late.
        late = [int((n + 1) * late_share) > int(n * late_share) for n in numbers]
        truths = [labels[n] for n in numbers]
        faulty = errors and (first // FAULTY_EVERY) != (first + len(numbers)) // FAULTY_EVERY
        yield Turn(
            due=start + first / rate if rate else start,
            rows=[rows[n] for n in numbers],
            ids=[f"{run}-{n}" for n in numbers],
            labels=[None if later else truth for truth, later in zip(truths, late, strict=True)],
            truths=truths,
            faulty=next(faults)(dict(rows[first]), f"{run}-{first}-faulty") if faulty else None,
        )


def _unknown_feature(row: dict[str, Any], id: str) -> dict[str, Any]:
    return {"raw_features": [{**row, "no such feature": 1.0}], "ids": [id]}


def _wrong_type(row: dict[str, Any], id: str) -> dict[str, Any]:
    name, value = next(
        ((name, "not a number") for name, value in row.items() if isinstance(value, float)),
        (next(iter(row)), ["no text"]),
    )
    return {"raw_features": [{**row, name: value}], "ids": [id]}


def _empty_label(row: dict[str, Any], id: str) -> dict[str, Any]:
    return {"raw_features": [row], "ids": [id], "true_labels": [""]}


def _too_many_labels(row: dict[str, Any], id: str) -> dict[str, Any]:
    return {"raw_features": [row], "ids": [id], "true_labels": [None, None]}


_FAULTS = (_unknown_feature, _wrong_type, _empty_label, _too_many_labels)
