"""Flower as `ratchet up --flower` runs it, and the lines that every process of that stack writes."""

import html
import io
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import psutil
import pytest
from rich.console import Console

from cli.up import _introduce
from tests.conftest import Servers, Trained
from tests.e2e.leftovers import SECRETS, users, with_user
from tests.e2e.watched import Watched, run_jobs, watched
from tests.live import trained_settings

QUICK = {
    "log_level": "info",
    "gate_tolerance": 1.0,
    "iterations": 20,
    "lease_seconds": 2.0,
    "renew_seconds": 0.5,
    "sweep_seconds": 1.0,
    "threshold": 10**9,
}
OURS = ("retrain1", "upkeep", "beat", "flower", "api")
PAGES = ("/", "/workers", "/tasks", "/broker", "/worker/retrain1@{host}", "/worker/upkeep@{host}")
API = (
    "/api/workers?refresh=1", "/api/workers?status=1", "/api/tasks", "/api/task/types", "/api/queues/length",
    "/metrics",
)  # fmt: skip


@pytest.fixture(scope="module")
def seen(servers: Servers, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A stack that has run four jobs; its servers' passwords are distinctive, and it is still up."""
    home = tmp_path_factory.mktemp("watched")
    with (
        users(servers),
        trained_settings(servers, trained, home, **QUICK) as direct,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        assert direct.database_url is not None
        assert direct.redis_url is not None
        urls = {
            "database_url": with_user(
                direct.database_url.get_secret_value(), SECRETS["password of Postgres"]
            ),
            "redis_url": with_user(direct.redis_url.get_secret_value(), SECRETS["password of Redis"]),
        }
        with watched(direct.model_copy(update=urls), monkeypatch) as found:
            run_jobs(found)
            yield found


def lines(seen: Watched, name: str) -> list[dict[str, Any]]:
    """A process' log; every line of it must be an event."""
    text = (seen.stack.logs / f"{name}.log").read_text(encoding="utf-8")
    return [orjson.loads(line) for line in text.splitlines()]


def last(seen: Watched, name: str) -> dict[str, Any]:
    """The task that ended the job."""
    tasks = [task for task in seen.tasks(seen.jobs[name]) if "nothing to do" not in (task["result"] or "")]
    return next(task for task in reversed(tasks) if task["state"] in {"SUCCESS", "FAILURE"})


def test_the_admin_key_opens_flower_and_nothing_else_does(seen: Watched) -> None:
    key = seen.stack.admin_key
    closed = ("/", "/tasks", "/broker", "/api/tasks", "/api/workers")
    with httpx.Client(base_url=seen.flower.base_url, trust_env=False) as client:
        for auth in (None, ("admin", "wrong"), ("admin", ""), ("other", key)):
            assert [client.get(path, auth=auth).status_code for path in closed] == [401] * len(closed), auth
        shutdown = client.post("/api/worker/shutdown/retrain1@host")
        assert shutdown.status_code == 401
        assert client.get("/healthcheck").text == "OK"
        assert [client.get(path, auth=("admin", key)).status_code for path in closed] == [200] * len(closed)


def test_a_job_is_named_with_its_arguments(seen: Watched) -> None:
    for name, job in seen.jobs.items():
        tasks = seen.tasks(job)
        assert tasks, name
        for task in tasks:
            assert task["name"] in {"ratchet.retrain", None}  # None: sent, and never received
            assert (task["kwargs"] or f"'job_id': {job}, 'trigger': 'admin'").strip("{}") == (
                f"'job_id': {job}, 'trigger': 'admin'"
            )


def test_a_running_job_shows_its_step_and_how_far_it_is(seen: Watched) -> None:
    # 2 trees of 20 in step 8 of 12
    text = "59%: step 8/12 balance and train, tree 2 of 20"
    assert seen.running["result"] == text
    assert (seen.running["name"], seen.running["state"]) == ("ratchet.retrain", "PROGRESS")
    assert seen.running["received"] <= seen.running["started"]
    assert seen.running["sent"]
    assert text in seen.page
    assert "ratchet.retrain" in seen.page


def test_an_ended_job_shows_its_version_verdict_and_f1(seen: Watched) -> None:
    task = last(seen, "published")
    assert task["state"] == "SUCCESS"
    assert f"job {seen.jobs['published']}: version 2 published: weighted F1 0." in task["result"]
    assert "against the champion" in task["result"]
    assert task["result"] in html.unescape(seen.flower.get(f"/task/{task['uuid']}").text)


def test_a_job_that_was_given_back_says_so_and_the_next_message_finished_it(seen: Watched) -> None:
    first = seen.tasks(seen.jobs["given back"])[0]
    assert first["result"] == "given back: this worker was asked to stop, and the job waits for another"
    assert first["state"] == "CANCELLED"
    assert "version 3 published" in last(seen, "given back")["result"]


def test_a_job_whose_process_was_killed_says_so_and_another_finished_it(seen: Watched) -> None:
    (lost,) = (task for task in seen.tasks(seen.jobs["killed"]) if task["state"] == "FAILURE")
    assert lost["result"].startswith("lost, to be taken over when its lease has run out: Worker exited")
    assert "SIGKILL" in lost["result"]
    assert "version 4 published" in last(seen, "killed")["result"]


def test_a_job_that_failed_shows_each_error_and_that_it_was_the_last(seen: Watched) -> None:
    failures = [task for task in seen.tasks(seen.jobs["failed"]) if task["state"] == "FAILURE"]
    assert all("FileExistsError" in task["exception"] for task in failures)
    said = [task["result"].partition(": ")[0] for task in failures]
    assert said == ["failed, to be tried again", "failed, to be tried again", "failed, for the last time"]


def test_nothing_but_jobs_is_in_the_history(seen: Watched) -> None:
    """Sweeps, one every few seconds, would soon have driven the jobs out."""
    assert all(task["uuid"].startswith("job-") for task in seen.tasks())
    assert [line for line in lines(seen, "upkeep") if "job_id" in line], "upkeep did sweep"


def test_no_password_is_in_flowers_pages_and_answers(seen: Watched) -> None:
    workers = seen.flower.get("/api/workers?refresh=1").json()
    (host,) = {name.partition("@")[2] for name in workers}
    task = last(seen, "failed")["uuid"]
    for path in (*PAGES, *API, f"/task/{task}", f"/api/task/info/{task}"):
        answer = seen.flower.get(path.format(host=host))
        assert answer.status_code == httpx.codes.OK, path
        for what in ("password of Postgres", "password of Redis"):
            assert SECRETS[what] not in answer.text, (path, what)
        assert seen.stack.admin_key not in answer.text, path
    assert "broker_url" in seen.flower.get(f"/worker/retrain1@{host}").text, "it would be there"
    assert ":**@" in seen.flower.get("/broker").text


@pytest.mark.parametrize("name", OURS)
def test_every_line_of_every_process_is_one_event(seen: Watched, name: str) -> None:
    found = lines(seen, name)
    assert found
    for line in found:
        assert {"event", "level", "logger", "timestamp"} <= line.keys(), line


def test_every_line_about_a_job_names_it(seen: Watched) -> None:
    about = [
        line
        for line in lines(seen, "retrain1")
        if line["logger"].startswith(("worker.", "celery.app.trace", "celery.worker.strategy"))
    ]
    assert {line["job_id"] for line in about} == set(seen.jobs.values())
    events = [line["event"] for line in about]
    for event in (
        "step",
        "asked to stop; the job is back in the queue",
        "the training process is lost",
        "job failed",
    ):
        assert event in events
    for kind in ("received", "succeeded", "raised unexpected"):
        assert any(f"] {kind}" in event for event in events), kind


def test_a_failures_traceback_is_within_its_line(seen: Watched) -> None:
    failed = [line for line in lines(seen, "retrain1") if "] raised unexpected" in line["event"]]
    assert len(failed) == 3
    assert all("Traceback" in line["exception"] for line in failed)


def test_up_says_where_flower_is_and_which_key_opens_it(seen: Watched) -> None:
    said = io.StringIO()
    _introduce(seen.stack, Console(file=said, width=200), flower=True)
    assert ", user admin, password: the admin key\n" in said.getvalue()
    assert seen.stack.admin_key not in said.getvalue()


def test_the_key_is_not_on_flowers_command_line(seen: Watched) -> None:
    process = psutil.Process(seen.stack.process("flower").pid)
    assert seen.stack.admin_key not in " ".join(process.cmdline())
    assert process.environ()["FLOWER_BASIC_AUTH"] == f"admin:{seen.stack.admin_key}"
