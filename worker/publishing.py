"""Step 11 and 12: artifacts, then one transaction, then telling the others."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import structlog
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared import counter, jobs, labels, registry
from shared.errors import ClaimLost, Conflict
from shared.queue import send_retrain
from shared.tables import SETTLED_WITH_LABELS, Part, Version
from worker.champion import Champion
from worker.evaluation import Verdict
from worker.export import Exported
from worker.graphs import load_session, score
from worker.parts import StoredPart
from worker.patience import patiently
from worker.pause import pause
from worker.preprocessing import Preprocessor
from worker.rows import Rows
from worker.run import Context, Run

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A challenger that is trained and proven, before the gate."""

    exported: Exported
    preprocessor: Preprocessor
    classes: tuple[str, ...]
    part: StoredPart | None
    manifest: dict[str, Any]
    report: dict[str, Any]

    def probabilities(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Float32 (n, k) from the very graph that will serve."""
        return score(load_session(self.exported.model_onnx), rows)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the gate saw and said."""

    champion: Champion | None
    challenger_metrics: dict[str, Any]
    champion_metrics: dict[str, Any] | None
    verdict: Verdict


def publish(run: Run, candidate: Candidate, evaluate: Callable[[], Outcome]) -> str:
    """Store the artifacts, then settle the job in one transaction; answers a line about the result.

    If the champion changed since the gate ran, it is evaluated again.

    Raises:
        ClaimLost: another worker has the job; nothing was published.
    """
    key = f"versions/{run.claim.job_id}-{run.claim.fence}"
    while True:
        outcome = evaluate()
        run.at(11, outcome.verdict.reason)
        _store(run, key, candidate, outcome)
        try:
            return _settle(run, key, candidate, outcome)
        except Conflict:
            log.warning("the champion changed since the gate ran; evaluating again")


def announce(context: Context) -> None:
    """Step 12: wake the API, set the tally, prune, start what became due.

    Beat repeats each of them, so that a fault here fails no job that has settled.
    """
    pause("step-12")
    try:
        _announce(context)
    except (SQLAlchemyError, RedisError, OSError) as exc:
        log.warning("not announced; the API polls and beat repeats it", error=type(exc).__name__)


def _announce(context: Context) -> None:
    with context.sessions.begin() as session:
        deployment = registry.newest_deployment(session)
        due = jobs.request_due(session, context.settings)
        waiting = labels.waiting(session)
    if due is not None:
        send_retrain(context.celery, context.sessions, due)
    if deployment is not None:
        counter.announce(context.redis, deployment)
    counter.set_tally(context.redis, waiting)
    with context.sessions() as session:
        removed = registry.prune(session, context.store, keep=context.settings.keep_versions)
    if removed:
        log.info("old artifacts removed", versions=removed)


def _store(run: Run, key: str, candidate: Candidate, outcome: Outcome) -> None:
    exported = candidate.exported
    report = {**candidate.report, "metrics": outcome.challenger_metrics, "champion": outcome.champion_metrics}
    run.context.store.put_set(
        key,
        {
            "model.onnx": exported.model_onnx,
            "trees.onnx": exported.trees_onnx,
            "model.cbm": exported.model_cbm,
            "report.json": orjson.dumps(report, option=orjson.OPT_SERIALIZE_NUMPY),
            "dataset.json": orjson.dumps(candidate.manifest),
        },
    )


def _settle(run: Run, key: str, candidate: Candidate, outcome: Outcome) -> str:
    def write(session: Session) -> str:
        jobs.hold(session, run.claim)
        line = _write(session, run, key, candidate, outcome)
        pause("publish")
        return line

    try:
        return run.transaction(write)
    except ClaimLost:
        # A commit that was in doubt and came through ends the claim too: the job says what became of it.
        job = patiently(run.context.sessions, lambda session: jobs.get(session, run.claim.job_id))
        if job.fence == run.claim.fence and job.state in SETTLED_WITH_LABELS:
            return _line(job.result)
        raise


def _write(session: Session, run: Run, key: str, candidate: Candidate, outcome: Outcome) -> str:
    champion, verdict = outcome.champion, outcome.verdict
    if registry.newest_deployment(session) != (champion.deployment_id if champion else None):
        raise Conflict("another deployment came first")
    # Only the holder of the one active job gets here: the next number is free, and leaves no gap.
    number = (session.scalar(select(func.max(Version.version))) or 0) + 1
    session.add(_version(run, number, key, candidate, outcome))
    if candidate.part is not None:
        part = candidate.part
        session.add(
            Part(
                job_id=run.claim.job_id,
                key=part.key,
                rows=part.rows,
                size=part.stored.size,
                sha256=part.stored.sha256,
            )
        )
    session.flush()
    if verdict.publish:
        previous = champion.deployment_id if champion else None
        actor = f"job {run.claim.job_id}"
        registry.deploy(session, version=number, previous=previous, actor=actor, reason=verdict.reason)
    result = {"version": number, **asdict(verdict)}
    jobs.settle(
        session, run.claim, "succeeded" if verdict.publish else "rejected", rows=run.rows, result=result
    )
    return _line(result)


def _version(run: Run, number: int, key: str, candidate: Candidate, outcome: Outcome) -> Version:
    return Version(
        version=number,
        job_id=run.claim.job_id,
        signature_id=run.signature.id,
        artifact_key=key,
        classes=list(candidate.classes),
        categories={name: list(known) for name, known in candidate.preprocessor.categories.items()},
        scaled_features=[asdict(feature) for feature in candidate.preprocessor.scaled_features],
        metrics=outcome.challenger_metrics,
        report={
            **candidate.report,
            "verdict": asdict(outcome.verdict),
            "champion": outcome.champion_metrics,
            "champion_version": outcome.champion.version if outcome.champion else None,
        },
    )


def _line(result: dict[str, Any]) -> str:
    verdict = "published" if result["publish"] else "rejected"
    return f"version {result['version']} {verdict}: {result['reason']}"
