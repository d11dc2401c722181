"""`GET /`: what this is."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends

from api.deps import State, require_api_key

router = APIRouter(tags=["health"], dependencies=[Depends(require_api_key)])


@router.get("/")
def root(state: State) -> dict[str, Any]:
    """Name, version of the service, live version, links."""
    loaded = state.serving.loaded
    return {
        "name": "Ratchet",
        "version": version("ratchet"),
        "model_version": loaded.model.version if loaded else None,
        "links": {
            "predict": "/predict",
            "labels": "/labels",
            "model": "/model",
            "status": "/retrain/status",
            "docs": "/docs",
            "ready": "/ready",
        },
    }
