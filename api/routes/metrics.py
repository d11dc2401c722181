"""`GET /metrics`: figures for Prometheus."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from api.admission import METRICS
from api.deps import state_of

router = APIRouter(tags=["health"])


@router.get(METRICS, response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The figures of all processes of this replica, in Prometheus' text format. Needs a key of its own, or an
    admin's. Without Postgres or Redis what they know is left out.
    """
    # without dependencies, which would need a thread of those that may all wait for Postgres
    state = state_of(request)
    state.auth.check_metrics(request.headers.get("authorization"))
    found = await state.job_metrics.read()
    state.metrics.flush()
    return Response(await asyncio.to_thread(state.metrics.text, found), media_type=CONTENT_TYPE_PLAIN_0_0_4)
