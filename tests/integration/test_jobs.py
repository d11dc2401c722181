"""Jobs in Postgres: one at a time, under a lease and a fence."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from shared import jobs, labels
from shared.database import Sessions
from shared.errors import ClaimLost, Conflict, NoModel, NotFound
from shared.jobs import Claim
from shared.settings import Settings
from tests.integration import production
from tests.integration.production import claim, end, execute, expire_lease, job_of, taken, wait_in_line

Ask = Callable[[Sessions, Settings, Claim], object]


@pytest.fixture
def job_id(sessions: Sessions) -> int:
    """A queued job in a database without a model."""
    execute(sessions, "INSERT INTO signatures (target, features) VALUES ('t', '[]')")
    return insert(sessions, "admin")


def insert(sessions: Sessions, trigger: str) -> int:
    with sessions.begin() as session:
        made = jobs.insert(session, trigger=trigger, signature_id=1, reason=None)
    assert made is not None
    return made


def test_of_jobs_inserted_at_once_one_is_active(sessions: Sessions) -> None:
    execute(sessions, "INSERT INTO signatures (target, features) VALUES ('t', '[]')")
    together = Barrier(5)

    def try_insert(_: int) -> int | None:
        with sessions.begin() as session:
            session.execute(text("SELECT 1"))
            together.wait(10)
            return jobs.insert(session, trigger="admin", signature_id=1, reason=None)

    with ThreadPoolExecutor(5) as pool:
        made = [job_id for job_id in pool.map(try_insert, range(5)) if job_id is not None]
    assert len(made) == 1
    assert execute(sessions, "SELECT id FROM retrain_jobs") == [(made[0],)]


def test_the_table_itself_refuses_a_second_active_job(sessions: Sessions, job_id: int) -> None:
    with pytest.raises(IntegrityError, match="uq_retrain_jobs_active"):
        execute(sessions, "INSERT INTO retrain_jobs (trigger, signature_id) VALUES ('admin', 1)")


def test_of_workers_that_claim_at_once_one_gets_the_job(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    together = Barrier(5)

    def try_claim(_: int) -> Claim | None:
        together.wait(10)
        return claim(sessions, settings, job_id)

    with ThreadPoolExecutor(5) as pool:
        assert len([found for found in pool.map(try_claim, range(5)) if found]) == 1
    assert job_of(sessions, job_id).fence == 1


def test_a_claim_raises_the_fence_and_takes_the_lease(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    found = taken(sessions, settings, job_id)
    job = job_of(sessions, job_id)
    assert (found.fence, job.fence, job.state, job.failures) == (1, 1, "running", 0)
    assert job.started_at is not None
    assert job.lease_until is not None
    assert (job.lease_until - job.started_at).total_seconds() == settings.lease_seconds


def test_a_held_job_gives_a_second_worker_nothing_to_do(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    taken(sessions, settings, job_id)
    assert claim(sessions, settings, job_id) is None
    assert job_of(sessions, job_id).fence == 1


@pytest.mark.parametrize("state", ["succeeded", "rejected", "skipped", "failed"])
def test_a_settled_job_gives_a_worker_nothing_to_do(
    sessions: Sessions, settings: Settings, job_id: int, state: str
) -> None:
    end(sessions, job_id, state)
    assert claim(sessions, settings, job_id) is None
    assert job_of(sessions, job_id).state == state


def test_a_job_that_does_not_exist_gives_nothing_to_do(sessions: Sessions, settings: Settings) -> None:
    assert claim(sessions, settings, 77) is None
    with sessions() as session, pytest.raises(NotFound, match="no job 77"):
        jobs.get(session, 77)


def test_an_expired_lease_is_taken_over_and_counted_as_a_failure(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    first = taken(sessions, settings, job_id)
    started = job_of(sessions, job_id).started_at
    expire_lease(sessions, job_id)
    second = taken(sessions, settings, job_id)
    job = job_of(sessions, job_id)
    assert second.fence == first.fence + 1
    assert (job.state, job.failures, job.started_at) == ("running", 1, started)


def test_the_third_expired_lease_fails_the_job_and_its_labels_wait_again(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    wait_in_line(sessions, 4)
    for _ in range(3):
        taken(sessions, settings, job_id)
        with sessions.begin() as session:
            assert labels.claim_waiting(session, job_id) == 4
        expire_lease(sessions, job_id)
    assert claim(sessions, settings, job_id) is None
    job = job_of(sessions, job_id)
    assert (job.state, job.failures, job.lease_until) == ("failed", 3, None)
    assert job.finished_at is not None
    assert job.error is not None
    assert "fell silent" in job.error
    assert production.counts(sessions).waiting == 4


ASKS: dict[str, Ask] = {
    "renew": lambda sessions, settings, claim: within(sessions, lambda s: jobs.renew(s, claim, settings)),
    "report": lambda sessions, _, claim: within(
        sessions, lambda s: jobs.report(s, claim, step=3, progress=0.2, note="still here")
    ),
    "hold": lambda sessions, _, claim: within(sessions, lambda s: jobs.hold(s, claim)),
    "settle": lambda sessions, _, claim: within(
        sessions, lambda s: jobs.settle(s, claim, "succeeded", rows={}, result={})
    ),
    "give back": lambda sessions, _, claim: within(sessions, lambda s: jobs.give_back(s, claim)),
    "fail": lambda sessions, _, claim: within(sessions, lambda s: jobs.fail(s, claim, "broken")),
}


def within(sessions: Sessions, ask: Callable[..., object]) -> object:
    with sessions.begin() as session:
        return ask(session)


def test_a_worker_that_was_taken_over_may_write_nothing_more(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    lost = taken(sessions, settings, job_id)
    expire_lease(sessions, job_id)
    taken(sessions, settings, job_id)
    before = execute(sessions, "SELECT * FROM retrain_jobs")
    for name, ask in ASKS.items():
        with pytest.raises(ClaimLost, match=f"job {job_id}"):
            ask(sessions, settings, lost)
        assert execute(sessions, "SELECT * FROM retrain_jobs") == before, name


def test_a_settled_job_can_not_be_written_by_its_own_worker(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    own = taken(sessions, settings, job_id)
    end(sessions, job_id, "succeeded")
    for name, ask in ASKS.items():
        with pytest.raises(ClaimLost):
            ask(sessions, settings, own)
        assert job_of(sessions, job_id).state == "succeeded", name


def test_a_renewed_lease_is_not_taken_over(sessions: Sessions, settings: Settings, job_id: int) -> None:
    own = taken(sessions, settings, job_id)
    expire_lease(sessions, job_id)
    within(sessions, lambda s: jobs.renew(s, own, settings))
    assert claim(sessions, settings, job_id) is None


def test_a_report_shows_the_step_and_lengthens_the_log(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    own = taken(sessions, settings, job_id)
    with sessions.begin() as session:
        jobs.report(session, own, step=4, progress=0.25, note="first")
        jobs.report(session, own, step=5, progress=0.375, note='a "quoted" note')
    job = job_of(sessions, job_id)
    assert (job.step, job.step_number, job.progress) == ("split", 5, 0.375)
    assert [(line["step"], line["note"]) for line in job.log] == [(4, "first"), (5, 'a "quoted" note')]
    assert all(line["at"] for line in job.log)


def test_a_job_given_back_waits_again_and_counts_no_failure(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    own = taken(sessions, settings, job_id)
    within(sessions, lambda s: jobs.mark_sent(s, job_id))
    within(sessions, lambda s: jobs.give_back(s, own))
    job = job_of(sessions, job_id)
    assert (job.state, job.failures, job.lease_until, job.sent_at) == ("queued", 0, None, None)
    assert taken(sessions, settings, job_id).fence == 2
    assert job_of(sessions, job_id).failures == 0


def test_a_job_that_raised_goes_on_twice_and_then_has_failed(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    wait_in_line(sessions, 2)
    goes_on = []
    for attempt in range(3):
        own = taken(sessions, settings, job_id)
        with sessions.begin() as session:
            labels.claim_waiting(session, job_id)
        with sessions.begin() as session:
            goes_on.append(jobs.fail(session, own, f"error {attempt}"))
        assert job_of(sessions, job_id).failures == attempt + 1
    assert goes_on == [True, True, False]
    job = job_of(sessions, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.endswith("error 2")
    assert production.counts(sessions).waiting == 2


@pytest.mark.parametrize(("state", "trained"), [("succeeded", 3), ("rejected", 3), ("skipped", 0)])
def test_labels_of_a_settled_job_are_trained_unless_it_was_skipped(
    sessions: Sessions, settings: Settings, job_id: int, state: str, trained: int
) -> None:
    wait_in_line(sessions, 3)
    own = taken(sessions, settings, job_id)
    with sessions.begin() as session:
        labels.claim_waiting(session, job_id)
        jobs.settle(session, own, state, rows={"new": 3}, result={"x": None})
    job, counts = job_of(sessions, job_id), production.counts(sessions)
    assert (job.state, job.progress, job.rows, job.result) == (state, 1, {"new": 3}, {"x": None})
    assert (counts.trained, counts.waiting, counts.claimed) == (trained, 3 - trained, 0)


def test_an_admins_job_needs_a_model_and_a_waiting_label_or_force(
    sessions: Sessions, settings: Settings
) -> None:
    with sessions.begin() as session, pytest.raises(NoModel):
        jobs.request_by_admin(session, force=True, reason=None)
    execute(sessions, "INSERT INTO signatures (target, features) VALUES ('t', '[]')")
    with sessions.begin() as session, pytest.raises(Conflict, match="no label waits"):
        jobs.request_by_admin(session, force=False, reason=None)
    wait_in_line(sessions, 1)
    with sessions.begin() as session:
        job, new = jobs.request_by_admin(session, force=False, reason="because")
        assert (job.trigger, job.reason, job.state, new) == ("admin", "because", "queued", True)
    with sessions.begin() as session:
        again, new = jobs.request_by_admin(session, force=True, reason="again")
        assert (again.id, again.reason, new) == (job.id, "because", False)


def test_a_message_is_needed_once_until_it_is_old(
    sessions: Sessions, settings: Settings, job_id: int
) -> None:
    def to_send(lease: float = 0.0) -> list[int]:
        with sessions.begin() as session:
            return jobs.to_send(session, resend_seconds=15, lease_seconds=lease)

    assert to_send() == [job_id]
    within(sessions, lambda s: jobs.mark_sent(s, job_id))
    assert to_send() == []
    execute(sessions, "UPDATE retrain_jobs SET sent_at = now() - interval '14 seconds'")
    assert to_send() == []
    execute(sessions, "UPDATE retrain_jobs SET sent_at = now() - interval '16 seconds'")
    assert to_send() == [job_id]
    taken(sessions, settings, job_id)
    assert to_send() == []
    expire_lease(sessions, job_id)
    since_start = "SELECT extract(epoch FROM now() - pg_postmaster_start_time()) AS seconds"
    running = float(execute(sessions, since_start)[0].seconds)
    assert to_send(lease=running + 60) == []  # after a restart its worker first gets the time to renew
    assert to_send() == [job_id]
    within(sessions, lambda s: jobs.mark_sent(s, job_id))
    assert to_send() == []
    end(sessions, job_id, "failed")
    execute(sessions, "UPDATE retrain_jobs SET sent_at = NULL")
    assert to_send() == []
