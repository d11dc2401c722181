"""What `/predict` answers, and what is stored of it."""

import time
from typing import Any
from uuid import UUID

import pytest

from tests.live import Live

INPUT_TOLERANCE = 1e-5


def scaled(api: Live, row: dict[str, Any]) -> list[float]:
    """A row without missing values in the live version's scaled space, by the numbers `/model` tells."""
    features = api.client.get("/model").json()["scaled_features"]
    return [
        (
            (float(row[f["source"]]) if f["category"] is None else row[f["source"]] == f["category"])
            - f["mean"]
        )
        / f["scale"]
        for f in features
    ]


def test_an_answer_has_an_entry_per_row_and_names_its_version(api: Live) -> None:
    rows = [api.row, {**api.row, "monthly_spend": 120.0, "plan_type": "Premium"}, {**api.row, "lines": 9}]
    answer = api.predict(rows, true_labels=["Basic Plan", None, "Family Plan"]).json()
    assert set(answer) == {
        "predictions",
        "probabilities",
        "prediction_ids",
        "model_version",
        "model_versions",
        "counted",
    }
    classes = api.client.get("/model").json()["classes"]
    for predicted, probabilities in zip(answer["predictions"], answer["probabilities"], strict=True):
        assert list(probabilities) == classes
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert predicted == max(probabilities, key=probabilities.__getitem__)
    assert len({str(probabilities) for probabilities in answer["probabilities"]}) == 3
    assert (answer["model_version"], answer["model_versions"], answer["counted"]) == (1, [1, 1, 1], 2)
    assert len(answer["predictions"]) == len(set(answer["prediction_ids"])) == 3
    assert {UUID(key).version for key in answer["prediction_ids"]} == {7}


def test_what_is_acknowledged_is_stored_as_it_was_answered(api: Live) -> None:
    answer = api.predict([api.row], true_labels=["Basic Plan"], ids=["a-1"]).json()
    (stored,) = api.query("SELECT * FROM predictions")
    assert stored["id"] == UUID(answer["prediction_ids"][0])
    assert stored["predicted"] == answer["predictions"][0]
    assert stored["probabilities"] == list(answer["probabilities"][0].values())
    assert stored["features"] == api.row
    assert (stored["version"], stored["source"]) == (1, "raw")
    assert stored["signature_id"] == stored["deployment_id"] == 1
    (label,) = api.query("SELECT prediction_id, value, superseded_at, job_id FROM labels")
    assert list(label.values()) == [stored["id"], "Basic Plan", None, None]
    assert api.query("SELECT * FROM request_ids") == [{"id": "a-1", "prediction_id": stored["id"]}]
    assert api.stored() == {"predictions": 1, "labels": 1, "request_ids": 1}


def test_ids_grow_with_time(api: Live) -> None:
    first = api.predict().json()["prediction_ids"][0]
    time.sleep(0.002)  # an id's clock has milliseconds
    assert api.predict().json()["prediction_ids"][0] > first


@pytest.mark.parametrize("rows", [300, 5001])
def test_a_large_request_is_scored_and_stored_like_its_rows_alone(api: Live, rows: int) -> None:
    given = [{**api.row, "monthly_spend": 20.0 + n % 100} for n in range(rows)]
    answer = api.predict(given, true_labels=["Basic Plan"] * rows).json()
    assert (answer["counted"], len(set(answer["prediction_ids"]))) == (rows, rows)
    alone = api.predict([given[77]]).json()
    assert answer["predictions"][77] == alone["predictions"][0]
    assert answer["probabilities"][77] == pytest.approx(alone["probabilities"][0], abs=1e-6)
    assert api.stored() == {"predictions": rows + 1, "labels": rows, "request_ids": 0}


