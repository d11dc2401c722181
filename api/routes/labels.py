"""`POST /labels`: true classes that arrive after their predictions."""

from typing import Annotated

from fastapi import APIRouter, Depends

from api.deps import State, json_body, require_api_key
from api.schemas import LabelsIn, LabelsOut
from shared import labels

router = APIRouter(dependencies=[Depends(require_api_key)])

Body = Annotated[LabelsIn, Depends(json_body(LabelsIn, rows="labels"))]


@router.post("/labels", tags=["predictions"])
def put_labels(state: State, body: Body) -> LabelsOut:
    """Store labels; a correction replaces the older label in all later training."""
    with state.sessions.begin() as session:
        known = labels.find_predictions(session, [item.id for item in body.labels if item.id is not None])
        found, unknown = [], []
        for item in body.labels:
            prediction = item.prediction_id or known.get(item.id or "")
            if prediction is None:
                unknown.append(str(item.id))
            else:
                found.append((prediction, item.true_label))
        outcomes = labels.put_labels(session, found)
    unknown += [str(found[n][0]) for n, put in enumerate(outcomes) if put.outcome == "unknown"]
    state.metrics.labels_stored(
        [found[n][1] for n, put in enumerate(outcomes) if put.outcome in ("accepted", "corrected")]
    )
    state.tally.add_from_thread(sum(put.new_labels for put in outcomes))
    return LabelsOut(
        accepted=sum(put.outcome == "accepted" for put in outcomes),
        corrected=sum(put.outcome == "corrected" for put in outcomes),
        repeated=sum(put.outcome == "repeated" for put in outcomes),
        unknown=unknown,
    )
