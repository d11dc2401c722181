"""Runs the migrations under one session lock, so that several starting processes don't collide."""

from alembic import context
from sqlalchemy import text

from shared.database import make_engine
from shared.tables import Base

LOCK = 0x52415443
"""Key of the advisory lock: "RATC"."""


def run() -> None:
    """Apply the migrations that are missing, waiting for whoever else does so."""
    engine = make_engine(context.config.attributes["url"], name="ratchet migrate", idle_ms=0, lock_ms=60_000)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        connection.commit()
        try:
            context.configure(
                connection=connection, target_metadata=Base.metadata, compare_server_default=True
            )
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
            connection.commit()
    engine.dispose()


run()
