"""The stack: embedded servers and services, started in order, kept alive, and stopped in order."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from cli import services
from cli.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from cli.lock import HomeLock
from cli.ports import answers, free_port, is_free, listener
from cli.processes import Command, Process, StackError, end_session
from cli.signals import Signals
from cli.state import StackState, admin_key, make_private, names, recorded_state, remove_state, write_state
from cli.watch import BACKOFF, Report, Watched
from shared.settings import Settings, variable

ADMIN = "ratchet-command"
"""Who the admin key of home is, where an admin is named."""
READY_SECONDS = 30.0
LEFT_SECONDS = 12.0
"""What a process left by a killed stack gets to end by itself."""

Commands = Callable[..., Sequence[Command]]


class Stack:
    """Everything that `ratchet up` runs, for as long as the `with` block lasts.

    Entering it takes the lock of `home` and ends what a killed stack left there. Leaving it stops what
    runs: API, beat, workers, Valkey, Postgres. Inside, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt,
    never in the middle of a start or a stop.

    Args:
        settings: says where home is, and which servers are given by URL.
        port: of the API; 0: a free one.
        workers: how many retrain workers.
        flower: whether Flower runs too.
        env: variables of the services, over those of this process.
        report: is told what happens, in words.
        commands: what the services run.
        backoff: seconds before the first restart of a process that died.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        port: int = 0,
        workers: int = 1,
        flower: bool = False,
        env: Mapping[str, str] | None = None,
        report: Report = lambda _: None,
        commands: Commands = services.commands,
        backoff: float = BACKOFF,
    ) -> None:
        self.home = settings.home.resolve()
        self.logs = self.home / "logs"
        self._settings = settings
        self._port = port
        self._workers = workers
        self._flower = flower
        self._env = dict(env or {})
        self._report = report
        self._commands = commands
        self._backoff = backoff
        self._lock = HomeLock(self.home)
        self._watched: list[Watched] = []
        self._signals = Signals()
        self.api_url = ""
        self.database_url = ""
        self.redis_url = ""
        self.admin_key = ""

    def __enter__(self) -> Self:
        self._lock.take()
        try:
            self._end_leftovers()
            self._choose_port()
        except BaseException:
            self._lock.release()
            raise
        self._signals.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.ignore()  # whatever is pressed now, the stop goes on to its end
        try:
            self.stop()
        finally:
            self._lock.release()
            self._signals.restore()

    def start(self) -> None:
        """`start_servers`, then `start_services`."""
        self.start_servers()
        self.start_services()

    def start_servers(self) -> None:
        """Start the servers that no URL is given for, and bring the schema to its head.

        Raises:
            StackError: a server does not start.
        """
        given = self._settings
        make_private(self.logs)
        self.admin_key = admin_key(self.home)
        self.database_url = (
            given.database_url.get_secret_value()
            if given.database_url
            else self._start_server(EmbeddedPostgres(self.home))
        )
        self.redis_url = (
            given.redis_url.get_secret_value()
            if given.redis_url
            else self._start_server(EmbeddedValkey(self.home))
        )
        self._write_state()
        from shared.database import migrate

        migrate(self.database_url)

    def start_services(self) -> None:
        """Start the workers, beat and the API, and wait until the API answers.

        Raises:
            StackError: it does not, or ends; the text has the end of its log.
        """
        for command in self._commands(
            port=self._port,
            workers=self._workers,
            flower=self._flower,
            logs=self.logs,
            cwd=self.home,
            env=self.service_env(),
        ):
            self._start(Watched(command.name, _launcher(command), self._report, backoff=self._backoff))
        self._wait_for_api()

    def is_ready(self) -> bool:
        """Whether the API has a model to predict with."""
        return answers(self._port, "/ready")

    def service_env(self) -> dict[str, str]:
        """The environment of the services: ours, the overrides, where the servers are, and the keys."""
        given = self._settings.admin_keys
        keys = [given.get_secret_value()] if given else []
        return {
            **os.environ,
            **self._env,
            variable("home"): str(self.home),
            variable("database_url"): self.database_url,
            variable("redis_url"): self.redis_url,
            variable("admin_keys"): ",".join([*keys, f"{ADMIN}:{self.admin_key}"]),
            "FLOWER_BASIC_AUTH": f"{services.FLOWER_USER}:{self.admin_key}",
        }

    def poll(self) -> None:
        """Look after every process once.

        Raises:
            StackError: one died too often.
        """
        with self._signals.held():
            for watched in self._watched:
                if watched.check():
                    self._write_state()

    def run(self) -> None:
        """Look after every process until a signal raises KeyboardInterrupt.

        Raises:
            StackError: one died too often.
        """
        while True:
            self.poll()
            time.sleep(0.2)

    def during(self, work: Callable[[], None]) -> None:
        """Do some work in a thread, looking after every process meanwhile; what it raises is raised here."""
        raised: list[BaseException] = []

        def do() -> None:
            try:
                work()
            except BaseException as exc:  # noqa: BLE001 - raised again by the thread that waits
                raised.append(exc)

        # A daemon: a stack that is asked to stop doesn't wait for it.
        thread = threading.Thread(target=do, name="work", daemon=True)
        thread.start()
        while thread.is_alive():
            self.poll()
            thread.join(0.2)
        if raised:
            raise raised[0]

    def stop(self) -> None:
        """Stop everything that runs, in order; what is kept on disk stays."""
        waiting: list[Watched] = []
        for watched in reversed(self._watched):
            if watched.name.startswith(("retrain", "upkeep")) and watched.process is not None:
                watched.process.ask_to_stop()  # all workers at once, then wait for each
                waiting.append(watched)
                continue
            while waiting:
                waiting.pop().stop()
            watched.stop()
        while waiting:
            waiting.pop().stop()
        self._watched.clear()
        remove_state(self.home)

    def remove(self) -> None:
        """Stop everything and delete the data of the embedded servers; no signal interrupts it."""
        self._signals.ignore()
        self.stop()
        for server in (EmbeddedValkey(self.home), EmbeddedPostgres(self.home)):
            server.remove()

    def process(self, name: str) -> Process:
        """A process of the stack, by its name."""
        for watched in self._watched:
            if watched.name == name and watched.process is not None:
                return watched.process
        raise KeyError(name)

    def _start_server(self, server: EmbeddedServer) -> str:
        self._start(Watched(server.name, server.launch, self._report, backoff=self._backoff))
        return server.url

    def _start(self, watched: Watched) -> None:
        with self._signals.held():
            self._watched.append(watched)
            watched.start()
            self._write_state()

    def _write_state(self) -> None:
        records = tuple(watched.process.record for watched in self._watched if watched.process)
        state = StackState(
            api_url=self.api_url, database_url=self.database_url, redis_url=self.redis_url, pids=records
        )
        write_state(self.home, state)

    def _wait_for_api(self) -> None:
        api = next((watched for watched in self._watched if watched.name == services.API), None)
        if api is None:
            return
        deadline = time.monotonic() + READY_SECONDS
        while not answers(self._port, "/health"):
            if api.process is not None and not api.process.is_alive:
                raise StackError(f"the API did not start: {api.process.ending()}\n{api.process.tail()}")
            if time.monotonic() > deadline:
                log = api.process.tail() if api.process else ""
                raise StackError(f"the API did not answer in {READY_SECONDS:.0f} s\n{log}")
            self.poll()
            time.sleep(0.1)

    def _end_leftovers(self) -> None:
        state = recorded_state(self.home)
        if state is None:
            return
        left = []
        for record in reversed(state.pids):
            number = signal.SIGINT if record.name == EmbeddedPostgres.name else signal.SIGTERM
            if end_session(record, grace=LEFT_SECONDS, number=number):
                left.append(record)
        if left:
            self._report(f"ended what a killed stack left behind: {names(left)}")
        remove_state(self.home)

    def _choose_port(self) -> None:
        if self._port == 0:
            self._port = free_port()
        elif not is_free(self._port):
            raise StackError(f"port {self._port} is in use{listener(self._port)}: choose another by --port")
        if self._flower and not is_free(services.FLOWER_PORT):
            raise StackError(
                f"Flower's port {services.FLOWER_PORT} is in use{listener(services.FLOWER_PORT)}"
            )
        self.api_url = f"http://127.0.0.1:{self._port}"


def _launcher(command: Command) -> Callable[[], Process]:
    return lambda: Process(command)
