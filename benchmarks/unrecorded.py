"""The same Starlette route without recording: what scoring over HTTP costs at all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.deps import parse_json, read_body
from api.main import NO_TELEMETRY, _freeze
from api.query import read_query
from api.routes.predictions import _answer, _score
from api.serving import load_model
from api.writes import Recorded
from shared import registry
from shared.artifacts import ArtifactStore
from shared.database import database_url, make_engine, make_sessions
from shared.settings import load_settings


def create_app() -> FastAPI:
    """A FastAPI app with `/predict` as the product has it, less everything after scoring."""
    settings = load_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with make_sessions(make_engine(database_url(settings), name="benchmark"))() as session:
            live = registry.live(session)
        assert live is not None
        app.state.model = load_model(live, ArtifactStore(settings.artifacts))
        _freeze()
        yield

    async def predict(request: Request) -> Response:
        model = request.app.state.model
        body = await read_body(request, settings)
        scored = _score(model, read_query(parse_json(body), model, max_rows=settings.max_rows))
        return Response(_answer(model, scored, None, Recorded()), media_type="application/json")

    app = FastAPI(lifespan=lifespan, telemetry=NO_TELEMETRY)
    app.add_route("/predict", predict, methods=["POST"])
    return app
