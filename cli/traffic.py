"""`ratchet simulate`: rows that the bootstrap never saw, played at the running API."""

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.connection import Client
from cli.outcome import Traffic
from cli.reports import print_json, table
from cli.simulate import simulate as play
from shared.settings import load_settings
from shared.signature import Feature


def simulate(*, rows: int, rate: float | None, label_delay: float, errors: bool, as_json: bool) -> int:
    """Play rows and report; answers the exit code: 1 if anything failed that was not meant to.

    Raises:
        NotRunning: there is no API to play at.
        Refused: the API has no model, or refuses the key.
        DataError: nobody knows what data the model was made of, or they can't be read.
    """
    from cli.source import Source

    client, home = Client(), load_settings().home
    console = Console(stderr=as_json)
    features = tuple(Feature(**feature) for feature in client.get("/model").json()["signature"])
    unseen = Source.load(home).unseen(rows)
    sent, truths = unseen.traffic(features)
    if unseen.note:
        console.print(escape(unseen.note), style="yellow", highlight=False)
    if len(sent) < rows:
        console.print(f"{rows - len(sent)} rows lack a required feature and are left out", style="yellow")
    with progress_bar(console) as progress:
        shown = progress.add_task("rows", total=len(sent))
        traffic = play(
            client.url,
            sent,
            truths,
            rate=rate,
            label_delay=label_delay,
            errors=errors,
            api_key=client.api_key or None,
            report=lambda n, live: progress.update(shown, advance=n, description=f"version {live} live"),
        )
    unseen.source.save(home)
    if as_json:
        print_json(traffic.to_json())
    else:
        console.print(traffic_table(traffic))
        console.print("`ratchet status` says how far the next retrain is", style="dim")
    return 0 if clean(traffic) else 1


def clean(traffic: Traffic) -> bool:
    """Whether every request ended as it was meant to."""
    return not traffic.failures and traffic.faulty_refused == traffic.faulty_sent


def progress_bar(console: Console) -> Progress:
    """The bar of everything that counts rows."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def traffic_table(traffic: Traffic) -> Table:
    """What the traffic came to, one line a fact."""
    latency = traffic.percentiles()
    facts = {
        "Requests": f"{traffic.requests}, {traffic.resent} of them sent again",
        "Faulty rows": f"{traffic.faulty_sent} sent, {traffic.faulty_refused} refused as they should be",
        "Failures": "; ".join([str(traffic.failures), *traffic.messages]),
        "Labels": f"{traffic.labels_sent} sent, {traffic.late_labels} of them later; "
        f"{traffic.new_labels} new, {traffic.corrected} corrected",
        "Answer times": ", ".join(f"{name} {milliseconds(value)}" for name, value in latency.items()),
    }
    for version, count in traffic.versions.items():
        right, labelled = traffic.accuracy.get(version, (0, 0))
        share = f", {right / labelled:.1%} right" if labelled else ""
        facts[f"Version {version}"] = f"{count} rows{share}"
    made = table("", "")
    made.show_header = False
    for name, fact in facts.items():
        made.add_row(f"[bold]{name}[/]", escape(fact))
    return made


def milliseconds(value: float | None) -> str:
    """A time as text; a dash if there is none."""
    return "–" if value is None else f"{value:.1f} ms"
