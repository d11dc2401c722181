"""Several API processes behind one port: whichever is asked for the metrics answers for all."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict

from api.multiprocess import PREFIX
from cli.ports import free_port
from cli.processes import Process
from shared.settings import Settings
from tests.integration.test_admission import eventually
from tests.integration.test_metrics import Scraped, scrape, value
from tests.live import publish_another
from tests.processes import _command, _ready
from tests.serving import example
from worker.run import Context

WORKERS = 2
START_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A uvicorn with several processes, and where their files are."""

    url: str
    process: Process
    temporary: Path

    def client(self) -> httpx.Client:
        """A client; each has connections of its own, which any of the processes may take."""
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def scrape(self) -> Scraped:
        """Ask one of the processes."""
        with self.client() as client:
            return scrape(client)

    def predict(self, times: int) -> None:
        """Send so many labelled predictions, each on a connection of its own."""
        with self.client() as client:
            body = example(client)

        def send(_: int) -> int:
            with self.client() as client:
                return client.post("/predict", json=body).status_code

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(send, range(times))) == [200] * times

    def workers(self) -> list[psutil.Process]:
        """The processes that serve."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    @property
    def folder(self) -> Path:
        """The directory that they share."""
        (found,) = self.temporary.glob(f"{PREFIX}*")
        return found

    def rows_by_place(self) -> list[float]:
        """How many rows each place has counted."""
        found = []
        for path in sorted(self.folder.glob("counter_*.db")):
            values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
            found += [value for key, value, *_ in values if '"ratchet_rows_total"' in key]
        return found


@contextmanager
def replica(settings: Settings, folder: Path) -> Iterator[Replica]:
    """Run it until the block ends."""
    temporary, port = folder / "tmp", free_port()
    temporary.mkdir(exist_ok=True)
    command = _command(settings, folder, port)
    argv = [*command.argv, "--workers", str(WORKERS)]
    process = Process(replace(command, argv=argv, env={**command.env, "TMPDIR": str(temporary)}))
    found = Replica(url=f"http://127.0.0.1:{port}", process=process, temporary=temporary)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (_ready(found.url) and _all_serve(found)):
            assert process.is_alive, process.tail()
            assert time.monotonic() < deadline, process.tail()
            time.sleep(0.05)
        yield found
    finally:
        for pid in (process.pid, *(worker.pid for worker in found.workers())):
            os.kill(pid, signal.SIGCONT)  # whatever a test has stopped
        process.stop()


def _all_serve(found: Replica) -> bool:
    """Whether every process has loaded the model."""
    loaded = found.scrape()
    return len(found.rows_by_place()) == WORKERS and value(loaded, "model_version") > 0


@pytest.fixture
def settings(live_settings: Settings) -> Settings:
    """Settings with which nothing retrains by itself."""
    return live_settings.model_copy(update={"threshold": 10**9})


def rows(found: Scraped) -> tuple[float, float, float]:
    """What was counted of predictions, three times over."""
    labels = sum(found["ratchet_labels_total"].values())
    return value(found, "requests_total", "/predict", "200"), value(found, "rows_total"), labels


def test_sums_are_right_whoever_answers_and_whoever_dies(
    settings: Settings, context: Context, tmp_path: Path
) -> None:
    with replica(settings, tmp_path) as api:
        sent = 0
        while sent == 0 or not all(api.rows_by_place()):  # until each process has had some
            assert sent < 2000
            api.predict(40)
            sent += 40
        eventually(lambda: rows(api.scrape()) == (sent, sent, sent))
        for _ in range(8):
            assert rows(api.scrape()) == (sent, sent, sent)
        assert sum(api.rows_by_place()) == sent

        os.kill(api.process.pid, signal.SIGSTOP)  # nobody starts another
        dead, *_ = api.workers()
        os.kill(dead.pid, signal.SIGKILL)
        eventually(lambda: dead.status() == psutil.STATUS_ZOMBIE)
        assert publish_another(context) == 2
        # the least of the living: what the dead one said last is forgotten
        eventually(lambda: value(api.scrape(), "model_version") == 2)
        assert rows(api.scrape()) == (sent, sent, sent)
        loaded = value(api.scrape(), "model_swaps_total", "loaded")
        assert loaded == WORKERS + 1

        os.kill(api.process.pid, signal.SIGCONT)
        eventually(lambda: value(api.scrape(), "model_swaps_total", "loaded") == loaded + 1)
        api.predict(40)
        eventually(lambda: rows(api.scrape()) == (sent + 40, sent + 40, sent + 40))
        for _ in range(8):
            assert rows(api.scrape()) == (sent + 40, sent + 40, sent + 40)
        assert value(api.scrape(), "model_version") == 2
        assert len(api.workers()) == WORKERS
        assert len(list(api.folder.glob("counter_*.db"))) <= WORKERS + 1


def test_what_the_replica_before_left_is_removed_and_nothing_of_it_counted(
    settings: Settings, tmp_path: Path
) -> None:
    with replica(settings, tmp_path) as api:
        api.predict(3)
        before = api.folder
    assert before.exists()
    with replica(settings, tmp_path) as api:
        assert not before.exists()
        assert api.folder.stat().st_mode & 0o777 == 0o700
        assert value(api.scrape(), "rows_total") == 0
