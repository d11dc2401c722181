"""What the services of a stack run: the API, the Celery workers, beat and Flower."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import shared
from cli.processes import Command

API = "api"
FLOWER_PORT = 5555
FLOWER_USER = "admin"
"""Whose password is in the variable FLOWER_BASIC_AUTH, as `user:password`."""


def commands(
    *, port: int, workers: int, flower: bool, logs: Path, cwd: Path, env: Mapping[str, str]
) -> list[Command]:
    """The services in the order in which they start; they stop in the opposite one.

    Args:
        port: where the API listens on 127.0.0.1.
        workers: how many retrain workers; there is always one job at a time.
        flower: whether Flower watches.
        logs: where each writes `<name>.log`.
        cwd: where they work. Not the user's directory: a package `api` there would be taken for ours.
        env: their whole environment.
    """

    def service(name: str, *arguments: str, grace: float = 15.0, **more: str) -> Command:
        return Command(
            name=name,
            argv=[sys.executable, "-m", *arguments],
            log=logs / f"{name}.log",
            env={**env, **more},
            cwd=cwd,
            stops=((signal.SIGTERM, grace),),
        )

    def worker(name: str, queue: str, *more: str) -> Command:
        # SIGTERM as SIGQUIT: a soft shutdown, in which a task that trains gives its job back.
        return service(name, *_celery_worker(name, queue), *more, grace=20.0, REMAP_SIGTERM="SIGQUIT")

    # fmt: off
    # One task a child: training's memory goes back to the system when its process ends.
    one_task = ("--max-tasks-per-child", "1")
    found = [worker(f"retrain{number}", "retrain", *one_task) for number in range(1, workers + 1)]
    # Light tasks in one process: a pool's child can hang for good when Redis drops the line as it answers.
    found.append(worker("upkeep", "upkeep", "--pool", "solo"))
    if flower:
        found.append(service("flower", "celery", "-A", "worker.app", "flower",
                             f"--port={FLOWER_PORT}", "--address=127.0.0.1"))
    found.append(service("beat", "celery", "-A", "worker.app", "-q", "beat",
                         "--scheduler", "celery.beat:Scheduler"))
    found.append(service(API, *_uvicorn(port)))
    # fmt: on
    return found


def _celery_worker(name: str, queue: str) -> tuple[str, ...]:
    # quiet: no banner, whose lines are no events
    start = ("celery", "-A", "worker.app", "-q", "worker", "-Q", queue)
    return (*start, "--concurrency", "1", "-n", f"{name}@%h")


def _uvicorn(port: int) -> tuple[str, ...]:
    # fmt: off
    return (
        "uvicorn", "--factory", "api.main:create_app", "--host", "127.0.0.1", "--port", str(port),
        "--loop", "uvloop", "--http", "api.protocol:Protocol", "--no-access-log",
        "--timeout-graceful-shutdown", "10",
        "--log-config", str(Path(shared.__file__).with_name("uvicorn.json")),
    )
    # fmt: on
