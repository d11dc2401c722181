"""The embedded servers: real ones, on a directory of ours."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import psycopg
import pytest
import redis

from cli.embedded import EmbeddedPostgres, EmbeddedValkey
from cli.processes import StackError

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run Postgres as another user")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home below a directory that nobody but us can enter."""
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    return parent / "home"


S = TypeVar("S", EmbeddedPostgres, EmbeddedValkey)


class Servers:
    """Makes servers, and removes each at the end of the test."""

    def __init__(self) -> None:
        self._made: list[EmbeddedPostgres | EmbeddedValkey] = []

    def make(self, kind: type[S], home: Path) -> S:
        server = kind(home)
        self._made.append(server)
        return server

    def remove(self) -> None:
        for server in self._made:
            server.stop()
        for server in self._made:
            server.remove()


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.remove()


def put_key(url: str, key: str, value: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set(key, value)


def get_key(url: str, key: str) -> object:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.get(key)


def test_postgres_keeps_its_rows_and_its_url_over_a_restart(home: Path, servers: Servers) -> None:
    first = servers.make(EmbeddedPostgres, home)
    url = first.start()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
    first.stop()
    assert not first.is_alive

    second = servers.make(EmbeddedPostgres, home)
    assert second.start() == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (42,)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
        assert connection.info.server_version // 10_000 == 18
    second.stop()
    second.stop()


def test_valkey_keeps_its_keys_and_its_url_over_a_restart(home: Path, servers: Servers) -> None:
    first = servers.make(EmbeddedValkey, home)
    url = first.start()
    put_key(url, "kept", "yes")
    first.stop()

    second = servers.make(EmbeddedValkey, home)
    assert second.start() == url
    assert get_key(url, "kept") == "yes"
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    second.stop()
    assert not second.is_alive


def test_both_refuse_a_client_without_the_password(home: Path, servers: Servers) -> None:
    postgres, valkey = servers.make(EmbeddedPostgres, home), servers.make(EmbeddedValkey, home)
    with_password = postgres.start()
    user, rest = with_password.removeprefix("postgresql://").split(":", 1)
    wrong = f"postgresql://{user}:wrong@{rest.split('@', 1)[1]}"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)

    port = valkey.start().rsplit(":", 1)[1]
    with (
        redis.Redis.from_url(f"redis://127.0.0.1:{port}") as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_passwords_are_in_files_that_only_we_can_read(home: Path, servers: Servers) -> None:
    valkey = servers.make(EmbeddedValkey, home)
    password = valkey.start().split("@")[0].rsplit(":", 1)[1]
    process = psutil.Process(valkey.pid)
    assert password not in " ".join(process.cmdline())
    assert home.stat().st_mode & 0o777 == 0o700
    for name in ("server.json", "valkey.conf"):
        assert (home / "valkey" / name).stat().st_mode & 0o777 == 0o600


@ROOT_ONLY
def test_as_root_no_mode_of_a_directory_that_was_there_changes(home: Path, servers: Servers) -> None:
    watched = [home.parent, *home.parent.parents, Path("/var/lib"), Path("/var/tmp")]  # noqa: S108
    before = [path.stat().st_mode for path in watched]
    postgres = servers.make(EmbeddedPostgres, home)
    with psycopg.connect(postgres.start()) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    data = Path(row[0])

    assert [path.stat().st_mode for path in watched] == before
    assert home.parent.stat().st_mode & 0o777 == 0o700
    assert psutil.Process(postgres.pid).uids().effective == data.stat().st_uid != 0
    assert data.stat().st_mode & 0o777 == 0o700
    postgres.remove()
    assert not data.parent.exists()


@ROOT_ONLY
def test_as_root_a_copied_home_does_not_share_the_database_of_the_first(home: Path, servers: Servers) -> None:
    first = servers.make(EmbeddedPostgres, home)
    first.start()
    copy = home.with_name("copy")
    shutil.copytree(home, copy)
    with pytest.raises(StackError, match="is a copy of"):
        servers.make(EmbeddedPostgres, copy).start()
    assert first.is_alive


@ROOT_ONLY
def test_as_root_a_moved_home_keeps_its_database(home: Path, servers: Servers) -> None:
    first = servers.make(EmbeddedPostgres, home)
    with psycopg.connect(first.start()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
    first.stop()
    moved = home.rename(home.with_name("moved"))
    second = servers.make(EmbeddedPostgres, moved)
    with psycopg.connect(second.start()) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (42,)
    second.remove()


def test_servers_of_a_killed_process_are_ended_by_the_next_start(home: Path, servers: Servers) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from cli.embedded import EmbeddedPostgres, EmbeddedValkey
        servers = [EmbeddedPostgres(Path(sys.argv[1])), EmbeddedValkey(Path(sys.argv[1]))]
        for server in servers:
            server.start()
        print(*(server.pid for server in servers), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(home)], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [psutil.Process(int(pid)) for pid in killed.stdout.split()]
    assert all(process.is_running() for process in left)

    postgres, valkey = servers.make(EmbeddedPostgres, home), servers.make(EmbeddedValkey, home)
    postgres.start()
    valkey.start()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)
    assert postgres.is_alive
    assert valkey.is_alive


def test_a_killed_server_starts_again_at_the_same_url_with_what_was_committed(
    home: Path, servers: Servers
) -> None:
    postgres = servers.make(EmbeddedPostgres, home)
    url = postgres.start()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(postgres.pid)], timeout=5)
    assert not postgres.is_alive
    assert postgres.start() == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (42,)


def test_a_server_that_does_not_start_says_why(home: Path, servers: Servers) -> None:
    postgres = servers.make(EmbeddedPostgres, home)
    with psycopg.connect(postgres.start()) as connection:
        row = connection.execute("SHOW config_file").fetchone()
    postgres.stop()
    assert row is not None
    with Path(row[0]).open("a", encoding="ascii") as file:
        file.write("\nno_such_setting = 1\n")
    with pytest.raises(StackError, match=r"(?s)postgres did not start: exited with 1.*no_such_setting"):
        servers.make(EmbeddedPostgres, home).start()


def test_stray_variables_of_other_servers_lead_nowhere(
    home: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with psycopg.connect(servers.make(EmbeddedPostgres, home).start()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
