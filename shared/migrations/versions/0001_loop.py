"""The tables of the loop."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Create them."""
    _predictions()
    _request_ids()
    _signatures()
    _retrain_jobs()
    _dataset_parts()
    _labels()
    _model_versions()
    _deployments()


def downgrade() -> None:
    """Drop them."""
    op.drop_index(
        "uq_deployments_root", table_name="deployments", postgresql_where=sa.text("previous_id IS NULL")
    )
    op.drop_table("deployments")
    op.drop_table("model_versions")
    op.drop_index("uq_labels_current", table_name="labels", postgresql_where=sa.text("superseded_at IS NULL"))
    op.drop_index(
        "ix_labels_waiting",
        table_name="labels",
        postgresql_where=sa.text("job_id IS NULL AND superseded_at IS NULL"),
    )
    op.drop_index("ix_labels_job", table_name="labels", postgresql_where=sa.text("job_id IS NOT NULL"))
    op.drop_index(
        "ix_labels_history", table_name="labels", postgresql_where=sa.text("superseded_at IS NOT NULL")
    )
    op.drop_table("labels")
    op.drop_table("dataset_parts")
    op.drop_index(
        "uq_retrain_jobs_active",
        table_name="retrain_jobs",
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.drop_table("retrain_jobs")
    op.drop_table("signatures")
    op.drop_table("request_ids")
    op.drop_table("predictions")


def _predictions() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("deployment_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("signature_id", sa.BigInteger(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("probabilities", sa.JSON(), nullable=False),
        sa.Column("features", sa.JSON(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("source IN ('raw', 'inputs')", name=op.f("ck_predictions_source")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictions")),
    )


def _request_ids() -> None:
    op.create_table(
        "request_ids",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("prediction_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request_ids")),
    )


def _signatures() -> None:
    op.create_table(
        "signatures",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("features", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signatures")),
    )


def _retrain_jobs() -> None:
    op.create_table(
        "retrain_jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("signature_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("step_number", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("progress", sa.Double(), server_default="0", nullable=False),
        sa.Column(
            "rows", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column(
            "result", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column(
            "log", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'rejected', 'skipped', 'failed')",
            name=op.f("ck_retrain_jobs_state"),
        ),
        sa.ForeignKeyConstraint(
            ["signature_id"], ["signatures.id"], name=op.f("fk_retrain_jobs_signature_id_signatures")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retrain_jobs")),
    )
    op.create_index(
        "uq_retrain_jobs_active",
        "retrain_jobs",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )


def _dataset_parts() -> None:
    op.create_table(
        "dataset_parts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["retrain_jobs.id"], name=op.f("fk_dataset_parts_job_id_retrain_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_parts")),
        sa.UniqueConstraint("job_id", name=op.f("uq_dataset_parts_job_id")),
        sa.UniqueConstraint("key", name=op.f("uq_dataset_parts_key")),
    )


def _labels() -> None:
    op.create_table(
        "labels",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("prediction_id", sa.Uuid(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("length(value) BETWEEN 1 AND 200", name=op.f("ck_labels_value")),
        sa.ForeignKeyConstraint(["job_id"], ["retrain_jobs.id"], name=op.f("fk_labels_job_id_retrain_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
    )
    op.create_index(
        "ix_labels_history",
        "labels",
        ["prediction_id"],
        unique=False,
        postgresql_where=sa.text("superseded_at IS NOT NULL"),
    )
    op.create_index(
        "ix_labels_job", "labels", ["job_id"], unique=False, postgresql_where=sa.text("job_id IS NOT NULL")
    )
    op.create_index(
        "ix_labels_waiting",
        "labels",
        ["id"],
        unique=False,
        postgresql_where=sa.text("job_id IS NULL AND superseded_at IS NULL"),
    )
    op.create_index(
        "uq_labels_current",
        "labels",
        ["prediction_id"],
        unique=True,
        postgresql_where=sa.text("superseded_at IS NULL"),
    )


def _model_versions() -> None:
    op.create_table(
        "model_versions",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("signature_id", sa.BigInteger(), nullable=False),
        sa.Column("artifact_key", sa.Text(), nullable=False),
        sa.Column("classes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("categories", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("scaled_features", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("artifacts_removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["retrain_jobs.id"], name=op.f("fk_model_versions_job_id_retrain_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["signature_id"], ["signatures.id"], name=op.f("fk_model_versions_signature_id_signatures")
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_model_versions")),
        sa.UniqueConstraint("job_id", name=op.f("uq_model_versions_job_id")),
    )


def _deployments() -> None:
    op.create_table(
        "deployments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("previous_id", sa.BigInteger(), nullable=True),
        sa.Column("champion", sa.BigInteger(), nullable=False),
        sa.Column("challenger", sa.BigInteger(), nullable=True),
        sa.Column("mode", sa.Text(), server_default="single", nullable=False),
        sa.Column("share", sa.Double(), server_default="0", nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["challenger"], ["model_versions.version"], name=op.f("fk_deployments_challenger_model_versions")
        ),
        sa.ForeignKeyConstraint(
            ["champion"], ["model_versions.version"], name=op.f("fk_deployments_champion_model_versions")
        ),
        sa.ForeignKeyConstraint(
            ["previous_id"], ["deployments.id"], name=op.f("fk_deployments_previous_id_deployments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
        sa.UniqueConstraint("previous_id", name=op.f("uq_deployments_previous_id")),
    )
    op.create_index(
        "uq_deployments_root",
        "deployments",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("previous_id IS NULL"),
    )
