"""The inference service: `uvicorn --factory api.main:create_app`."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from api import errors, multiprocess
from api.admission import Admission
from api.auth import Auth
from api.deps import AppState
from api.jobmetrics import JobMetrics
from api.metrics import PREDICT, Metrics
from api.observe import Observe
from api.ratelimit import RateLimit
from api.recorder import Recorder
from api.routes import admin, docs, health, labels, models, predictions, retrain, root
from api.routes import metrics as metrics_route
from api.serving import Serving
from api.tally import Tally
from shared.artifacts import ArtifactStore
from shared.counter import connect, connect_async, redis_url
from shared.database import database_url, make_engine, make_sessions
from shared.errors import SettingsError
from shared.logs import configure_logs
from shared.queue import make_celery
from shared.settings import Settings, settings_or_exit

log = structlog.get_logger()

NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own asks for its providers at every request: a tenth of the time that a prediction takes."""

CANCEL_SECONDS = 0.1
ROUTERS = [module.router for module in (root, labels, retrain, models, admin, health, metrics_route, docs)]

DESCRIPTION = "A prediction service that learns from the true labels you send back."


def create_app(settings: Settings | None = None) -> Observe:
    """Build the service: the app, before it what bounds it, and around all what counts. Nothing is connected
    before it starts.

    Raises:
        SystemExit: a setting is wrong or missing; its one line names the variable.
    """
    settings = settings or settings_or_exit()
    configure_logs(settings)
    try:
        database_url(settings), redis_url(settings)  # a missing one stops the start, not the first request
        metrics = Metrics(multiprocess.join())
    except SettingsError as exc:
        raise SystemExit(exc.detail) from None
    app = FastAPI(
        title="Ratchet",
        version=version("ratchet"),
        description=DESCRIPTION,
        lifespan=_lifespan(settings, metrics),
        openapi_url=None,  # routes/docs.py serves it, behind the key
        redirect_slashes=False,  # a redirect would name the host that the client named, and plain http
        telemetry=NO_TELEMETRY,
    )
    errors.install(app)
    # first, since routes are tried in order, and this is the hot one
    app.add_route(PREDICT, predictions.predict, methods=["POST"], include_in_schema=False)
    for router in ROUTERS:
        app.include_router(router)
    limit = settings.rate_limit
    limited = RateLimit(app, settings, limit, metrics) if limit else app
    templates = [PREDICT, *(route.path for router in ROUTERS for route in router.routes)]
    return Observe(Admission(limited, settings), metrics, templates, access_log=settings.access_log)


def _lifespan(settings: Settings, metrics: Metrics) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = _make_state(settings, metrics)
        app.state.ratchet = state
        await state.serving.refresh()
        async with AsyncExitStack() as stack:
            recorder = _start(state.recorder.run())
            for background in (
                state.serving.watch(),
                state.serving.listen(redis_url(settings)),
                state.tally.run(),
                metrics.run(),
            ):
                stack.push_async_callback(_cancel, _start(background))
            _freeze()
            yield
            state.recorder.close()
            await recorder
            await state.tally.flush()
        metrics.flush()
        await state.tally.close()
        state.redis.close()
        state.job_metrics.close()
        state.celery.close()
        state.engine.dispose()

    return lifespan


def _make_state(settings: Settings, metrics: Metrics) -> AppState:
    url = database_url(settings)
    engine = make_engine(url, name="ratchet api")
    sessions = make_sessions(engine)
    celery = make_celery(settings)
    tally = Tally(
        redis=connect_async(redis_url(settings)),
        celery=celery,
        sessions=sessions,
        settings=settings,
        metrics=metrics,
    )
    return AppState(
        settings=settings,
        auth=Auth(settings),
        engine=engine,
        sessions=sessions,
        serving=Serving(
            sessions=sessions, store=ArtifactStore(settings.artifacts), settings=settings, metrics=metrics
        ),
        recorder=Recorder(
            url,
            deadline=settings.record_deadline,
            on_labels=tally.add,
            max_rows=settings.max_queued_rows,
            metrics=metrics,
        ),
        tally=tally,
        redis=connect(redis_url(settings)),
        celery=celery,
        metrics=metrics,
        job_metrics=JobMetrics(settings),
    )


def _freeze() -> None:
    """Take what start-up made out of the collector's sight: group commit's p99 fell from 47 to 7 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _start(background: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Run a coroutine in the background; a fault nobody foresaw stops the process, to be started afresh."""
    task = asyncio.create_task(background)
    task.add_done_callback(_stop_on_fault)
    return task


def _stop_on_fault(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (fault := task.exception()) is not None:
        log.critical("a background task failed; this process stops", exc_info=fault)
        os.kill(os.getpid(), signal.SIGTERM)


async def _cancel(task: "asyncio.Task[None]") -> None:
    """End a task. One cancellation can be lost: a call that is just done may swallow it."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_SECONDS)
    if not task.cancelled():
        task.result()
