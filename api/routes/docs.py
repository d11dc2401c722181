"""`GET /openapi.json` and `/docs`: behind the same key as everything else."""

from fastapi import APIRouter, Depends, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.responses import JSONResponse

from api import openapi
from api.deps import State, require_api_key

router = APIRouter(include_in_schema=False, dependencies=[Depends(require_api_key)])


@router.get("/openapi.json")
def document(request: Request, state: State) -> JSONResponse:
    """The OpenAPI document; what it says of `/predict` follows the live version."""
    keyed = state.settings.api_keys is not None
    return JSONResponse(openapi.build(request.app, state.serving.loaded, keyed=keyed))


@router.get("/docs")
def docs() -> HTMLResponse:
    """The document as a page."""
    return get_swagger_ui_html(openapi_url="/openapi.json", title="Ratchet")
