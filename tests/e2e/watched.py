"""A whole stack with Flower, and what Flower says of each job while it runs and when it has ended."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from cli import services
from cli.ports import free_port
from cli.stack import Stack
from shared.settings import Settings
from tests.chaos.pauses import Pauses
from tests.live import query
from tests.processes import environment

PATIENCE = 90.0


@dataclass(kw_only=True)
class Watched:
    """The stack, a client of its Flower, and what was seen: tasks of each job by what happened to it."""

    stack: Stack
    settings: Settings
    pauses: Pauses
    flower: httpx.Client
    jobs: dict[str, int] = field(default_factory=dict)
    running: dict[str, Any] = field(default_factory=dict)
    page: str = ""

    def ask(self, name: str) -> int:
        """Ask for a job; answers its id."""
        headers = {"Authorization": f"Bearer {self.stack.admin_key}"}
        url = f"{self.stack.api_url}/admin/retrain"
        answer = httpx.post(url, json={"force": True}, headers=headers, trust_env=False)
        assert answer.status_code == 202, answer.text
        self.jobs[name] = answer.json()["job"]["id"]
        return self.jobs[name]

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds; what dies meanwhile is started again."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"never: {what}"
            self.stack.poll()
            time.sleep(0.1)

    def wait_settled(self, job: int) -> None:
        """Wait for a job's end, and until Flower has heard of it."""
        state = f"SELECT finished_at FROM retrain_jobs WHERE id = {job}"
        self.wait_until(lambda: query(self.settings, state)[0]["finished_at"], f"job {job} ends")
        self.wait_until(
            lambda: all(task["state"] not in {"RECEIVED", "STARTED", "PROGRESS"} for task in self.tasks(job)),
            f"Flower hears of the end of job {job}",
        )

    def tasks(self, job: int | None = None) -> list[dict[str, Any]]:
        """What Flower's API lists: all tasks, or those of a job, the oldest first."""
        found = self.flower.get("/api/tasks").json()
        begin = "" if job is None else f"job-{job}-"
        chosen = [task for uuid, task in found.items() if uuid.startswith(begin)]
        return sorted(chosen, key=lambda task: task["sent"] or task["received"])


@contextmanager
def watched(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """The stack until the block ends, once Flower and both workers have met."""
    monkeypatch.setattr(services, "FLOWER_PORT", free_port())
    pauses = Pauses(settings.home / "pauses")
    env = {**environment(settings), **pauses.environment}
    url = f"http://127.0.0.1:{services.FLOWER_PORT}"
    with Stack(settings=settings, flower=True, env=env) as stack:
        stack.start()
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as flower:
            found = Watched(stack=stack, settings=settings, pauses=pauses, flower=flower)
            found.wait_until(lambda: _is_up(flower), "Flower is up")
            flower.auth = (services.FLOWER_USER, stack.admin_key)
            found.wait_until(lambda: len(flower.get("/api/workers?refresh=1").json()) == 2, "both workers")
            yield found


def run_jobs(seen: Watched) -> None:
    """A job that ends well, one whose worker is stopped, one whose process is killed, one that fails."""
    job = seen.ask("published")
    with seen.pauses.at("step-8-progress"):
        seen.wait_until(lambda: "tree" in (seen.tasks(job)[0]["result"] or ""), "Flower hears of a tree")
        uuid = seen.tasks(job)[0]["uuid"]
        seen.running = seen.flower.get(f"/api/task/info/{uuid}").json()
        seen.page = seen.flower.get(f"/task/{uuid}").text
    seen.wait_settled(job)

    job = seen.ask("given back")
    with seen.pauses.at("step-7"):
        os.kill(seen.stack.process("retrain1").pid, signal.SIGTERM)
        seen.wait_until(
            lambda: (
                query(seen.settings, f"SELECT state FROM retrain_jobs WHERE id = {job}")[0]["state"]
                == "queued"
            ),
            "the job is given back",
        )
    seen.wait_settled(job)

    job = seen.ask("killed")
    with seen.pauses.at("step-7") as pid:
        psutil.Process(pid).kill()
    seen.wait_settled(job)

    parts = seen.settings.home / "artifacts" / "parts"
    parts.rename(parts.with_name("aside"))
    parts.write_text("no folder")
    seen.wait_settled(seen.ask("failed"))


def _is_up(flower: httpx.Client) -> bool:
    try:
        return flower.get("/healthcheck").text == "OK"
    except httpx.TransportError:
        return False
