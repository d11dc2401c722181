"""The API as a process of its own, as it runs in production."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from pydantic import SecretStr

from cli.ports import free_port
from cli.processes import Command, Process
from shared.settings import Settings, variable

START_SECONDS = 60.0


def environment(settings: Settings) -> dict[str, str]:
    """The variables that make a process read the same settings."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in given.items()
        if value is not None
    }
    return {"PATH": os.environ["PATH"], **{variable(name): value for name, value in plain.items()}}


@contextmanager
def api_processes(settings: Settings, logs: Path, count: int = 1) -> Iterator[list[str]]:
    """Run so many APIs on the same servers until the block ends; yields their URLs once all are ready."""
    ports = [free_port() for _ in range(count)]
    processes: list[Process] = []
    try:
        processes += [Process(_command(settings, logs, port)) for port in ports]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        deadline = time.monotonic() + START_SECONDS
        for process, url in zip(processes, urls, strict=True):
            while not _ready(url):
                assert process.is_alive, process.tail()
                assert time.monotonic() < deadline, process.tail()
                time.sleep(0.05)
        yield urls
        for process in processes:
            assert process.is_alive, process.tail()
    finally:
        for process in processes:
            process.stop()


def _command(settings: Settings, logs: Path, port: int) -> Command:
    # fmt: off
    argv = [sys.executable, "-m", "uvicorn", "--factory", "api.main:create_app", "--port", str(port),
            "--loop", "uvloop", "--http", "api.protocol:Protocol", "--no-access-log"]
    # fmt: on
    return Command(name="api", argv=argv, log=logs / f"api-{port}.log", env=environment(settings), cwd=logs)


def _ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready", trust_env=False, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
