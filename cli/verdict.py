"""Whether the demo's loop closed, judged by what the API says and what its clients saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from cli.outcome import Traffic
from cli.reports import figure, table
from cli.traffic import clean, milliseconds, traffic_table

SWAP_SECONDS = 1.0
"""An answer under way so long before or after the first one of a new version counts as during the swap."""

DOCUMENTED = ("succeeded", "rejected")
"""How a job of the demo may end: it always has labels to train on."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the demo has shown. `faults` says what keeps the loop open; empty: it closed.
    `seconds_to_live` is from the threshold's label to the first answer that names the new version."""

    traffic: Traffic
    labels: Mapping[str, int]
    jobs: Sequence[Mapping[str, Any]]
    versions: Sequence[Mapping[str, Any]]
    live: int
    seconds_to_live: float | None
    longest_during_swap_ms: float | None
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The summary as plain data."""
        accuracy, of_job = self.traffic.accuracy, ("id", "state", "trigger", "rows", "result")
        return {
            "closed": not self.faults,
            "faults": list(self.faults),
            "traffic": self.traffic.to_json(),
            "labels": dict(self.labels),
            "jobs": [{key: job[key] for key in of_job} for job in self.jobs],
            "versions": [
                {key: version[key] for key in ("version", "live", "published", "metrics")}
                | {"live_accuracy": _share(*accuracy.get(version["version"], (0, 0)))}
                for version in self.versions
            ],
            "live_version": self.live,
            "seconds_to_live": self.seconds_to_live,
            "longest_during_swap_ms": self.longest_during_swap_ms,
        }  # fmt: skip


def judge(
    traffic: Traffic,
    *,
    status: Mapping[str, Any],
    jobs: Sequence[Mapping[str, Any]],
    versions: Sequence[Mapping[str, Any]],
) -> Verdict:
    """Compare what was sent with what was stored, trained on and made live.

    Args:
        status: the answer of `/retrain/status`, once no job was active.
        jobs: the answer of `/retrain/jobs`.
        versions: the answer of `/models`.
    """
    live = status["model_version"] or 0
    swapped, due = traffic.first_answer(2), traffic.reached(status["threshold"])
    during = traffic.longest(swapped - SWAP_SECONDS, swapped + SWAP_SECONDS) if swapped else None
    return Verdict(
        traffic=traffic,
        labels=status["labels"],
        jobs=jobs,
        versions=versions,
        live=live,
        seconds_to_live=round(swapped - due, 1) if swapped and due else None,
        longest_during_swap_ms=round(during * 1000, 1) if during else None,
        faults=tuple(_faults(traffic, status, jobs)),
    )


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print the summary, and what keeps the loop open if anything does."""
    counts, live = verdict.labels, verdict.live
    waiting = counts["waiting"] + counts["claimed"]
    made = traffic_table(verdict.traffic)
    made.add_row(
        "[bold]Labels add up[/]",
        f"{verdict.traffic.labels_sent} sent, {counts['total']} in the database = "
        f"{counts['trained']} trained on + {waiting} waiting + {counts['superseded']} superseded",
    )
    made.add_row("[bold]Threshold to live[/]", _seconds(verdict.seconds_to_live))
    made.add_row("[bold]Longest at the swap[/]", milliseconds(verdict.longest_during_swap_ms))
    console.print(made)
    listed = table("version", "", "F1 weighted", "live accuracy", "trained on", "job")
    rows = {job["id"]: job["rows"] for job in verdict.jobs}
    for version in sorted(verdict.versions, key=lambda version: version["version"]):
        number = version["version"]
        state = "[green]live[/]" if number == live else "" if version["published"] else "[yellow]rejected[/]"
        right, labelled = verdict.traffic.accuracy.get(number, (0, 0))
        listed.add_row(
            str(number),
            state,
            figure(version["metrics"].get("f1_weighted")),
            figure(_share(right, labelled)),
            str(rows.get(version["job_id"], {}).get("train", "")),
            str(version["job_id"]),
        )
    console.print()
    console.print(listed)
    for fault in verdict.faults:
        console.print(f"[red]open:[/] {escape(fault)}", highlight=False)
    console.print("\n[red]the loop is open[/]" if verdict.faults else "\n[green]the loop closed[/]")


def _faults(traffic: Traffic, status: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    counts, live = status["labels"], status["model_version"] or 0
    settled = counts["trained"] + counts["waiting"] + counts["superseded"]
    checks = {
        f"version {live} is live, not 2 or later": live >= 2,
        "no answer came from version 2 or later": traffic.first_answer(2) is not None,
        f"{traffic.failures} requests failed: {'; '.join(traffic.messages)}": traffic.failures == 0,
        f"{traffic.faulty_refused} of {traffic.faulty_sent} faulty rows were refused": clean(traffic)
        or traffic.failures > 0,
        f"{traffic.labels_sent} labels were sent, {counts['total']} are stored": traffic.labels_sent
        == counts["total"],
        f"{counts['total']} labels are stored, {settled} are accounted for": counts["total"] == settled,
        "a job is still active": status["active_job"] is None,
    }
    ended = [
        f"job {job['id']} {job['state']}: {job['error'] or job['result'].get('reason', '')}"
        for job in jobs
        if job["state"] not in DOCUMENTED
    ]
    return [fault for fault, holds in checks.items() if not holds] + ended


def _share(right: int, labelled: int) -> float | None:
    return round(right / labelled, 4) if labelled else None


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"
