"""The bootstrap and its job, and the jobs that find nothing to train on."""

import numpy as np
import pandas as pd
import pytest

from shared.counter import read_tally
from shared.database import Sessions
from shared.errors import Conflict
from shared.settings import Settings
from tests.conftest import make_context
from tests.integration.production import (
    all_versions,
    ask_job,
    chain,
    changed,
    counts,
    execute,
    job_of,
    send,
    start_job,
    unseen,
)
from worker.bootstrap import bootstrap
from worker.inference import infer
from worker.retrain import run_job
from worker.run import Context


@pytest.fixture
def empty(settings: Settings, sessions: Sessions) -> Context:
    """A worker before the first model."""
    return make_context(settings, sessions)


def flowers(rows: int, *, rare: int = 0) -> pd.DataFrame:
    """A tiny data set of two classes, the second of which may be rare."""
    rng = np.random.default_rng(rows)
    size = rng.normal(5, 2, rows)
    cut = np.sort(size)[-rare - 1] if rare else 5
    return pd.DataFrame({"size": size, "hue": rng.choice(["red", "blue"], rows), "kind": size > cut}).replace(
        {"kind": {True: "rose", False: "daisy"}}
    )


def first_job(context: Context, frame: pd.DataFrame, target: str = "kind") -> int:
    return bootstrap(frame, infer(frame, target=target), sessions=context.sessions, store=context.store)


def test_a_bootstrap_makes_a_signature_a_part_and_version_1(empty: Context) -> None:
    job_id = first_job(empty, flowers(300))
    job = job_of(empty.sessions, job_id)
    assert (job.state, job.trigger) == ("queued", "bootstrap")
    assert "version 1 published: first model" in run_job(job_id, empty)
    (version,) = all_versions(empty.sessions)
    assert (version.version, version.classes) == (1, ["daisy", "rose"])
    assert [deployment.previous_id for deployment in chain(empty.sessions)] == [None]
    job = job_of(empty.sessions, job_id)
    assert (job.state, job.rows["total"]) == ("succeeded", 300)
    assert version.report["champion"] is None
    assert read_tally(empty.redis) == 0


def test_a_second_bootstrap_is_refused_and_leaves_no_file(context: Context) -> None:
    before = sorted(context.store.path("parts").iterdir())
    with pytest.raises(Conflict, match="there is a model already"):
        first_job(context, flowers(300))
    assert sorted(context.store.path("parts").iterdir()) == before
    assert len(execute(context.sessions, "SELECT 1 FROM signatures")) == 1


def test_a_bootstrap_beside_an_active_one_is_refused_and_leaves_nothing(empty: Context) -> None:
    first_job(empty, flowers(300))
    with pytest.raises(Conflict, match="queued or running"):
        first_job(empty, flowers(200))
    assert len(list(empty.store.path("parts").iterdir())) == 1
    assert len(execute(empty.sessions, "SELECT 1 FROM signatures")) == 1
    assert len(execute(empty.sessions, "SELECT 1 FROM dataset_parts")) == 1


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (flowers(60), "60 rows where RATCHET_MIN_ROWS asks for 100"),
        (flowers(200, rare=3), "fewer than two classes with 5 rows (RATCHET_MIN_CLASS_ROWS): 'daisy'"),
    ],
    ids=["few rows", "one class"],
)
def test_a_first_job_that_finds_too_little_is_skipped_and_a_bootstrap_can_follow(
    empty: Context, frame: pd.DataFrame, reason: str
) -> None:
    job_id = first_job(empty, frame)
    run_job(job_id, empty)
    job = job_of(empty.sessions, job_id)
    assert (job.state, job.failures) == ("skipped", 0)
    assert job.result["reason"] == reason
    assert len(all_versions(empty.sessions)) == len(chain(empty.sessions)) == 0

    second = first_job(empty, flowers(300))
    assert "version 1 published" in run_job(second, empty)
    assert job_of(empty.sessions, second).rows["total"] == 300  # the skipped job's part doesn't count
    (version,) = all_versions(empty.sessions)
    assert version.signature_id == 2


def test_a_job_without_any_labelled_row_is_skipped(empty: Context) -> None:
    run_job(first_job(empty, flowers(60)), empty)
    job_id = ask_job(empty, force=True)
    run_job(job_id, empty)
    job = job_of(empty.sessions, job_id)
    assert (job.state, job.result["reason"]) == ("skipped", "there is no labelled row")


def test_a_skipped_jobs_labels_wait_again_and_are_learned_by_the_next(context: Context) -> None:
    demanding = changed(context, min_rows=5000)
    send(context.sessions, unseen(50))
    job_id = start_job(demanding)
    run_job(job_id, demanding)
    job = job_of(context.sessions, job_id)
    assert job.state == "skipped"
    assert job.result["reason"] == "1250 rows where RATCHET_MIN_ROWS asks for 5000"
    assert execute(context.sessions, "SELECT 1 FROM dataset_parts WHERE job_id = :id", id=job_id) == []
    found = counts(context.sessions)
    assert (found.waiting, found.trained) == (50, 0)
    assert read_tally(context.redis) == 50

    content = changed(context, window=300, iterations=3, gate_tolerance=1.0)
    following = ask_job(content)
    run_job(following, content)
    assert job_of(context.sessions, following).rows["claimed"] == 50
    assert counts(context.sessions).trained == 50
