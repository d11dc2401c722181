"""The recorder by itself: what is in one batch, and what happens when its commit is in doubt."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from api.recorder import Recorder
from api.writes import Recorded, Row, Write, new_prediction_id
from shared.errors import Conflict, Invalid, Unavailable
from shared.settings import Settings
from tests.live import query
from tests.proxy import proxied

COUNTS = (
    "SELECT (SELECT count(*) FROM predictions) AS predictions, (SELECT count(*) FROM labels) AS labels,"
    " (SELECT count(*) FROM request_ids) AS request_ids"
)


def a_write(*rows: Row) -> Write:
    """A request of these rows."""
    return Write(deployment_id=1, version=1, signature_id=1, source="raw", rows=rows)


def a_row(**changes: Any) -> Row:
    """A row, new and unlabelled unless `changes` say otherwise."""
    values = {"predicted": "a", "probabilities": [0.75, 0.25], "features": b'{"x":1.0}'}
    return Row(**{"id": new_prediction_id(), **values, **changes})


class Counted:
    """Hears of labels to count."""

    def __init__(self) -> None:
        self.labels = 0

    def __call__(self, labels: int) -> None:
        self.labels += labels


@asynccontextmanager
async def running(url: str, counted: Counted, deadline: float = 5.0) -> AsyncIterator[Recorder]:
    """A recorder that writes until the block ends."""
    recorder = Recorder(url, deadline=deadline, on_labels=counted)
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        recorder.close()
        await asyncio.wait_for(task, 10)


def url_of(settings: Settings) -> str:
    """Where Postgres answers."""
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


def test_a_write_that_postgres_refuses_fails_no_other_of_its_batch(live_settings: Settings) -> None:
    """A label of 201 characters passes no check of the API, and Postgres' own refuses it."""
    counted = Counted()

    async def scenario() -> list[Recorded | BaseException]:
        async with running(url_of(live_settings), counted) as recorder:
            writes = [a_write(a_row(label="a"), a_row()) for _ in range(10)]
            writes[3] = a_write(a_row(label="a"), a_row(label="x" * 201))
            writes[7] = a_write(a_row(caller_id="seven", label="a"))
            writes[8] = a_write(a_row(features=b'{"x":1.0'))  # no JSON at all
            calls = [recorder.record(write) for write in writes]
            return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(scenario())
    refused = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Invalid)]
    stored = [outcome for outcome in outcomes if isinstance(outcome, Recorded)]
    assert refused == [3, 8]
    assert [outcome.counted for outcome in stored] == [1] * 8
    assert counted.labels == 8
    assert query(live_settings, COUNTS) == [{"predictions": 15, "labels": 8, "request_ids": 1}]


@pytest.mark.parametrize("caller_id", [None, "mine"])
def test_a_commit_in_doubt_is_repeated_with_the_same_ids_and_stored_once(
    live_settings: Settings, caller_id: str | None
) -> None:
    """Postgres commits, and the connection is lost before it says so."""
    counted = Counted()
    row = a_row(label="a", caller_id=caller_id)

    async def scenario(url: str) -> Recorded:
        async with running(url, counted) as recorder:
            await recorder.record(a_write(a_row()))  # connected
            # without callers' ids one statement is the transaction; with them it is the COMMIT
            proxy.lose_answer(b"INSERT INTO predictions" if caller_id is None else b"COMMIT")
            return await recorder.record(a_write(row))

    with proxied(url_of(live_settings)) as proxy:
        outcome = asyncio.run(scenario(proxy.url))
        assert proxy.lost == 1
    assert (outcome.counted, outcome.new_labels, dict(outcome.repeats)) == (1, 1, {})
    assert counted.labels == 1
    ids = 0 if caller_id is None else 1
    assert query(live_settings, COUNTS) == [{"predictions": 2, "labels": 1, "request_ids": ids}]
    assert {"id": row.id} in query(live_settings, "SELECT id::text FROM predictions")


def test_every_request_ends_within_its_deadline_and_the_recorder_goes_on(live_settings: Settings) -> None:
    counted = Counted()

    async def scenario(url: str) -> None:
        async with running(url, counted, deadline=0.3) as recorder:
            await recorder.record(a_write(a_row()))
            proxy.silence()
            calls = [recorder.record(a_write(a_row(label="a"))) for _ in range(3)]
            late = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            assert [type(outcome) for outcome in late] == [Unavailable] * 3
            proxy.speak()
            for _ in range(50):
                with suppress(Unavailable):
                    await recorder.record(a_write(a_row(caller_id="after")))
                    return
            pytest.fail("the recorder did not recover")

    with proxied(url_of(live_settings)) as proxy:
        asyncio.run(scenario(proxy.url))
    assert query(live_settings, "SELECT id FROM request_ids") == [{"id": "after"}]


def test_a_conflict_is_told_to_the_request_that_has_it(live_settings: Settings) -> None:
    async def scenario() -> list[Recorded | BaseException]:
        async with running(url_of(live_settings), Counted()) as recorder:
            await recorder.record(a_write(a_row(caller_id="known")))
            writes = [
                a_write(a_row(caller_id="new")),
                a_write(a_row(caller_id="known", features=b'{"x":2.0}'), a_row(caller_id="other")),
            ]
            return await asyncio.gather(*map(recorder.record, writes), return_exceptions=True)

    fine, conflict = asyncio.run(scenario())
    assert isinstance(fine, Recorded)
    assert isinstance(conflict, Conflict)
    ids = query(live_settings, "SELECT id FROM request_ids ORDER BY id")
    assert [row["id"] for row in ids] == ["known", "new"]


def test_two_writers_with_the_same_ids_in_opposite_order_never_wait_for_each_other(
    live_settings: Settings,
) -> None:
    """Postgres would end one of them after a second: the retry hides it from clients, not from its count."""
    turns, size = 10, 400

    async def scenario() -> None:
        url = url_of(live_settings)
        async with running(url, Counted()) as one, running(url, Counted()) as other:
            for turn in range(turns):
                ids = [f"{turn}-{n}" for n in range(size)]
                there = one.record(a_write(*(a_row(caller_id=key) for key in ids)))
                back = other.record(a_write(*(a_row(caller_id=key) for key in reversed(ids))))
                outcomes = await asyncio.gather(there, back)
                assert sorted(len(outcome.repeats) for outcome in outcomes) == [0, size]

    asyncio.run(scenario())
    assert query(live_settings, COUNTS)[0]["predictions"] == turns * size
    writers = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'ratchet recorder'"
    while query(live_settings, f"{writers} AND datname = current_database()"):  # they count when they end
        time.sleep(0.01)
    counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert query(live_settings, counted) == [{"deadlocks": 0}]


def test_what_was_accepted_is_written_before_the_recorder_ends(live_settings: Settings) -> None:
    async def scenario() -> None:
        recorder = Recorder(url_of(live_settings), deadline=5, on_labels=Counted())
        calls = [asyncio.ensure_future(recorder.record(a_write(a_row()))) for _ in range(3)]
        await asyncio.sleep(0)  # they are in the queue, and nobody writes yet
        recorder.close()
        with pytest.raises(Unavailable):
            await recorder.record(a_write(a_row()))
        await asyncio.wait_for(recorder.run(), 10)
        assert all(call.done() and call.exception() is None for call in calls)

    asyncio.run(scenario())
    assert query(live_settings, COUNTS)[0]["predictions"] == 3
