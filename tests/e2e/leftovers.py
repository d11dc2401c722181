"""Processes with distinctive passwords and keys, and the places where they may leave one."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg
from psycopg import sql
from pydantic import SecretStr

from cli.ports import free_port
from cli.processes import Process
from cli.services import commands
from shared.counter import connect
from shared.queue import make_celery
from shared.settings import Settings
from tests.conftest import Servers
from tests.processes import environment

SECRETS = {
    "password of Postgres": "pg-b41d7c",
    "password of Redis": "redis-8e02fa",
    "admin key": "admin-55d0c3",
    "API key": "api-c97e21",
    "wrong password of Postgres": "wrongpg-1f6a",
    "wrong password of Redis": "wrongredis-77b",
    "key that a client sent": "sent-e3ac90",
}
ROLE = "secrets_test"
PATIENCE = 60.0


class Left:
    """What the processes left behind, by the place where it was found."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, place: str, text: object) -> None:
        """Keep a text; several of one place follow one another."""
        self.texts[place] = self.texts.get(place, "") + f"{text}\n"

    def under(self, begin: str) -> str:
        """All texts of the places whose name begins so."""
        return "".join(text for place, text in self.texts.items() if place.startswith(begin))


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


def holds(log: Path, word: str) -> bool:
    """Whether a log says that word by now."""
    return word in log.read_text("utf-8", "replace")


def with_user(url: str, password: str) -> SecretStr:
    """The same server, as our own user."""
    parts = urlsplit(url)
    return SecretStr(parts._replace(netloc=f"{ROLE}:{password}@{parts.netloc.rpartition('@')[2]}").geturl())


@contextmanager
def users(servers: Servers) -> Iterator[None]:
    """A user in both servers whose password is distinctive."""
    role = sql.Identifier(ROLE)
    with psycopg.connect(servers.postgres, autocommit=True) as postgres, connect(servers.redis) as redis:
        password = sql.Literal(SECRETS["password of Postgres"])
        postgres.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(role, password))
        redis.execute_command(f"ACL SETUSER {ROLE} on >{SECRETS['password of Redis']} ~* &* +@all")
        redis.flushall()
        try:
            yield
        finally:
            redis.execute_command("ACL", "DELUSER", ROLE)
            postgres.execute(sql.SQL("DROP ROLE {}").format(role))


@contextmanager
def events(settings: Settings, left: Left) -> Iterator[None]:
    """Every event that the workers send, as Flower sees it."""
    done = threading.Event()
    celery = make_celery(settings)

    def listen() -> None:
        with celery.connection() as connection:
            receiver = celery.events.Receiver(
                connection, handlers={"*": lambda event: left.add(f"events {event['type']}", event)}
            )
            while not done.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)
                except TimeoutError:
                    continue

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(20)
        celery.close()


@contextmanager
def stack(settings: Settings, left: Left, name: str, *, without: tuple[str, ...] = ()) -> Iterator[str]:
    """The stack's own processes on these settings, until the block ends; yields the API's URL."""
    logs, port = settings.home / name, free_port()
    env = environment(settings)
    wanted = commands(port=port, workers=1, flower=False, logs=logs, cwd=settings.home, env=env)
    running: list[Process] = []
    try:
        running += [Process(one) for one in wanted if one.name not in without]
        yield f"http://127.0.0.1:{port}"
        for one in running:
            assert one.is_alive, one.tail()
            for process in (member := psutil.Process(one.pid), *member.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # a child that has just ended
                    left.add(f"command line {one.command.name}", " ".join(process.cmdline()))
    finally:
        for one in running:
            one.ask_to_stop()
        for one in running:
            one.stop()
            left.add(f"log {name} {one.command.name}", one.command.log.read_text("utf-8", "replace"))


class Caller:
    """A client whose every answer is kept."""

    def __init__(self, url: str, left: Left) -> None:
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self._left = left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def send(self, method: str, path: str, key: str | None = "API key", **more: Any) -> httpx.Response:
        """Send a request with one of the secrets as its key."""
        headers = {"Authorization": f"Bearer {SECRETS[key]}"} if key else {}
        response = self.client.request(method, path, headers=headers, **more)
        self._left.add(
            f"answer {method} {path}", f"{response.status_code} {response.headers} {response.text}"
        )
        return response

    def answers(self) -> bool:
        """Whether the API is ready."""
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False
