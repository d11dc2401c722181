"""What beat repeats: whatever a lost message, a wiped Redis or a killed worker left undone."""

from base64 import b64decode

import orjson
import pytest
from redis import Redis

from shared import upkeep
from shared.counter import CHANNEL, LATCH, read_tally
from shared.queue import RETRAIN, send_retrain
from tests.integration.production import (
    all_versions,
    ask_job,
    chain,
    changed,
    counts,
    end,
    execute,
    expire_lease,
    job_of,
    taken,
    wait_in_line,
)
from worker.retrain import run_job
from worker.run import Context


def sweep(context: Context) -> list[int]:
    return upkeep.sweep(
        sessions=context.sessions,
        celery=context.celery,
        redis=context.redis,
        store=context.store,
        settings=context.settings,
    )


def reconcile(context: Context) -> int:
    return upkeep.reconcile(sessions=context.sessions, redis=context.redis)


def messages(redis: Redis) -> list[tuple[str, int]]:
    """Task and job of every message in the queue of the training worker, oldest first."""
    found = []
    for message in reversed(redis.lrange("retrain", 0, -1)):
        envelope = orjson.loads(message)
        body = orjson.loads(b64decode(envelope["body"]))
        found.append((envelope["headers"]["task"], body[1]["job_id"]))
    return found


def test_a_job_whose_message_was_lost_gets_another(context: Context) -> None:
    job_id = ask_job(context, force=True)
    assert send_retrain(context.celery, context.sessions, job_id)
    assert messages(context.redis) == [(RETRAIN, job_id)]
    context.redis.flushall()
    assert sweep(context) == []  # a message that young may still be on its way
    execute(context.sessions, "UPDATE retrain_jobs SET sent_at = now() - interval '1 minute'")
    assert sweep(context) == [job_id]
    assert messages(context.redis) == [(RETRAIN, job_id)]
    assert sweep(context) == []
    assert len(messages(context.redis)) == 1


def test_a_job_whose_message_was_never_sent_gets_one(context: Context) -> None:
    job_id = ask_job(context, force=True)
    assert sweep(context) == [job_id]
    assert messages(context.redis) == [(RETRAIN, job_id)]
    assert job_of(context.sessions, job_id).sent_at is not None


def test_a_job_whose_worker_fell_silent_gets_a_message_and_a_living_one_does_not(context: Context) -> None:
    job_id = ask_job(context, force=True)
    taken(context.sessions, context.settings, job_id)
    assert sweep(context) == []
    expire_lease(context.sessions, job_id)
    context = changed(context, lease_seconds=1.0, renew_seconds=0.5)  # Postgres has been up for longer
    assert sweep(context) == [job_id]
    assert messages(context.redis) == [(RETRAIN, job_id)]
    assert job_of(context.sessions, job_id).failures == 0  # who claims it counts the failure


def test_a_settled_job_gets_no_message(context: Context) -> None:
    job_id = ask_job(context, force=True)
    end(context.sessions, job_id, "succeeded")
    assert sweep(context) == []
    assert messages(context.redis) == []


def test_a_due_job_starts_though_redis_forgot_everything(context: Context) -> None:
    wait_in_line(context.sessions, context.settings.threshold)
    context.redis.flushall()
    (job_id,) = sweep(context)
    job = job_of(context.sessions, job_id)
    assert (job.state, job.trigger) == ("queued", "threshold")
    assert messages(context.redis) == [(RETRAIN, job_id)]


@pytest.mark.parametrize("tally", [10**6, -5, None])
def test_whatever_redis_says_nothing_is_started_that_is_not_due(context: Context, tally: int | None) -> None:
    wait_in_line(context.sessions, context.settings.threshold - 1)
    context.redis.set(LATCH, "1")
    if tally is not None:
        context.redis.set("ratchet:tally", tally)
    assert sweep(context) == []
    assert messages(context.redis) == []
    assert len(execute(context.sessions, "SELECT 1 FROM retrain_jobs")) == 1


def test_the_tally_is_set_to_the_labels_that_wait(context: Context) -> None:
    wait_in_line(context.sessions, 7)
    for wrong in ("999", "0"):
        context.redis.set("ratchet:tally", wrong)
        assert reconcile(context) == 7
        assert read_tally(context.redis) == 7
    context.redis.flushall()
    assert read_tally(context.redis) is None
    reconcile(context)
    assert read_tally(context.redis) == counts(context.sessions).waiting == 7


def test_the_newest_deployment_is_announced_again(context: Context) -> None:
    with context.redis.pubsub() as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(CHANNEL)
        channel.get_message(timeout=1)
        sweep(context)
        message = channel.get_message(timeout=5, ignore_subscribe_messages=True)
    assert message is not None
    assert message["data"] == str(chain(context.sessions)[-1].id)


def test_pruning_that_a_crash_prevented_is_done_later(context: Context) -> None:
    quick = changed(context, window=300, iterations=2, gate_tolerance=1.0, balance="none")
    for _ in range(2):
        run_job(ask_job(quick, force=True), quick)
    sweep(changed(quick, keep_versions=1))
    versions = all_versions(quick.sessions)
    assert [v.artifacts_removed_at is None for v in versions] == [False, True, True]
    assert not quick.store.path(versions[0].artifact_key).exists()


def test_what_ended_attempts_left_in_the_store_is_removed_and_nothing_else(context: Context) -> None:
    store = context.store
    live = {key for folder in ("parts", "versions") for key in store.keys(folder)}
    job_id = ask_job(context, force=True)
    active = {f"parts/{job_id}-1.parquet", f"versions/{job_id}-1/model.onnx"}
    ended = {"parts/1-7.parquet", "parts/1-8.parquet.99.part", "versions/1-7/model.onnx"}
    for key in (*active, *ended):
        store.path(key).parent.mkdir(parents=True, exist_ok=True)
        store.path(key).write_bytes(b"half")
    sweep(context)
    assert not any(store.path(key).exists() for key in ended)
    assert all(store.path(key).exists() for key in active)
    assert live <= {key for folder in ("parts", "versions") for key in store.keys(folder)}
    end(context.sessions, job_id, "skipped")
    sweep(context)
    assert not any(store.path(key).exists() for key in active)
    assert not store.path(f"versions/{job_id}-1").exists()
    assert live == {key for folder in ("parts", "versions") for key in store.keys(folder)}
