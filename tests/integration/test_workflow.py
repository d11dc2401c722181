"""The retrain workflow on labelled production traffic: what it learns from, and what it publishes."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from cli.data import PLANS_TARGET
from shared import registry
from shared.counter import read_tally
from tests.integration.production import (
    all_versions,
    ask_job,
    before_step,
    chain,
    changed,
    counts,
    execute,
    job_of,
    labels_of,
    predict,
    put,
    send,
    start_job,
    unseen,
)
from tests.integration.trained import holdout_rows, manifest, part_of
from worker.champion import Champion, probabilities
from worker.columns import records
from worker.graphs import load_session, run
from worker.retrain import run_job
from worker.run import Context

SMALL = {"window": 400, "iterations": 5, "gate_tolerance": 1.0}
"""Settings of a quick job whose challenger is always published."""


@pytest.fixture
def quick(context: Context) -> Context:
    """A worker whose jobs take well under a second."""
    return changed(context, **SMALL)


def test_a_threshold_of_labels_becomes_the_second_version(context: Context) -> None:
    frame = unseen(60)
    send(context.sessions, frame)
    job_id = start_job(context)
    said = run_job(job_id, changed(context, gate_tolerance=1.0))
    assert said.startswith(f"job {job_id}: version 2 published")

    first, second = all_versions(context.sessions)
    assert (second.version, second.job_id, second.signature_id) == (2, job_id, first.signature_id)
    assert second.artifact_key == f"versions/{job_id}-1"
    assert set(context.store.manifest(second.artifact_key)) == {
        "model.onnx", "trees.onnx", "model.cbm", "report.json", "dataset.json",
    }  # fmt: skip
    assert second.classes == sorted(frame[PLANS_TARGET].unique())

    one, two = chain(context.sessions)
    assert (one.previous_id, one.champion) == (None, 1)
    assert (two.previous_id, two.champion, two.challenger, two.mode) == (one.id, 2, None, "single")
    assert two.actor == f"job {job_id}"

    part = part_of(context, job_id)
    assert part.rows.labels.tolist() == frame[PLANS_TARGET].tolist()
    np.testing.assert_allclose(part.rows.numeric[:, 0], frame["monthly_spend"].to_numpy(), rtol=1e-6)


def test_a_job_tells_what_it_did(context: Context) -> None:
    send(context.sessions, unseen(60))
    job_id = start_job(context)
    run_job(job_id, changed(context, gate_tolerance=1.0))
    job = job_of(context.sessions, job_id)
    assert (job.state, job.trigger, job.progress, job.failures) == ("succeeded", "threshold", 1, 0)
    assert (job.lease_until, job.error) == (None, None)
    assert job.finished_at is not None
    assert (job.rows["claimed"], job.rows["new"], job.rows["total"]) == (60, 60, 1260)
    assert job.rows["train"] + job.rows["holdout"] == 1260
    assert job.rows["cleaned"] <= job.rows["train"] < job.rows["balanced"] + job.rows["holdout"]
    assert (job.result["version"], job.result["publish"]) == (2, True)
    steps = [line["step"] for line in job.log]
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, 12))
    assert [line["at"] for line in job.log] == sorted(line["at"] for line in job.log)
    version = all_versions(context.sessions)[1]
    assert version.metrics["rows"] == job.rows["holdout"]
    assert version.report["champion_version"] == 1
    assert version.report["verdict"]["challenger_f1"] == version.metrics["f1_weighted"]
    assert version.report["rows"]["total"] == 1260


def test_after_a_job_the_tally_is_what_waits_in_postgres(quick: Context) -> None:
    send(quick.sessions, unseen(60))
    quick.redis.set("ratchet:tally", 60)
    job_id = start_job(quick)
    run_job(job_id, quick)
    assert read_tally(quick.redis) == 0
    assert counts(quick.sessions).trained == 60


def test_labels_that_arrive_during_a_job_wait_and_enough_of_them_start_the_next(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    before_step(monkeypatch, 6, lambda: send(quick.sessions, unseen(55, skip=50)))
    run_job(job_id, quick)
    assert job_of(quick.sessions, job_id).rows["claimed"] == 50
    assert read_tally(quick.redis) == counts(quick.sessions).waiting == 55
    following = job_of(quick.sessions, job_id + 1)
    assert (following.state, following.trigger) == ("queued", "threshold")
    assert following.sent_at is not None
    assert quick.redis.llen("retrain") == 1


def test_corrected_labels_are_left_out_of_later_training_and_named(quick: Context) -> None:
    everything = changed(quick, window=2000)
    ids = send(quick.sessions, unseen(50))
    run_job(start_job(everything), everything)
    put(quick.sessions, ids[:3], ["Made-up Plan"] * 3)
    replaced = [labels_of(quick.sessions, key)[0].id for key in ids[:3]]
    send(quick.sessions, unseen(50, skip=50))
    job_id = start_job(everything)
    run_job(job_id, everything)

    found = manifest(quick, 3)
    assert sorted(found["labels_left_out"]) == sorted(replaced)
    parts = found["parts"]
    assert [part["rows"] for part in parts] == [1200, 47, 53]
    assert job_of(quick.sessions, job_id).rows["total"] == 1300
    assert [part["sha256"] for part in parts] == [
        row.sha256 for row in execute(quick.sessions, "SELECT sha256 FROM dataset_parts ORDER BY id")
    ]
    assert counts(quick.sessions).superseded == 3


def test_a_label_corrected_after_the_claim_is_not_learned_from(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    before_step(monkeypatch, 3, lambda: put(quick.sessions, ids[:1], ["before the part"]))
    run_job(job_id, quick)
    assert len(part_of(quick, job_id).rows) == 49
    assert manifest(quick, 2)["labels_left_out"] == []

    ids = send(quick.sessions, unseen(50, skip=50))
    job_id = start_job(quick)
    monkeypatch.undo()
    before_step(monkeypatch, 4, lambda: put(quick.sessions, ids[:1], ["after the part"]))
    run_job(job_id, quick)
    old, new = labels_of(quick.sessions, ids[0])
    assert len(part_of(quick, job_id).rows) == 51  # with the correction of the first, which waited
    assert manifest(quick, 3)["labels_left_out"] == [old.id]
    assert new.job_id is None


def test_a_worse_challenger_is_kept_unpublished_and_its_labels_count_as_trained(context: Context) -> None:
    strict = changed(context, gate_tolerance=0.0, iterations=10)
    frame = unseen(900)
    ids = predict(context.sessions, frame)
    shuffled = np.random.default_rng(0).permutation(frame[PLANS_TARGET].to_numpy())
    put(context.sessions, ids, shuffled.tolist())
    job_id = start_job(strict)
    run_job(job_id, strict)

    job = job_of(context.sessions, job_id)
    assert (job.state, job.result["publish"], job.result["version"]) == ("rejected", False, 2)
    assert job.result["challenger_f1"] < job.result["champion_f1"]
    version = all_versions(context.sessions)[1]
    assert version.artifacts_removed_at is None
    assert context.store.read(version.artifact_key, "model.onnx")
    assert [deployment.champion for deployment in chain(context.sessions)] == [1]
    found = counts(context.sessions)
    assert (found.trained, found.waiting) == (900, 0)
    with context.sessions.begin() as session:
        assert registry.live(session) is not None
        assert registry.published(session) == {1}

    # its part is training data like any other
    send(context.sessions, unseen(50, skip=900))
    following = start_job(strict)
    run_job(following, strict)
    assert job_of(context.sessions, following).rows["total"] == 2150


def test_the_gate_compares_both_on_the_same_rows_with_the_champions_own_graph(context: Context) -> None:
    send(context.sessions, unseen(60))
    run_job(start_job(context), changed(context, gate_tolerance=1.0))
    first, second = all_versions(context.sessions)
    assert second.report["champion"]["rows"] == second.metrics["rows"]
    holdout = holdout_rows(context)
    champion = Champion(
        deployment_id=1, version=1, classes=tuple(first.classes), artifact_key=first.artifact_key
    )
    scores = probabilities(champion, context.store, holdout.rows)
    right = np.array(first.classes, dtype=object)[scores.argmax(axis=1)] == holdout.rows.labels
    assert second.report["champion"]["accuracy"] == pytest.approx(right.mean())


def test_only_the_newest_rows_of_the_window_are_learned_from(quick: Context) -> None:
    send(quick.sessions, unseen(60))
    job_id = start_job(quick)
    run_job(job_id, changed(quick, window=250))
    assert job_of(quick.sessions, job_id).rows["total"] == 250
    found = manifest(quick, 2)
    parts = found["parts"]
    assert [part["rows"] for part in parts] == [190, 60]
    assert found["window"] == 250

    send(quick.sessions, unseen(120, skip=60))
    job_id = start_job(quick)
    run_job(job_id, changed(quick, window=110))
    parts = manifest(quick, 3)["parts"]
    assert [part["rows"] for part in parts] == [110]
    assert parts[0]["key"] == f"parts/{job_id}-1.parquet"


def test_an_admins_forced_job_without_labels_learns_from_the_parts_there_are(quick: Context) -> None:
    job_id = ask_job(quick, force=True)
    run_job(job_id, quick)
    job = job_of(quick.sessions, job_id)
    assert (job.state, job.rows["claimed"], job.rows["new"]) == ("succeeded", 0, 0)
    assert execute(quick.sessions, "SELECT 1 FROM dataset_parts WHERE job_id = :id", id=job_id) == []
    assert len(list(quick.store.path("parts").iterdir())) == 1


def test_rows_of_a_rare_class_are_left_out_and_kept_until_there_are_enough(context: Context) -> None:
    patient = changed(context, **{**SMALL, "min_class_rows": 30, "window": 1000})
    new = unseen(60)
    new.loc[:19, PLANS_TARGET] = "Student Plan"
    send(context.sessions, new)
    job_id = start_job(patient)
    run_job(job_id, patient)
    job = job_of(context.sessions, job_id)
    assert (job.state, job.rows["left_out"]) == ("succeeded", {"Student Plan": 20})
    second = all_versions(context.sessions)[1]
    assert "Student Plan" not in second.classes
    assert "Student Plan" not in second.metrics["per_class"]
    assert part_of(context, job_id).rows.labels.tolist().count("Student Plan") == 20

    more = unseen(50, skip=60)
    more.loc[:14, PLANS_TARGET] = "Student Plan"
    send(context.sessions, more)
    job_id = start_job(patient)
    run_job(job_id, patient)
    third = all_versions(context.sessions)[2]
    assert "Student Plan" in third.classes
    assert job_of(context.sessions, job_id).rows["left_out"] == {}
    # the champion never heard of it: it is wrong there, and the same rows judge both
    support = third.metrics["per_class"]["Student Plan"]["support"]
    assert support > 0
    assert third.report["champion"]["per_class"]["Student Plan"] == {
        "precision": None, "recall": 0.0, "f1": 0.0, "roc_auc": pytest.approx(0.5), "support": support,
    }  # fmt: skip
    assert third.report["champion"]["rows"] == third.metrics["rows"]


def test_negative_values_are_missing_values_in_training_and_serving_alike(quick: Context) -> None:
    frame = unseen(60)
    frame["monthly_spend"] = -frame["monthly_spend"].abs() - 1
    send(quick.sessions, frame)
    job_id = start_job(quick)
    run_job(job_id, quick)
    version = all_versions(quick.sessions)[1]
    assert version.report["cleaning"]["negatives"]["monthly_spend"] > 0
    spend = next(feature for feature in version.scaled_features if feature["name"] == "monthly_spend")
    assert spend["mean"] > 0
    absent = frame.assign(monthly_spend=np.nan)
    assert np.array_equal(scores(quick, frame), scores(quick, absent))
    assert not np.array_equal(scores(quick, frame), scores(quick, frame.assign(monthly_spend=500.0)))


def scores(context: Context, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    """What the newest version's serving graph makes of a frame."""
    version = all_versions(context.sessions)[-1]
    with context.sessions() as session:
        signature = registry.signature(session, 1)
    graph = load_session(context.store.read(version.artifact_key, "model.onnx"))
    return run(graph, signature.feed(records(frame, signature.features)))
