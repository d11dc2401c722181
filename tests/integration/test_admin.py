"""`POST /admin/retrain`: an operator's request, doubled by nobody."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from shared import jobs
from shared.database import Sessions
from shared.settings import Settings
from tests.live import Live
from tests.serving import ADMIN

CLIENTS = 8


@pytest.fixture
def admin(api: Live) -> Live:
    """The file's API without a job but the bootstrap's."""
    api.execute("DELETE FROM retrain_jobs WHERE trigger <> 'bootstrap'")
    return api


def ask(api: Live, **body: Any) -> httpx.Response:
    """Ask for a job as an admin."""
    return api.client.post("/admin/retrain", json=body, headers=ADMIN)


def requested(api: Live) -> list[dict[str, Any]]:
    """The jobs that somebody asked for."""
    return [job for job in api.client.get("/retrain/jobs").json() if job["trigger"] != "bootstrap"]


def test_a_waiting_label_is_enough_for_a_job(admin: Live) -> None:
    admin.predict(true_labels=["Basic Plan"])
    response = ask(admin, reason="new price list")
    assert response.status_code == 202
    answer = response.json()
    assert answer["new"] is True
    assert admin.client.get(answer["url"]).json()["id"] == answer["job"]["id"]
    (job,) = requested(admin)
    assert (job["state"], job["trigger"], job["reason"]) == ("queued", "admin", "new price list")
    assert admin.client.get("/retrain/status").json()["active_job"]["id"] == job["id"]


def test_without_a_reason_the_job_names_who_asked(admin: Live) -> None:
    ask(admin, force=True)
    assert requested(admin)[0]["reason"] == "asked by tester"


def test_an_empty_body_is_a_request_without_wishes(admin: Live) -> None:
    admin.predict(true_labels=["Basic Plan"])
    assert admin.client.post("/admin/retrain", headers=ADMIN).status_code == 202


def test_without_a_waiting_label_it_takes_force(admin: Live) -> None:
    admin.predict()
    for body in ({}, {"force": False, "reason": "because"}):
        refused = ask(admin, **body)
        assert (refused.status_code, refused.json()["title"]) == (409, "Conflict")
        assert "force" in refused.json()["detail"]
    assert requested(admin) == []
    assert ask(admin, force=True).status_code == 202
    assert len(requested(admin)) == 1


def test_a_queued_job_is_returned_and_not_doubled(admin: Live) -> None:
    first = ask(admin, force=True, reason="the first")
    again = ask(admin, reason="the second")  # no label waits, and no force is needed: it is there already
    assert (again.status_code, again.json()["new"]) == (200, False)
    assert again.json()["url"] == first.json()["url"]
    assert again.json()["job"]["reason"] == "the first"
    assert len(requested(admin)) == 1


def test_a_running_job_is_returned_and_not_doubled(
    own_api: Live, live_sessions: Sessions, live_settings: Settings
) -> None:
    job_id = ask(own_api, force=True).json()["job"]["id"]
    with live_sessions.begin() as session:
        claim = jobs.claim(session, job_id, live_settings)
        assert claim is not None
    again = ask(own_api, force=True)
    assert (again.status_code, again.json()["job"]["state"]) == (200, "running")
    with live_sessions.begin() as session:
        jobs.settle(session, claim, "skipped", rows={}, result={})
    after = ask(own_api, force=True)
    assert (after.status_code, after.json()["job"]["id"]) == (202, job_id + 1)


def test_eight_admins_at_once_get_one_job(admin: Live) -> None:
    barrier = threading.Barrier(CLIENTS)

    def call(_: int) -> httpx.Response:
        barrier.wait(10)
        return ask(admin, force=True)

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(call, range(CLIENTS)))
    assert sorted(answer.status_code for answer in answers) == [200] * (CLIENTS - 1) + [202]
    assert len({answer.json()["job"]["id"] for answer in answers}) == 1
    assert len(requested(admin)) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"force": "yes"}, "force"),
        ({"force": 1}, "force"),
        ({"reason": 5}, "reason"),
        ({"reason": "x" * 1001}, "reason"),
        ({"reason": "a\x00b"}, "reason"),
        ({"because": "x"}, "because"),
    ],
)
def test_a_wrong_wish_is_named_and_starts_nothing(admin: Live, body: dict[str, Any], field: str) -> None:
    response = ask(admin, **{"force": True, **body})
    assert response.status_code == 422, response.text
    assert [fault["feature"] for fault in response.json()["errors"]] == [field]
    assert requested(admin) == []
