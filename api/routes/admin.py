"""`POST /admin/retrain`: an operator asks for a job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from starlette.background import BackgroundTask
from starlette.status import HTTP_200_OK, HTTP_202_ACCEPTED

from api.deps import Admin, State, json_body, require_admin
from api.schemas import JobOut, JobRequested, RetrainIn
from shared import jobs
from shared.queue import send_retrain

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])


@router.post(
    "/retrain",
    status_code=HTTP_202_ACCEPTED,
    response_model=JobRequested,
    responses={200: {"description": "a job was queued or running already", "model": JobRequested}},
)
def retrain(
    state: State, admin: Admin, body: Annotated[RetrainIn, Depends(json_body(RetrainIn, optional=True))]
) -> Response:
    """Ask for a job now. Needs no threshold; with no waiting label it needs `force`."""
    with state.sessions.begin() as session:
        reason = body.reason or f"asked by {admin}"
        job, new = jobs.request_by_admin(session, force=body.force, reason=reason)
        answer = JobRequested(job=JobOut.model_validate(job), url=f"/retrain/jobs/{job.id}", new=new)
    # after the answer: the job is committed, and a dead broker must not make the operator wait
    send = BackgroundTask(send_retrain, state.celery, state.sessions, job.id) if new else None
    return Response(
        answer.model_dump_json(),
        status_code=HTTP_202_ACCEPTED if new else HTTP_200_OK,
        media_type="application/json",
        background=send,
    )
