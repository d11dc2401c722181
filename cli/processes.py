"""One process of the stack: started in a session of its own, watched, and ended with all it forked."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from cli.state import ProcessRecord, make_private
from shared.errors import RatchetError

TAIL_LINES = 20
LOG_LIMIT = 20 * 2**20
"""A log larger than this (bytes) is put aside as `.1` when its process starts."""


class StackError(RatchetError):
    """The stack, or one of its processes, could not start or stay up; the text says why."""

    title = "Stack failed"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a process runs. `stops`: signals to end it with, each with the seconds it gets."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    uid: int | None = None
    gid: int | None = None
    stops: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 15.0),)


class Process:
    """A running command, its output in a log file, out of reach of the terminal's Ctrl-C."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self._asked = False
        _make_room(command.log)
        self._log_start = command.log.stat().st_size if command.log.exists() else 0
        with _open_log(command.log) as log:
            try:
                self._popen: subprocess.Popen[bytes] = subprocess.Popen(
                    command.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(command.env),
                    cwd=command.cwd,
                    start_new_session=True,
                    **_identity(command),
                )
            except (OSError, subprocess.SubprocessError) as exc:
                raise StackError(f"{command.name} could not be started: {exc}") from exc
        self.record = _record(command.name, self._popen.pid)

    @property
    def pid(self) -> int:
        """The process id, also after the end."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """How it ended (negative: by that signal); None while it runs."""
        return self._popen.poll()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.returncode is None

    def ending(self) -> str:
        """How it ended, in words."""
        code = self.returncode
        if code is None:
            return "still runs"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines that this run wrote to its log."""
        return tail(self.command.log, lines, start=self._log_start)

    def ask_to_stop(self) -> None:
        """Send the first of its signals, once: a second one means "at once" to many programs."""
        if not self._asked and self.is_alive:
            self._popen.send_signal(self.command.stops[0][0])
        self._asked = True

    def stop(self) -> None:
        """Ask it to end, wait, insist; then end whatever it forked. Does nothing if all is gone."""
        self.ask_to_stop()
        for position, (number, seconds) in enumerate(self.command.stops):
            if position > 0 and self.is_alive:
                self._popen.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
        if self.is_alive:
            self._popen.kill()
            self._popen.wait()
        end_session(self.record)


def _identity(command: Command) -> dict[str, Any]:
    if command.uid is None:
        return {}
    return {"user": command.uid, "group": command.gid, "extra_groups": [], "umask": 0o077}


def _record(name: str, pid: int) -> ProcessRecord:
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = time.time()
    return ProcessRecord(name=name, pid=pid, started=started)


def _make_room(log: Path) -> None:
    make_private(log.parent)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_name(f"{log.name}.1"))


def _open_log(log: Path) -> IO[bytes]:
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def tail(log: Path, lines: int = TAIL_LINES, *, start: int = 0) -> str:
    """The last lines of a log, nothing before byte `start`; empty if there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def find(record: ProcessRecord) -> psutil.Process | None:
    """The recorded process if it still runs, and not another one under its pid."""
    try:
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.started) > 1.0 or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def session(record: ProcessRecord) -> list[psutil.Process]:
    """What still runs of a recorded process and of those it forked, which share its session."""
    leader = find(record)
    if leader is None and psutil.pid_exists(record.pid) and not _is_zombie(record.pid):
        return []  # the pid is another's now, so the session was empty
    members = [leader] if leader else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if process.pid == record.pid or os.getsid(process.pid) != record.pid:
                continue
            if process.create_time() >= record.started - 1.0 and not _is_zombie(process.pid):
                members.append(process)
    return members


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def end_session(
    record: ProcessRecord, *, grace: float = 0.0, number: signal.Signals = signal.SIGTERM
) -> bool:
    """End what is left of a recorded process: a signal to it, and SIGKILL to all after `grace` seconds.

    Returns:
        Whether anything was left.
    """
    if record.started < psutil.boot_time() - 1.0:
        return False  # the machine has started again since
    members = session(record)
    if not members:
        return False
    leader = find(record)
    if leader is not None and grace > 0:
        with contextlib.suppress(psutil.NoSuchProcess):
            leader.send_signal(number)
        wait_gone([leader], grace)
        members = session(record)
    for process in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_gone(members, 5)
    return True


def wait_gone(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until the processes have ended; a zombie has, whether or not its parent ever asks.

    Returns:
        Those that still run after `seconds`.
    """
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left := [process for process in left if process.is_running() and not _is_zombie(process.pid)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


def working_in(directory: Path, program: str) -> list[psutil.Process]:
    """The processes of that program whose working directory this is."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.name() == program and Path(process.cwd()) == directory:
                found.append(process)
    return found