def test_inputs_are_scored_by_the_trees_as_the_raw_row_is(api: Live) -> None:
    rows = [
        api.row,
        {**api.row, "monthly_spend": 95.5, "contract": "two years", "region": "nowhere", "age": 30},
        {**api.row, "plan_type": "Premium", "device_brand": "Apple", "has_5g": "true", "lines": 5},
    ]
    inputs = [scaled(api, row) for row in rows]
    raw, trees = (
        api.client.post("/predict", json=body).json()
        for body in ({"raw_features": rows}, {"inputs": inputs, "model_version": 1})
    )
    assert trees["predictions"] == raw["predictions"]
    for of_trees, of_raw in zip(trees["probabilities"], raw["probabilities"], strict=True):
        assert of_trees == pytest.approx(of_raw, abs=INPUT_TOLERANCE)
    assert len({str(p) for p in raw["probabilities"]}) == 3
    # an input that is wrong by a standard deviation is not scored the same
    moved = api.client.post("/predict", json={"inputs": [[x + 1 for x in inputs[0]]]}).json()
    assert moved["probabilities"][0] != pytest.approx(raw["probabilities"][0], abs=INPUT_TOLERANCE)


def test_inputs_alone_are_not_recorded(api: Live) -> None:
    answer = api.client.post("/predict", json={"inputs": [scaled(api, api.row)]}).json()
    assert answer["prediction_ids"] is None
    assert (answer["model_versions"], answer["counted"]) == ([1], 0)
    assert api.stored() == {"predictions": 0, "labels": 0, "request_ids": 0}


def test_inputs_with_raw_features_are_recorded_as_scored_from_inputs(api: Live) -> None:
    elsewhere = scaled(api, {**api.row, "monthly_spend": 130.0, "plan_type": "Premium"})
    body = {
        "inputs": [elsewhere],
        "raw_features": [api.row],
        "true_labels": ["Basic Plan"],
        "model_version": 1,
    }
    answer = api.client.post("/predict", json=body).json()
    assert answer["counted"] == 1
    (stored,) = api.query("SELECT id::text, source, probabilities, features FROM predictions")
    assert (stored["id"], stored["source"]) == (answer["prediction_ids"][0], "inputs")
    assert stored["probabilities"] == list(answer["probabilities"][0].values())
    assert stored["features"]["monthly_spend"] == api.row["monthly_spend"]
    # it is the inputs that were scored, not the raw row beside them
    raw = api.predict().json()
    assert answer["probabilities"][0] != pytest.approx(raw["probabilities"][0], abs=INPUT_TOLERANCE)


@pytest.mark.parametrize(
    ("feature", "same", "stored"),
    [
        ("plan_type", [1, "1", 1.0, "1.0"], "1"),
        ("has_5g", [True, "true", "True", "TRUE"], "true"),
        ("monthly_spend", [50, 50.0, 5e1], 50.0),
        ("region", [None, ""], None),
    ],
)
def test_values_that_mean_the_same_are_one_value(
    api: Live, feature: str, same: list[object], stored: object
) -> None:
    first = api.predict([{**api.row, feature: same[0]}], ids=["same"]).json()
    for value in same[1:]:
        again = api.predict([{**api.row, feature: value}], ids=["same"])
        assert again.status_code == 200, (value, again.text)
        assert again.json()["prediction_ids"] == first["prediction_ids"]
        fresh = api.predict([{**api.row, feature: value}]).json()
        assert fresh["probabilities"] == first["probabilities"]
    assert {row["features"][feature] for row in api.query("SELECT features FROM predictions")} == {stored}
    assert api.predict(
        [{**api.row, feature: "2" if feature != "monthly_spend" else 2}], ids=["same"]
    ).is_error


def test_an_absent_feature_equals_null(api: Live) -> None:
    absent = {name: value for name, value in api.row.items() if name not in ("age", "region")}
    first = api.predict([absent], ids=["gone"]).json()
    again = api.predict([{**api.row, "region": None, "age": None}], ids=["gone"]).json()
    assert again == {**first, "counted": 0}
    assert api.stored()["predictions"] == 1


def test_a_negative_number_where_none_can_be_is_scored_as_missing_and_kept_as_sent(api: Live) -> None:
    missing, negative = api.predict([{**api.row, "age": None}, {**api.row, "age": -4}]).json()[
        "probabilities"
    ]
    assert negative == missing
    stored = [row["features"]["age"] for row in api.query("SELECT features FROM predictions ORDER BY id")]
    assert set(stored) == {None, -4.0}
