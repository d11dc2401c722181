"""Servers with trained versions for a benchmark, in a temporary folder; nothing retrains by itself."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.data import plans
from cli.stack import Stack
from shared import jobs
from shared.artifacts import ArtifactStore
from shared.counter import connect
from shared.database import make_engine, make_sessions
from shared.queue import make_celery
from shared.settings import Settings
from worker.bootstrap import bootstrap
from worker.inference import infer
from worker.retrain import run_job
from worker.run import Context


@contextmanager
def trained(rows: int = 3000, versions: int = 1) -> Iterator[Context]:
    """A worker's context with `versions` versions, the last one live."""
    with (
        tempfile.TemporaryDirectory(prefix="ratchet-bench-") as home,
        Stack(settings=Settings(home=Path(home))) as stack,
    ):
        stack.start_servers()
        settings = Settings.model_validate(
            {
                "home": Path(home),
                "threshold": 10**9,
                "database_url": stack.database_url,
                "redis_url": stack.redis_url,
            }
        )
        engine = make_engine(stack.database_url, name="benchmark")
        context = Context(
            settings=settings,
            sessions=make_sessions(engine),
            store=ArtifactStore(settings.artifacts),
            redis=connect(stack.redis_url),
            celery=make_celery(settings),
        )
        frame = plans(rows)
        inferred = infer(frame, target="recommended_plan")
        run_job(bootstrap(frame, inferred, sessions=context.sessions, store=context.store), context)
        for _ in range(versions - 1):
            with context.sessions.begin() as session:
                job, _new = jobs.request_by_admin(session, force=True, reason="benchmark")
            run_job(job.id, context)
        try:
            yield context
        finally:
            engine.dispose()
            stack.remove()
