"""Where figures live when one replica has several processes: in files that whoever is asked adds up.

`uvicorn --workers N` starts processes of which any may be asked for the metrics. Each then takes a place
in a directory they share: a number that is its own as long as it holds the lock of that number. A process
that comes after one that died takes the free place and counts on from where that one stood, so that no
counter falls and the files don't grow in number.
"""

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from shared.errors import SettingsError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "ratchet-metrics-"
PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process' place among its siblings: its own until `lock`, an open file, is closed."""

    folder: Path
    number: int
    lock: int

    def collect(self) -> Iterable[Metric]:
        """The sums over all processes; of the gauges, only what living ones say."""
        for path in self.folder.glob("*.lock"):
            _forget_the_dead(path)
        files = [str(path) for path in self.folder.glob("*.db") if _has_content(path)]
        found: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return found


@lru_cache(maxsize=1)
def join() -> Place | None:
    """Take a place among the processes of this replica; None: it is the only one.

    From then on every metric that is made here lives in the shared files.

    Raises:
        SettingsError: there is no directory that is safe to use.
    """
    try:
        folder = shared_folder()
        if folder is None:
            return None
        place = take(folder)
    except OSError as exc:
        raise SettingsError(f"{VARIABLE}: several processes need a directory to share: {exc}") from None
    os.environ[VARIABLE] = str(folder)
    number = place.number
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
    return place


def shared_folder() -> Path | None:
    """The directory that this process and its siblings share, made if need be; None: it has no siblings.

    Raises:
        SettingsError: somebody else's directory has its name.
    """
    given = os.environ.get(VARIABLE)
    if given:
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    parent = multiprocessing.parent_process()
    if parent is None:
        return None
    place_of_all = Path(tempfile.gettempdir())
    remove_left_behind(place_of_all)
    folder = place_of_all / f"{PREFIX}{parent.pid}-{_started(parent.pid)}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SettingsError(f"{VARIABLE}: {folder} belongs to somebody else; name another directory")
    return folder


def take(folder: Path) -> Place:
    """Take the first free place of a directory; it is given back when this process ends, however it does."""
    for number in itertools.count():
        lock = _lock(folder / f"{number}.lock")
        if lock is not None:
            return Place(folder=folder, number=number, lock=lock)
    raise AssertionError  # unreachable: there is always a next number


def remove_left_behind(place_of_all: Path) -> None:
    """Remove the directories of parents that are gone and of which no child lives."""
    for folder in place_of_all.glob(f"{PREFIX}*-*"):
        with contextlib.suppress(FileNotFoundError):  # a sibling that starts with this one was faster
            if _is_left_behind(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left_behind(folder: Path) -> bool:
    pid, _, started = folder.name.removeprefix(PREFIX).partition("-")
    if folder.is_symlink() or folder.lstat().st_uid != os.geteuid():
        return False
    # the locks as well: a parent in another container can't be seen from here
    return _started(pid) != started and not any(_is_taken(path) for path in folder.glob("*.lock"))


def _forget_the_dead(path: Path) -> None:
    """Remove the gauges of a process that is gone, holding its place so that no other takes it meanwhile."""
    lock = _lock(path)
    if lock is not None:
        try:
            mark_process_dead(path.stem, str(path.parent))  # type: ignore[no-untyped-call]
        finally:
            os.close(lock)


def _has_content(path: Path) -> bool:
    """Whether a file can be read: one that a sibling is about to make is empty for a moment."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _is_taken(path: Path) -> bool:
    lock = _lock(path)
    if lock is not None:
        os.close(lock)
    return lock is None


def _lock(path: Path) -> int | None:
    """An open file that holds the lock of a path, or None if another holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _started(pid: object) -> str:
    """When a process started, in the kernel's ticks: a pid alone may be another's by now. "0": unknown."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "0"
    return stat.rpartition(")")[2].split()[19]
