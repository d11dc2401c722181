"""`ratchet demo`: the whole loop once, on real data and real servers, in a temporary folder."""

import contextlib
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cli.bootstrap import Columns, bootstrap, infer_columns
from cli.data import churn
from cli.outcome import Traffic
from cli.reports import print_json
from cli.simulate import simulate
from cli.source import Source
from cli.stack import Stack
from cli.verdict import Verdict, judge, print_verdict
from shared.errors import RatchetError
from shared.settings import Settings, load_settings, variable
from shared.signature import Feature

FIRST_ROWS = 3000
ROWS_A_SECOND = 120.0
CONNECTIONS = 8
LABEL_DELAY = 2.0
AFTER_SWAP = 200
"""Rows that the new version answers before the traffic ends."""
LAST_SECONDS = 60.0
"""How much longer than the labelled rows the traffic may go on, without labels, for a version to come."""
SETTLE_SECONDS = 90.0


def demo(*, as_json: bool) -> int:
    """Close the loop once and print a summary; answers the exit code: 0 only if it closed."""
    console = Console(stderr=as_json)
    folder = Path(tempfile.mkdtemp(prefix="ratchet-demo-"))
    found: list[Verdict] = []
    stop = threading.Event()
    keep_logs = True
    try:
        settings = _settings(folder)
        with Stack(settings=settings, env=_env(settings), report=partial(_say, console, "yellow")) as stack:
            try:
                _run(stack, settings, console, stop, found)
            finally:
                stop.set()
                with console.status("stopping"):
                    stack.remove()
        keep_logs = bool(found[0].faults)
    except KeyboardInterrupt:
        keep_logs = False
        _say(console, "yellow", "stopped")
        return 130
    except RatchetError as exc:
        _say(console, "red", f"{exc.title}: {exc.detail}")
    finally:
        _tidy(folder, console, keep_logs=keep_logs)
    if not found:
        return 1
    if as_json:
        print_json(found[0].to_json())
    else:
        print_verdict(found[0], console)
    return 1 if found[0].faults else 0


def _run(
    stack: Stack, settings: Settings, console: Console, stop: threading.Event, found: list[Verdict]
) -> None:
    with console.status("starting Postgres, Valkey, the workers and the API"):
        stack.start()
    urls = {"database_url": stack.database_url, "redis_url": stack.redis_url, "api_url": stack.api_url}
    connected = Settings.model_validate({**settings.model_dump(), **urls})
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        stack.during(lambda: found.append(_loop(connected, stack.admin_key, progress, stop)))


def _loop(settings: Settings, key: str, progress: Progress, stop: threading.Event) -> Verdict:
    """Bootstrap, traffic, and the last jobs; whatever is under way when `stop` is set ends soon."""
    source = Source(name="churn", target="churn", rows_used=FIRST_ROWS)
    features = _bootstrap(source, settings, progress)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=str(settings.api_url), headers=headers, timeout=30, trust_env=False) as api:
        _await_model(api, stop)
        with _watched_jobs(api, progress):
            traffic = _play(source, features, str(settings.api_url), progress, stop)
            _settle(api)
        return judge(
            traffic,
            status=_get(api, "/retrain/status"),
            jobs=_get(api, "/retrain/jobs"),
            versions=_get(api, "/models"),
        )


def _bootstrap(source: Source, settings: Settings, progress: Progress) -> tuple[Feature, ...]:
    shown = progress.add_task("version 1", total=1.0)
    first = churn().head(source.rows_used)
    inferred = infer_columns(first, Columns(target=source.target), settings)

    def report(step: str, done: float) -> None:
        progress.update(shown, description=f"version 1: {step}", completed=done)

    version = bootstrap(first, inferred, settings=settings, report=report)
    progress.update(shown, description=f"version {version} from {len(first)} rows", completed=1.0)
    return inferred.features


def _play(
    source: Source, features: tuple[Feature, ...], url: str, progress: Progress, stop: threading.Event
) -> Traffic:
    """Send every other row with its label, then go on without labels until a new version answers."""
    rows, labels = source.unseen(len(churn()) - source.rows_used).traffic(features)
    more = int(LAST_SECONDS * ROWS_A_SECOND)
    shown = progress.add_task("traffic", total=len(rows))
    lock = threading.Lock()
    answered: dict[int, int] = {}

    def report(n: int, version: int) -> None:
        progress.update(shown, advance=n, description=f"traffic, answered by version {version}")
        with lock:
            answered[version] = answered.get(version, 0) + n
            new = sum(count for number, count in answered.items() if number >= 2)
            if sum(answered.values()) >= len(rows) and new >= AFTER_SWAP:
                stop.set()

    return simulate(
        url,
        [*rows, *itertools.islice(itertools.cycle(rows), more)],
        [*labels, *itertools.repeat(None, more)],
        rate=ROWS_A_SECOND,
        connections=CONNECTIONS,
        label_delay=LABEL_DELAY,
        errors=True,
        report=report,
        stop=stop,
    )


def _await_model(api: httpx.Client, stop: threading.Event) -> None:
    """The version is published; the API has it a moment later."""
    deadline = time.monotonic() + 30
    while api.get("/ready").status_code != httpx.codes.OK and time.monotonic() < deadline:
        stop.wait(0.1)


def _settle(api: httpx.Client) -> None:
    """Wait until no job runs and too few labels wait for another."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        status = _get(api, "/retrain/status")
        if status["active_job"] is None and status["labels"]["waiting"] < status["threshold"]:
            return
        time.sleep(0.3)


def _get(api: httpx.Client, path: str) -> Any:
    return api.get(path).raise_for_status().json()


@contextlib.contextmanager
def _watched_jobs(api: httpx.Client, progress: Progress) -> Iterator[None]:
    """Show a bar for each job while the block runs."""
    over = threading.Event()
    bars: dict[int, TaskID] = {}

    def watch() -> None:
        ending = False
        while not ending:  # once more at the end, to show how the last job ended
            ending = over.wait(0.4)
            with contextlib.suppress(httpx.HTTPError):
                for job in _get(api, "/retrain/jobs")[::-1]:
                    _show_job(job, bars, progress)

    thread = threading.Thread(target=watch, name="jobs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show_job(job: dict[str, Any], bars: dict[int, TaskID], progress: Progress) -> None:
    if job["trigger"] == "bootstrap":
        return
    if job["id"] not in bars:
        bars[job["id"]] = progress.add_task("", total=1.0)
    state = f"step {job['step_number']}/12 {job['step']}" if job["state"] == "running" else job["state"]
    done = 1.0 if job["finished_at"] else job["progress"]
    progress.update(bars[job["id"]], description=f"job {job['id']}: {state}", completed=done)


def _settings(folder: Path) -> Settings:
    """This process's settings, but for a home of our own and servers of our own."""
    ours = dict.fromkeys(("database_url", "redis_url", "api_url", "artifacts_url", "api_keys", "admin_keys"))
    return Settings.model_validate({**load_settings().model_dump(), **ours, "home": folder / "home"})


def _env(settings: Settings) -> dict[str, str]:
    return {variable("artifacts_url"): settings.artifacts, variable("api_keys"): ""}


def _tidy(folder: Path, console: Console, *, keep_logs: bool) -> None:
    home = folder / "home"
    if not (keep_logs and (home / "logs").is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in home.iterdir():
        if path.name != "logs":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _say(console, "yellow", f"the logs are kept in {home / 'logs'}")


def _say(console: Console, style: str, text: str) -> None:
    console.print(escape(text), style=style, soft_wrap=True, highlight=False)
