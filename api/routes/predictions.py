"""`POST /predict`: read, score, record, answer. A plain Starlette route: the hot path."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.deps import AppState, is_large, parse_json, read_body, state_of
from api.query import Query, read_query
from api.serving import LoadedModel, ServingPlan, probability_lists
from api.writes import Recorded, Row, Write, new_prediction_id
from shared.errors import Overloaded, Unavailable
from shared.signature import dump_features


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A request with its scores: `probabilities` is n lists of k, `predicted` n classes."""

    query: Query
    predicted: Sequence[str]
    probabilities: Sequence[Sequence[float]]


async def predict(request: Request) -> Response:
    """Score rows with the live version, record them, and answer once they are committed."""
    state = state_of(request)
    state.auth.check_api(request.headers.get("authorization"))
    body = await read_body(request, state.settings)
    plan = state.serving.plan
    in_thread = is_large(body)
    prepare = partial(_prepare, body, plan, state.settings.max_rows)
    scored, write = await asyncio.to_thread(prepare) if in_thread else prepare()
    recorded = await _record(state, scored.query, write)
    answer = partial(_answer, plan.model, scored, write if recorded else None, recorded or Recorded())
    content = await asyncio.to_thread(answer) if in_thread else answer()
    state.metrics.rows_answered(scored.query.size)
    return Response(content, media_type="application/json")


def _prepare(body: bytes, plan: ServingPlan, max_rows: int) -> tuple[Scored, Write | None]:
    query = read_query(parse_json(body), plan.model, max_rows=max_rows)
    scored = _score(plan.model, query)
    return scored, _rows_to_store(plan, scored)


def _score(model: LoadedModel, query: Query) -> Scored:
    if query.inputs is not None:
        probabilities = model.score_scaled(query.inputs)
    else:
        probabilities = model.score_rows(query.rows or [])
    best = np.argmax(probabilities, axis=1).tolist()
    return Scored(
        query=query,
        predicted=[model.classes[n] for n in best],
        probabilities=probability_lists(probabilities),
    )


def _rows_to_store(plan: ServingPlan, scored: Scored) -> Write | None:
    query = scored.query
    if query.rows is None:
        return None
    nothing = [None] * query.size
    rows = [
        Row(
            id=new_prediction_id(),
            predicted=predicted,
            probabilities=probabilities,
            features=dump_features(features),
            label=label,
            caller_id=caller_id,
        )
        for features, predicted, probabilities, label, caller_id in zip(
            query.rows,
            scored.predicted,
            scored.probabilities,
            query.labels or nothing,
            query.ids or nothing,
            strict=True,
        )
    ]
    write = Write(
        deployment_id=plan.deployment_id,
        version=plan.model.version,
        signature_id=plan.model.signature.id,
        source="raw" if query.inputs is None else "inputs",
        rows=rows,
    )
    write.json  # noqa: B018 - made here, which for a large request is a thread
    return write


async def _record(state: AppState, query: Query, write: Write | None) -> Recorded | None:
    """Store the rows. Without labels a prediction is worth having even when it can't be stored."""
    if write is None:
        return None
    try:
        return await state.recorder.record(write)
    except Overloaded:
        raise  # nothing is wrong with Postgres, there is only too much at once
    except Unavailable:
        if query.labelled:
            raise
        return None


def _answer(model: LoadedModel, scored: Scored, write: Write | None, recorded: Recorded) -> bytes:
    classes = model.classes
    predictions = list(scored.predicted)
    versions = [model.version] * scored.query.size
    probabilities: list[Mapping[str, float]] = [
        dict(zip(classes, row, strict=True)) for row in scored.probabilities
    ]
    ids = [row.id for row in write.rows] if write else None
    if recorded.repeats and write and ids:
        for n, row in enumerate(write.rows):
            first = recorded.repeats.get(row.caller_id or "")
            if first is not None:
                ids[n], versions[n], predictions[n] = first.prediction_id, first.version, first.predicted
                probabilities[n] = dict(zip(first.classes, first.probabilities, strict=True))
    answer = {
        "predictions": predictions,
        "probabilities": probabilities,
        "prediction_ids": ids,
        "model_version": model.version,
        "model_versions": versions,
        "counted": recorded.counted,
    }
    return orjson.dumps(answer)
