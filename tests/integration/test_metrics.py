"""`GET /metrics` of a served model: which figures there are, who may read them, what a request adds."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from shared.settings import Settings
from tests.integration.test_access import bearer, is_problem
from tests.integration.test_admission import Wire, held
from tests.live import Live, live, publish_another
from tests.serving import ADMIN, serve
from worker.run import Context

OF_THE_PROCESS = {
    "ratchet_requests_total": {"route", "status"},
    "ratchet_request_seconds": {"route", "le"},
    "ratchet_rows_total": set(),
    "ratchet_labels_total": {"class"},
    "ratchet_rejected_rows_total": {"reason"},
    "ratchet_recorder_batch_rows": {"le"},
    "ratchet_recorder_queued_rows": set(),
    "ratchet_model_version": set(),
    "ratchet_model_swaps_total": {"result"},
    "ratchet_model_fault": set(),
    "ratchet_database_errors_total": {"where"},
    "ratchet_redis_errors_total": {"where"},
    "ratchet_database_up": set(),
    "ratchet_redis_up": set(),
    "ratchet_threshold": set(),
}
OF_REDIS = {"ratchet_tally": set()}
OF_POSTGRES = {
    "ratchet_labels_waiting": set(),
    "ratchet_oldest_waiting_label_seconds": set(),
    "ratchet_live_version": set(),
    "ratchet_model_age_seconds": set(),
    "ratchet_jobs_total": {"result"},
    "ratchet_job_active": {"state"},
    "ratchet_job_failures": set(),
    "ratchet_job_step": set(),
    "ratchet_last_job_step_seconds": {"step"},
    "ratchet_last_job_seconds": set(),
    "ratchet_last_job_rows": {"kind"},
    "ratchet_last_job_f1": {"model"},
}
"""Dashboards and alert rules rely on these names and labels."""

Scraped = dict[str, dict[tuple[str, ...], float]]


def scrape(client: httpx.Client, headers: dict[str, str] = ADMIN) -> Scraped:
    """Every sample: name → values of its labels → value."""
    answer = client.get("/metrics", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    found: Scraped = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def names_of(client: httpx.Client) -> dict[str, set[str]]:
    """The families that are there, and the names of their labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics", headers=ADMIN).text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = found.setdefault(name, set())
        labels.update(label for sample in family.samples for label in sample.labels)
    return found


def value(found: Scraped, name: str, *labels: str) -> float:
    """One sample."""
    return found[f"ratchet_{name}"][labels]


def grown(before: Scraped, after: Scraped, name: str) -> dict[tuple[str, ...], float]:
    """By how much the samples of a counter have grown, those that have."""
    name = f"ratchet_{name}"
    grown = {labels: n - before[name].get(labels, 0.0) for labels, n in after[name].items()}
    return {labels: n for labels, n in grown.items() if n}


def test_the_names_and_labels_are_those_that_rules_rely_on(own_api: Live, context: Context) -> None:
    own_api.predict(true_labels=["Basic Plan"])
    publish_another(context)
    assert names_of(own_api.client) == {**OF_THE_PROCESS, **OF_REDIS, **OF_POSTGRES}


def test_before_the_first_model_there_is_what_can_be_said(settings: Settings) -> None:
    with serve(settings) as client:
        found = scrape(client)
        assert set(names_of(client)) == set({**OF_THE_PROCESS, **OF_REDIS, **OF_POSTGRES})
        for name in ("model_version", "live_version", "job_step", "labels_waiting"):
            assert value(found, name) == 0
        assert value(found, "database_up") == value(found, "redis_up") == 1
        assert {"ratchet_model_age_seconds", "ratchet_last_job_seconds"} & set(found) == set()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic cDpt"}, 401),
        (bearer("wrong"), 403),
        (bearer("the-callers"), 403),
        (bearer("prometheus"), 403),
        (bearer("the-scrapers"), 200),
        (bearer("the-admins"), 200),
    ],
)
def test_its_own_key_or_an_admins_opens_it(
    live_settings: Settings, header: dict[str, str], status: int
) -> None:
    keys = {
        "api_keys": SecretStr("shop:the-callers"),
        "metrics_keys": SecretStr("prometheus:the-scrapers"),
        "admin_keys": SecretStr("ops:the-admins"),
    }
    with serve(live_settings.model_copy(update=keys)) as client:
        answer = client.get("/metrics", headers=header)
        assert answer.status_code == status or is_problem(answer, status)
        assert ("www-authenticate" in answer.headers) is (status == 401)
        if "the-scrapers" in header.get("Authorization", ""):
            assert is_problem(client.get("/models", headers=header), 403)
            assert is_problem(client.post("/admin/retrain", headers=header), 403)


def test_without_any_key_it_is_closed_and_says_what_to_set(live_settings: Settings) -> None:
    with serve(live_settings.model_copy(update={"admin_keys": None})) as client:
        for headers in ({}, ADMIN, bearer("None")):
            answer = client.get("/metrics", headers=headers)
            assert is_problem(answer, 403)
            assert "RATCHET_METRICS_KEYS" in answer.json()["detail"]


