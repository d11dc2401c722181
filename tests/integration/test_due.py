"""When a job is due: enough labels wait, none is active, and no pause holds."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import text

from shared import jobs, labels
from shared.database import Sessions
from shared.settings import Settings
from tests.integration.production import end, execute, job_of, taken, wait_in_line


def is_due(sessions: Sessions, settings: Settings) -> bool:
    due = "SELECT retrain_due(:threshold, make_interval(secs => :pause)) AS due"
    rule = {"threshold": settings.threshold, "pause": settings.pause_minutes * 60}
    return bool(execute(sessions, due, **rule)[0].due)


def request(sessions: Sessions, settings: Settings) -> int | None:
    with sessions.begin() as session:
        return jobs.request_due(session, settings)


def test_of_due_jobs_requested_at_once_one_is_inserted(
    live_sessions: Sessions, live_settings: Settings
) -> None:
    wait_in_line(live_sessions, live_settings.threshold)
    together = Barrier(5)

    def try_request(_: int) -> int | None:
        with live_sessions.begin() as session:
            session.execute(text("SELECT 1"))
            together.wait(10)
            return jobs.request_due(session, live_settings)

    with ThreadPoolExecutor(5) as pool:
        made = [job_id for job_id in pool.map(try_request, range(5)) if job_id is not None]
    assert len(made) == 1
    assert job_of(live_sessions, made[0]).trigger == "threshold"


def test_no_job_is_due_below_the_threshold(live_sessions: Sessions, live_settings: Settings) -> None:
    wait_in_line(live_sessions, live_settings.threshold - 1)
    assert not is_due(live_sessions, live_settings)
    assert request(live_sessions, live_settings) is None
    assert len(execute(live_sessions, "SELECT 1 FROM retrain_jobs")) == 1  # the bootstrap's
    wait_in_line(live_sessions, 1)
    assert is_due(live_sessions, live_settings)


def test_no_job_is_due_before_the_first_deployment(sessions: Sessions, settings: Settings) -> None:
    execute(sessions, "INSERT INTO signatures (target, features) VALUES ('t', '[]')")
    wait_in_line(sessions, settings.threshold)
    assert request(sessions, settings) is None


def test_no_job_is_due_while_one_is_active(live_sessions: Sessions, live_settings: Settings) -> None:
    wait_in_line(live_sessions, live_settings.threshold)
    active = request(live_sessions, live_settings)
    assert active is not None
    assert not is_due(live_sessions, live_settings)
    taken(live_sessions, live_settings, active)
    assert request(live_sessions, live_settings) is None


@pytest.mark.parametrize("state", ["skipped", "failed"])
def test_after_a_job_that_came_to_nothing_a_pause_holds(
    live_sessions: Sessions, live_settings: Settings, state: str
) -> None:
    wait_in_line(live_sessions, live_settings.threshold)
    job_id = request(live_sessions, live_settings)
    assert job_id is not None
    pause = live_settings.pause_minutes
    end(live_sessions, job_id, state, minutes_ago=pause - 0.1)
    execute(live_sessions, "UPDATE labels SET created_at = now() - interval '2 days'")
    assert request(live_sessions, live_settings) is None
    end(live_sessions, job_id, state, minutes_ago=pause)
    assert request(live_sessions, live_settings) is not None


def test_another_threshold_of_labels_ends_the_pause(live_sessions: Sessions, live_settings: Settings) -> None:
    wait_in_line(live_sessions, live_settings.threshold)
    job_id = request(live_sessions, live_settings)
    assert job_id is not None
    end(live_sessions, job_id, "skipped")
    wait_in_line(live_sessions, live_settings.threshold - 1)
    assert not is_due(live_sessions, live_settings)
    wait_in_line(live_sessions, 1)
    assert is_due(live_sessions, live_settings)


def test_the_pause_doubles_each_time_and_is_at_most_a_day(
    live_sessions: Sessions, live_settings: Settings
) -> None:
    wait_in_line(live_sessions, live_settings.threshold)
    execute(live_sessions, "UPDATE labels SET created_at = now() - interval '9 days'")
    pauses = [10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440]
    for number, minutes in enumerate(pauses):
        job_id = request(live_sessions, live_settings)
        assert job_id is not None
        state = ("skipped", "failed")[number % 2]
        end(live_sessions, job_id, state, minutes_ago=minutes - 0.1)
        assert not is_due(live_sessions, live_settings), minutes
        end(live_sessions, job_id, state, minutes_ago=minutes)
        assert is_due(live_sessions, live_settings), minutes


def test_a_job_that_ended_well_starts_the_pauses_anew(
    live_sessions: Sessions, live_settings: Settings
) -> None:
    wait_in_line(live_sessions, live_settings.threshold)
    execute(live_sessions, "UPDATE labels SET created_at = now() - interval '9 days'")
    for state in ("skipped", "skipped", "succeeded", "skipped"):
        with live_sessions.begin() as session:
            job_id = jobs.insert(session, trigger="admin", signature_id=1, reason=None)
        assert job_id is not None
        end(live_sessions, job_id, state, minutes_ago=10)
    assert is_due(live_sessions, live_settings)


@pytest.mark.parametrize("state", ["succeeded", "rejected"])
def test_after_a_job_that_learned_no_pause_holds(
    live_sessions: Sessions, live_settings: Settings, state: str
) -> None:
    wait_in_line(live_sessions, live_settings.threshold)
    job_id = request(live_sessions, live_settings)
    assert job_id is not None
    own = taken(live_sessions, live_settings, job_id)
    with live_sessions.begin() as session:
        labels.claim_waiting(session, job_id)
        jobs.settle(session, own, state, rows={}, result={})
    assert not is_due(live_sessions, live_settings)  # its labels don't wait again
    wait_in_line(live_sessions, live_settings.threshold)
    assert is_due(live_sessions, live_settings)
