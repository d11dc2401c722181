"""The first dataset part, and the job that makes version 1 of it."""

from collections.abc import Iterator
from uuid import uuid4

import pandas as pd
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import jobs
from shared.artifacts import ArtifactStore
from shared.database import Sessions
from shared.errors import Conflict
from shared.signature import Signature, dump_features
from shared.tables import Part, SignatureRow, Version
from worker.columns import labelled, labels, records
from worker.inference import Inferred
from worker.parts import PartRow, StoredPart, write_part


def bootstrap(
    frame: pd.DataFrame,
    inferred: Inferred,
    *,
    sessions: Sessions,
    store: ArtifactStore,
    id_column: str | None = None,
) -> int:
    """Store the signature and the first part, and request the job; answers its id.

    Raises:
        Conflict: there is a version already, or a job is active.
        DataError: a cell can't be used.
    """
    with sessions() as session:
        _refuse_second(session)
    signature = Signature(id=0, target=inferred.target, features=inferred.features)
    key = f"parts/bootstrap-{uuid4().hex}.parquet"
    part = write_part(store, key, _rows(frame, signature, id_column), signature)
    try:
        with sessions.begin() as session:
            return _request(session, signature, part)
    except BaseException:
        store.path(key).unlink(missing_ok=True)
        raise


def _request(session: Session, signature: Signature, part: StoredPart) -> int:
    _refuse_second(session)
    row = SignatureRow(target=signature.target, features=signature.to_json())
    session.add(row)
    session.flush()
    job_id = jobs.insert(session, trigger="bootstrap", signature_id=row.id, reason="first model")
    if job_id is None:
        raise Conflict("a job is queued or running: `ratchet jobs` shows it")
    _refuse_second(session)  # again: another may have ended while this one waited for the index
    session.add(
        Part(job_id=job_id, key=part.key, rows=part.rows, size=part.stored.size, sha256=part.stored.sha256)
    )
    return job_id


def _refuse_second(session: Session) -> None:
    if session.scalar(select(Version.version).limit(1)) is not None:
        raise Conflict(
            "there is a model already, and its signature is fixed: a new one needs an empty database"
        )


def _rows(frame: pd.DataFrame, signature: Signature, id_column: str | None) -> Iterator[PartRow]:
    known = labelled(frame, signature.target)
    ids = [str(value) for value in known[id_column]] if id_column else [f"row-{n}" for n in known.index]
    truths = labels(known, signature.target)
    for row_id, features, label in zip(ids, records(known, signature.features), truths, strict=True):
        yield PartRow(row_id=row_id, features=dump_features(features), label=label)
