"""What is served: the loaded model, the plan that requests read once, and the watch for a new one."""

import asyncio
import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import orjson
import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from api.metrics import Metrics
from shared import registry
from shared.artifacts import ArtifactStore
from shared.counter import CHANNEL, connect_listener
from shared.database import Sessions
from shared.errors import ArtifactError, NoModel
from shared.settings import Settings
from shared.signature import Signature

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """One version in memory; immutable, and safe to call from several threads."""

    version: int
    signature: Signature
    classes: tuple[str, ...]
    scaled_features: tuple[Mapping[str, Any], ...]
    categories: Mapping[str, Sequence[str]]
    raw: ort.InferenceSession
    trees: ort.InferenceSession

    def score_rows(self, rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
        """Probabilities, float32 (n, k) in the order of `classes`, of n canonical rows."""
        return self._run(self.raw, self.signature.feed(rows))

    def score_scaled(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities of float32 (n, m) rows that are already in this version's scaled space."""
        return self._run(self.trees, {"scaled": matrix})

    def example(self) -> dict[str, Any]:
        """A row that this model accepts: the mean of each number, the most frequent category."""
        means = {f["source"]: f["mean"] for f in self.scaled_features if f["category"] is None}
        row: dict[str, Any] = {}
        for feature in self.signature.features:
            if feature.kind == "numeric":
                row[feature.name] = round(means[feature.name], 2)
            else:
                known = [c for c in self.categories[feature.name] if c]
                row[feature.name] = known[0] if known else None
        return row

    @staticmethod
    def _run(session: ort.InferenceSession, feed: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = session.run(["probabilities"], feed)[0]
        return probabilities


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """What answers requests from now on; a request reads it once and keeps it to its end."""

    deployment_id: int
    model: LoadedModel


class Serving:
    """Holds the plan and replaces it, whole, when a new deployment appears."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        store: ArtifactStore,
        settings: Settings,
        metrics: Metrics | None = None,
    ) -> None:
        """Serve nothing yet; `refresh` loads what is live."""
        self._metrics = metrics or Metrics()
        self._sessions = sessions
        self._store = store
        self._settings = settings
        self._wake = asyncio.Event()
        self._plan: ServingPlan | None = None
        self.fault: str | None = None
        self._logged: str | None = None

    @property
    def loaded(self) -> ServingPlan | None:
        """The plan, or None before the first model."""
        return self._plan

    @property
    def plan(self) -> ServingPlan:
        """The plan.

        Raises:
            NoModel: nothing is live yet, or it could not be loaded.
        """
        if self._plan is None:
            raise NoModel("no model is live yet: `ratchet bootstrap FILE --target COLUMN` trains the first")
        return self._plan

    async def refresh(self) -> None:
        """Load the newest deployment if it isn't the one served; a fault leaves the old plan serving."""
        before = self._plan
        try:
            self._plan = await asyncio.to_thread(self._next, before)
        except SQLAlchemyError as exc:
            self._metrics.database_failed("serving")
            self._note(f"Postgres does not answer ({type(exc).__name__})")
        except ArtifactError as exc:
            self._metrics.swap_failed()
            self._note(exc.detail)
        else:
            self.fault = self._logged = None
            self._tell(before, self._plan)

    async def watch(self) -> None:
        """Refresh for ever: when the announcement comes, and every `poll_seconds` in case it was lost."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.poll_seconds)
            self._wake.clear()
            await self._refresh_and_tidy()

    async def _refresh_and_tidy(self) -> None:
        before = self._plan
        await self.refresh()
        if self._plan is not before:
            del before  # or the model of before would still be there
            await asyncio.to_thread(_give_memory_back)

    async def listen(self, url: str) -> None:
        """Wake the watch at every announcement on Redis; without Redis the poll does it alone."""
        while True:
            try:
                async with connect_listener(url) as client, client.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    async for _ in channel.listen():
                        self._wake.set()
            except (RedisError, OSError):
                self._metrics.redis_failed("listener")
                await asyncio.sleep(self._settings.poll_seconds)

    def _next(self, current: ServingPlan | None) -> ServingPlan | None:
        with self._sessions() as session:
            newest = registry.newest_deployment(session)
            if newest is None or (current and current.deployment_id == newest):
                return current
            live = registry.live(session)
        if live is None:
            return current
        if current and current.model.version == live.version.version:
            return ServingPlan(deployment_id=live.deployment.id, model=current.model)
        plan = ServingPlan(deployment_id=live.deployment.id, model=load_model(live, self._store))
        log.info("serving a version", version=live.version.version, deployment=live.deployment.id)
        return plan

    def _tell(self, before: ServingPlan | None, now: ServingPlan | None) -> None:
        if now is not None and (before is None or before.model is not now.model):
            self._metrics.swapped(now.model.version, now.model.classes)
        self._metrics.swap_works()

    def _note(self, fault: str) -> None:
        self.fault = fault
        if fault != self._logged:  # once per cause, not once per poll
            log.error("the live version can't be loaded; the one before goes on serving", cause=fault)
            self._logged = fault


def load_model(live: registry.Live, store: ArtifactStore) -> LoadedModel:
    """Read a version from the store, check it, and score its own example once before anyone sees it.

    Raises:
        ArtifactError: a file is missing, altered, or is not the graph it should be.
    """
    key = live.version.artifact_key
    model = LoadedModel(
        version=live.version.version,
        signature=live.signature,
        classes=tuple(live.version.classes),
        scaled_features=tuple(live.version.scaled_features),
        categories=live.version.categories,
        raw=_open(store, key, "model.onnx"),
        trees=_open(store, key, "trees.onnx"),
    )
    try:
        row = model.signature.canonical(model.example(), 0, [])
        shape = model.score_rows([row]).shape
        width = model.score_scaled(np.zeros((1, len(model.scaled_features)), np.float32)).shape
    except Exception as exc:  # as in `_open`
        raise ArtifactError(f"{key}: it does not score an example ({type(exc).__name__})") from exc
    if not shape == width == (1, len(model.classes)):
        raise ArtifactError(f"{key}: its output does not fit the {len(model.classes)} classes")
    return model


def probability_lists(probabilities: npt.NDArray[np.float32]) -> list[list[float]]:
    """Probabilities as Python floats with the shortest digits that name the same float32.

    The same text goes into the answer and into Postgres, so a repeated answer is equal to the letter.
    """
    text = orjson.dumps(np.ascontiguousarray(probabilities), option=orjson.OPT_SERIALIZE_NUMPY)
    lists: list[list[float]] = orjson.loads(text)
    return lists


def _give_memory_back() -> None:
    """Let glibc return what the model before took: it would keep some tens of megabytes of it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _open(store: ArtifactStore, key: str, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # its pool is sized from the host, not from the container's quota
    options.inter_op_num_threads = 1
    content = store.read(key, name)
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        # onnxruntime raises its own classes, straight from C++, without a common base
        raise ArtifactError(f"{key}/{name}: not a graph that can be loaded") from exc
