"""A caller's own id makes a retry harmless: nothing twice, and the first answer again."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.live import Live, publish_another
from tests.serving import serve
from worker.run import Context

CLIENTS = 8


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What calls answer that start at the same moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Any:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))


def test_a_retry_answers_the_same_and_records_and_counts_nothing(api: Live) -> None:
    rows = [api.row, {**api.row, "monthly_spend": 99.0}]
    body = {"true_labels": ["Basic Plan", "Family Plan"], "ids": ["a", "b"]}
    first = api.predict(rows, **body).json()
    assert first["counted"] == 2
    before = api.stored()
    for _ in range(2):
        assert api.predict(rows, **body).json() == {**first, "counted": 0}
    assert api.stored() == before == {"predictions": 2, "labels": 2, "request_ids": 2}


def test_a_retry_after_a_swap_answers_with_the_first_version(own_api: Live, context: Context) -> None:
    api = own_api
    first = api.predict(ids=["old"]).json()
    assert publish_another(context) == 2
    while api.client.get("/").json()["model_version"] != 2:
        time.sleep(0.01)
    again = api.predict(2, ids=["old", "new"]).json()
    assert (again["model_version"], again["model_versions"]) == (2, [1, 2])
    assert again["prediction_ids"][0] == first["prediction_ids"][0]
    assert again["probabilities"][0] == first["probabilities"][0] != again["probabilities"][1]
    assert again["predictions"][0] == first["predictions"][0]
    assert api.stored()["predictions"] == 2


def test_other_features_under_a_known_id_are_409_and_nothing_of_the_request_is_written(api: Live) -> None:
    api.predict(ids=["a"])
    before = api.stored()
    rows = [api.row, {**api.row, "monthly_spend": 1.5}, api.row]
    response = api.predict(rows, ids=["new-1", "a", "new-2"], true_labels=["Basic Plan"] * 3)
    assert (response.status_code, response.json()["title"]) == (409, "Conflict")
    assert "row 1" in response.json()["detail"]
    assert api.stored() == before
    assert api.predict(ids=["new-1"]).json()["counted"] == 0  # the id is still free, and no label waits


def test_a_conflict_leaves_the_requests_beside_it_alone(api: Live) -> None:
    api.predict(ids=["known"])
    wrong = [{**api.row, "monthly_spend": 2.5}]
    good = [lambda n=n: api.predict(ids=[f"good-{n}"], true_labels=["Basic Plan"]) for n in range(CLIENTS)]
    bad = [lambda: api.predict(wrong, ids=["known"], true_labels=["Basic Plan"])] * CLIENTS
    answers = together([*good, *bad])
    assert [answer.status_code for answer in answers] == [200] * CLIENTS + [409] * CLIENTS
    assert api.stored() == {"predictions": CLIENTS + 1, "labels": CLIENTS, "request_ids": CLIENTS + 1}


def test_the_same_request_from_eight_clients_at_once_is_recorded_once(api: Live) -> None:
    for turn in range(5):
        body = {"ids": [f"{turn}-a", f"{turn}-b"], "true_labels": ["Basic Plan", "Family Plan"]}
        answers = together([lambda body=body: api.predict(2, **body)] * CLIENTS)
        assert {answer.status_code for answer in answers} == {200}
        found = [answer.json() for answer in answers]
        assert len({tuple(answer["prediction_ids"]) for answer in found}) == 1
        assert sorted(answer["counted"] for answer in found) == [0] * (CLIENTS - 1) + [2]
    assert api.stored() == {"predictions": 10, "labels": 10, "request_ids": 10}


def test_the_same_ids_in_opposite_order_at_two_processes_neither_deadlock_nor_fail(api: Live) -> None:
    """Each API has a writer and a connection of its own: they meet in Postgres."""

    def send(client: httpx.Client, ids: list[str]) -> httpx.Response:
        rows = [{**api.row, "monthly_spend": float(key.partition("-")[2])} for key in ids]
        labels = ["Basic Plan"] * len(ids)
        return client.post("/predict", json={"raw_features": rows, "ids": ids, "true_labels": labels})

    turns, size = 10, 60
    with serve(api.settings) as second:
        for turn in range(turns):
            ids = [f"{turn}-{n}" for n in range(size)]
            one, other = together(
                [lambda ids=ids: send(api.client, ids), lambda ids=ids: send(second, ids[::-1])]
            )
            assert (one.status_code, other.status_code) == (200, 200), (one.text, other.text)
            assert one.json()["prediction_ids"] == other.json()["prediction_ids"][::-1]
            assert one.json()["counted"] + other.json()["counted"] == size
    assert api.stored() == dict.fromkeys(("predictions", "labels", "request_ids"), turns * size)


def test_requests_that_share_some_ids_in_one_process_are_all_answered(api: Live) -> None:
    bodies = [[f"s-{n}", f"s-{n + 1}", f"own-{n}"] for n in range(CLIENTS)]
    answers = together([lambda ids=ids: api.predict(3, ids=ids) for ids in bodies])
    assert {answer.status_code for answer in answers} == {200}
    by_id: dict[str, set[str]] = {}
    for ids, answer in zip(bodies, answers, strict=True):
        for key, prediction in zip(ids, answer.json()["prediction_ids"], strict=True):
            by_id.setdefault(key, set()).add(prediction)
    assert {len(predictions) for predictions in by_id.values()} == {1}
    assert api.stored()["predictions"] == len(by_id) == 2 * CLIENTS + 1


def test_a_label_may_come_with_the_retry(api: Live) -> None:
    assert api.predict(ids=["a"]).json()["counted"] == 0
    assert api.predict(ids=["a"], true_labels=["Basic Plan"]).json()["counted"] == 1
    assert api.predict(ids=["a"], true_labels=["Basic Plan"]).json()["counted"] == 0
    assert api.stored() == {"predictions": 1, "labels": 1, "request_ids": 1}


def test_a_late_retry_does_not_revert_a_correction(api: Live) -> None:
    api.predict(ids=["a"], true_labels=["Basic Plan"])
    assert api.label({"id": "a", "true_label": "Family Plan"}).json()["corrected"] == 1
    assert api.predict(ids=["a"], true_labels=["Basic Plan"]).json()["counted"] == 0
    current = "SELECT value FROM labels WHERE superseded_at IS NULL"
    assert api.query(current) == [{"value": "Family Plan"}]
    # a value that was never there before is a correction, and counts no second time
    assert api.predict(ids=["a"], true_labels=["Premium Plan"]).json()["counted"] == 0
    assert api.query(current) == [{"value": "Premium Plan"}]
    assert api.client.get("/retrain/status").json()["current_count"] == 1
