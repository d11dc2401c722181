"""The functions that the API, the workers and the sweeper must agree on."""

from collections.abc import Sequence

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

WAITING_LABELS = """
CREATE FUNCTION waiting_labels() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT count(*) FROM labels WHERE job_id IS NULL AND superseded_at IS NULL
$$
"""
RETRAIN_DUE = """
CREATE FUNCTION retrain_due(threshold bigint, pause interval) RETURNS boolean LANGUAGE sql STABLE AS $$
    WITH last AS (
        SELECT state, finished_at FROM retrain_jobs ORDER BY id DESC LIMIT 1
    ), streak AS (
        SELECT count(*) AS n FROM retrain_jobs WHERE id > coalesce(
            (SELECT max(id) FROM retrain_jobs WHERE state NOT IN ('skipped', 'failed')), 0)
    )
    SELECT waiting_labels() >= threshold
       AND EXISTS (SELECT 1 FROM deployments)
       AND NOT EXISTS (SELECT 1 FROM retrain_jobs WHERE state IN ('queued', 'running'))
       AND coalesce((
            SELECT last.state NOT IN ('skipped', 'failed')
                OR now() >= last.finished_at
                            + least(pause * power(2, least(streak.n - 1, 20)), interval '1 day')
                OR (SELECT count(*) FROM labels WHERE job_id IS NULL AND superseded_at IS NULL
                       AND created_at > last.finished_at) >= threshold
            FROM last, streak), true)
$$
"""

# After a skipped or failed job: another threshold of labels, or a pause that doubles each time.

PUT_LABEL = """
CREATE FUNCTION put_label(prediction uuid, label text, may_revert boolean,
                          OUT outcome text, OUT new_labels int)
LANGUAGE plpgsql AS $$
DECLARE
    old labels%ROWTYPE;
BEGIN
    new_labels := 0;
    PERFORM 1 FROM predictions WHERE id = prediction FOR UPDATE;
    IF NOT FOUND THEN outcome := 'unknown'; RETURN; END IF;
    SELECT * INTO old FROM labels WHERE prediction_id = prediction AND superseded_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO labels (prediction_id, value) VALUES (prediction, label);
        outcome := 'accepted'; new_labels := 1; RETURN;
    END IF;
    IF old.value = label OR (NOT may_revert AND EXISTS (
        SELECT 1 FROM labels
        WHERE prediction_id = prediction AND value = label AND superseded_at IS NOT NULL)) THEN
        outcome := 'repeated'; RETURN;
    END IF;
    UPDATE labels SET superseded_at = now() WHERE id = old.id;
    INSERT INTO labels (prediction_id, value) VALUES (prediction, label);
    outcome := 'corrected';
    new_labels := CASE WHEN old.job_id IS NULL THEN 0 ELSE 1 END;
END $$
"""

# A correction supersedes; with may_revert false, a value already in the history changes nothing.


def upgrade() -> None:
    """Create them."""
    for function in (WAITING_LABELS, RETRAIN_DUE, PUT_LABEL):
        op.execute(function)


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP FUNCTION put_label, retrain_due, waiting_labels")
