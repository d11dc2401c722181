"""What `/metrics` says of versions and jobs, after real ones."""

from datetime import datetime

import pytest

from shared import jobs
from tests.integration.test_admission import eventually
from tests.integration.test_metrics import grown, scrape, value
from tests.live import Live, publish_another
from worker.run import Context


def test_a_swap_and_what_a_job_did_are_told(own_api: Live, context: Context) -> None:
    before = scrape(own_api.client)
    assert (value(before, "model_version"), value(before, "live_version")) == (1, 1)
    assert value(before, "model_swaps_total", "loaded") == 1
    own_api.predict(2, true_labels=["Basic Plan", "Family Plan"])
    publish_another(context)
    eventually(lambda: value(scrape(own_api.client), "model_version") == 2)
    after = scrape(own_api.client)
    assert value(after, "live_version") == value(after, "model_swaps_total", "loaded") == 2
    assert value(after, "model_fault") == value(after, "model_swaps_total", "failed") == 0
    assert 0 < value(after, "model_age_seconds") < value(before, "model_age_seconds") + 300
    assert grown(before, after, "jobs_total") == {("succeeded",): 1}
    with context.sessions() as session:
        (job,) = jobs.recent(session, 1)
    assert after["ratchet_last_job_f1"] == {
        ("challenger",): job.result["challenger_f1"],
        ("champion",): job.result["champion_f1"],
    }
    assert value(after, "last_job_rows", "claimed") == 2
    assert value(after, "last_job_rows", "total") == job.rows["total"] == 1202
    steps = after["ratchet_last_job_step_seconds"]
    assert {name for (name,) in steps} == set(jobs.STEPS[:-1])
    assert job.finished_at is not None
    assert sum(steps.values()) == pytest.approx(
        (job.finished_at - datetime.fromisoformat(job.log[0]["at"])).total_seconds(), abs=1e-5
    )
    assert value(after, "last_job_seconds") >= sum(steps.values())
    assert value(after, "labels_waiting") == value(after, "oldest_waiting_label_seconds") == 0


def test_an_active_job_is_shown_and_no_end_is_counted_twice(own_api: Live, context: Context) -> None:
    with context.sessions.begin() as session:
        job, _ = jobs.request_by_admin(session, force=True, reason="to be seen")
    found = scrape(own_api.client)
    assert found["ratchet_job_active"] == {("queued",): 1, ("running",): 0}
    with context.sessions.begin() as session:
        claim = jobs.claim(session, job.id, context.settings)
        assert claim is not None
        jobs.report(session, claim, step=8, progress=0.6, note="")
    found = scrape(own_api.client)
    assert found["ratchet_job_active"] == {("queued",): 0, ("running",): 1}
    assert (value(found, "job_step"), value(found, "job_failures")) == (8, 0)
    for failures in (1, 2, 3):
        with context.sessions.begin() as session:
            assert jobs.fail(session, claim, "on purpose") is (failures < 3)
            claim = jobs.claim(session, job.id, context.settings) or claim
        found = scrape(own_api.client)
        assert value(found, "job_failures") == failures % 3
        assert value(found, "jobs_total", "failed") == (failures == 3)
    for _ in range(3):
        assert scrape(own_api.client)["ratchet_jobs_total"] == {
            ("succeeded",): 1,
            ("rejected",): 0,
            ("skipped",): 0,
            ("failed",): 1,
        }
    own_api.execute("DELETE FROM retrain_jobs WHERE state = 'failed'")  # as a backup from before would
    assert value(scrape(own_api.client), "jobs_total", "failed") == 0


def test_a_version_that_cannot_be_loaded_is_told(own_api: Live, context: Context) -> None:
    publish_another(context)
    eventually(lambda: value(scrape(own_api.client), "model_version") == 2)
    own_api.execute("UPDATE model_versions SET artifact_key = 'versions/none' WHERE version = 1")
    own_api.execute(
        "INSERT INTO deployments (champion, previous_id, actor, reason)"
        " SELECT 1, max(id), 'ops', 'back' FROM deployments"
    )
    eventually(lambda: value(scrape(own_api.client), "model_fault") == 1)
    found = scrape(own_api.client)
    assert (value(found, "model_version"), value(found, "live_version")) == (2, 1)
    assert value(found, "model_swaps_total", "failed") >= 1
    own_api.execute("UPDATE deployments SET champion = 2 WHERE actor = 'ops'")
    eventually(lambda: value(scrape(own_api.client), "model_fault") == 0)
