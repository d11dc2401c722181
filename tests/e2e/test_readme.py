"""The README is true: every command in it runs, in its order, as a reader would type it.

Those that need a container engine run in `tests/compose/test_readme.py`.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cli.data import plans
from cli.embedded import EmbeddedPostgres, EmbeddedValkey
from cli.ports import free_port
from tests.conftest import Servers
from tests.readme import FOR_REAL, LABELS, OWN_DATA, PREDICT, ROOT, TEXT, TRY, UP, WATCH

VARIABLES = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
# Small models differ by chance: these tests are about the commands, others about the gate.
SMALL = {"RATCHET_ITERATIONS": "40", "RATCHET_MIN_CLASS_ROWS": "5", "RATCHET_GATE_TOLERANCE": "0.2"}


def run(script: str, env: dict[str, str], *, seconds: float = 240) -> str:
    """Run a block as a shell would; answers what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**VARIABLES, **env},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def background(script: str, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, then press Ctrl-C."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {script}"],
            cwd=ROOT,
            env={**VARIABLES, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=60)


def wait_for(url: str, status: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a URL answers as it should."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url, trust_env=False).status_code == status:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    pytest.fail(f"{url} did not answer {status}\n{log.read_text()}")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for a stack; as root its cluster lies elsewhere, and goes with it."""
    yield tmp_path / "home"
    for server in (EmbeddedValkey(tmp_path / "home"), EmbeddedPostgres(tmp_path / "home")):
        server.remove()


def test_make_demo_closes_the_loop() -> None:
    assert "the loop closed" in run(TRY, {})


def test_a_stack_predicts_learns_and_shows_a_second_version(home: Path, tmp_path: Path) -> None:
    port = free_port()
    env = {"RATCHET_HOME": str(home), "PORT": str(port), **SMALL}
    log = tmp_path / "up.log"
    with background(UP.strip(), env, log) as stack:
        wait_for(f"http://127.0.0.1:{port}/ready", 200, stack, log)
        predicted = run(PREDICT.replace(":8000", f":{port}"), env)
        assert '"model_version":1' in predicted
        assert '"prediction_ids":["' in predicted
        assert '"accepted":1' in run(LABELS.replace(":8000", f":{port}"), env)
        assert httpx.get(f"http://127.0.0.1:{port}/docs", trust_env=False).status_code == 200
        simulate, rest = WATCH.split("ratchet status", 1)
        run(simulate, env)
        end = time.monotonic() + 90
        while "live" not in _line(run(". .venv/bin/activate; ratchet versions", env), "2"):
            assert time.monotonic() < end, "version 2 did not go live"
            time.sleep(0.5)
        shown = run(f". .venv/bin/activate\nratchet status{rest}", env)
        assert "Model version" in shown
        assert "succeeded" in shown
        assert "live model" in shown


def test_a_csv_of_ones_own_becomes_version_1(home: Path, tmp_path: Path) -> None:
    port = free_port()
    env = {"RATCHET_HOME": str(home), **SMALL}
    file = tmp_path / "customers.csv"
    plans(600).rename(columns={"recommended_plan": "churned"}).to_csv(file, index=False)
    log = tmp_path / "up.log"
    with background(f".venv/bin/ratchet up --port {port}", env, log) as stack:
        wait_for(f"http://127.0.0.1:{port}/ready", 503, stack, log)
        script = f". .venv/bin/activate\n{OWN_DATA.replace('customers.csv', str(file))}"
        assert "version 1 is live" in run(script, env)


def test_the_processes_run_on_servers_of_ones_own(
    servers: Servers, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    env = {"REMAP_SIGTERM": "SIGQUIT", **SMALL}
    for line in FOR_REAL.splitlines():
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            env[name] = value
    env |= {
        "RATCHET_DATABASE_URL": database_url,
        "RATCHET_REDIS_URL": redis_url,
        "RATCHET_ARTIFACTS_URL": (tmp_path / "artifacts").as_uri(),
    }
    lines = FOR_REAL.replace("\\\n", "").splitlines()  # a command may go on in the next line
    commands = [line for line in lines if not line.startswith("export ")]
    migrate, api, *workers = (f"{ROOT}/.venv/bin/{command}" for command in commands)
    assert "at its head" in run(f"{migrate} 2>&1", env)
    port = free_port()
    log = tmp_path / "api.log"
    file = tmp_path / "customers.csv"
    plans(400).to_csv(file, index=False)
    with background(f"{api} --port {port}", env, log) as process:
        wait_for(f"http://127.0.0.1:{port}/ready", 503, process, log)
        with (
            background(workers[0], env, tmp_path / "retrain.log"),
            background(workers[1], env, tmp_path / "upkeep.log"),
            background(workers[2], env, tmp_path / "beat.log"),
        ):
            ratchet = f"{ROOT}/.venv/bin/ratchet bootstrap {file} --target recommended_plan --yes"
            assert "version 1 is live" in run(ratchet, env)
            wait_for(f"http://127.0.0.1:{port}/ready", 200, process, log)


def test_what_the_readme_names_exists() -> None:
    assert len(TEXT.splitlines()) < 150
    for path in re.findall(r"`(docs/[\w./]+)`", TEXT):
        assert (ROOT / path).is_file()
    helped = run("make help", {})
    assert all(target in helped for target in ("demo", "test", "up", "lint"))
    assert shutil.which("bash")


def _line(table: str, first: str) -> str:
    return next((line for line in table.splitlines() if line.split()[:1] == [first]), "")
