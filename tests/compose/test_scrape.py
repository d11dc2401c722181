"""A real Prometheus in the stack scrapes every replica, with the key that only it has."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.compose.engine import ROOT, docker
from tests.compose.stack import ComposeStack, wait_for

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds
IMAGE = "ratchet-test-prometheus"
SOURCE = ROOT / "tests" / "compose" / "images" / "prometheus"


@pytest.fixture(scope="module")
def monitored(stack: ComposeStack) -> Iterator[ComposeStack]:
    """The stack with the profile `monitoring`, on an image that needs no registry."""
    docker("build", "--quiet", "--tag", IMAGE, str(SOURCE))
    stack.env["PROMETHEUS_IMAGE"] = IMAGE
    stack.compose("--profile monitoring up --detach --wait --no-deps prometheus")
    yield stack
    stack.compose("--profile monitoring rm --stop --force prometheus")


def ask(stack: ComposeStack, path: str, **parameters: str) -> Any:
    """What Prometheus answers."""
    url = f"http://127.0.0.1:{stack.prometheus_port}/api/v1/{path}"
    try:
        answer = httpx.get(url, params=parameters, timeout=10, trust_env=False).json()
    except httpx.TransportError:  # it is about to listen
        return None
    return answer["data"]


def values(stack: ComposeStack, query: str) -> list[float]:
    """What a query finds, one figure a series."""
    found = ask(stack, "query", query=query) or {"result": []}
    return [float(series["value"][1]) for series in found["result"]]


def test_every_replica_is_scraped_and_tells_the_same_version(monitored: ComposeStack) -> None:
    replicas = len(monitored.replicas())
    wait_for(
        "every replica is up",
        lambda: values(monitored, 'count(up{job="ratchet"} == 1)') == [replicas],
        seconds=90,
    )
    (version,) = monitored.versions()
    assert version is not None
    assert values(monitored, "ratchet_model_version") == [version] * replicas
    assert values(monitored, "ratchet_live_version") == [version] * replicas
    assert values(monitored, "ratchet_database_up") == [1.0] * replicas


def test_requests_are_counted_over_replicas_and_processes(monitored: ComposeStack) -> None:
    counted = "sum(ratchet_rows_total)"
    wait_for("a first scrape", lambda: values(monitored, counted), seconds=60)
    before = sum(_rows(monitored, url) for url in monitored.replicas())
    monitored.send_labelled(120, start=9000)
    after = sum(_rows(monitored, url) for url in monitored.replicas())
    assert after - before == 120
    wait_for("the next scrape", lambda: values(monitored, counted) == [after], seconds=60)


def test_the_rules_are_loaded_and_nothing_is_wrong(monitored: ComposeStack) -> None:
    groups = wait_for("the rules", lambda: (ask(monitored, "rules") or {}).get("groups"))
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 5
    wait_for(
        "every rule was evaluated",
        lambda: all(
            rule["health"] == "ok" for group in ask(monitored, "rules")["groups"] for rule in group["rules"]
        ),
        seconds=90,
    )
    firing = [alert["labels"]["alertname"] for alert in ask(monitored, "alerts")["alerts"]]
    assert "RatchetNoModel" not in firing


def test_nobody_else_reads_them(monitored: ComposeStack) -> None:
    url = f"{monitored.replicas()[0]}/metrics"
    assert httpx.get(url, trust_env=False).status_code == httpx.codes.UNAUTHORIZED
    wrong = {"Authorization": "Bearer wrong"}
    assert httpx.get(url, headers=wrong, trust_env=False).status_code == httpx.codes.FORBIDDEN


def _rows(stack: ComposeStack, url: str) -> float:
    key = {"Authorization": f"Bearer {stack.secret('METRICS_KEY')}"}
    lines = httpx.get(f"{url}/metrics", headers=key, trust_env=False).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("ratchet_rows_total"))
