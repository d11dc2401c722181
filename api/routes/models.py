"""`GET /model`, `/models`, `/models/{version}`: the live version, and all of them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from sqlalchemy.orm import Session

from api.deps import State, require_api_key
from api.schemas import VersionDetail, VersionOut
from shared import registry
from shared.errors import NoModel
from shared.tables import Version

router = APIRouter(tags=["models"], dependencies=[Depends(require_api_key)])
VersionNumber = Annotated[int, Path(ge=1, le=2**63 - 1)]


@router.get("/model")
def live_model(state: State) -> VersionDetail:
    """The live version: signature, scaled features in order with mean and scale, metrics, report."""
    with state.sessions.begin() as session:
        live = registry.live(session)
        if live is None:
            raise NoModel("no model is live yet")
        return _detail(session, live.version)


@router.get("/models")
def list_models(state: State) -> list[VersionOut]:
    """All versions, newest first."""
    with state.sessions.begin() as session:
        live = registry.live(session)
        published = registry.published(session)
        return [_summary(version, live, published) for version in registry.versions(session)]


@router.get("/models/{version}")
def get_model(state: State, version: VersionNumber) -> VersionDetail:
    """One version with all that is known of it."""
    with state.sessions.begin() as session:
        return _detail(session, registry.get_version(session, version))


def _summary(version: Version, live: registry.Live | None, published: set[int]) -> VersionOut:
    return VersionOut(
        version=version.version,
        job_id=version.job_id,
        live=live is not None and live.version.version == version.version,
        published=version.version in published,
        created_at=version.created_at,
        artifacts="artifacts removed" if version.artifacts_removed_at else "kept",
        classes=version.classes,
        metrics=version.metrics,
    )


def _detail(session: Session, version: Version) -> VersionDetail:
    summary = _summary(version, registry.live(session), registry.published(session))
    signature = registry.signature(session, version.signature_id)
    return VersionDetail(
        **summary.model_dump(),
        signature=signature.to_json(),
        target=signature.target,
        scaled_features=version.scaled_features,
        categories=version.categories,
        report=version.report,
    )
