"""The stack with real processes: what it starts, what it leaves behind, what it survives."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import orjson
import psutil
import psycopg
import pytest

from cli.embedded import EmbeddedPostgres, EmbeddedValkey
from cli.ports import free_port
from cli.processes import Command, StackError
from cli.stack import Stack
from cli.state import read_state
from shared.settings import Settings
from tests.e2e.stack_driver import CRASH, DRIVER, SLEEP, Driver

Run = Callable[..., Driver]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    for server in (EmbeddedValkey(tmp_path / "home"), EmbeddedPostgres(tmp_path / "home")):
        server.remove()


@pytest.fixture
def run(home: Path) -> Iterator[Run]:
    """Starts a stack of small programs, or a command."""
    drivers = []

    def start(*, port: int = 0, beat: str = SLEEP, command: list[str] | None = None, **env: str) -> Driver:
        code = textwrap.dedent(DRIVER)
        driver = Driver(home, command or [sys.executable, "-c", code, str(home), str(port), beat], **env)
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.end()


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def pids(home: Path) -> dict[str, int]:
    state = read_state(home)
    return {record.name: record.pid for record in state.pids} if state else {}


def test_sigterm_stops_all_in_order_and_leaves_nothing_behind(home: Path, run: Run) -> None:
    driver = run()
    driver.read_until("ready")
    family = driver.family()
    assert len(family) == 4  # three, and the one that upkeep forked
    assert (home / "stack.json").stat().st_mode & 0o777 == 0o600

    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 0
    assert "stopped" in driver.output
    assert (home / "order").read_text(encoding="ascii").split()[:3] == ["api", "beat", "upkeep"]
    assert not [process for process in family if runs(process)]
    assert not (home / "stack.json").exists()
    assert not (home / "lock").exists()


def test_the_next_start_ends_what_a_killed_stack_left(home: Path, run: Run) -> None:
    first = run()
    first.read_until("ready")
    family = first.family()
    first.process.kill()
    first.wait()
    assert all(runs(process) for process in family)
    assert read_state(home) is None  # the lock went with its holder

    second = run()
    second.read_until("ready")
    assert "ended what a killed stack left behind: api" in second.output
    assert not [process for process in family if runs(process)]
    assert set(pids(home)) == {"api", "beat", "upkeep"}


def test_a_process_under_a_recorded_pid_that_started_later_is_left_alone(home: Path, run: Run) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    started = psutil.Process(stranger.pid).create_time()
    home.mkdir()
    record = {"name": "api", "pid": stranger.pid, "started": started - 100}
    state = {"api_url": "", "database_url": "", "redis_url": "", "pids": [record]}
    (home / "stack.json").write_bytes(orjson.dumps(state))
    driver = run()
    driver.read_until("ready")
    assert stranger.poll() is None
    assert "left behind" not in driver.output
    stranger.kill()
    stranger.wait()


def test_a_stack_beside_a_running_one_says_so(home: Path, run: Run) -> None:
    first = run()
    first.read_until("ready")
    second = run()
    assert second.wait() == 1
    assert f"a stack already runs in {home.resolve()}, its API at http://127.0.0.1:" in second.output
    assert first.process.poll() is None
    assert len(first.family()) == 4


def test_a_port_in_use_is_named(home: Path, run: Run) -> None:
    first = run(port=free_port())
    first.read_until("ready")
    state = read_state(home)
    assert state is not None
    port = state.api_url.rsplit(":", 1)[1]
    code = f"import sys; from cli.up import up; sys.exit(up(port={port}))"
    other = home.with_name("other")
    driver = run(command=[sys.executable, "-c", code], RATCHET_HOME=str(other))
    assert driver.wait() == 1
    assert f"port {port} is in use by python" in driver.output
    assert not (other / "lock").exists()


def test_a_process_that_keeps_crashing_ends_the_stack_with_the_end_of_its_log(home: Path, run: Run) -> None:
    driver = run(beat=CRASH)
    driver.read_until("ready")
    assert driver.wait() == 1
    for number in range(1, 6):
        assert f"restart {number} of 5" in driver.output
    assert "failed: beat died 6 times in 60 s, the last time: exited with 3" in driver.output
    assert driver.output.count("the reason is here") == 6
    assert not (home / "stack.json").exists()
    assert (home / "order").read_text(encoding="ascii").split()[:2] == ["api", "upkeep"]


def test_a_process_that_is_killed_is_started_again(home: Path, run: Run) -> None:
    driver = run()
    driver.read_until("ready")
    before = pids(home)
    forked = psutil.Process(before["upkeep"]).children()
    assert forked
    os.kill(before["upkeep"], signal.SIGKILL)
    driver.read_until("upkeep runs again")
    assert "upkeep ended by SIGKILL" in driver.output
    eventually(lambda: pids(home)["upkeep"] != before["upkeep"], "the new pid is written down")
    after = pids(home)
    assert {**after, "upkeep": 0} == {**before, "upkeep": 0}
    assert not [process for process in forked if runs(process)]


def test_an_api_that_does_not_start_is_told_with_its_log(home: Path) -> None:
    def commands(**given: object) -> list[Command]:
        argv = [sys.executable, "-c", "print('no such model', flush=True); raise SystemExit(7)"]
        return [Command(name="api", argv=argv, log=home / "logs" / "api.log", env=dict(os.environ))]

    with (
        Stack(settings=Settings(home=home), commands=commands) as stack,
        pytest.raises(StackError, match=r"(?s)the API did not start: exited with 7.*no such model"),
    ):
        stack.start_services()
    assert read_state(home) is None


def test_a_killed_server_comes_back_where_it_was(home: Path) -> None:
    said: list[str] = []
    with Stack(settings=Settings(home=home), report=said.append, backoff=0.01) as stack:
        stack.start_servers()
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
        for name in ("postgres", "valkey"):
            first = stack.process(name)
            os.kill(first.pid, signal.SIGKILL)
            eventually(lambda first=first: not first.is_alive, "it ends")
            while stack.process(name) is first:
                stack.poll()
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("SELECT x FROM kept").fetchone() == (42,)
    assert "postgres runs again" in said
    assert "valkey runs again" in said


@pytest.mark.timeout(120)
def test_up_runs_the_whole_stack_and_a_second_up_finds_its_state(home: Path, run: Run) -> None:
    code = "import sys; from cli.up import up; sys.exit(up(port=int(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(free_port())]
    driver = run(command=command)
    driver.read_until("Ctrl-C stops everything")
    state = read_state(home)
    assert state is not None
    names = [record.name for record in state.pids]
    assert names == ["postgres", "valkey", "retrain1", "upkeep", "beat", "api"]
    assert all(os.getsid(record.pid) == record.pid for record in state.pids)
    assert httpx.get(f"{state.api_url}/ready").status_code == httpx.codes.SERVICE_UNAVAILABLE
    key = (home / "admin.key").read_text(encoding="ascii").strip()
    assert (home / "admin.key").stat().st_mode & 0o777 == 0o600
    assert key not in driver.output
    for header, codes in ((f"Bearer {key}", {409, 503}), ("Bearer wrong", {403})):
        answer = httpx.post(f"{state.api_url}/admin/retrain", headers={"Authorization": header}, json={})
        assert answer.status_code in codes, answer.text
    with psycopg.connect(state.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
    family = driver.family()

    os.killpg(driver.process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
    assert driver.wait() == 0
    assert "stopped" in driver.output
    assert not [process for process in family if runs(process)]
    assert not (home / "stack.json").exists()
    assert not (home / "lock").exists()

    again = run(command=command)
    again.read_until("Ctrl-C stops everything")
    second = read_state(home)
    assert second is not None
    assert second.database_url == state.database_url
    with psycopg.connect(second.database_url) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (42,)
    again.process.terminate()
    assert again.wait() == 0
