"""Ten minutes of half load with a retrain about every thirty seconds: nothing fails, nothing grows.

    .venv/bin/python -m benchmarks.soak [--minutes 10]

The whole stack (API, training worker, upkeep, beat, Postgres, Valkey) shares this machine with this
process. A closed loop first finds what the API can take; then half of that rate is offered, one row in
a hundred with its label, over a window of 20,000 rows. Prints a JSON line every half minute: requests,
failures (anything but 200), memory and open files of each process and the jobs so far; and at the end
how much each process grew after the first minute. Exits with 1 if a request failed or one grew by a
tenth.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import orjson
import psutil
import uvloop

from benchmarks.load import play, post
from benchmarks.offered import Outcome, offer
from cli.bootstrap import bootstrap
from cli.data import PLANS_TARGET, plans
from cli.ports import free_port
from cli.stack import Stack
from cli.state import recorded_state
from shared.settings import Settings
from tests.live import query
from worker.inference import infer

WINDOW = 20_000
RETRAIN_SECONDS = 30
LABELLED = 100
LOOK_SECONDS = 30.0
SETTLED_SECONDS = 60.0
GROWTH = 0.10
CONNECTIONS = 64
SERVICES = ("api", "retrain1", "upkeep", "beat", "postgres", "valkey")

Figures = dict[str, dict[str, float]]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ratchet-soak-") as folder:
        home, port = Path(folder), free_port()
        plain = list(itertools.islice(_requests(), LABELLED - 1))
        with Stack(settings=Settings(home=home, threshold=10**9), port=port, env=_env(10**9)) as stack:
            stack.start()
            _first_model(stack, home)
            can_take = play(port, plain, connections=32, seconds=10).rate
        rate = can_take / 2
        threshold = round(rate / LABELLED * RETRAIN_SECONDS)
        print(json.dumps({"can_take": round(can_take), "offered": round(rate), "threshold": threshold}))
        with Stack(settings=Settings(home=home), port=port, env=_env(threshold)) as stack:
            stack.start()
            soak = _Soak(home, stack.database_url)
            outcome = uvloop.run(
                offer(port, _requests(), rate, options.minutes * 60, connections=CONNECTIONS, look=soak.look)
            )
            grown = soak.growth()
            failures = outcome.failures + len(outcome.refused)
            print(json.dumps({"grown": grown, "failures": failures, "jobs": soak.jobs()}))
            stack.stop()
            stack.remove()
    return int(failures > 0 or max(grown.values()) >= GROWTH)


class _Soak:
    """Looks at the processes of the stack while the load goes on."""

    def __init__(self, home: Path, database_url: str) -> None:
        self._settings = Settings.model_validate({"home": home, "database_url": database_url})
        state = recorded_state(home)
        assert state is not None
        self._processes = {r.name: psutil.Process(r.pid) for r in state.pids if r.name in SERVICES}
        self._next = 0.0
        self._seen: list[tuple[float, Figures]] = []

    def look(self, elapsed: float, outcome: Outcome) -> None:
        """Print a line, now and then."""
        if elapsed < self._next:
            return
        self._next += LOOK_SECONDS
        figures = {name: _figures(process) for name, process in self._processes.items()}
        self._seen.append((elapsed, figures))
        line = {
            "seconds": round(elapsed),
            "requests": len(outcome.accepted),
            "unsent": outcome.unsent,
            "failures": outcome.failures + len(outcome.refused),
            "jobs": self.jobs(),
            **figures,
        }
        print(json.dumps(line), flush=True)

    def jobs(self) -> Mapping[str, int]:
        """How many jobs there are in each state."""
        found = query(self._settings, "SELECT state, count(*) AS n FROM retrain_jobs GROUP BY state")
        return {row["state"]: row["n"] for row in found}

    def growth(self) -> dict[str, float]:
        """How much more memory each process has at the end than after the first minute.

        Medians of the first and the last quarter of the looks: while a job runs Postgres has more sessions,
        and right after a swap the API has two models.
        """
        settled = [figures for at, figures in self._seen if at >= SETTLED_SECONDS]
        quarter = max(1, len(settled) // 4)

        def median(looks: Sequence[Figures], name: str) -> float:
            return statistics.median(look[name]["mb"] for look in looks)

        return {
            name: round(median(settled[-quarter:], name) / median(settled[:quarter], name) - 1, 3)
            for name in self._processes
        }


def _figures(process: psutil.Process) -> dict[str, float]:
    """Memory of its own (MB) and open files; of Postgres, of all its processes together.

    Raises:
        FileNotFoundError: the process has died, which no service may.
    """
    memory, files = _anonymous(process.pid), process.num_fds()
    for child in process.children(recursive=True) if process.name() == "postgres" else []:
        with contextlib.suppress(psutil.NoSuchProcess, OSError):  # sessions come and go
            memory += _anonymous(child.pid)
            files += child.num_fds()
    return {"mb": round(memory, 1), "files": files}


def _anonymous(pid: int) -> float:
    """MB that are neither a file's nor shared: Postgres' buffers fill up, and belong to nobody alone."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _env(threshold: int) -> dict[str, str]:
    return {
        "RATCHET_THRESHOLD": str(threshold),
        "RATCHET_WINDOW": str(WINDOW),
        "RATCHET_GATE_TOLERANCE": "1",  # each challenger goes live: as many swaps as jobs
    }


def _first_model(stack: Stack, home: Path) -> None:
    frame = plans(WINDOW)
    settings = Settings.model_validate(
        {
            "home": home,
            "database_url": stack.database_url,
            "redis_url": stack.redis_url,
            "api_url": stack.api_url,
            "window": WINDOW,
        }
    )
    bootstrap(frame, infer(frame, target=PLANS_TARGET), settings=settings, report=lambda *_: None)
    while not stack.is_ready():
        time.sleep(0.1)


def _requests() -> Iterator[bytes]:
    """Customers that the first model never saw, for ever; every hundredth with the plan that suits it."""
    # 4999 is no multiple of anything: each customer has a turn with the label
    frame = plans(4999, start=WINDOW)
    truths = [str(value) for value in frame.pop(PLANS_TARGET)]
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    plain = [post("/predict", orjson.dumps({"raw_features": [row]})) for row in rows]
    labelled = [
        post("/predict", orjson.dumps({"raw_features": [row], "true_labels": [truth]}))
        for row, truth in zip(rows, truths, strict=True)
    ]
    for number in itertools.count():
        yield (plain if (number + 1) % LABELLED else labelled)[number % len(rows)]


if __name__ == "__main__":
    sys.exit(main())
