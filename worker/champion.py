"""The champion, scored by its own graph on the challenger's holdout rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from shared import registry
from shared.artifacts import ArtifactStore
from worker.graphs import load_session, score
from worker.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The version that was live when the gate looked."""

    deployment_id: int
    version: int
    classes: tuple[str, ...]
    artifact_key: str


def find(session: Session) -> Champion | None:
    """The champion, or None before the first deployment."""
    live = registry.live(session)
    if live is None:
        return None
    return Champion(
        deployment_id=live.deployment.id,
        version=live.version.version,
        classes=tuple(live.version.classes),
        artifact_key=live.version.artifact_key,
    )


def probabilities(champion: Champion, store: ArtifactStore, rows: Rows) -> npt.NDArray[np.float32]:
    """Float32 (n, k) in the order of the champion's classes.

    Raises:
        ArtifactError: its graph is missing or altered.
    """
    return score(load_session(store.read(champion.artifact_key, "model.onnx")), rows)
