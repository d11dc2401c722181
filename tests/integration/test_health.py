"""The health checks of containers: well, and not well."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cli import health
from cli.ports import free_port

ROOT = Path(__file__).parents[2]


def check(role: str, **env: str) -> tuple[int, str]:
    """The exit code and what is said, as a container engine would ask."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.health", role],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env},
    )
    return done.returncode, done.stderr


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def api_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that is well at /health alone."""
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_answers_is_well(
    api_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "API_PORT", api_port)
    assert health.main(["api"]) == 0
    monkeypatch.setattr(health, "FLOWER_PORT", api_port)  # it answers 503 at Flower's path
    assert health.main(["flower"]) == 1
    assert "503" in capsys.readouterr().err
    monkeypatch.setattr(health, "API_PORT", free_port())
    assert health.main(["api"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_role_that_nobody_has_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main(["database"]) == 1
    assert "api, retrain, upkeep, beat, flower" in capsys.readouterr().err


def test_a_worker_is_well_while_it_hears_the_broker(redis_url: str, tmp_path: Path) -> None:
    env = {"RATCHET_REDIS_URL": redis_url, "RATCHET_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    assert check("upkeep", **env)[0] == 1  # nobody is there
    name = f"upkeep@{socket.gethostname()}"
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "-q", "worker"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [*command, "-Q", "upkeep", "--pool", "solo", "-n", name],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + 60
        while check("upkeep", **env)[0]:
            assert worker.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
        assert check("retrain", **env) == (
            1,
            f"retrain: retrain@{socket.gethostname()} does not hear the broker\n",
        )
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_whose_broker_is_away_is_not_well() -> None:
    code, said = check("retrain", RATCHET_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert code == 1
    assert "the broker does not answer" in said
    assert "Traceback" not in said


def test_beat_is_well_while_it_sends(redis_url: str, tmp_path: Path) -> None:
    env = {
        "RATCHET_REDIS_URL": redis_url,
        "RATCHET_SWEEP_SECONDS": "0.5",
        "TMPDIR": str(tmp_path),
    }
    assert check("beat", **env) == (1, "beat: nothing was sent yet\n")
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "-q", "beat"]
    beat = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while check("beat", **env)[0]:
            assert beat.poll() is None
            assert time.monotonic() < end
    finally:
        beat.kill()
        beat.wait()
    (mark,) = tmp_path.glob("ratchet-beat-*")
    os.utime(mark, (time.time() - 100, time.time() - 100))
    code, said = check("beat", **env)
    assert code == 1
    assert "nothing was sent for 1" in said
    rarely = {"RATCHET_SWEEP_SECONDS": "50", "RATCHET_RECONCILE_SECONDS": "90"}
    assert check("beat", **env | rarely) == (0, "")
