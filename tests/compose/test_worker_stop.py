"""`docker stop` of a worker that trains: the job waits, nothing is counted against it, and it ends well."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compose.engine import docker
from tests.compose.stack import ComposeStack, wait_for

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds

TRAINING = 8
"""The number of the step that takes long."""


@pytest.fixture
def slow(stack: ComposeStack) -> Iterator[ComposeStack]:
    """The stack with one worker that trains for a while, on threads as its quota says."""
    quick = stack.env["RATCHET_ITERATIONS"]
    workers = len(stack.containers("worker"))
    stack.env["RATCHET_ITERATIONS"] = "1000"
    stack.compose("up --detach --wait --no-deps --scale worker=1 worker")
    yield stack
    stack.env["RATCHET_ITERATIONS"] = quick
    stack.compose(f"up --detach --wait --no-deps --scale worker={workers} worker")


def ask(stack: ComposeStack, reason: str) -> int:
    """Ask for a job; answers its id."""
    key = stack.secret("RATCHET_ADMIN_KEYS")
    answer = stack.api("/admin/retrain", {"force": True, "reason": reason}, key=key)
    job: dict[str, Any] = answer["job"]
    return int(job["id"])


def job(stack: ComposeStack, number: int) -> dict[str, Any]:
    """A job as the API shows it."""
    found: dict[str, Any] = stack.api(f"/retrain/jobs/{number}")
    return found


def shown(stack: ComposeStack, number: int) -> bool:
    """Whether Flower shows the job's step and how much of the whole is done."""
    tasks = stack.flower_tasks(state="PROGRESS")
    said = [task["result"] for task in tasks if f"'job_id': {number}" in task["kwargs"]]
    return any(re.search(rf"\d+%: step {TRAINING}/12 .* tree \d+ of", text) for text in said)


def test_a_job_survives_the_stop_of_its_worker(slow: ComposeStack) -> None:
    number = ask(slow, "to be stopped")
    wait_for("the job trains", lambda: job(slow, number)["step_number"] == TRAINING)
    wait_for("Flower shows how far it is", lambda: shown(slow, number))
    (worker,) = slow.containers("worker")
    docker("stop", worker)
    state = slow.inspect(worker)["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    stopped = job(slow, number)
    assert (stopped["state"], stopped["failures"]) == ("queued", 0)
    docker("start", worker)
    wait_for("the job ends", lambda: job(slow, number)["finished_at"], seconds=240)
    ended = job(slow, number)
    assert (ended["state"] in ("succeeded", "rejected"), ended["failures"]) == (True, 0)


def test_training_takes_as_many_threads_as_its_quota_has_cores(slow: ComposeStack) -> None:
    (worker,) = slow.containers("worker")
    cores = docker("exec", worker, "python", "-c", "from shared.cores import cores; print(cores())")
    assert cores.strip() == "2"  # 1.5, rounded up
    limits = slow.inspect(worker)["HostConfig"]
    assert (limits["NanoCpus"], limits["Memory"]) == (1_500_000_000, 2 * 2**30)
