"""From labels in Postgres to training data: the new part, all parts together, train and holdout."""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from shared.artifacts import ArtifactStore, Stored
from shared.errors import JobSkipped
from shared.settings import Settings
from shared.signature import Signature
from shared.tables import SETTLED_WITH_LABELS, Job, Part
from worker.parts import CHUNK_ROWS, HOLDOUT_BUCKETS, LoadedPart, PartRow, StoredPart, read_part, write_part
from worker.rows import Rows

_CLAIMED = text("""
SELECT l.id, l.prediction_id::text AS row_id, l.value, l.created_at AS labelled_at,
       p.created_at AS predicted_at, p.version, p.features::text AS features
FROM labels l JOIN predictions p ON p.id = l.prediction_id
WHERE l.job_id = :job AND l.superseded_at IS NULL ORDER BY l.id
""")
_CORRECTED = text("SELECT id FROM labels WHERE superseded_at IS NOT NULL AND job_id IS NOT NULL")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The newest labelled rows, oldest first, and what they were made of."""

    rows: Rows
    buckets: npt.NDArray[np.int16]
    manifest: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Train and holdout side, and the classes that the challenger will know."""

    train: Rows
    holdout: Rows
    classes: tuple[str, ...]
    left_out: dict[str, int]


def write_new_part(
    session: Session, store: ArtifactStore, *, job_id: int, key: str, signature: Signature
) -> StoredPart | None:
    """Stream a job's labels into a part; None when it has none."""
    part = write_part(store, key, _claimed(session, job_id), signature)
    if part.rows:
        return part
    store.path(key).unlink()
    return None


def load(
    session: Session,
    store: ArtifactStore,
    *,
    job_id: int,
    new: StoredPart | None,
    signature: Signature,
    window: int,
) -> Dataset:
    """All parts that count, and the job's own, without what was corrected since.

    The newest `window` rows are kept; older parts beyond them are not even read.
    """
    corrected = np.array([*session.scalars(_CORRECTED)], dtype=np.int64)
    files = _parts(session, job_id)
    if new is not None:
        files.append((new.key, new.stored))
    session.rollback()  # no transaction is open while files are read
    kept: list[LoadedPart] = []
    manifest: list[dict[str, Any]] = []
    left_out: list[int] = []
    missing = window
    for key, stored in reversed(files):
        if missing <= 0:
            break
        part = read_part(store.check_file(key, stored), signature)
        current = ~np.isin(part.label_ids, corrected)
        left_out += part.label_ids[~current].tolist()
        chosen = np.flatnonzero(current)[-missing:]
        kept.append(_take(part, chosen))
        manifest.append({"key": key, "sha256": stored.sha256, "rows": len(chosen)})
        missing -= len(chosen)
    if not kept:
        raise JobSkipped("there is no labelled row")
    kept.reverse()
    return Dataset(
        rows=_concat([part.rows for part in kept]),
        buckets=np.concatenate([part.buckets for part in kept]),
        manifest={"parts": manifest[::-1], "labels_left_out": left_out, "window": window},
    )


def split(dataset: Dataset, settings: Settings) -> Split:
    """Split by bucket; classes with too few rows are left out of both sides, and their rows kept for later.

    Raises:
        JobSkipped: no label, one class only, or too few rows.
    """
    labels = dataset.rows.labels
    is_holdout = dataset.buckets < HOLDOUT_BUCKETS
    counts = Counter(labels.tolist())
    trainable = Counter(labels[~is_holdout].tolist())
    least = settings.min_class_rows
    classes = tuple(sorted(c for c, n in counts.items() if n >= least and trainable[c] >= 2))
    left_out = {c: n for c, n in sorted(counts.items()) if c not in classes}
    if len(classes) < 2:
        known = ", ".join(repr(c) for c in classes) or "none"
        raise JobSkipped(f"fewer than two classes with {least} rows (RATCHET_MIN_CLASS_ROWS): {known}")
    usable = of_classes(labels, set(classes))
    if int(usable.sum()) < settings.min_rows:
        raise JobSkipped(f"{int(usable.sum())} rows where RATCHET_MIN_ROWS asks for {settings.min_rows}")
    if not (usable & is_holdout).any():
        raise JobSkipped("no row falls on the holdout side: there is nothing to compare models on")
    return Split(
        train=dataset.rows.take(usable & ~is_holdout),
        holdout=dataset.rows.take(is_holdout),
        classes=classes,
        left_out=left_out,
    )


def of_classes(labels: npt.NDArray[np.object_], classes: Set[str]) -> npt.NDArray[np.bool_]:
    """Which of n labels are one of the classes."""
    return np.fromiter((label in classes for label in labels), dtype=bool, count=len(labels))


def _claimed(session: Session, job_id: int) -> Iterator[PartRow]:
    found = session.execute(_CLAIMED, {"job": job_id}, execution_options={"yield_per": CHUNK_ROWS})
    for row in found:
        yield PartRow(
            row_id=row.row_id,
            features=row.features.encode(),
            label=row.value,
            label_id=row.id,
            predicted_at=row.predicted_at,
            labelled_at=row.labelled_at,
            model_version=row.version,
        )


def _parts(session: Session, job_id: int) -> list[tuple[str, Stored]]:
    found = session.scalars(
        select(Part)
        .join(Job, Job.id == Part.job_id)
        .where(Job.state.in_(SETTLED_WITH_LABELS) | (Job.id == job_id))
        .order_by(Part.id)
    )
    return [(part.key, Stored(size=part.size, sha256=part.sha256)) for part in found]


def _take(part: LoadedPart, index: npt.NDArray[np.intp]) -> LoadedPart:
    return LoadedPart(
        rows=part.rows.take(index), buckets=part.buckets[index], label_ids=part.label_ids[index]
    )


def _concat(parts: list[Rows]) -> Rows:
    return Rows(
        numeric=np.concatenate([rows.numeric for rows in parts]),
        categorical=np.concatenate([rows.categorical for rows in parts]),
        labels=np.concatenate([rows.labels for rows in parts]),
    )
