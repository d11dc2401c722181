"""Every way to send `/predict` something wrong: each is answered by name, and nothing is written."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.live import Live

JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def nothing_is_written(api: Live) -> Iterator[None]:
    """After every test of this file the tables hold what they held before: nothing."""
    yield
    assert api.stored() == {"predictions": 0, "labels": 0, "request_ids": 0}


def faults_of(api: Live, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The faults that a 422 names."""
    response = api.client.post("/predict", json=body)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["title"] == "Invalid request"
    assert problem["status"] == 422
    found: list[dict[str, Any]] = problem.get("errors", [])
    assert problem.get("error_count", 0) == len(found)
    return found


def test_three_faults_in_a_thousand_rows_are_named_in_one_answer(api: Live) -> None:
    rows = [dict(api.row) for _ in range(1000)]
    rows[3]["monthly_spend"] = "49.09"
    del rows[500]["plan_type"]
    rows[999]["colour"] = "red"
    ids = [f"a-{n}" for n in range(1000)]
    found = faults_of(api, {"raw_features": rows, "true_labels": ["Basic Plan"] * 1000, "ids": ids})
    assert [(fault["row"], fault["feature"]) for fault in found] == [
        (3, "monthly_spend"),
        (500, "plan_type"),
        (999, "colour"),
    ]
    assert [fault["detail"] for fault in found] == [
        "a number is needed, not text",
        "required feature is missing",
        "unknown feature",
    ]


@pytest.mark.parametrize(
    ("feature", "value", "says"),
    [
        ("monthly_spend", None, "missing"),
        ("monthly_spend", "", "not text"),
        ("monthly_spend", "49.09", "not text"),
        ("monthly_spend", True, "not true or false"),
        ("monthly_spend", [49.09], "not a list"),
        ("monthly_spend", {"value": 49.09}, "not an object"),
        ("monthly_spend", 1e39, "float32"),
        ("monthly_spend", -1e39, "float32"),
        ("monthly_spend", 3.5e38, "float32"),
        ("plan_type", ["Basic"], "not a list"),
        ("plan_type", {"name": "Basic"}, "not an object"),
        ("plan_type", "x" * 201, "longer than 200"),
        ("plan_type", "Ba\x00sic", "NUL"),
        ("plan_type", 2**63, "64 bits"),
        ("colour", None, "unknown feature"),
        ("", 1, "unknown feature"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_feature(api: Live, feature: str, value: object, says: str) -> None:
    rows = [api.row, {**api.row, feature: value}]
    (fault,) = faults_of(api, {"raw_features": rows, "true_labels": ["Basic Plan", None]})
    assert (fault["row"], fault["feature"]) == (1, feature)
    assert says in fault["detail"]


@pytest.mark.parametrize("digits", ["1" + "0" * 39, "-" + "9" * 400, "1" + "0" * 5000])
def test_a_huge_whole_number_is_a_fault_and_no_crash(api: Live, digits: str) -> None:
    row = orjson.dumps({**api.row, "monthly_spend": 0}).replace(
        b'"monthly_spend":0,', f'"monthly_spend":{digits},'.encode()
    )
    content = b'{"raw_features":[' + row + b'],"true_labels":["Basic Plan"]}'
    response = api.client.post("/predict", content=content, headers=JSON)
    # beyond the largest double it isn't a number that JSON's readers know
    assert response.status_code == (422 if len(digits) < 300 else 400), response.text
    assert "float32" in response.text or "infinity" in response.text


@pytest.mark.parametrize("row", [None, 1, "a", [1.0]])
def test_a_row_that_is_no_object_is_named(api: Live, row: object) -> None:
    (fault,) = faults_of(api, {"raw_features": [api.row, row]})
    assert fault == {"detail": "a row must be an object of features", "row": 1}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "1 to 200"),
        ("x" * 201, "1 to 200"),
        (1, "must be a text"),
        (True, "must be a text"),
        (["a"], "must be a text"),
        ("a\x00b", "NUL"),
    ],
)
def test_a_label_is_a_text_of_1_to_200_characters(api: Live, value: object, says: str) -> None:
    body = {"raw_features": [api.row] * 2, "true_labels": [None, value], "ids": ["b-1", "b-2"]}
    (fault,) = faults_of(api, body)
    assert (fault["row"], fault["feature"]) == (1, "true_labels")
    assert says in fault["detail"]


