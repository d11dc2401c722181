"""What Postgres holds, and the promises that must be true of it whatever happened."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import labels
from shared.jobs import MAX_FAILURES
from shared.labels import LabelCounts
from shared.tables import ACTIVE, SETTLED_WITH_LABELS
from tests.integration.machine import PAUSE_MINUTES, THRESHOLD, Model

_TABLES = {
    "predictions": "SELECT id::text, deployment_id, version, features::text FROM predictions ORDER BY id",
    "ids": "SELECT id, prediction_id::text AS prediction FROM request_ids",
    "labels": "SELECT id, prediction_id::text AS prediction, value, superseded_at IS NULL AS current,"
    " job_id AS job FROM labels ORDER BY id",
    "jobs": "SELECT id, state, trigger, fence, failures, finished_at IS NOT NULL AS ended,"
    " lease_until IS NOT NULL AS leased FROM retrain_jobs ORDER BY id",
    "versions": "SELECT version, job_id AS job FROM model_versions ORDER BY version",
    "parts": "SELECT job_id AS job, rows FROM dataset_parts",
    "deployments": "SELECT id, previous_id AS previous, champion FROM deployments ORDER BY id",
    "due": f"SELECT retrain_due({THRESHOLD}, interval '{PAUSE_MINUTES} minutes') AS due",
}
_LOOK = text(
    "SELECT json_build_object("
    + ", ".join(f"'{name}', (SELECT json_agg(r) FROM ({rows}) AS r)" for name, rows in _TABLES.items())
    + ")"
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Every table, row by row, and the counts of labels."""

    tables: dict[str, list[dict[str, Any]]]
    counts: LabelCounts

    def __getitem__(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table, oldest first."""
        return self.tables[table] or []


def look(session: Session) -> Seen:
    """Read everything."""
    tables = session.execute(_LOOK).scalar_one()
    return Seen(tables=tables, counts=labels.label_counts(session))


def acknowledged_rows_are_stored_once_and_nothing_else(seen: Seen, model: Model, _: Seen | None) -> None:
    """Promise 1: what was answered is there, what got 409 is not."""
    stored = {row["id"]: row["features"] for row in seen["predictions"]}
    assert len(stored) == len(seen["predictions"])
    assert stored == {key: made.row.features.decode() for key, made in model.predictions.items()}
    assert {row["id"]: row["prediction"] for row in seen["ids"]} == model.ids


def a_prediction_has_one_current_label_and_only_grows(seen: Seen, _: Model, before: Seen | None) -> None:
    """Promise 1, of labels: none vanishes, none changes its value or comes back."""
    current = Counter(row["prediction"] for row in seen["labels"] if row["current"])
    assert current == Counter({row["prediction"]: 1 for row in seen["labels"]})
    now = {row["id"]: row for row in seen["labels"]}
    for old in before["labels"] if before else ():
        assert now[old["id"]]["value"] == old["value"]
        assert now[old["id"]]["current"] <= old["current"]


def a_label_is_new_data_for_one_settled_job(seen: Seen, model: Model, before: Seen | None) -> None:
    """Promise 2: no label is in two parts, and none leaves the job that learned from it."""
    learned = Counter(label for part in model.parts.values() for label in part)
    assert set(learned.values()) <= {1}
    settled = (
        {job["id"] for job in before["jobs"] if job["state"] in SETTLED_WITH_LABELS} if before else set()
    )
    now = {row["id"]: row["job"] for row in seen["labels"]}
    for old in before["labels"] if before else ():
        assert old["job"] not in settled or now[old["id"]] == old["job"]


def labels_add_up(seen: Seen, _: Model, __: Seen | None) -> None:
    """Promise 2: the states are all there are, and nothing is claimed when no job is active."""
    found = seen.counts
    assert found.total == found.trained + found.waiting + found.claimed + found.superseded
    if not any(job["state"] in ACTIVE for job in seen["jobs"]):
        assert found.claimed == 0
    ended = {job["id"] for job in seen["jobs"] if job["state"] in ("skipped", "failed")}
    assert not [row for row in seen["labels"] if row["current"] and row["job"] in ended]


def one_deployment_is_live_and_was_published(seen: Seen, _: Model, before: Seen | None) -> None:
    """Promise 3: one chain, whose newest is the last; a champion's job succeeded and has a part."""
    chain = seen["deployments"]
    assert [row["previous"] for row in chain] == [None, *(row["id"] for row in chain[:-1])]
    assert chain[: len(before["deployments"])] == before["deployments"] if before else True
    states = {job["id"]: job["state"] for job in seen["jobs"]}
    made_by = {row["version"]: row["job"] for row in seen["versions"]}
    assert all(states[made_by[row["champion"]]] == "succeeded" for row in chain)
    assert sorted(made_by) == list(range(1, len(made_by) + 1))


def a_job_has_a_version_if_it_came_to_one(seen: Seen, _: Model, __: Seen | None) -> None:
    """Promise 5: one version and at most one part for each job that learned, none for any other."""
    learned = [job["id"] for job in seen["jobs"] if job["state"] in SETTLED_WITH_LABELS]
    assert sorted(row["job"] for row in seen["versions"]) == learned
    parts = [row["job"] for row in seen["parts"]]
    assert len(set(parts)) == len(parts)
    assert set(parts) <= set(learned)


def one_job_is_active_and_its_failures_are_counted(seen: Seen, _: Model, before: Seen | None) -> None:
    """Promise 4: three failures and it has failed; a fence never falls, an end is an end."""
    jobs = {job["id"]: job for job in seen["jobs"]}
    assert sum(job["state"] in ACTIVE for job in jobs.values()) <= 1
    for job in jobs.values():
        assert (job["state"] == "failed") == (job["failures"] >= MAX_FAILURES)
        assert job["ended"] == (job["state"] not in ACTIVE)
        assert job["leased"] == (job["state"] == "running")
    for old in before["jobs"] if before else ():
        now = jobs[old["id"]]
        assert now == old or old["state"] in ACTIVE
        assert now["fence"] >= old["fence"]
        assert now["failures"] >= old["failures"]


def no_job_starts_that_is_not_due(seen: Seen, _: Model, before: Seen | None) -> None:
    """Promise 6: a job of the threshold was due when it came."""
    known = {job["id"] for job in before["jobs"]} if before else {1}
    started = [job for job in seen["jobs"] if job["id"] not in known and job["trigger"] == "threshold"]
    assert not started or (before is not None and before["due"] == [{"due": True}])
    assert not started or seen.counts.waiting >= THRESHOLD


def everything_is_as_predicted(seen: Seen, model: Model, _: Seen | None) -> None:
    """All of it, to the last column."""
    assert seen.counts == model.counts()
    assert seen["due"] == [{"due": model.due()}]
    by_prediction: dict[str, list[tuple[str, bool, int | None]]] = {}
    for row in seen["labels"]:
        by_prediction.setdefault(row["prediction"], []).append((row["value"], row["current"], row["job"]))
    assert by_prediction == {
        key: [(label.value, label.current, label.job) for label in made.labels]
        for key, made in model.predictions.items()
        if made.labels
    }
    assert [(row["deployment_id"], row["version"]) for row in seen["predictions"]] == [
        (made.deployment, made.version) for _, made in sorted(model.predictions.items())
    ]
    assert [(j["id"], j["trigger"], j["state"], j["fence"], j["failures"]) for j in seen["jobs"]] == [
        (job.id, job.trigger, job.state, job.fence, job.failures) for job in model.jobs
    ]
    assert [(row["id"], row["champion"]) for row in seen["deployments"]] == model.deployments
    assert {row["version"]: row["job"] for row in seen["versions"]} == model.versions
    assert {row["job"]: row["rows"] for row in seen["parts"]} == {
        job: len(part) for job, part in model.parts.items()
    }


Promise = Callable[[Seen, Model, Seen | None], None]
PROMISES: tuple[Promise, ...] = (
    acknowledged_rows_are_stored_once_and_nothing_else,
    a_prediction_has_one_current_label_and_only_grows,
    a_label_is_new_data_for_one_settled_job,
    labels_add_up,
    one_deployment_is_live_and_was_published,
    a_job_has_a_version_if_it_came_to_one,
    one_job_is_active_and_its_failures_are_counted,
    no_job_starts_that_is_not_due,
    everything_is_as_predicted,
)
"""Each gets what is seen, what is predicted, and what was seen a step before; the last is the sharpest."""