def test_no_rate_limits_it_and_no_others_keep_it_out(live_settings: Settings) -> None:
    changes = {"rate_limit": "1/hour", "max_in_flight": 1, "threshold": 10**9, "body_seconds": 60.0}
    with live(live_settings.model_copy(update=changes)) as api:
        assert api.client.get("/models").status_code == 429
        assert [value(scrape(api.client), "database_up") for _ in range(8)] == [1.0] * 8
    with live(live_settings.model_copy(update={**changes, "rate_limit": None})) as api:
        with held(api, 1), held(api, 1, path="/labels"):
            assert api.client.get("/models").status_code == api.predict().status_code == 503
            found = scrape(api.client)
        assert value(found, "requests_total", "/predict", "503") == 1
        assert value(found, "requests_total", "/models", "503") == 1
        assert value(found, "rejected_rows_total", "overloaded") == 1


def test_rows_labels_and_batches_are_counted(api: Live) -> None:
    before = scrape(api.client)
    api.predict(5)
    api.predict(3, true_labels=["Basic Plan", None, "Basic Plan"], ids=["a", "b", "c"])
    api.predict(2, true_labels=["Basic Plan", "Family Plan"], ids=["a", "b"])  # a repeat, and a first label
    api.label({"id": "a", "true_label": "Family Plan"}, {"id": "b", "true_label": "Family Plan"})
    api.label({"id": "nobody", "true_label": "Family Plan"})
    api.predict(1, true_labels=["Premium Plan"], ids=["a"])  # a correction with a repeat
    after = scrape(api.client)
    assert grown(before, after, "rows_total") == {(): 11}
    assert grown(before, after, "labels_total") == {
        ("Basic Plan",): 2,
        ("Family Plan",): 2,
        ("Premium Plan",): 1,
    }
    assert grown(before, after, "requests_total")["/predict", "200"] == 4
    assert grown(before, after, "requests_total")["/labels", "200"] == 2
    assert grown(before, after, "request_seconds_count")[("/predict",)] == 4
    assert grown(before, after, "recorder_batch_rows_count") == {(): 4}
    assert grown(before, after, "recorder_batch_rows_sum") == {(): 11}
    assert value(after, "recorder_queued_rows") == 0
    assert value(after, "labels_waiting") == 3
    assert 0 < value(after, "oldest_waiting_label_seconds") < 300


def test_labels_that_clients_make_up_are_one_series(api: Live) -> None:
    before = scrape(api.client)
    made_up = [f'{n}"}} 1\n' for n in range(150)]
    api.predict(150, true_labels=made_up, ids=[str(n) for n in range(150)])
    api.label(*({"id": str(n), "true_label": f"class {n}"} for n in range(150)))
    after = scrape(api.client)
    assert grown(before, after, "labels_total") == {("other",): 300}
    assert set(after["ratchet_labels_total"]) == set(before["ratchet_labels_total"])


def test_refusals_are_counted_by_what_was_wrong(api: Live) -> None:
    send: Callable[..., httpx.Response] = api.client.post
    wrong = {**api.row, "monthly_spend": "much"}
    missing = {name: feature for name, feature in api.row.items() if name != "monthly_spend"}
    before = scrape(api.client)
    answers = [
        api.predict([wrong, api.row, {**wrong, "more": 1}]),
        api.predict([{**missing, "monthly_spend": 1e39}]),
        api.predict([{**api.row, "more": 1}]),
        api.predict(true_labels=[3]),
        api.predict(2, ids=["x", "x"]),
        send("/predict", content=b"{"),
        send("/predict", content=b" " * (2 * 2**20 + 1)),
        send("/predict", content=b"a", headers={"content-type": "text/plain"}),
        api.predict(model_version=99),
        send("/predict", json={}),
        api.label({"id": "a"}, {"id": "b", "true_label": ""}, {"id": "", "true_label": "x"}),
        send("/labels", json={"labels": 1}),
    ]
    assert {answer.status_code for answer in answers} == {400, 409, 413, 415, 422}
    assert "kind" not in json.dumps([answer.json() for answer in answers])
    api.client.get("/models/0"), api.client.get("/nothing"), api.client.get("/predict")
    assert grown(before, scrape(api.client), "rejected_rows_total") == {
        (reason,): count
        for reason, count in {
            "type": 2,
            "range": 1,
            "unknown_feature": 1,
            "label": 2,
            "id": 2,
            "missing": 1,
            "not_json": 1,
            "too_large": 1,
            "unsupported_media_type": 1,
            "conflict": 1,
            "invalid_request": 2,
        }.items()
    }


def test_scrapes_at_once_are_few_and_share_one_question(own_api: Live) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scrape(own_api.client), range(12)))
    assert {value(one, "database_up") for one in found} == {1.0}
    with closing(Wire(own_api)) as wire:  # a prediction under way is no matter
        wire.let_in()
        assert value(scrape(own_api.client), "database_up") == 1
