"""The recorder's SQL: one statement for rows without callers' ids, one transaction with them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
import psycopg
from psycopg.rows import dict_row

from api.writes import First, Recorded, Row, Write, labels_of
from shared.errors import Conflict, RatchetError

_STORE = """
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%s::json) AS r(
        id uuid, d bigint, v bigint, s bigint, c text, p json, f json, o text, l text, i text)
), stored AS (
    INSERT INTO predictions
        (id, deployment_id, version, signature_id, predicted, probabilities, features, source)
    SELECT id, d, v, s, c, p, f, o FROM given ON CONFLICT DO NOTHING
)
INSERT INTO labels (prediction_id, value) SELECT id, l FROM given WHERE l IS NOT NULL
ON CONFLICT (prediction_id) WHERE superseded_at IS NULL DO NOTHING
"""
_KNOWN = """
SELECT r.id AS caller_id, p.id::text AS id, p.version, p.predicted, p.probabilities::text AS probabilities,
       p.features::text AS features, v.classes
FROM request_ids r JOIN predictions p ON p.id = r.prediction_id
JOIN model_versions v ON v.version = p.version
WHERE r.id = ANY(%s)
"""
# Sorted: two writers that insert the same ids in opposite orders deadlock.
_IDS = """
INSERT INTO request_ids (id, prediction_id)
SELECT i, id FROM json_to_recordset(%s::json) AS r(i text, id uuid) ORDER BY i COLLATE "C"
ON CONFLICT DO NOTHING
"""
_RELABEL = """
SELECT given.w, given.l, p.outcome, p.new_labels
FROM (SELECT * FROM json_to_recordset(%s::json) AS r(w int, id uuid, l text) ORDER BY id) AS given,
     LATERAL put_label(given.id, given.l, false) AS p
"""


RACES = 5
"""Looking again this often is plenty: whoever wrote the ids first has committed them."""


class _IdsRaced(psycopg.OperationalError):
    """Another process inserted one of the ids meanwhile: look again."""


@dataclass(kw_only=True)
class _Plan:
    """One request, once its callers' ids have been looked up."""

    write: Write
    new: list[Row] = field(default_factory=list)
    repeats: dict[str, First] = field(default_factory=dict)
    relabels: list[tuple[str, str]] = field(default_factory=list)
    conflict: Conflict | None = None


async def write_batch(
    connection: psycopg.AsyncConnection, writes: Sequence[Write]
) -> list[Recorded | RatchetError]:
    """Store a batch in one transaction; answers per write, in order.

    Raises:
        psycopg.Error: nothing was stored, or the commit is in doubt; the same call again is harmless.
    """
    if not any(write.caller_ids for write in writes):
        await connection.execute(_STORE, [_payload((w, w.rows) for w in writes)])
        return [_recorded_plain(write.rows) for write in writes]
    for _ in range(RACES):
        with suppress(_IdsRaced):
            async with connection.transaction():
                return await _write_with_ids(connection, writes)
    raise _IdsRaced("the same ids are being written elsewhere")


async def _write_with_ids(
    connection: psycopg.AsyncConnection, writes: Sequence[Write]
) -> list[Recorded | RatchetError]:
    ids = [caller_id for write in writes for caller_id in write.caller_ids]
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_KNOWN, [ids])
        known = {row["caller_id"]: row for row in await cursor.fetchall()}
    plans = [_resolve(write, known) for write in writes]
    kept = [plan for plan in plans if plan.conflict is None]
    fresh = [
        {"i": row.caller_id, "id": row.id}
        for plan in kept
        for row in plan.new
        if row.caller_id is not None and row.caller_id not in known
    ]
    if fresh:
        inserted = await connection.execute(_IDS, [orjson.dumps(fresh).decode()])
        if inserted.rowcount != len(fresh):
            raise _IdsRaced
    if any(plan.new for plan in kept):
        await connection.execute(_STORE, [_payload((plan.write, plan.new) for plan in kept)])
    relabelled = await _relabel(connection, plans)
    return [plan.conflict or _recorded(plan, relabelled[n]) for n, plan in enumerate(plans)]


def _resolve(write: Write, known: Mapping[str, Mapping[str, str]]) -> _Plan:
    """Sort a request's rows into new ones and repeats; one contradiction refuses the whole request."""
    plan = _Plan(write=write)
    for number, row in enumerate(write.rows):
        first = known.get(row.caller_id) if row.caller_id is not None else None
        if first is None or first["id"] == row.id:  # the same id: our own commit that was in doubt
            plan.new.append(row)
            continue
        if first["features"].encode() != row.features:
            plan.conflict = Conflict(f"row {number}: id {row.caller_id!r} is known with other features")
            return plan
        plan.repeats[str(row.caller_id)] = First(
            prediction_id=first["id"],
            version=int(first["version"]),
            predicted=first["predicted"],
            probabilities=orjson.loads(first["probabilities"]),
            classes=list(first["classes"]),
        )
        if row.label is not None:
            plan.relabels.append((first["id"], row.label))
    return plan


async def _relabel(
    connection: psycopg.AsyncConnection, plans: Sequence[_Plan]
) -> list[list[tuple[str, str, int]]]:
    """Put the labels that came with repeats; answers (label, outcome, new labels) per plan."""
    given = [
        {"w": n, "id": prediction_id, "l": label}
        for n, plan in enumerate(plans)
        if plan.conflict is None
        for prediction_id, label in plan.relabels
    ]
    outcomes: list[list[tuple[str, str, int]]] = [[] for _ in plans]
    if given:
        rows = await connection.execute(_RELABEL, [orjson.dumps(given).decode()])
        for n, *put in await rows.fetchall():
            outcomes[n].append(tuple(put))
    return outcomes


def _recorded_plain(rows: Sequence[Row]) -> Recorded:
    given = labels_of(rows)
    return Recorded(counted=len(given), new_labels=len(given), classes=given)


def _recorded(plan: _Plan, relabelled: Sequence[tuple[str, str, int]]) -> Recorded:
    given = labels_of(plan.new)
    again = [label for label, outcome, _ in relabelled if outcome in ("accepted", "corrected")]
    return Recorded(
        repeats=plan.repeats,
        counted=len(given) + sum(outcome == "accepted" for _, outcome, _ in relabelled),
        new_labels=len(given) + sum(new for _, _, new in relabelled),
        classes=[*given, *again],
    )


def _payload(parts: Iterable[tuple[Write, Sequence[Row]]]) -> str:
    return "[" + ",".join(_json(write, rows).decode() for write, rows in parts if rows) + "]"


def _json(write: Write, rows: Sequence[Row]) -> bytes:
    return write.json if len(rows) == len(write.rows) else write.to_json(rows)