@pytest.mark.parametrize("value", ["", "x" * 201, 7, True, "a\x00b"])
def test_an_id_is_a_text_of_1_to_200_characters_without_nul(api: Live, value: object) -> None:
    (fault,) = faults_of(api, {"raw_features": [api.row] * 2, "ids": ["c-1", value]})
    assert (fault["row"], fault["feature"]) == (1, "ids")


def test_an_id_used_twice_in_a_request_is_named_where_it_comes_again(api: Live) -> None:
    body = {"raw_features": [api.row] * 3, "ids": ["d", "other", "d"], "true_labels": ["Basic Plan"] * 3}
    (fault,) = faults_of(api, body)
    assert fault == {"detail": "the id of row 0 again", "row": 2, "feature": "ids"}


@pytest.mark.parametrize("name", ["true_labels", "ids", "inputs"])
def test_lengths_that_differ_are_named(api: Live, name: str) -> None:
    values = {"true_labels": ["Basic Plan"], "ids": ["e"], "inputs": [[0.0] * 39]}
    (fault,) = faults_of(api, {"raw_features": [api.row] * 2, name: values[name]})
    assert fault == {"detail": "1 entries for 2 rows", "feature": name}


@pytest.mark.parametrize("name", ["true_labels", "ids", "inputs"])
def test_what_should_be_a_list_is_named(api: Live, name: str) -> None:
    (fault,) = faults_of(api, {"raw_features": [api.row], name: "Basic Plan"})
    assert (fault["feature"], fault["detail"]) == (name, "must be a list, one entry per row")


def test_faults_of_rows_labels_ids_and_lengths_are_named_together(api: Live) -> None:
    rows = [{**api.row, "monthly_spend": 1e39}, api.row]
    found = faults_of(
        api, {"raw_features": rows, "true_labels": [None, ""], "ids": ["f", "f", "g"], "colour": 1}
    )
    assert [(fault.get("row"), fault["feature"]) for fault in found] == [
        (None, "colour"),
        (0, "monthly_spend"),
        (1, "true_labels"),
        (None, "ids"),
        (1, "ids"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"raw_features": []},
        {"inputs": []},
        {"raw_features": [], "inputs": [[0.0] * 39]},
        {"raw_features": {}},
        {"raw_features": "abc"},
        {"true_labels": ["Basic Plan"]},
        {},
        [],
        None,
        "text",
        3,
    ],
)
def test_a_body_without_a_row_is_refused(api: Live, body: object) -> None:
    response = api.client.post("/predict", json=body, headers=JSON)
    if body is None:  # httpx sends no body for it
        response = api.client.post("/predict", content=b"null", headers=JSON)
    assert response.status_code == 422, response.text
    assert response.json()["title"] == "Invalid request"


@pytest.mark.parametrize("value", ["1", True, 1.5])
def test_model_version_must_be_a_whole_number(api: Live, value: object) -> None:
    assert api.predict(model_version=value).status_code == 422


