"""The retrain workflow, top to bottom.

Idempotent from any point: killed at any step, another worker finishes the same job with the same
labels, once. No transaction is open while training.
"""

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared import jobs, registry
from shared.errors import ClaimLost, JobSkipped, NotFound
from shared.queue import send_retrain
from shared.signature import Signature
from worker import steps
from worker.lease import Lease
from worker.patience import patiently
from worker.publishing import announce, publish
from worker.run import Context, Run
from worker.threads import count, limited

log = structlog.get_logger()


def workflow(run: Run) -> str:
    """The twelve steps; answers one line about the result.

    Raises:
        JobSkipped: there is nothing to train on.
        ClaimLost: another worker has the job.
    """
    run.at(1, f"fence {run.claim.fence}, asked by {run.claim.trigger}")
    steps.claim_labels(run)
    new = steps.write_part(run)
    data = steps.load(run, new)
    sides = steps.split(run, data)
    cleaned = steps.clean_train_side(run, sides)
    prepared = steps.preprocess(run, cleaned)
    model = steps.balance_and_train(run, prepared, sides.classes)
    exported = steps.export_and_prove(run, model, prepared.preprocessor, sides)
    candidate = steps.candidate(run, exported, prepared.preprocessor, sides.classes, new, data)
    return publish(run, candidate, lambda: steps.evaluate(run, candidate, sides))


def run_job(job_id: int, context: Context) -> str:
    """Claim a job and run it; answers one line about what became of it."""
    with structlog.contextvars.bound_contextvars(job_id=job_id):
        with context.sessions.begin() as session:
            claim = jobs.claim(session, job_id, context.settings)
            signature = registry.signature(session, claim.signature_id) if claim else None
            refused = _refused(session, job_id) if claim is None else ""
        if claim is None or signature is None:
            log.info("nothing to do", reason=refused)
            return f"job {job_id}: nothing to do, {refused}"
        with limited(count(context.settings.threads)):
            return f"job {job_id}: {_run(claim, signature, context)}"


def _refused(session: Session, job_id: int) -> str:
    """Why there is nothing to claim."""
    try:
        job = jobs.get(session, job_id)
    except NotFound as exc:
        return exc.detail
    if job.state == "running":
        return "another worker runs it"
    return f"it has {job.state}: {job.error}" if job.state == "failed" else f"it is settled: {job.state}"


def _run(claim: jobs.Claim, signature: Signature, context: Context) -> str:
    with Lease(context.sessions, claim, context.settings) as lease:
        run = Run(context=context, claim=claim, lease=lease, signature=signature)
        try:
            result = _to_its_end(run)
        except ClaimLost as exc:
            log.warning("claim lost; nothing was published", detail=exc.detail)
            return f"given up, {exc.detail.removeprefix(f'job {claim.job_id}: ')}"
        except (KeyboardInterrupt, SystemExit):
            _give_back(run)
            raise
        except Exception as exc:  # the task's edge: counted, logged, raised
            _fail(run, exc)
            raise
    announce(context)
    return result


def _to_its_end(run: Run) -> str:
    try:
        return workflow(run)
    except JobSkipped as exc:
        return _skip(run, exc.detail)


def _skip(run: Run, reason: str) -> str:
    run.transaction(
        lambda session: jobs.settle(session, run.claim, "skipped", rows=run.rows, result={"reason": reason})
    )
    log.info("job skipped", reason=reason)
    return f"skipped: {reason}"


def _give_back(run: Run) -> None:
    try:
        with run.context.sessions.begin() as session:
            jobs.give_back(session, run.claim)
    except (SQLAlchemyError, ClaimLost) as exc:
        log.warning("asked to stop; the job could not be given back, its lease runs out", error=str(exc))
        return
    log.info("asked to stop; the job is back in the queue")
    run.context.notify("given back: this worker was asked to stop, and the job waits for another")
    send_retrain(run.context.celery, run.context.sessions, run.claim.job_id)


def _fail(run: Run, exc: Exception) -> None:
    error = f"{type(exc).__name__}: {exc}"[:2000]
    log.error("job failed", error=error)
    try:
        goes_on = patiently(run.context.sessions, lambda session: jobs.fail(session, run.claim, error))
    except (SQLAlchemyError, ClaimLost) as fault:
        log.warning("the failure could not be counted; the lease runs out", error=str(fault))
        return
    # Celery tells Flower of the error itself, but not whether it was the last.
    run.context.notify(f"failed, {'to be tried again' if goes_on else 'for the last time'}: {error}")
    if goes_on:
        send_retrain(run.context.celery, run.context.sessions, run.claim.job_id)
    else:
        announce(run.context)
