"""The monitoring profile: Prometheus' own tool checks its configuration, its alerts and their tests."""

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from api.jobmetrics import SETTLED, JobFigures, JobMetrics, families
from api.metrics import SECONDS, Metrics
from shared.settings import Settings
from tests.compose.engine import ROOT, docker

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds

MONITORING = ROOT / "deploy" / "prometheus"
SOURCE = ROOT / "tests" / "compose" / "images" / "prometheus"
IMAGE = "ratchet-test-prometheus"
Rule = dict[str, Any]
Promtool = Callable[[Path, str], str]


@pytest.fixture(scope="module")
def promtool(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Promtool:
    """Runs a shell script beside promtool in a folder; answers what it printed, errors too."""
    docker("build", "--quiet", "--tag", IMAGE, str(SOURCE))
    key = tmp_path_factory.mktemp("secret") / "metrics_key"
    key.write_text("no key of ours", encoding="utf-8")

    def run(folder: Path, script: str) -> str:
        # as the user of this process: nobody else may read pytest's folders
        user = f"{os.getuid()}:{os.getgid()}"
        mounts = (f"{folder}:/etc/prometheus:ro", f"{key}:/run/secrets/metrics_key:ro")
        volumes = [word for mount in mounts for word in ("--volume", mount)]
        options = ["--rm", "--network=none", f"--user={user}", "--workdir=/etc/prometheus", *volumes]
        return docker("run", *options, "--entrypoint=sh", IMAGE, "-c", f"({script}) 2>&1")

    return run


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the profile, to be broken."""
    return shutil.copytree(MONITORING, tmp_path / "prometheus")


@pytest.mark.parametrize("command", ["check config", "check rules", "test rules"])
def test_promtool_finds_no_fault(promtool: Promtool, command: str) -> None:
    file = {"check config": "prometheus", "check rules": "alerts", "test rules": "alerts_test"}[command]
    assert "SUCCESS" in promtool(MONITORING, f"promtool {command} {file}.yml")


@pytest.mark.parametrize(
    ("file", "old", "new", "command"),
    [
        ("prometheus.yml", "metrics_path:", "metric_path:", "check config prometheus.yml"),
        ("prometheus.yml", "metrics_key", "metrics_kee", "check config prometheus.yml"),
        ("prometheus.yml", "[alerts.yml]", "[alerts.yml, gone.yml]", "check config prometheus.yml"),
        ("alerts.yml", "== 0 or absent(", "== 0 or absence(", "check rules alerts.yml"),
        ("alerts.yml", "humanizePercentage", "humanisePercentage", "check rules alerts.yml"),
        ("alerts.yml", "ratchet_model_fault ==", "ratchet_model_faults ==", "test rules alerts_test.yml"),
    ],
)
def test_promtool_finds_what_is_broken(
    promtool: Promtool, copy: Path, file: str, old: str, new: str, command: str
) -> None:
    text = (copy / file).read_text(encoding="utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert promtool(copy, f"promtool {command} && echo PASSED || echo REFUSED").endswith("REFUSED\n")


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(
    promtool: Promtool, copy: Path
) -> None:
    for name in alerts():
        for kind, groups in altered(name):
            folder = copy / f"{name}-{kind}"
            folder.mkdir()
            (folder / "alerts.yml").write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
            (folder / "alerts_test.yml").write_text(yaml.safe_dump(expecting(name)), encoding="utf-8")
    passed = 'promtool test rules "$f/alerts_test.yml" >/dev/null 2>&1 && echo "$f"'
    survivors = promtool(copy, f"for f in Ratchet*; do {passed}; done; echo END").split()
    assert survivors.pop() == "END"
    originals = {name for name in survivors if name.endswith("-unchanged")}
    assert originals == {f"{name}-unchanged" for name in alerts()}, "the others would fail for another reason"
    assert set(survivors) == originals, "the tests pass although these alerts are broken"


def altered(name: str) -> Iterator[tuple[str, list[Any]]]:
    """The groups of rules with one alert as it is, gone, always firing, or firing without its pause."""
    changes: dict[str, Callable[[Rule], Rule | None]] = {
        "unchanged": lambda rule: rule,
        "gone": lambda _: None,
        "always": lambda rule: {**rule, "expr": "vector(1)", "for": "0s"},
        "hasty": lambda rule: {**rule, "for": "0s"},
    }
    for kind, change in changes.items():
        groups = load("alerts.yml")["groups"]
        for group in groups:
            changed = [change(rule) if rule["alert"] == name else rule for rule in group["rules"]]
            group["rules"] = [rule for rule in changed if rule is not None]
        if kind != "hasty" or "for" in alerts()[name]:
            yield kind, groups


def expecting(name: str) -> dict[str, Any]:
    """promtool's tests that expect an alert."""
    document = load("alerts_test.yml")
    tests = [test for test in document["tests"] if f'alertname="{name}"' in str(test)]
    assert tests, f"no test expects {name}"
    return {**document, "tests": tests}


def test_alerts_use_only_metrics_that_the_api_exports() -> None:
    exported = {metric.name: metric for metric in exports()}
    names = {f"{name}_total" if found.type == "counter" else name for name, found in exported.items()}
    used = [name for rule in alerts().values() for name in re.findall(r"ratchet_\w+", rule["expr"])]
    assert used
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} <= names


def test_alerts_ask_for_values_that_occur() -> None:
    occur = {pair for metric in exports() for sample in metric.samples for pair in sample.labels.items()}
    matchers = [m for rule in alerts().values() for m in re.findall(r'(\w+)[=!]~?"([^"]*)"', rule["expr"])]
    asked = {(label, value) for label, values in matchers for value in values.split("|")}
    known = {pair for pair in asked if pair[0] in {"state", "result", "reason"}}
    assert {label for label, _ in known} == {"state", "result", "reason"}
    assert known <= occur
    assert 0.5 in SECONDS, "RatchetSlow looks at half a second: between two bounds it would be a guess"


def exports() -> list[Metric]:
    """What the API exports while Postgres and Redis are away, and what it reads from an empty Postgres."""
    away = {
        "database_url": SecretStr("postgresql://127.0.0.1:9/x"),
        "redis_url": SecretStr("redis://127.0.0.1:9"),
    }
    own = text_string_to_metric_families(Metrics().text().decode())
    always = asyncio.run(JobMetrics(Settings(**away)).read())
    nothing = JobFigures(
        labels={"waiting": 0, "oldest": 0},
        live=None,
        active=None,
        ended=dict.fromkeys(SETTLED, 0),
        trained=None,
    )
    return [*own, *always, *families(nothing)]


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert rule["annotations"].keys() == {"summary", "description"}, name


def alerts() -> dict[str, Rule]:
    """The alerting rules by name."""
    return {rule["alert"]: rule for group in load("alerts.yml")["groups"] for rule in group["rules"]}


def load(file: str) -> dict[str, Any]:
    """A document of the profile."""
    document: dict[str, Any] = yaml.safe_load((MONITORING / file).read_text(encoding="utf-8"))
    return document
