"""What a running stack leaves on disk for the other commands."""

import fcntl
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

STATE = "stack.json"
LOCK = "lock"
ADMIN_KEY = "admin.key"


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """A process of the stack. Its start time (seconds since the epoch) tells it from a later one
    under the same pid."""

    name: str
    pid: int
    started: float


@dataclass(frozen=True, kw_only=True)
class StackState:
    """Where a running stack answers, and its processes in the order they were started."""

    api_url: str
    database_url: str
    redis_url: str
    pids: tuple[ProcessRecord, ...] = ()


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 that is there whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is none or it can't be understood."""
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def write_state(home: Path, state: StackState) -> None:
    """Keep the state in `home`."""
    write_private(home / STATE, orjson.dumps(asdict(state), option=orjson.OPT_INDENT_2))


def remove_state(home: Path) -> None:
    """The stack has stopped: nothing is left to find."""
    (home / STATE).unlink(missing_ok=True)


def recorded_state(home: Path) -> StackState | None:
    """The state that is written down, whether its stack still runs or was killed."""
    found = read_object(home / STATE)
    if found is None:
        return None
    try:
        pids = tuple(ProcessRecord(**record) for record in found.pop("pids"))
        return StackState(**found, pids=pids)
    except (KeyError, TypeError):
        return None


def read_state(home: Path) -> StackState | None:
    """Where the stack of `home` answers; None if it isn't running."""
    return recorded_state(home) if is_running(home) else None


def is_running(home: Path) -> bool:
    """Whether a stack holds the lock of `home`."""
    try:
        file = (home / LOCK).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def admin_key(home: Path) -> str:
    """The key for /admin that is kept in `home`, made at the first call; its file has mode 0600."""
    path = home / ADMIN_KEY
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        key = ""
    if not key:
        key = secrets.token_urlsafe(24)
        write_private(path, f"{key}\n".encode())
    return key


def make_private(directory: Path) -> Path:
    """Make a directory of mode 0700; one that is there already keeps its mode."""
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def names(records: Sequence[ProcessRecord]) -> str:
    """Processes as one line of text."""
    return ", ".join(f"{record.name} ({record.pid})" for record in records)