def test_more_rows_than_allowed_are_413(api: Live) -> None:
    rows = [{}] * (api.settings.max_rows + 1)
    response = api.predict(rows, true_labels=["Basic Plan"] * len(rows))
    assert (response.status_code, response.json()["title"]) == (413, "Too large")
    assert "RATCHET_MAX_ROWS" in response.json()["detail"]
    inputs = api.client.post("/predict", json={"inputs": [[0.0]] * (api.settings.max_rows + 1)})
    assert inputs.status_code == 413


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_longer_than_allowed_is_413_and_the_next_request_is_served(api: Live, chunked: bool) -> None:
    one = orjson.dumps({"raw_features": [api.row], "true_labels": ["Basic Plan"]})
    content = one + b" " * (api.settings.max_body + 1 - len(one))
    sent = (content[n : n + 65536] for n in range(0, len(content), 65536)) if chunked else content
    response = api.client.post("/predict", content=sent, headers=JSON)
    assert ("transfer-encoding" in response.request.headers) is chunked
    assert response.status_code == 413, response.text
    said = response.json()["detail"]
    assert ("Content-Length" if chunked else "RATCHET_MAX_BODY") in said
    assert api.client.get("/health").status_code == 200


def test_a_chunked_body_is_read_like_any_other(api: Live) -> None:
    pieces = iter([b'{"raw_', b'features": ', b"[{}]}"])
    response = api.client.post("/predict", content=pieces, headers=JSON)
    assert {fault["row"] for fault in response.json()["errors"]} == {0}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"raw_features": [{"monthly_spend": NaN}]}', "column 37"),
        (b'{"raw_features": [{"monthly_spend": Infinity}]}', "column 37"),
        (b'{"raw_features": [{"monthly_spend": -Infinity}]}', "column 38"),
        (b'{"raw_features":\n [{"monthly_spend": 1e999}]}', "line 2 column 21"),
        (b'{"raw_features": [{"plan_type": "Ba\xffsic"}]}', "line 1 column 36 (byte 35)"),
        (b'{"raw_features":\n [{"plan_type": "\xc3("}]}', "line 2 column 18 (byte 34)"),
        (b'{"raw_features": [{"plan_type": "\\ud800"}]}', "column 3"),
        (b'{"raw_features": [}', "column 19"),
        (b'{"raw_features": []} []', "column 22"),
        (b"raw_features=1", "column 1"),
        (b"", "column 1"),
        (b"[" * 5000, "line 1 column"),
    ],
)
def test_what_is_not_json_is_400_with_the_place(api: Live, content: bytes, place: str) -> None:
    response = api.client.post("/predict", content=content, headers=JSON)
    assert (response.status_code, response.json()["title"]) == (400, "Not JSON"), response.text
    assert place in response.json()["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
@pytest.mark.parametrize("path", ["/predict", "/labels"])
def test_a_body_declared_as_something_else_is_415(api: Live, path: str, kind: str) -> None:
    content = orjson.dumps({"raw_features": [api.row]})
    response = api.client.post(path, content=content, headers={"Content-Type": kind})
    assert (response.status_code, response.headers["content-type"]) == (415, "application/problem+json")


@pytest.mark.parametrize("more", [{"true_labels": ["Basic Plan"]}, {"ids": ["h-1"]}])
def test_labels_or_ids_without_raw_features_are_refused(api: Live, more: dict[str, Any]) -> None:
    (fault,) = faults_of(api, {"inputs": [[0.0] * 39], **more})
    assert "need raw_features" in fault["detail"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([0.0] * 38, "38 numbers where 39"),
        ("abc", "no list where 39"),
        ([0.0] * 38 + ["a"], "float32"),
        ([0.0] * 38 + [None], "float32"),
        ([0.0] * 38 + [1e39], "float32"),
        ([0.0] * 38 + [True], "float32"),
    ],
)
def test_a_wrong_scaled_row_is_named(api: Live, row: object, says: str) -> None:
    (fault,) = faults_of(api, {"inputs": [[0.0] * 39, row], "raw_features": [api.row] * 2})
    assert fault["row"] == 1
    assert says in fault["detail"]
    assert ("feature" in fault) is (says == "float32")


def test_inputs_for_a_version_that_is_not_live_are_409(api: Live) -> None:
    body = {"inputs": [[0.0] * 39], "raw_features": [api.row], "ids": ["i-1"], "model_version": 2}
    response = api.client.post("/predict", json=body)
    assert (response.status_code, response.json()["title"]) == (409, "Conflict")
    assert "version 1 is" in response.json()["detail"]
