"""Training and serving agree: what HTTP answers is what CatBoost itself says of the same rows.

The expected side shares no code with the service: plain numpy from the figures that `/model` shows,
medians from the dataset part, and the native model.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from catboost import CatBoostClassifier

from cli.data import CHURN_TARGET, PLANS_TARGET, churn, plans
from shared.database import Sessions
from shared.settings import Settings
from tests.conftest import make_context
from tests.integration.production import all_versions, changed, execute
from tests.serving import serve
from worker.bootstrap import bootstrap
from worker.inference import infer
from worker.retrain import run_job
from worker.run import Context

ROWS, BATCH, TOLERANCE = 5000, 500, 1e-4
HOLDOUT_BUCKETS = 2000
Floats = npt.NDArray[np.float64]


def load_plans() -> tuple[pd.DataFrame, str]:
    return plans(1200 + ROWS), PLANS_TARGET


def load_churn() -> tuple[pd.DataFrame, str]:
    frame = churn().sample(frac=1, random_state=0, ignore_index=True)
    return frame.iloc[: 1200 + ROWS], CHURN_TARGET


@pytest.mark.parametrize("load", [load_plans, load_churn])
def test_the_answers_are_catboosts_own_on_5000_rows_it_never_saw(
    settings: Settings, sessions: Sessions, tmp_path: Path, load: Callable[[], tuple[pd.DataFrame, str]]
) -> None:
    frame, target = load()
    first, unseen = frame.iloc[:1200], frame.iloc[1200:]
    # Without outlier removal the train side, and so the medians, follow from the buckets alone.
    context = changed(make_context(settings, sessions), outliers="off")
    run_job(bootstrap(first, infer(first, target=target), sessions=sessions, store=context.store), context)

    rows = [{str(k): plain(v) for k, v in row.items() if k != target} for row in unseen.to_dict("records")]
    with serve(settings) as client:
        model = client.get("/model").raise_for_status().json()
        names = {feature["name"] for feature in model["signature"]}
        rows = [{name: value for name, value in row.items() if name in names} for row in rows]
        answered, predicted = ask(client, rows, model["classes"])

    matrix = scaled(rows, model, medians(context, model))
    expected = native(context, tmp_path).predict_proba(matrix)
    assert answered.shape == expected.shape == (ROWS, len(model["classes"]))
    assert np.abs(answered - expected).max() <= TOLERANCE
    best = np.sort(expected, axis=1)
    decided = best[:, -1] - best[:, -2] > TOLERANCE
    assert decided.mean() > 0.99
    expected_classes = np.array(model["classes"], dtype=object)[expected.argmax(axis=1)]
    assert (np.array(predicted, dtype=object) == expected_classes)[decided].all()
    # and it is a model worth the comparison: it tells rows apart, and gaps and negatives were among them
    assert len(np.unique(answered.round(6), axis=0)) > 500
    assert any(value is None for row in rows for value in row.values())


def plain(value: Any) -> Any:
    """A cell as a client's JSON holds it."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def ask(client: httpx.Client, rows: list[dict[str, Any]], classes: list[str]) -> tuple[Floats, list[str]]:
    """Probabilities in the order of the classes, and the predicted classes."""
    probabilities: list[list[float]] = []
    predicted: list[str] = []
    for start in range(0, len(rows), BATCH):
        response = client.post("/predict", json={"raw_features": rows[start : start + BATCH]})
        answer = response.raise_for_status().json()
        probabilities += [[row[name] for name in classes] for row in answer["probabilities"]]
        predicted += answer["predictions"]
    return np.array(probabilities), predicted


def medians(context: Context, model: dict[str, Any]) -> dict[str, float]:
    """The median of each number on the train side, impossible negatives left out."""
    (part,) = execute(context.sessions, "SELECT key FROM dataset_parts")
    table = pq.read_table(context.store.path(part.key)).to_pandas()
    features = pd.DataFrame(list(table.loc[table["bucket"] >= HOLDOUT_BUCKETS, "features"]))
    found = {}
    for feature in model["signature"]:
        if feature["kind"] == "numeric":
            values = features[feature["name"]].to_numpy(np.float32).astype(np.float64)
            found[feature["name"]] = float(np.nanmedian(values))
    return found


def scaled(
    rows: list[dict[str, Any]], model: dict[str, Any], fills: dict[str, float]
) -> npt.NDArray[np.float32]:
    """The scaled matrix by hand, from what `/model` shows."""
    non_negative = {feature["name"] for feature in model["signature"] if feature["non_negative"]}
    columns = []
    for feature in model["scaled_features"]:
        name = feature["source"]
        cells = [row[name] for row in rows]
        if feature["category"] is not None:
            columns.append(np.array([text(cell) == feature["category"] for cell in cells], np.float64))
            continue
        values = np.array([np.nan if cell is None else cell for cell in cells], np.float32).astype(np.float64)
        if name in non_negative:
            values[values < 0] = np.nan
        values[np.isnan(values)] = fills[name]
        columns.append((values - feature["mean"]) / feature["scale"])
    return np.column_stack(columns).astype(np.float32)


def text(cell: object) -> str:
    """A category as text, without the code that the service uses for it."""
    if cell is None:
        return ""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def native(context: Context, folder: Path) -> CatBoostClassifier:
    """The version's own CatBoost model."""
    (version,) = all_versions(context.sessions)
    file = folder / "model.cbm"
    file.write_bytes(context.store.read(version.artifact_key, "model.cbm"))
    return CatBoostClassifier().load_model(str(file))
