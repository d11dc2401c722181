"""The tables. Postgres is the only truth; everything else can be rebuilt from here."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JOB_STATES = ("queued", "running", "succeeded", "rejected", "skipped", "failed")
ACTIVE = ("queued", "running")
SETTLED_WITH_LABELS = ("succeeded", "rejected")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


class Base(DeclarativeBase):
    """Base of all tables: constraints have predictable names, times have zones, objects are JSONB."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this class attribute
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        int: BigInteger,
        float: Double,
        str: Text,
        UUID: Uuid,
    }


class SignatureRow(Base):
    """A model's input contract, fixed by the bootstrap."""

    __tablename__ = "signatures"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    target: Mapped[str]
    features: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Job(Base):
    """One run of the retrain workflow. At most one is active, by a partial unique index."""

    __tablename__ = "retrain_jobs"
    __table_args__ = (
        CheckConstraint(_one_of("state", JOB_STATES), name="state"),
        Index(
            "uq_retrain_jobs_active",
            text("(true)"),
            unique=True,
            postgresql_where=text(_one_of("state", ACTIVE)),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    state: Mapped[str] = mapped_column(server_default="queued")
    trigger: Mapped[str]
    reason: Mapped[str | None]
    signature_id: Mapped[int] = mapped_column(ForeignKey("signatures.id"))
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default="0")
    step: Mapped[str | None]
    step_number: Mapped[int] = mapped_column(server_default="0")
    progress: Mapped[float] = mapped_column(server_default="0")
    rows: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    result: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    log: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    error: Mapped[str | None]


class Version(Base):
    """One trained model: where its artifacts are, what it knows, how good it is."""

    __tablename__ = "model_versions"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[int] = mapped_column(ForeignKey("retrain_jobs.id"), unique=True)
    signature_id: Mapped[int] = mapped_column(ForeignKey("signatures.id"))
    artifact_key: Mapped[str]
    classes: Mapped[list[Any]]
    categories: Mapped[dict[str, Any]]
    scaled_features: Mapped[list[Any]]
    metrics: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    artifacts_removed_at: Mapped[datetime | None]


class Deployment(Base):
    """What is served from now on. The newest row is the truth; the rows are a chain with one root."""

    __tablename__ = "deployments"
    __table_args__ = (
        Index(
            "uq_deployments_root",
            text("(true)"),
            unique=True,
            postgresql_where=text("previous_id IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("deployments.id"), unique=True)
    champion: Mapped[int] = mapped_column(ForeignKey("model_versions.version"))
    challenger: Mapped[int | None] = mapped_column(ForeignKey("model_versions.version"))
    mode: Mapped[str] = mapped_column(server_default="single")
    share: Mapped[float] = mapped_column(server_default="0")
    actor: Mapped[str]
    reason: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Part(Base):
    """An immutable Parquet file of labelled rows. It counts once its job succeeded or was rejected."""

    __tablename__ = "dataset_parts"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("retrain_jobs.id"), unique=True)
    key: Mapped[str] = mapped_column(unique=True)
    rows: Mapped[int]
    size: Mapped[int]
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Prediction(Base):
    """One row scored by one version. JSON columns keep the text as written, digit for digit."""

    __tablename__ = "predictions"
    __table_args__ = (CheckConstraint(_one_of("source", ("raw", "inputs")), name="source"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    deployment_id: Mapped[int]
    version: Mapped[int]
    signature_id: Mapped[int]
    predicted: Mapped[str]
    probabilities: Mapped[Any] = mapped_column(JSON, nullable=False)
    features: Mapped[Any] = mapped_column(JSON, nullable=False)
    source: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RequestId(Base):
    """A caller's id for a prediction, unique for ever."""

    __tablename__ = "request_ids"

    id: Mapped[str] = mapped_column(primary_key=True)
    prediction_id: Mapped[UUID]


class Label(Base):
    """A true class. Rows are only added; a correction supersedes the row before it.

    `job_id` is null while the label waits; the job that claimed it otherwise.
    """

    __tablename__ = "labels"
    __table_args__ = (
        Index(
            "uq_labels_current", "prediction_id", unique=True, postgresql_where=text("superseded_at IS NULL")
        ),
        Index(
            "ix_labels_waiting",
            "id",
            postgresql_where=text("job_id IS NULL AND superseded_at IS NULL"),
        ),
        # partial, so that a new label pays for one index on predictions and not for two
        Index("ix_labels_history", "prediction_id", postgresql_where=text("superseded_at IS NOT NULL")),
        Index("ix_labels_job", "job_id", postgresql_where=text("job_id IS NOT NULL")),
        CheckConstraint("length(value) BETWEEN 1 AND 200", name="value"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    prediction_id: Mapped[UUID]
    value: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    superseded_at: Mapped[datetime | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("retrain_jobs.id"))
