"""What a job leaves behind: versions in Postgres, parts and manifests in the store."""

from typing import Any

import numpy as np
import orjson

from shared import registry
from tests.integration.production import all_versions, chain, counts, execute, job_of
from worker.parts import LoadedPart, read_part
from worker.rows import Rows
from worker.run import Context


def part_of(context: Context, job_id: int) -> LoadedPart:
    """The part that a job wrote."""
    (row,) = execute(context.sessions, "SELECT key FROM dataset_parts WHERE job_id = :id", id=job_id)
    with context.sessions() as session:
        return read_part(context.store.path(row.key), registry.signature(session, 1))


def manifest(context: Context, number: int) -> dict[str, Any]:
    """What a version was made of."""
    version = all_versions(context.sessions)[number - 1]
    found: dict[str, Any] = orjson.loads(context.store.read(version.artifact_key, "dataset.json"))
    return found


def holdout_rows(context: Context) -> LoadedPart:
    """The holdout rows of all parts."""
    with context.sessions() as session:
        signature = registry.signature(session, 1)
    parts = [
        read_part(context.store.path(row.key), signature)
        for row in execute(context.sessions, "SELECT key FROM dataset_parts ORDER BY id")
    ]
    buckets = np.concatenate([part.buckets for part in parts])
    rows = Rows(
        numeric=np.concatenate([part.rows.numeric for part in parts]),
        categorical=np.concatenate([part.rows.categorical for part in parts]),
        labels=np.concatenate([part.rows.labels for part in parts]),
    )
    held = buckets < 2000
    return LoadedPart(
        rows=rows.take(held),
        buckets=buckets[held],
        label_ids=np.concatenate([part.label_ids for part in parts])[held],
    )


def check_finished_once(context: Context, job_id: int, *, labels: int, waiting: int = 0) -> None:
    """One version, one deployment, one part, and every label trained once."""
    assert job_of(context.sessions, job_id).state == "succeeded"
    assert [version.job_id for version in all_versions(context.sessions)] == [1, job_id]
    assert [deployment.champion for deployment in chain(context.sessions)] == [1, 2]
    (part,) = execute(context.sessions, "SELECT rows, key FROM dataset_parts WHERE job_id = :id", id=job_id)
    assert part.rows == labels
    assert context.store.path(part.key).is_file()
    found = counts(context.sessions)
    assert (found.trained, found.waiting, found.claimed) == (labels, waiting, 0)
