"""`POST /labels`: what becomes of labels that arrive later, corrections among them."""

from typing import Any
from uuid import uuid4

import pytest

from tests.live import Live
from worker.retrain import run_job
from worker.run import Context

NOTHING = {"accepted": 0, "corrected": 0, "repeated": 0, "unknown": []}


def counts(api: Live) -> dict[str, int]:
    """The labels by state; they add up wherever a test looks."""
    status = api.client.get("/retrain/status").json()
    labels: dict[str, int] = status["labels"]
    assert labels["total"] == sum(labels[s] for s in ("trained", "waiting", "claimed", "superseded"))
    assert status["current_count"] == labels["waiting"]
    assert status["remaining"] == max(0, status["threshold"] - status["current_count"])
    assert labels["total"] == api.stored()["labels"]
    return labels


def history(api: Live) -> list[tuple[str, bool]]:
    """Values in the order they came, each with whether it is superseded."""
    rows = api.query("SELECT value, superseded_at IS NOT NULL AS old FROM labels ORDER BY id")
    return [(row["value"], row["old"]) for row in rows]


def test_labels_are_accepted_by_prediction_id_and_by_the_callers_id(api: Live) -> None:
    keys = api.predict(3, ids=[None, "mine", "other"]).json()["prediction_ids"]
    answer = api.label(
        {"prediction_id": keys[0], "true_label": "Basic Plan"}, {"id": "mine", "true_label": "Family Plan"}
    )
    assert answer.json() == {**NOTHING, "accepted": 2}
    rows = api.query("SELECT prediction_id::text AS key, value FROM labels ORDER BY id")
    assert {row["key"]: row["value"] for row in rows} == {keys[0]: "Basic Plan", keys[1]: "Family Plan"}
    assert counts(api)["waiting"] == 2


def test_unknown_ids_are_named_and_the_others_stored(api: Live) -> None:
    api.predict(ids=["mine"])
    stranger = str(uuid4())
    answer = api.label(
        {"prediction_id": stranger, "true_label": "Basic Plan"},
        {"id": "mine", "true_label": "Basic Plan"},
        {"id": "nobody", "true_label": "Basic Plan"},
    ).json()
    assert sorted(answer.pop("unknown")) == sorted([stranger, "nobody"])
    assert answer == {"accepted": 1, "corrected": 0, "repeated": 0}
    assert counts(api)["total"] == 1


def test_the_same_label_again_changes_nothing(api: Live) -> None:
    (key,) = api.predict(true_labels=["Basic Plan"]).json()["prediction_ids"]
    label = {"prediction_id": key, "true_label": "Basic Plan"}
    assert api.label(label).json() == {**NOTHING, "repeated": 1}
    assert api.label(label, label).json() == {**NOTHING, "repeated": 2}
    assert history(api) == [("Basic Plan", False)]


def test_a_correction_of_a_waiting_label_keeps_the_count_and_the_history(api: Live) -> None:
    api.predict(ids=["a"], true_labels=["Basic Plan"])
    assert counts(api)["waiting"] == 1
    assert api.label({"id": "a", "true_label": "Family Plan"}).json() == {**NOTHING, "corrected": 1}
    assert history(api) == [("Basic Plan", True), ("Family Plan", False)]
    assert counts(api) == {"total": 2, "waiting": 1, "superseded": 1, "trained": 0, "claimed": 0}


def test_an_old_value_can_be_set_back(api: Live) -> None:
    api.predict(ids=["a"], true_labels=["Basic Plan"])
    for value in ("Family Plan", "Basic Plan"):
        assert api.label({"id": "a", "true_label": value}).json() == {**NOTHING, "corrected": 1}
    assert history(api) == [("Basic Plan", True), ("Family Plan", True), ("Basic Plan", False)]
    assert counts(api)["waiting"] == 1


def test_several_labels_of_one_prediction_count_in_the_order_given(api: Live) -> None:
    (key,) = api.predict(ids=["a"]).json()["prediction_ids"]
    answer = api.label(
        {"id": "a", "true_label": "Basic Plan"},
        {"prediction_id": key, "true_label": "Family Plan"},
        {"id": "a", "true_label": "Family Plan"},
    )
    assert answer.json() == {**NOTHING, "accepted": 1, "corrected": 1, "repeated": 1}
    assert history(api) == [("Basic Plan", True), ("Family Plan", False)]


def test_a_correction_of_a_trained_label_waits_and_counts(own_api: Live, context: Context) -> None:
    api = own_api
    rows = [{**api.row, "monthly_spend": 30.0 + n} for n in range(40)]
    ids = [f"t-{n}" for n in range(40)]
    api.predict(rows, ids=ids, true_labels=["Basic Plan"] * 40)
    job = api.client.post(
        "/admin/retrain", json={}, headers={"Authorization": "Bearer test-admin-key"}
    ).json()["job"]
    run_job(job["id"], context)
    assert counts(api) == {"total": 40, "waiting": 0, "superseded": 0, "trained": 40, "claimed": 0}
    answer = api.label(
        {"id": "t-1", "true_label": "Family Plan"}, {"id": "t-2", "true_label": "Basic Plan"}
    ).json()
    assert answer == {**NOTHING, "corrected": 1, "repeated": 1}
    assert counts(api) == {"total": 41, "waiting": 1, "superseded": 1, "trained": 39, "claimed": 0}
    # corrected once more while it waits: it is one label to learn, still
    assert api.label({"id": "t-1", "true_label": "Premium Plan"}).json()["corrected"] == 1
    assert counts(api) == {"total": 42, "waiting": 1, "superseded": 2, "trained": 39, "claimed": 0}


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ({"id": "a", "true_label": ""}, "true_label"),
        ({"id": "a", "true_label": "x" * 201}, "true_label"),
        ({"id": "a", "true_label": 1}, "true_label"),
        ({"id": "a", "true_label": None}, "true_label"),
        ({"id": "a", "true_label": "a\x00b"}, "true_label"),
        ({"id": "a"}, "true_label"),
        ({"id": "", "true_label": "b"}, "id"),
        ({"id": "a\x00", "true_label": "b"}, "id"),
        ({"id": 5, "true_label": "b"}, "id"),
        ({"prediction_id": "not a uuid", "true_label": "b"}, "prediction_id"),
        ({"true_label": "b"}, None),
        ({"id": "a", "true_label": "b", "when": "now"}, "when"),
    ],
)
def test_a_wrong_label_is_named_by_row_and_field_and_none_is_stored(
    api: Live, label: dict[str, Any], field: str | None
) -> None:
    api.predict(ids=["a"])
    response = api.label({"id": "a", "true_label": "Basic Plan"}, label)
    assert response.status_code == 422, response.text
    (fault,) = response.json()["errors"]
    assert fault["row"] == 1
    assert field is None or fault["feature"] == field
    assert counts(api)["total"] == 0


def test_all_wrong_labels_are_named_together(api: Live) -> None:
    labels = [{"id": f"x-{n}", "true_label": "Basic Plan" if n % 100 else n} for n in range(300)]
    found = api.label(*labels).json()["errors"]
    assert [fault["row"] for fault in found] == [0, 100, 200]


def test_a_prediction_named_twice_over_is_refused(api: Live) -> None:
    (key,) = api.predict(ids=["a"]).json()["prediction_ids"]
    assert api.label({"id": "a", "prediction_id": key, "true_label": "b"}).status_code == 422


def test_no_label_at_all_and_too_many_are_refused(api: Live) -> None:
    assert api.label().status_code == 422
    too_many = [{"id": "a", "true_label": "b"}] * (api.settings.max_rows + 1)
    assert api.label(*too_many).status_code == 413
