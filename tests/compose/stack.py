"""A compose stack of a test's own: its project, its `.env`, its ports."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from cli.data import plans
from tests.compose.engine import ROOT, docker

T = TypeVar("T")
IMAGES = {"RATCHET_VERSION": "test"}
"""What the tests build does not take the place of what the user runs."""

QUICK = {
    "RATCHET_THRESHOLD": "300",
    "RATCHET_ITERATIONS": "60",
    "RATCHET_MIN_CLASS_ROWS": "5",
    "RATCHET_GATE_TOLERANCE": "0.3",
    "RATCHET_ACCESS_LOG": "1",
    "WORKER_CPUS": "1.5",
    "WORKER_MEMORY": "2g",
}
"""Small models, which differ by chance: these tests are about containers, others about the gate."""

TARGET = "recommended_plan"
FIRST_ROWS = 1200
UNSEEN_ROWS = 400
"""More than the threshold; the first model never saw them."""


class ComposeStack:
    """One project in a checkout of its own. `down` removes all of it."""

    def __init__(self, project: str, folder: Path, **settings: str) -> None:
        """A project in `folder`, which holds a checkout; `settings` are variables of the compose file."""
        self.project, self.folder = project, folder
        first = _free_ports(5)
        self.api_ports = range(first, first + 3)
        self.flower_port, self.prometheus_port = first + 3, first + 4
        self.env = {
            **os.environ,
            **IMAGES,
            **QUICK,
            "COMPOSE_PROJECT_NAME": project,
            "API_PORTS": str(first),
            "FLOWER_PORT": str(self.flower_port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
            **settings,
        }

    def run(self, script: str, *, seconds: float = 600, check: bool = True) -> str:
        """Run a script in the checkout as a shell would; answers what it printed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout if check else done.stdout + done.stderr

    def compose(self, command: str, *, seconds: float = 600, check: bool = True) -> str:
        """Run `docker compose` with the words of `command`."""
        return self.run(f"docker compose {command}", seconds=seconds, check=check)

    def here(self, script: str) -> str:
        """A script of the README with the ports of this stack."""
        ports = f"{self.api_ports[0]}-{self.api_ports[-1]}"
        script = script.replace("8000-8002", ports).replace(":8000", f":{self.api_ports[0]}")
        return script.replace(":5555", f":{self.flower_port}")

    def down(self) -> None:
        """End the project, with its volumes."""
        if (self.folder / ".env").is_file():
            self.compose("--profile monitoring down --volumes --remove-orphans --timeout 5", check=False)

    def secret(self, name: str) -> str:
        """A secret of the `.env`."""
        lines = (self.folder / ".env").read_text(encoding="utf-8").splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose(f"ps --quiet {service}").split()

    def logs(self, service: str) -> str:
        """All that the containers of a service have logged."""
        return "".join(docker("logs", name, check=False) for name in self.containers(service))

    def inspect(self, container: str) -> Any:
        """What the engine knows of a container."""
        return json.loads(docker("inspect", container))[0]

    def replicas(self) -> list[str]:
        """The URLs of the API's containers on this host."""
        found = [
            self.inspect(name)["NetworkSettings"]["Ports"]["8000/tcp"] for name in self.containers("api")
        ]
        return [f"http://127.0.0.1:{published[0]['HostPort']}" for published in found]

    def api(self, path: str, body: object = None, *, key: str = "", url: str = "") -> Any:
        """The JSON that the API answers, to a POST if there is a body."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        method = "GET" if body is None else "POST"
        with httpx.Client(timeout=30, trust_env=False, headers=headers) as client:
            answer = client.request(method, (url or self.replicas()[0]) + path, json=body)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def flower(self, path: str) -> httpx.Response:
        """What Flower answers to its own user."""
        pair = f"admin:{self.secret('FLOWER_PASSWORD')}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        url = f"http://127.0.0.1:{self.flower_port}{path}"
        return httpx.get(url, headers=headers, timeout=30, trust_env=False)

    def flower_tasks(self, **wanted: Any) -> list[dict[str, Any]]:
        """The retrain tasks that Flower knows, newest first."""
        found = self.flower("/api/tasks?taskname=ratchet.retrain").json().values()
        newest = sorted(found, key=lambda task: task["received"] or 0, reverse=True)
        return [task for task in newest if all(task[name] == value for name, value in wanted.items())]

    def versions(self) -> set[int | None]:
        """The versions that the replicas serve."""
        return {self.api("/ready", url=url)["model_version"] for url in self.replicas()}

    def send_labelled(self, rows: int, *, start: int) -> list[dict[str, Any]]:
        """Send rows that no model has seen with their true classes, to the replicas by turns."""
        answers, urls = [], self.replicas()
        for number, body in enumerate(_bodies(rows, start=start)):
            answers.append(self.api("/predict", body, url=urls[number % len(urls)]))
        return answers

    def job(self, **wanted: str) -> dict[str, Any] | None:
        """The newest job, if it is as wanted."""
        newest: dict[str, Any] = self.api("/retrain/jobs?limit=1")[0]
        return newest if all(newest[name] == value for name, value in wanted.items()) else None


def checkout(folder: Path) -> Path:
    """A copy of what a clone of this checkout would have, and nothing that was installed or built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def write_csv(folder: Path) -> Path:
    """A CSV that the first model is made of."""
    file = folder / "customers.csv"
    plans(FIRST_ROWS).rename(columns={TARGET: "churned"}).to_csv(file, index=False)
    return file


def wait_for(what: str, ask: Callable[[], T], *, seconds: float = 120) -> T:
    """Ask until the answer is true."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.3)
    return answer


def _bodies(rows: int, *, start: int, each: int = 20) -> list[Mapping[str, Any]]:
    frame = plans(rows, start=start)
    classes = frame.pop(TARGET).tolist()
    features = json.loads(frame.to_json(orient="records"))
    return [
        {"raw_features": features[n : n + each], "true_labels": classes[n : n + each]}
        for n in range(0, rows, each)
    ]


def _free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(21000, 29000, number):
        with_ports = [socket.socket() for _ in range(number)]
        try:
            for offset, one in enumerate(with_ports):
                one.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in with_ports:
                one.close()
    raise RuntimeError("no free ports")
