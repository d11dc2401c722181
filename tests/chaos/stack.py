"""Two APIs, two training workers, upkeep and beat on servers of their own; what dies is started again."""

import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from cli.data import plans
from cli.embedded import EmbeddedPostgres, EmbeddedValkey
from cli.ports import free_port
from cli.processes import Command, Process
from cli.services import API, commands
from shared.database import make_engine, make_sessions, migrate
from shared.settings import Settings
from tests.chaos.pauses import Pauses
from tests.conftest import BOOTSTRAP_ROWS, TARGET, make_context, make_settings
from tests.live import query
from tests.processes import environment
from tests.proxy import Proxy, proxied
from worker.bootstrap import bootstrap
from worker.inference import infer
from worker.retrain import run_job

WORKERS = ("retrain1", "retrain2")
APIS = ("api", "api2")
RESTART_SECONDS = 0.5
START_SECONDS = 90.0
STORE_BYTES = 64 * 2**20
QUICK: dict[str, Any] = {
    "threshold": 40,
    "iterations": 30,
    "window": 1000,
    "gate_tolerance": 1.0,
    "keep_versions": 100,
    "lease_seconds": 3.0,
    "renew_seconds": 0.5,
    "sweep_seconds": 0.5,
    "reconcile_seconds": 1.0,
    "pause_minutes": 0.02,
    "log_level": "info",
}
"""Short leases and pauses, small models, every challenger live: a job takes seconds."""


class Stack:
    """Runs until the block ends; a process that dies is started again, as a supervisor would."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._exit = ExitStack()
        self._keeping = threading.Event()
        self._lock = threading.Lock()
        self._processes: dict[str, Process] = {}
        self.kills: list[tuple[str, float]] = []
        self.deaths: list[str] = []
        self.spoiled = threading.Event()
        self.postgres, self.valkey = EmbeddedPostgres(home), EmbeddedValkey(home)
        self.pauses = Pauses(home / "pauses")
        self.ports = {name: free_port() for name in APIS}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @property
    def urls(self) -> list[str]:
        """Where the APIs answer."""
        return [f"http://127.0.0.1:{port}" for port in self.ports.values()]

    @property
    def names(self) -> list[str]:
        """Every process that is kept alive."""
        return list(self._processes)

    def end(self, name: str) -> None:
        """Ask a process to stop, as its supervisor does; it is started again."""
        self.kills.append((name, time.monotonic()))
        self._processes[name].ask_to_stop()

    def kill(self, name: str) -> None:
        """End a process at once, as a lack of memory does; it is started again."""
        self.kills.append((name, time.monotonic()))
        os.kill(self.pid(name), signal.SIGKILL)

    @property
    def artifacts(self) -> Path:
        """The folder of the store."""
        return self._home / "artifacts"

    def pid(self, name: str) -> int:
        """The process of that name as it runs now."""
        return self._processes[name].pid

    def query(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Ask Postgres, which must be up."""
        return query(self.settings, statement, *values)

    def ready(self) -> list[dict[str, Any]]:
        """What each API says of itself; {} for one that doesn't answer."""
        found = []
        for url in self.urls:
            try:
                found.append(httpx.get(url + "/ready", trust_env=False, timeout=10).json())
            except httpx.TransportError:
                found.append({})
        return found

    def live(self) -> dict[str, Any]:
        """The live version's row."""
        (live,) = self.query(
            "SELECT * FROM model_versions WHERE version ="
            " (SELECT champion FROM deployments ORDER BY id DESC LIMIT 1)"
        )
        return live

    def logs(self, name: str) -> str:
        """All that a process has logged."""
        return (self._home / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _start(self) -> None:
        for server in (self.postgres, self.valkey):
            self._exit.callback(server.remove)
        database = self.postgres.start()
        self.is_mounted = self._mount()
        self.redis_line: Proxy = self._exit.enter_context(proxied(self.valkey.start()))
        self.settings = make_settings(database, self.redis_line.url, self._home, **QUICK)
        migrate(database)
        _first_model(self.settings)
        self._exit.callback(self._stop)
        for command in self._commands():
            self._processes[command.name] = Process(command)
        threading.Thread(target=self._keep, name="keeper").start()
        deadline = time.monotonic() + START_SECONDS
        while [found.get("model_version") for found in self.ready()] != [1] * len(APIS):
            assert time.monotonic() < deadline, "\n".join(p.tail() for p in self._processes.values())
            time.sleep(0.1)

    def _mount(self) -> bool:
        """Give the store a small file system of its own, which can be filled, where the machine lets us."""
        self.artifacts.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES},mode=700", "tmpfs", self.artifacts],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0:
            self._exit.callback(subprocess.run, ["umount", "--lazy", self.artifacts], check=True)
        return made.returncode == 0

    def _commands(self) -> list[Command]:
        env = environment(self.settings) | self.pauses.environment
        found = []
        for name, port in self.ports.items():
            made = commands(
                port=port,
                workers=len(WORKERS),
                flower=False,
                logs=self._home / "logs",
                cwd=self._home,
                env=env,
            )
            found += [
                replace(command, name=name, log=command.log.with_name(f"{name}.log"))
                for command in made
                if command.name == API
            ]
        return [*found, *(command for command in made if command.name != API)]

    def _keep(self) -> None:
        while not self._keeping.wait(RESTART_SECONDS):
            with self._lock:
                for name, process in self._processes.items():
                    if not process.is_alive and not self._keeping.is_set():
                        self.deaths.append(name)
                        process.stop()  # what it forked may have outlived it
                        self._processes[name] = Process(process.command)

    def _stop(self) -> None:
        self._keeping.set()
        with self._lock:
            for process in reversed(self._processes.values()):
                for member in _family(process.pid):  # one that a test froze can't end
                    member.send_signal(signal.SIGCONT)
                process.ask_to_stop()
            for process in reversed(self._processes.values()):
                process.stop()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _first_model(settings: Settings) -> None:
    assert settings.database_url is not None
    engine = make_engine(settings.database_url.get_secret_value(), name="first model")
    context = make_context(settings, make_sessions(engine))
    frame = plans(BOOTSTRAP_ROWS)
    job = bootstrap(frame, infer(frame, target=TARGET), sessions=context.sessions, store=context.store)
    assert "version 1 published" in run_job(job, context)
    context.redis.close()
    context.celery.close()
    engine.dispose()
