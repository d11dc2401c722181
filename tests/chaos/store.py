"""Faults of the artifact store: full, read-only, or with a file that is not what was written."""

import errno
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from cli.doctor import examine
from shared.artifacts import MANIFEST
from tests.chaos.faults import HELD, running, settled
from tests.chaos.stack import APIS, Stack

PATIENCE = 30.0
CHUNK = 4096
SERVICE_UNAVAILABLE = 503


def fill_store(stack: Stack, rng: random.Random) -> None:
    """No space is left: jobs fail with the reason, and serving goes on."""
    with full(stack.artifacts, left=rng.choice([0, 40_000])):
        _fails(stack, "No space left on device")


def protect_store(stack: Stack, rng: random.Random) -> None:
    """The store can be read and not written."""
    with read_only(stack.artifacts):
        _fails(stack, "Read-only file system" if os.geteuid() == 0 else "Permission denied")


def spoil_next(stack: Stack, rng: random.Random, way: str | None = None) -> None:
    """The next version's file is spoiled when it goes live: the old one serves on, until it is mended."""
    with stack.pauses.at("publish"):
        job = running(stack)
        key = f"versions/{job['id']}-{job['fence']}"
        logged = [_complaints(stack, name, key) for name in APIS]
        stack.spoiled.set()
        path, whole = _spoil(stack, rng, key, way)
    try:
        assert settled(stack, job)["state"] == "succeeded"
        before = [_faulty(stack, name, key)["model_version"] for name in range(len(APIS))]
        assert None not in before, "the version before serves on"
        (finding,) = [found for found in examine(stack.settings) if found.part == "artifacts"]
        assert (finding.ok, key in finding.detail) == (False, True), finding
        assert [_complaints(stack, name, key) for name in APIS] == [n + 1 for n in logged], "logged once"
    finally:
        _mend(path, whole)
        stack.spoiled.clear()


def spoil_live(stack: Stack, rng: random.Random, way: str | None = None) -> None:
    """The live version's file is spoiled: a running API serves on, one that starts answers 503 until then."""
    stack.spoiled.set()
    path, whole = _spoil(stack, rng, stack.live()["artifact_key"], way)
    try:
        stack.kill(APIS[0])
        _until(stack, lambda: stack.ready()[0].get("model_version", 0) is None)
        body = {"raw_features": [{"lines": 1}]}
        answer = httpx.post(stack.urls[0] + "/predict", json=body, trust_env=False)
        assert (answer.status_code, "Retry-After" in answer.headers) == (SERVICE_UNAVAILABLE, True)
    finally:
        _mend(path, whole)
        stack.spoiled.clear()
    _until(stack, lambda: bool(stack.ready()[0].get("ready")))


WAYS = ("altered", "short", "of another format", "gone")
"""A byte that is another, the first half only, a manifest of a format to come, no file at all."""


def _spoil(stack: Stack, rng: random.Random, key: str, way: str | None) -> tuple[Path, bytes]:
    """Spoil a file of a set; answers it and what it held."""
    way = way or rng.choice(WAYS)
    graph = rng.choice(["model.onnx", "trees.onnx"])
    path = stack.artifacts / key / (MANIFEST if way == "of another format" else graph)
    whole = path.read_bytes()
    place = len(whole) // 2
    if way == "altered":
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif way == "short":
        path.write_bytes(whole[:place])
    elif way == "gone":
        path.unlink()
    else:
        path.write_bytes(whole.replace(b'"format":1', b'"format":2'))
    return path, whole


def _mend(path: Path, whole: bytes) -> None:
    """Put the file back, in its place: nobody has deleted what was beside it."""
    assert path.parent.is_dir()
    path.write_bytes(whole)


def _faulty(stack: Stack, number: int, key: str) -> dict[str, Any]:
    """What an API says of itself once it knows that it can't load that set."""
    _until(stack, lambda: key in str(stack.ready()[number].get("model_fault")))
    return stack.ready()[number]


def _complaints(stack: Stack, name: str, key: str) -> int:
    return sum("can't be loaded" in line and key in line for line in stack.logs(name).splitlines())


def _fails(stack: Stack, reason: str) -> None:
    """A job that runs meanwhile fails three times, and its labels wait again."""
    (newest,) = stack.query("SELECT coalesce(max(id), 0) AS id FROM retrain_jobs WHERE state = 'failed'")
    failed = "SELECT * FROM retrain_jobs WHERE state = 'failed' AND id > %s ORDER BY id"
    _until(stack, lambda: bool(stack.query(failed, newest["id"])), seconds=90)
    job = stack.query(failed, newest["id"])[0]
    assert job["failures"] == 3
    assert reason in job["error"], job["error"]
    assert stack.query(HELD, job["id"]) == []


@contextmanager
def full(folder: Path, *, left: int) -> Iterator[None]:
    """The file system of the folder has so many bytes left, until the block ends."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(CHUNK))
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
            file.truncate(max(0, file.tell() - left))
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder can't be written to until the block ends."""
    if os.geteuid() == 0:  # whom no mode keeps from writing
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        return
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o500)
    try:
        yield
    finally:
        for path in folders:
            path.chmod(0o700)


def _until(stack: Stack, true: Any, *, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {stack.ready()}"
        time.sleep(0.1)


NEED_A_MOUNT = {fill_store} | ({protect_store} if os.geteuid() == 0 else set())
"""What can only be done to a file system of its own; whoever isn't root is kept from writing by modes."""
