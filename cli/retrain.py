"""`ratchet retrain`: ask for a job, and follow it."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.connection import Client
from cli.reports import print_json

ACTIVE = ("queued", "running")
POLL_SECONDS = 0.3


def retrain(*, force: bool, wait: bool, reason: str | None, as_json: bool) -> int:
    """Ask for a job; answers the exit code: 1 when a job that was waited for failed.

    Raises:
        Refused: the API said no; the text says why.
    """
    client = Client()
    asked = client.post_as_admin("/admin/retrain", {"force": force, "reason": reason}).json()
    job = asked["job"]
    console = Console(stderr=as_json)
    console.print(f"job {job['id']} " + ("is queued" if asked["new"] else f"was {job['state']} already"))
    if wait:
        job = follow(client, job["id"], console)
        console.print(f"job {job['id']} {job['state']}: {job['error'] or job['result'].get('reason', '')}")
    if as_json:
        print_json(job)
    return int(job["state"] == "failed")


def follow(client: Client, job_id: int, console: Console) -> dict[str, Any]:
    """Show a job's steps until it ends; answers the job."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("queued", total=1.0)
        while True:
            job: dict[str, Any] = client.get(f"/retrain/jobs/{job_id}").json()
            step = f"step {job['step_number']}/12 {job['step']}" if job["step"] else job["state"]
            progress.update(shown, description=step, completed=job["progress"])
            if job["state"] not in ACTIVE:
                return job
            time.sleep(POLL_SECONDS)
