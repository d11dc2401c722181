"""A job that is killed, taken over, asked to stop or broken: finished once, with the same labels."""

from collections.abc import Callable

import pytest

from shared.artifacts import ArtifactStore
from shared.errors import ClaimLost
from tests.integration.production import (
    all_versions,
    before_step,
    chain,
    changed,
    claim,
    counts,
    execute,
    expire_lease,
    job_of,
    labels_of,
    put,
    send,
    start_job,
    taken,
    unseen,
)
from tests.integration.trained import check_finished_once
from worker.balancing import balance
from worker.retrain import run_job
from worker.run import Context

STEPS_THAT_REPORT = range(1, 12)


class Killed(BaseException):
    """As sudden as a signal: no handler of the workflow may see it."""


@pytest.fixture
def quick(context: Context) -> Context:
    """A worker whose jobs take well under a second."""
    return changed(context, window=300, iterations=3, gate_tolerance=1.0)


def kill() -> None:
    raise Killed


def test_killed_at_every_step_in_turn_the_job_is_finished_once_with_the_same_labels(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    for step in STEPS_THAT_REPORT:
        with monkeypatch.context() as patch:
            before_step(patch, step, kill)
            with pytest.raises(Killed):
                run_job(job_id, quick)
        job = job_of(quick.sessions, job_id)
        assert (job.state, job.step_number, job.fence) == ("running", step - 1, step)
        assert len(all_versions(quick.sessions)) == len(chain(quick.sessions)) == 1
        assert "nothing to do" in run_job(job_id, quick)  # its lease has not expired yet
        expire_lease(quick.sessions, job_id)
        execute(quick.sessions, "UPDATE retrain_jobs SET failures = 0 WHERE id = :id", id=job_id)
    send(quick.sessions, unseen(5, skip=50))  # waits for the next job

    assert "version 2 published" in run_job(job_id, quick)
    job = job_of(quick.sessions, job_id)
    assert (job.fence, job.failures) == (len(STEPS_THAT_REPORT) + 1, 1)
    check_finished_once(quick, job_id, labels=50, waiting=5)
    version = all_versions(quick.sessions)[1]
    assert quick.store.read(version.artifact_key, "model.onnx")


def test_killed_between_the_artifacts_and_the_transaction_leaves_no_half_published_version(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    with monkeypatch.context() as patch:
        patch.setattr("worker.publishing._settle", lambda *_: kill())
        with pytest.raises(Killed):
            run_job(job_id, quick)
    assert quick.store.manifest(f"versions/{job_id}-1")
    assert [deployment.champion for deployment in chain(quick.sessions)] == [1]
    expire_lease(quick.sessions, job_id)
    run_job(job_id, quick)
    assert all_versions(quick.sessions)[1].artifact_key == f"versions/{job_id}-2"
    check_finished_once(quick, job_id, labels=50)


def test_killed_inside_the_transaction_nothing_of_it_is_left(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    with monkeypatch.context() as patch:
        patch.setattr("worker.publishing.jobs.settle", lambda *_, **__: kill())
        with pytest.raises(Killed):
            run_job(job_id, quick)
    assert len(all_versions(quick.sessions)) == len(chain(quick.sessions)) == 1
    assert execute(quick.sessions, "SELECT 1 FROM dataset_parts WHERE job_id = :id", id=job_id) == []
    expire_lease(quick.sessions, job_id)
    run_job(job_id, quick)
    check_finished_once(quick, job_id, labels=50)


def test_killed_before_the_announcement_the_job_is_done_all_the_same(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    with monkeypatch.context() as patch:
        patch.setattr("worker.publishing.counter.announce", lambda *_: kill())
        with pytest.raises(Killed):
            run_job(job_id, quick)
    assert "nothing to do" in run_job(job_id, quick)
    check_finished_once(quick, job_id, labels=50)


def test_a_label_corrected_between_two_attempts_is_not_learned_and_its_correction_waits(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    with monkeypatch.context() as patch:
        before_step(patch, 8, kill)
        with pytest.raises(Killed):
            run_job(job_id, quick)
    put(quick.sessions, ids[:1], ["Another Plan"])
    expire_lease(quick.sessions, job_id)
    run_job(job_id, quick)
    assert [label.job_id for label in labels_of(quick.sessions, ids[0])] == [job_id, None]
    check_finished_once(quick, job_id, labels=49, waiting=1)


@pytest.mark.parametrize("step", [2, 8, 11])
def test_a_worker_whose_job_was_taken_over_publishes_nothing(
    quick: Context, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)

    def take_over() -> None:
        expire_lease(quick.sessions, job_id)
        taken(quick.sessions, quick.settings, job_id)

    with monkeypatch.context() as patch:
        before_step(patch, step, take_over)
        assert "another worker has taken it" in run_job(job_id, quick)
    job = job_of(quick.sessions, job_id)
    assert (job.state, job.fence) == ("running", 2)
    assert len(all_versions(quick.sessions)) == len(chain(quick.sessions)) == 1
    assert claim(quick.sessions, quick.settings, job_id) is None  # the taker's lease is untouched
    expire_lease(quick.sessions, job_id)
    run_job(job_id, quick)
    check_finished_once(quick, job_id, labels=50)


def test_a_job_taken_over_while_the_artifacts_are_stored_publishes_nothing(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    plain = ArtifactStore.put_set

    def put_set(store: ArtifactStore, key: str, files: dict[str, bytes]) -> None:
        plain(store, key, files)
        expire_lease(quick.sessions, job_id)
        taken(quick.sessions, quick.settings, job_id)

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "put_set", put_set)
        assert "another worker has taken it" in run_job(job_id, quick)
    assert len(all_versions(quick.sessions)) == len(chain(quick.sessions)) == 1
    assert job_of(quick.sessions, job_id).state == "running"


def test_a_fit_stops_at_the_next_tree_when_the_lease_thread_finds_the_claim_lost(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = changed(quick, iterations=1_000_000, lease_seconds=1.0, renew_seconds=0.05, balance="none")
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)

    def take_over() -> None:
        expire_lease(quick.sessions, job_id)
        # A renewal may come first; the taker comes after it, again and again.
        while claim(quick.sessions, quick.settings, job_id) is None:
            expire_lease(quick.sessions, job_id)

    with monkeypatch.context() as patch:
        before_step(patch, 9, lambda: pytest.fail("the fit ran to its end"))
        patch.setattr("worker.steps.balance", during(balance, take_over))
        assert "another worker has taken it" in run_job(job_id, endless)
    assert len(all_versions(quick.sessions)) == 1


def during(plain: Callable[..., object], happening: Callable[[], object]) -> Callable[..., object]:
    def wrapped(*args: object, **kwargs: object) -> object:
        happening()
        return plain(*args, **kwargs)

    return wrapped


def raise_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", [1, 8, 11])
def test_asked_to_stop_the_job_goes_back_into_the_queue_with_a_message(
    quick: Context, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    with monkeypatch.context() as patch:
        before_step(patch, step, raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_job(job_id, quick)
    job = job_of(quick.sessions, job_id)
    assert (job.state, job.failures, job.lease_until, job.error) == ("queued", 0, None, None)
    assert job.sent_at is not None
    assert quick.redis.llen("retrain") == 1
    run_job(job_id, quick)
    assert job_of(quick.sessions, job_id).failures == 0
    check_finished_once(quick, job_id, labels=50)


def test_asked_to_stop_without_redis_the_job_goes_back_all_the_same(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    with monkeypatch.context() as patch:
        before_step(patch, 8, raise_interrupt)
        patch.setattr(quick.celery, "send_task", lambda *_, **__: (_ for _ in ()).throw(ConnectionError()))
        with pytest.raises(KeyboardInterrupt):
            run_job(job_id, quick)
    job = job_of(quick.sessions, job_id)
    assert (job.state, job.failures, job.sent_at) == ("queued", 0, None)


def test_an_error_is_told_and_tried_again_and_the_third_ends_the_job(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)

    def break_down() -> None:
        raise ZeroDivisionError("not today")

    for attempt in (1, 2, 3):
        with monkeypatch.context() as patch:
            before_step(patch, 7, break_down)
            with pytest.raises(ZeroDivisionError):
                run_job(job_id, quick)
        job = job_of(quick.sessions, job_id)
        assert (job.state, job.failures) == ("failed" if attempt == 3 else "queued", attempt)
        assert job.error is not None
        assert "ZeroDivisionError: not today" in job.error
        assert quick.redis.llen("retrain") == min(attempt, 2)  # a message for each attempt to come
    assert "nothing to do" in run_job(job_id, quick)
    assert counts(quick.sessions).waiting == 50
    assert len(all_versions(quick.sessions)) == 1


def test_an_error_that_passes_leaves_no_trace_in_the_settled_job(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    with monkeypatch.context() as patch:
        before_step(patch, 5, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_job(job_id, quick)
    run_job(job_id, quick)
    job = job_of(quick.sessions, job_id)
    assert (job.failures, job.error) == (1, None)
    check_finished_once(quick, job_id, labels=50)


def test_a_lost_claim_is_no_failure_of_the_job(quick: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)

    def lose() -> None:
        raise ClaimLost("as the lease thread found")

    before_step(monkeypatch, 8, lose)
    assert run_job(job_id, quick) == f"job {job_id}: given up, as the lease thread found"
    assert job_of(quick.sessions, job_id).failures == 0
