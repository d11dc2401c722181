"""`ratchet status`, `versions`, `jobs` and `settings`: what there is, as a table or as JSON."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.connection import Client
from shared.settings import Settings, load_settings, variable

MASK = "********"


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def table(*columns: str, wraps: Sequence[str] = ()) -> Table:
    """An empty table in the command's one style; only the columns `wraps` (else the last) may wrap."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        may_wrap = column in wraps if wraps else number == len(columns) - 1
        made.add_column(column, overflow="fold", no_wrap=not may_wrap)
    return made


def status(*, as_json: bool) -> None:
    """Print how far it is to the next retrain."""
    client = Client()
    found = client.get("/retrain/status").json()
    model = client.get("/model").json() if found["model_version"] else None
    if as_json:
        metrics = model["metrics"] if model else None
        print_json({**found, "metrics": metrics})
        return
    rows = {
        "Current count": found["current_count"],
        "Threshold": found["threshold"],
        "Remaining": found["remaining"],
        "Progress": f"{found['progress_percent']} %",
        "Model version": found["model_version"] or "none yet",
        "Labels": ", ".join(f"{count} {state}" for state, count in found["labels"].items()),
    }
    if model:
        metrics = model["metrics"]
        rows["Metrics"] = ", ".join(
            f"{name} {figure(metrics.get(key))}"
            for name, key in (
                ("F1 weighted", "f1_weighted"),
                ("F1 macro", "f1_macro"),
                ("ROC-AUC", "roc_auc"),
            )
        )
    rows["Job"] = _running(found["active_job"]) if found["active_job"] else _ended(found["last_job"])
    made = table("", "")
    made.show_header = False
    for name, value in rows.items():
        made.add_row(f"[bold]{name}[/]", escape(str(value)))
    Console().print(made)


def versions(*, as_json: bool) -> None:
    """Print all versions, newest first."""
    found = Client().get("/models").json()
    if as_json:
        print_json(found)
        return
    made = table("version", "", "F1", "F1 macro", "ROC-AUC", "log-loss", "job", "made", "artifacts")
    for version in found:
        metrics = version["metrics"]
        state = "[green]live[/]" if version["live"] else "" if version["published"] else "[yellow]rejected[/]"
        figures = [figure(metrics.get(key)) for key in ("f1_weighted", "f1_macro", "roc_auc", "log_loss")]
        made.add_row(
            str(version["version"]),
            state,
            *figures,
            str(version["job_id"]),
            moment(version["created_at"]),
            version["artifacts"],
        )
    Console().print(made)


def jobs(job_id: int | None, *, as_json: bool) -> None:
    """Print the newest jobs, or one with its log."""
    client = Client()
    found = client.get(f"/retrain/jobs/{job_id}" if job_id else "/retrain/jobs").json()
    if as_json:
        print_json(found)
        return
    listed = [found] if job_id else found
    made = table("job", "state", "trigger", "step", "new labels", "asked", "seconds", "version")
    for job in listed:
        made.add_row(
            str(job["id"]),
            job["state"],
            job["trigger"],
            f"{job['step_number']}/12",
            str(job["rows"].get("new", "")),
            moment(job["requested_at"]),
            _seconds(job),
            str(job["result"].get("version", "")),
        )
    console = Console()
    console.print(made)
    if not job_id:
        return
    console.print(f"\n{_result(found)}", highlight=False, markup=False)
    for line in found["log"]:
        console.print(
            f"{moment(line['at'])}  step {line['step']:>2}  {escape(line['note'])}", highlight=False
        )


def settings(*, as_json: bool) -> None:
    """Print every setting with its default, meaning and current value."""
    current = load_settings()
    rows = [
        {
            "name": variable(name),
            "default": str(field.get_default()),
            "meaning": field.description or "",
            "value": _masked(getattr(current, name)),
        }
        for name, field in Settings.model_fields.items()
    ]
    if as_json:
        print_json(rows)
        return
    made = table("name", "default", "meaning", "value", wraps=("meaning",))
    for row in rows:
        made.add_row(*(escape(text) for text in row.values()))
    Console().print(made)


def figure(value: float | None) -> str:
    """A metric to four digits; undefined is a dash."""
    return "–" if value is None else f"{value:.4f}"


def moment(value: str) -> str:
    """A time of the API in local time, to the second; the day too unless it is today."""
    local = datetime.fromisoformat(value).astimezone()
    today = local.date() == datetime.now().astimezone().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _masked(value: object) -> str:
    return MASK if isinstance(value, SecretStr) else str(value)


def _running(job: dict[str, Any]) -> str:
    return f"{job['id']} {job['state']}, step {job['step_number']}/12 {job['step'] or ''}"


def _ended(job: dict[str, Any] | None) -> str:
    return f"{job['id']} {job['state']}: {_result(job)}" if job else "none yet"


def _result(job: dict[str, Any]) -> str:
    return str(job["error"] or job["result"].get("reason") or "")


def _seconds(job: dict[str, Any]) -> str:
    if not job["started_at"] or not job["finished_at"]:
        return ""
    taken = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["started_at"])
    return f"{taken.total_seconds():.1f}"
