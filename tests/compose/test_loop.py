"""The loop in containers: labelled traffic until a new version is live on every replica."""

import json
from typing import Any

import httpx
import pytest

from tests.compose.stack import UNSEEN_ROWS, ComposeStack, wait_for

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds


def test_labelled_traffic_makes_a_version_that_every_replica_serves(
    stack: ComposeStack, relearned: int
) -> None:
    assert len(stack.replicas()) == len(stack.api_ports)
    status = stack.api("/retrain/status")
    assert status["labels"]["total"] >= UNSEEN_ROWS
    assert status["labels"]["trained"] >= int(stack.env["RATCHET_THRESHOLD"])


def test_flower_shows_the_job_with_what_came_of_it(stack: ComposeStack, relearned: int) -> None:
    (task, *_) = [
        task for task in stack.flower_tasks(state="SUCCESS") if f"'job_id': {relearned}" in task["kwargs"]
    ]
    assert task["name"] == "ratchet.retrain"
    assert "'trigger': 'threshold'" in task["kwargs"]
    result = task["result"]
    assert "\n" not in result
    assert f"job {relearned}: version " in result
    assert "published" in result
    assert "F1 0." in result


def test_flower_asks_for_its_password(stack: ComposeStack) -> None:
    url = f"http://127.0.0.1:{stack.flower_port}"
    for path in ("/", "/workers", "/api/tasks", "/tasks"):
        assert httpx.get(url + path, trust_env=False).status_code == httpx.codes.UNAUTHORIZED
        assert stack.flower(path).status_code == httpx.codes.OK
    assert httpx.get(f"{url}/healthcheck", trust_env=False).status_code == httpx.codes.OK


def test_flower_remembers_after_it_was_made_anew(stack: ComposeStack, relearned: int) -> None:
    before = {task["uuid"] for task in stack.flower_tasks()}
    stack.compose("rm --stop --force flower")
    stack.compose("up --detach --wait flower")
    assert before
    assert before <= {task["uuid"] for task in stack.flower_tasks()}


def lines_of(stack: ComposeStack, request_id: str) -> list[dict[str, Any]]:
    """What the API has logged about a request."""
    events = [json.loads(line) for line in stack.logs("api").splitlines()]
    return [event for event in events if event.get("request_id") == request_id]


def test_a_request_can_be_followed_through_the_log(stack: ComposeStack) -> None:
    url = stack.replicas()[0]
    answer = httpx.post(
        f"{url}/predict", content=b"{", headers={"X-Request-ID": "followed-1"}, trust_env=False
    )
    assert answer.headers["X-Request-ID"] == "followed-1"
    (line,) = wait_for("its line in the log", lambda: lines_of(stack, "followed-1"))
    assert (line["event"], line["route"], line["status"]) == ("request", "/predict", 400)


def test_every_line_of_a_worker_about_a_job_names_it(stack: ComposeStack, relearned: int) -> None:
    events = [json.loads(line) for line in stack.logs("worker").splitlines()]
    steps = {event["step"] for event in events if event.get("job_id") == relearned and "step" in event}
    assert steps == set(range(1, 12))
    assert all("job_id" in event for event in events if "step" in event or "Task " in event["event"])
