"""`ratchet migrate`: the schema at its head, or the check that migrations and tables agree."""

import tempfile
from pathlib import Path

import structlog

from cli.connection import connected
from shared.database import check_schema, database_url, migrate
from shared.logs import configure_logs

log = structlog.get_logger()


def run_migrations() -> None:
    """Migrate the configured database."""
    settings = connected()
    configure_logs(settings)
    migrate(database_url(settings))
    log.info("the schema is at its head")


def check_migrations() -> None:
    """Migrate an empty embedded server and compare it with the tables in code."""
    from cli.embedded import EmbeddedPostgres  # only an installation with the extra `local` has it

    with tempfile.TemporaryDirectory(prefix="ratchet-") as folder:
        server = EmbeddedPostgres(Path(folder))
        try:
            url = server.start()
            migrate(url)
            check_schema(url)
        finally:
            server.stop()
            server.remove()
