"""Versions and deployments: what has been trained, and what is served from now on."""

from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.artifacts import ArtifactStore
from shared.errors import Conflict, NotFound
from shared.signature import Signature
from shared.tables import Deployment, SignatureRow, Version

_PRUNE = text("""
WITH lately AS (
    SELECT champion, challenger
    FROM (SELECT champion, challenger, id, lag(champion) OVER (ORDER BY id) AS before FROM deployments) d
    WHERE before IS DISTINCT FROM champion ORDER BY id DESC LIMIT 2
)
UPDATE model_versions SET artifacts_removed_at = now()
WHERE artifacts_removed_at IS NULL
  AND version NOT IN (SELECT version FROM model_versions ORDER BY version DESC LIMIT :keep)
  AND NOT EXISTS (SELECT FROM lately WHERE version IN (champion, challenger))
RETURNING version, artifact_key
""")


@dataclass(frozen=True, kw_only=True)
class Live:
    """What is served: a deployment, its champion and the champion's signature."""

    deployment: Deployment
    version: Version
    signature: Signature


def live(session: Session) -> Live | None:
    """The newest deployment with all that serving it needs, or None before the first."""
    row = session.execute(
        select(Deployment, Version, SignatureRow)
        .join(Version, Version.version == Deployment.champion)
        .join(SignatureRow, SignatureRow.id == Version.signature_id)
        .order_by(Deployment.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    deployment, version, signature = row
    return Live(deployment=deployment, version=version, signature=read_signature(signature))


def newest_deployment(session: Session) -> int | None:
    """The id of the newest deployment: the cheapest question about what is live."""
    return session.scalar(select(Deployment.id).order_by(Deployment.id.desc()).limit(1))


def read_signature(row: SignatureRow) -> Signature:
    """A stored signature as the value that code uses."""
    return Signature.from_json(id=row.id, target=row.target, features=row.features)


def signature(session: Session, signature_id: int) -> Signature:
    """A signature by its id.

    Raises:
        NotFound: there is none.
    """
    row = session.get(SignatureRow, signature_id)
    if row is None:
        raise NotFound(f"there is no signature {signature_id}")
    return read_signature(row)


def deploy(session: Session, *, version: int, previous: int | None, actor: str, reason: str) -> Deployment:
    """Serve a version from now on, if `previous` is still the newest deployment.

    Raises:
        Conflict: another deployment came first.
    """
    row = Deployment(champion=version, previous_id=previous, actor=actor, reason=reason)
    try:
        with session.begin_nested():
            session.add(row)
            session.flush()
    except IntegrityError as exc:
        raise Conflict("another deployment came first") from exc
    return row


def get_version(session: Session, version: int) -> Version:
    """A version by its number.

    Raises:
        NotFound: there is none.
    """
    row = session.get(Version, version)
    if row is None:
        raise NotFound(f"there is no version {version}")
    return row


def versions(session: Session) -> list[Version]:
    """All versions, newest first."""
    return list(session.scalars(select(Version).order_by(Version.version.desc())))


def published(session: Session) -> set[int]:
    """The versions that have ever been live."""
    return set(session.scalars(select(Deployment.champion)))


def prune(session: Session, store: ArtifactStore, *, keep: int) -> list[int]:
    """Remove artifacts of all but the newest `keep` versions, the live one and the one live before it.

    One statement says which: between two of them a version could go live, and be none that is kept.
    The row is marked first: a crash in between leaves files that nobody reads, never a row whose
    files are gone. Again is harmless.
    """
    old = session.execute(_PRUNE, {"keep": keep}).all()
    session.commit()
    for version in old:
        store.remove_set(version.artifact_key)
    return sorted((version.version for version in old), reverse=True)
