"""`GET /health`: the process lives. `GET /ready`: it can serve."""

from typing import Any

from fastapi import APIRouter, Response
from redis.exceptions import RedisError

from api.deps import AppState, State
from shared.database import ping
from shared.errors import Unavailable

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process lives. On the event loop: no thread that waits for Postgres can hold it up."""
    return {"status": "alive"}


@router.get("/ready", responses={503: {"description": "no model is loaded, or Postgres does not answer"}})
def ready(state: State, response: Response) -> dict[str, Any]:
    """A model is loaded and Postgres answers. Redis being down is told, and is no reason to be not ready."""
    loaded = state.serving.loaded
    postgres = _postgres(state)
    is_ready = loaded is not None and postgres == "ok"
    if not is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return {
        "ready": is_ready,
        "model_version": loaded.model.version if loaded else None,
        "model_fault": state.serving.fault,
        "postgres": postgres,
        "redis": _redis(state),
    }


def _postgres(state: AppState) -> str:
    try:
        ping(state.engine)
    except Unavailable as exc:
        return exc.detail
    return "ok"


def _redis(state: AppState) -> str:
    try:
        state.redis.ping()
    except (RedisError, OSError):
        return "Redis does not answer; predictions go on, retraining waits"
    return "ok"
