"""What a container may do, and what it tells: no more than it must."""

import json
from typing import Any

import pytest

from tests.compose.engine import docker
from tests.compose.stack import ComposeStack
from tests.compose.test_images import SECRETS

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds

OURS = ("api", "worker", "upkeep", "beat", "flower")
SERVERS = ("postgres", "redis")
WRITABLE = {"worker": "/var/lib/ratchet", "upkeep": "/var/lib/ratchet", "flower": "/var/lib/flower"}


def only(stack: ComposeStack, service: str) -> str:
    """The first container of a service."""
    return stack.containers(service)[0]


@pytest.mark.parametrize("service", OURS)
def test_it_can_write_nowhere_but_where_it_must(stack: ComposeStack, service: str) -> None:
    container = only(stack, service)
    mine = WRITABLE.get(service)
    for place in ("/", "/etc", "/opt/ratchet", "/usr/local", "/var/lib/ratchet", "/var/lib/flower", "/home"):
        said = docker(
            "exec", container, "sh", "-c", f"touch {place}/x && rm {place}/x && echo written", check=False
        )
        assert ("written" in said) == (place == mine), f"{place}: {said}"
    assert "written" in docker("exec", container, "sh", "-c", "touch /tmp/x && rm /tmp/x && echo written")


@pytest.mark.parametrize("service", OURS)
def test_it_has_no_rights(stack: ComposeStack, service: str) -> None:
    lines = docker("exec", only(stack, service), "cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("service", [*OURS, *SERVERS])
def test_it_comes_back_and_its_log_ends_somewhere(stack: ComposeStack, service: str) -> None:
    host: dict[str, Any] = stack.inspect(only(stack, service))["HostConfig"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}


@pytest.mark.parametrize("service", [*OURS, *SERVERS])
def test_only_the_api_and_flower_are_there_for_this_host(stack: ComposeStack, service: str) -> None:
    ports = stack.inspect(only(stack, service))["NetworkSettings"]["Ports"]
    published = {entry["HostIp"] for entries in ports.values() if entries for entry in entries}
    assert published == ({"127.0.0.1"} if service in ("api", "flower") else set())


@pytest.mark.parametrize("service", ["worker", "upkeep", "beat", *SERVERS])
def test_what_serves_nobody_outside_has_no_way_out(stack: ComposeStack, service: str) -> None:
    networks = stack.inspect(only(stack, service))["NetworkSettings"]["Networks"]
    assert set(networks) == {f"{stack.project}_inside"}
    assert docker("network", "inspect", "--format", "{{.Internal}}", *networks).strip() == "true"


def test_redis_refuses_who_has_no_password_and_loses_nothing(stack: ComposeStack) -> None:
    redis = only(stack, "redis")
    asked = ("exec", "--env", "REDISCLI_AUTH=", redis, "redis-cli")
    assert "NOAUTH" in docker(*asked, "ping")
    for name, value in (("appendonly", "yes"), ("maxmemory-policy", "noeviction")):
        assert docker("exec", redis, "redis-cli", "config", "get", name).split() == [name, value]
    commands = docker("top", redis, "-o", "pid,args")
    assert stack.secret("REDIS_PASSWORD") not in commands


def test_no_secret_is_in_a_log_or_on_a_command_line(stack: ComposeStack) -> None:
    logs = "\n".join(stack.logs(service) for service in (*OURS, *SERVERS))
    assert "serving a version" in logs
    lines = "".join(docker("top", name, "-o", "pid,args") for name in stack.compose("ps --quiet").split())
    assert "uvicorn" in lines
    for name in SECRETS:
        assert stack.secret(name) not in logs, name
        assert stack.secret(name) not in lines, name


@pytest.mark.parametrize("service", OURS)
def test_every_line_it_logs_is_one_event_in_json(stack: ComposeStack, service: str) -> None:
    events = [json.loads(line) for line in stack.logs(service).splitlines()]
    assert events
    assert all({"event", "level", "timestamp"} <= set(event) for event in events)
