"""What a process counts about itself: series are few whatever clients send, and each row counts once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from api import deps
from api.histogram import BulkHistogram
from api.jobmetrics import JobFigures, families, step_seconds
from api.metrics import MAX_CLASSES, REASONS, Metrics
from api.query import read_query
from api.schemas import LabelsIn
from api.serving import LoadedModel
from shared.errors import FAULT_KINDS, Fault, Invalid, NotJSON, RatchetError, SettingsError, TooLarge
from shared.jobs import STEPS
from shared.signature import Feature, Signature

MODEL = cast(
    "LoadedModel",
    SimpleNamespace(
        version=1,
        signature=Signature(
            id=1,
            target="t",
            features=(
                Feature(name="age", kind="numeric", required=True),
                Feature(name="city", kind="categorical"),
            ),
        ),
        scaled_features=({"name": "age"}, {"name": "city=Rome"}),
    ),
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def series(metrics: Metrics, name: str) -> dict[str, float]:
    """What a metric with one label says: the label's value → the sample."""
    return {next(iter(labels.values())): value for labels, value in samples(metrics, name)}


def samples(metrics: Metrics, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and value of each sample of a name, as Prometheus reads them."""
    metrics.flush()
    for family in text_string_to_metric_families(metrics.text().decode()):
        yield from ((sample.labels, sample.value) for sample in family.samples if sample.name == name)


def rejected(metrics: Metrics) -> dict[str, float]:
    """The reasons that were counted."""
    return {name: n for name, n in series(metrics, "ratchet_rejected_rows_total").items() if n}


def kinds(body: dict[str, Any]) -> list[str]:
    """The kinds of a prediction request's faults, in order."""
    with pytest.raises(Invalid) as caught:
        read_query(body, MODEL, max_rows=10)
    return [fault.kind for fault in caught.value.faults]


def test_each_app_counts_for_itself() -> None:
    one, other = Metrics(), Metrics()
    one.rows_answered(3)
    assert list(samples(one, "ratchet_rows_total")) == [({}, 3.0)]
    assert list(samples(other, "ratchet_rows_total")) == [({}, 0.0)]


def test_labels_of_classes_that_no_model_knows_are_one_series() -> None:
    metrics = Metrics()
    metrics.labels_stored(["no"])
    metrics.flush()
    metrics.swapped(1, ["no", "yes"])
    metrics.labels_stored(["yes"])
    metrics.labels_stored(["yes", "no", *(f"made up {n}" for n in range(500)), "yes"])
    assert series(metrics, "ratchet_labels_total") == {"other": 501.0, "no": 1.0, "yes": 3.0}


def test_a_class_keeps_its_series_and_no_more_than_so_many_get_one() -> None:
    metrics = Metrics()
    for version in range(1, 21):
        metrics.swapped(version, [f"class {n}" for n in range(10 * version, 10 * version + 10)])
    metrics.labels_stored([f"class {n}" for n in range(10, 210)])
    found = series(metrics, "ratchet_labels_total")
    assert len(found) == MAX_CLASSES + 1
    assert found.pop("other") == 200 - MAX_CLASSES
    assert set(found.values()) == {1.0}


HOSTILE = ["other", 'a"} 99\n', "\\", "\n# TYPE x counter", "größe", "{", "'", "a" * 200, "\r\n", "\x1b[31m"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_classs_name_stays_a_name(name: str) -> None:
    metrics = Metrics()
    metrics.swapped(1, [name, "plain"])
    metrics.labels_stored([name])
    assert series(metrics, "ratchet_labels_total")[name] == 1.0
    assert series(metrics, "ratchet_labels_total")["plain"] == 0.0


def test_a_faulty_row_counts_once_for_the_first_of_its_faults() -> None:
    metrics = Metrics()
    faults = [
        Fault(detail="", row=0, kind="range"),
        Fault(detail="", row=0, kind="missing"),
        Fault(detail=""),
        Fault(detail="", row=2, kind="range"),
        Fault(detail="", row=1, kind="id"),
    ]
    metrics.rejected(Invalid("", faults=faults))
    assert rejected(metrics) == {"range": 2.0, "id": 1.0}


def test_a_request_refused_without_a_faulty_row_counts_once_for_its_error() -> None:
    metrics = Metrics()
    for error in (NotJSON(""), TooLarge(""), TooLarge(""), Invalid("", faults=[Fault(detail="")])):
        metrics.rejected(error)
    assert rejected(metrics) == {"not_json": 1.0, "too_large": 2.0, "invalid_request": 1.0}


def test_the_reasons_are_a_closed_set_and_all_are_there_from_the_start() -> None:
    metrics = Metrics()
    assert set(series(metrics, "ratchet_rejected_rows_total")) == set(REASONS)
    metrics.rejected(SettingsError("no request is answered with it"))
    assert set(series(metrics, "ratchet_rejected_rows_total")) == set(REASONS)
    assert rejected(metrics) == {"other": 1.0}
    answered = {error for error in _errors(RatchetError) if "status" in vars(error)}
    assert {error.slug() for error in answered if error.__module__ == "shared.errors"} - set(REASONS) == {
        "not_found",  # neither of the two routes says it
        "unusable_data",  # what the command says of a file
    }


def _errors(error: type[RatchetError]) -> Iterator[type[RatchetError]]:
    yield error
    for inherits in error.__subclasses__():
        yield from _errors(inherits)


ROWS: list[tuple[object, list[str]]] = [
    ({}, ["missing"]),
    ({"age": "x"}, ["type"]),
    ({"age": True}, ["type"]),
    ({"age": 1e39}, ["range"]),
    ({"age": 10**400}, ["range"]),
    ({"age": 1, "city": []}, ["type"]),
    ({"age": 1, "city": "x" * 201}, ["range"]),
    ({"age": 1, "city": "\x00"}, ["range"]),
    ({"age": 1, "city": 2**63}, ["range"]),
    ({"age": 1, "town": "Rome"}, ["unknown_feature"]),
    ([], ["type"]),
    ({"city": 1e300, "town": 1}, ["missing", "range", "unknown_feature"]),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_a_fault_of_a_row_has_its_kind(row: object, expected: list[str]) -> None:
    assert kinds({"raw_features": [row]}) == expected


BODIES: list[tuple[dict[str, Any], list[str]]] = [
    ({"inputs": [[1.0]]}, ["type"]),
    ({"inputs": [1]}, ["type"]),
    ({"inputs": [["x", True]]}, ["type", "type"]),
    ({"inputs": [[1e39, -(10**400)]]}, ["range", "range"]),
    ({"raw_features": [{"age": 1}], "true_labels": [""]}, ["label"]),
    ({"raw_features": [{"age": 1}], "true_labels": [7]}, ["label"]),
    ({"raw_features": [{"age": 1}], "true_labels": 7}, ["type"]),
    ({"raw_features": [{"age": 1}] * 2, "ids": ["a", "a"]}, ["id"]),
    ({"raw_features": [{"age": 1}], "ids": [3]}, ["id"]),
    ({"raw_features": [{"age": 1}], "ids": []}, ["other"]),
    ({"raw_features": [{"age": 1}], "model_version": "1"}, ["type"]),
    ({"raw_features": [{"age": 1}], "rows": 1}, ["other"]),
]


@pytest.mark.parametrize(("body", "expected"), BODIES)
def test_a_fault_of_a_request_has_its_kind(body: dict[str, Any], expected: list[str]) -> None:
    assert kinds(body) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"id": "a"}, "missing"),
        ({"id": "a", "true_label": 1}, "label"),
        ({"id": "a", "true_label": ""}, "label"),
        ({"id": "", "true_label": "x"}, "id"),
        ({"prediction_id": "none", "true_label": "x"}, "id"),
        ({"id": "a", "true_label": "x", "more": 1}, "other"),
        ({"true_label": "x"}, "other"),
    ],
)
def test_a_fault_of_a_label_has_its_kind(label: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LabelsIn.model_validate({"labels": [label]})
    faults = [deps._fault(error) for error in caught.value.errors()]
    assert [(fault.kind, fault.row) for fault in faults] == [(expected, 0)]
    assert set(FAULT_KINDS) >= {expected}


def entry(step: int, second: float) -> dict[str, Any]:
    """A line of a job's log."""
    return {"at": (START + timedelta(seconds=second)).isoformat(), "step": step, "note": ""}


def test_a_step_takes_until_the_next_begins_and_one_that_comes_again_adds_up() -> None:
    log = [entry(1, 0), entry(2, 1), entry(8, 3), entry(8, 4), entry(10, 8), entry(11, 9), entry(10, 10)]
    assert step_seconds(log, START + timedelta(seconds=12.5)) == {
        STEPS[0]: 1.0,
        STEPS[1]: 2.0,
        STEPS[7]: 5.0,
        STEPS[9]: 3.5,
        STEPS[10]: 1.0,
    }


def test_only_the_last_attempt_of_a_job_is_timed() -> None:
    log = [entry(1, 0), entry(2, 100), entry(1, 200), entry(3, 201)]
    assert step_seconds(log, START + timedelta(seconds=203)) == {STEPS[0]: 1.0, STEPS[2]: 2.0}
    assert step_seconds([], START) == {}


def test_before_the_first_job_there_is_nothing_to_say_of_it() -> None:
    labels = {"waiting": 0.0, "oldest": 0.0}
    nothing = JobFigures(labels=labels, live=None, active=None, ended={"failed": 0}, trained=None)
    found = {family.name: [sample.value for sample in family.samples] for family in families(nothing)}
    assert found == {
        "ratchet_labels_waiting": [0.0],
        "ratchet_oldest_waiting_label_seconds": [0.0],
        "ratchet_live_version": [0],
        "ratchet_model_age_seconds": [],
        "ratchet_jobs": [0],
        "ratchet_job_active": [False, False],
        "ratchet_job_failures": [0],
        "ratchet_job_step": [0],
        "ratchet_last_job_step_seconds": [],
        "ratchet_last_job_seconds": [],
        "ratchet_last_job_rows": [],
        "ratchet_last_job_f1": [],
    }


def test_many_observations_at_once_are_the_same_as_one_by_one() -> None:
    bounds = (0.001, 0.5, 10.0)
    one, other = (BulkHistogram("h", "", registry=CollectorRegistry(), buckets=bounds) for _ in range(2))
    amounts = [0.0, 0.001, 0.0011, 0.5, 0.7, 10.0, 11.0, 1e9, 0.001]
    for amount in amounts:
        one.observe(amount)
    other.observe_all(iter(amounts))
    other.observe_all([])
    same = [[(s.labels, s.value) for metric in h.collect() for s in metric.samples] for h in (one, other)]
    assert same[0] == same[1]
    assert same[0][-1][1] == sum(amounts)


def test_what_threads_count_while_others_are_added_up_is_not_lost() -> None:
    metrics = Metrics()
    metrics.swapped(1, ["no"])

    def count(_: int) -> None:
        for _ in range(2000):
            metrics.labels_stored(["no", "yes"])

    with ThreadPoolExecutor(4) as pool:
        counting = [pool.submit(count, n) for n in range(4)]
        while not all(done.done() for done in counting):
            metrics.flush()
    assert series(metrics, "ratchet_labels_total") == {"no": 8000.0, "other": 8000.0}
