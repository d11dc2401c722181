"""What production leaves in Postgres: predictions and their labels, written without the API."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import orjson
import pandas as pd
import pytest
from sqlalchemy import CursorResult, text
from sqlalchemy.orm import Session

from cli.data import PLANS_TARGET, plans
from shared import jobs, labels, registry
from shared.database import Sessions
from shared.jobs import Claim
from shared.labels import Put
from shared.settings import Settings
from shared.signature import dump_features
from shared.tables import Deployment, Job, Label, Version
from tests.conftest import BOOTSTRAP_ROWS
from worker import columns
from worker.run import Context, Run

_PREDICT = text("""
INSERT INTO predictions (id, deployment_id, version, signature_id, predicted, probabilities, features, source)
SELECT id, 1, 1, 1, 'Basic Plan', '[]', features, 'raw'
FROM json_to_recordset(:rows) AS r(id uuid, features json)
""")


def changed(context: Context, **settings: object) -> Context:
    """The same worker with other settings."""
    return Context(
        settings=Settings.model_validate({**context.settings.model_dump(), **settings}),
        sessions=context.sessions,
        store=context.store,
        redis=context.redis,
        celery=context.celery,
    )


def unseen(count: int, *, skip: int = 0) -> pd.DataFrame:
    """Labelled rows of plans that the bootstrap never saw."""
    return plans(count, start=BOOTSTRAP_ROWS + skip)


def predict(sessions: Sessions, frame: pd.DataFrame) -> list[UUID]:
    """One prediction per row of plans; answers their ids."""
    with sessions.begin() as session:
        signature = registry.signature(session, 1)
        rows = columns.records(frame, signature.features)
        return _insert(session, [dump_features(row) for row in rows])


def put(sessions: Sessions, ids: Sequence[UUID], values: Sequence[str]) -> list[Put]:
    """Label predictions, as `POST /labels` does."""
    with sessions.begin() as session:
        return labels.put_labels(session, list(zip(ids, values, strict=True)))


def send(sessions: Sessions, frame: pd.DataFrame) -> list[UUID]:
    """One labelled prediction per row of plans; answers their ids."""
    ids = predict(sessions, frame)
    put(sessions, ids, [str(value) for value in frame[PLANS_TARGET]])
    return ids


def bare_predictions(sessions: Sessions, count: int) -> list[UUID]:
    """Predictions without features worth training on, where no signature is stored."""
    with sessions.begin() as session:
        return _insert(session, [b"{}"] * count)


def _insert(session: Session, features: Sequence[bytes]) -> list[UUID]:
    ids = sorted(uuid4() for _ in features)  # one after the other in time, as the recorder's are
    rows = [
        {"id": str(key), "features": orjson.Fragment(row)} for key, row in zip(ids, features, strict=True)
    ]
    session.execute(_PREDICT, {"rows": orjson.dumps(rows).decode()})
    return ids


def wait_in_line(sessions: Sessions, count: int) -> None:
    """That many labels, which wait."""
    put(sessions, bare_predictions(sessions, count), ["yes"] * count)


def running_job(sessions: Sessions) -> int:
    """A running job where no signature is stored."""
    execute(sessions, "INSERT INTO signatures (target, features) VALUES ('t', '[]')")
    made = execute(
        sessions,
        "INSERT INTO retrain_jobs (trigger, signature_id, state) VALUES ('admin', 1, 'running') RETURNING id",
    )
    return int(made[0].id)


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, happening: Callable[[], object]) -> None:
    """Let something happen, once, just before a step of the workflow begins."""
    plain = Run.at
    happened: list[int] = []

    def at(run: Run, number: int, note: str = "") -> None:
        if number == step and not happened:
            happened.append(step)
            happening()
        plain(run, number, note)

    monkeypatch.setattr(Run, "at", at)


def start_job(context: Context) -> int:
    """The job that the labels which wait make due."""
    with context.sessions.begin() as session:
        job_id = jobs.request_due(session, context.settings)
    assert job_id is not None, "no job is due"
    return job_id


def ask_job(context: Context, *, force: bool = False) -> int:
    """The job that an admin asks for."""
    with context.sessions.begin() as session:
        job, new = jobs.request_by_admin(session, force=force, reason="a test asks")
    assert new
    return job.id


def execute(sessions: Sessions, statement: str, **values: Any) -> list[Any]:
    """Run one statement and commit; answers its rows."""
    with sessions.begin() as session:
        result = session.execute(text(statement), values)
        return list(result) if isinstance(result, CursorResult) and result.returns_rows else []


def claim(sessions: Sessions, settings: Settings, job_id: int) -> Claim | None:
    """Claim a job, as a worker does first."""
    with sessions.begin() as session:
        return jobs.claim(session, job_id, settings)


def taken(sessions: Sessions, settings: Settings, job_id: int) -> Claim:
    """The claim of a job that is free."""
    found = claim(sessions, settings, job_id)
    assert found is not None
    return found


def end(sessions: Sessions, job_id: int, state: str, *, minutes_ago: float = 0) -> None:
    """The job is settled, and has been for a while."""
    execute(
        sessions,
        "UPDATE retrain_jobs SET state = :state, lease_until = NULL,"
        " finished_at = now() - make_interval(secs => :ago) WHERE id = :id",
        state=state,
        ago=minutes_ago * 60,
        id=job_id,
    )


def expire_lease(sessions: Sessions, job_id: int) -> None:
    """The job's worker fell silent."""
    execute(
        sessions,
        "UPDATE retrain_jobs SET lease_until = now() - interval '1 second' WHERE id = :id",
        id=job_id,
    )


def job_of(sessions: Sessions, job_id: int) -> Job:
    """A job as it is now."""
    with sessions() as session:
        return jobs.get(session, job_id)


def all_versions(sessions: Sessions) -> list[Version]:
    """Every version, oldest first."""
    with sessions() as session:
        return registry.versions(session)[::-1]


def chain(sessions: Sessions) -> list[Deployment]:
    """Every deployment, oldest first."""
    with sessions() as session:
        return list(session.query(Deployment).order_by(Deployment.id))


def labels_of(sessions: Sessions, prediction: UUID) -> list[Label]:
    """A prediction's labels, oldest first."""
    with sessions() as session:
        return list(session.query(Label).filter_by(prediction_id=prediction).order_by(Label.id))


def counts(sessions: Sessions) -> labels.LabelCounts:
    """All labels by state."""
    with sessions() as session:
        return labels.label_counts(session)
