"""The `ratchet` command: each subcommand is a few lines that call the module with its name."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from rich.console import Console
from rich.markup import escape

from shared.errors import RatchetError
from shared.settings import load_settings

app = typer.Typer(
    name="ratchet",
    help="A self-hosted prediction service that retrains itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
WHERE = (
    "run this where the worker is (docker compose run --rm --no-deps -T worker …), or install ratchet[local]"
)
Target = Annotated[str | None, typer.Option(help="The column that holds the class.")]


@app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the API listens.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many retrain workers.")] = 1,
    data: Annotated[
        str | None, typer.Option(help="First data: churn, plans, or a CSV or Parquet file.")
    ] = None,
    target: Target = None,
    flower: Annotated[
        bool, typer.Option(help="Run Flower too, on port 5555; its password is the admin key.")
    ] = False,
) -> None:
    """Run everything here: Postgres, Valkey, the API, the workers. Ctrl-C stops it."""
    from cli.up import up as run

    raise typer.Exit(run(port=port, workers=workers, data=data, target=target, flower=flower))


@app.command()
def demo(as_json: AsJson = False) -> None:
    """The whole loop once, on real data and real servers, in a temporary folder."""
    from cli.demo import demo as run

    raise typer.Exit(run(as_json=as_json))


@app.command()
def bootstrap(
    file: Annotated[Path, typer.Argument(help="A CSV or Parquet file of labelled rows, or - for stdin.")],
    target: Annotated[str, typer.Option(help="The column that holds the class.")],
    id_column: Annotated[str | None, typer.Option("--id", help="The column that names a row.")] = None,
    categorical: Annotated[list[str] | None, typer.Option(help="Read this column as categories.")] = None,
    numeric: Annotated[list[str] | None, typer.Option(help="Read this column as numbers.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Leave this column out.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make version 1 from a file: infer the signature, store the first part, train."""
    from cli.bootstrap import Columns
    from cli.first import bootstrap_file

    columns = Columns(
        target=target,
        id_column=id_column,
        categorical=categorical or (),
        numeric=numeric or (),
        drop=drop or (),
    )
    bootstrap_file(file, columns, ask=not yes, as_json=as_json)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Labels counted, what remains to the threshold, the live version, the running job."""
    from cli import reports

    reports.status(as_json=as_json)


@app.command()
def versions(as_json: AsJson = False) -> None:
    """All versions with their metrics; the live one is marked."""
    from cli import reports

    reports.versions(as_json=as_json)


@app.command()
def jobs(
    job_id: Annotated[int | None, typer.Argument(min=1, help="One job with its log.")] = None,
    as_json: AsJson = False,
) -> None:
    """The newest jobs, or one with its log."""
    from cli import reports

    reports.jobs(job_id, as_json=as_json)


@app.command()
def simulate(
    rows: Annotated[int, typer.Option(min=1, help="How many rows to send.")] = 1500,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Rows a second; unset: as fast as it goes.")
    ] = None,
    label_delay: Annotated[
        float, typer.Option(min=0, help="Seconds before the late labels follow their predictions.")
    ] = 1.0,
    errors: Annotated[bool, typer.Option("--errors", help="Send one row in a hundred faulty.")] = False,
    as_json: AsJson = False,
) -> None:
    """Play labelled traffic, rows that the bootstrap never saw, at the running API."""
    from cli.traffic import simulate as run

    raise typer.Exit(run(rows=rows, rate=rate, label_delay=label_delay, errors=errors, as_json=as_json))


@app.command()
def retrain(
    force: Annotated[bool, typer.Option("--force", help="Even without a new label.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the job's record.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask for a retrain now, through the admin endpoint."""
    from cli.retrain import retrain as run

    raise typer.Exit(run(force=force, wait=wait, reason=reason, as_json=as_json))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check every part and say what to do about each that fails."""
    from cli.doctor import doctor as run

    raise typer.Exit(run(as_json=as_json))


@app.command()
def settings(as_json: AsJson = False) -> None:
    """Every setting: name, default, meaning, current value; secrets are masked."""
    from cli import reports

    reports.settings(as_json=as_json)


@app.command()
def env(file: Annotated[Path, typer.Argument(help="The file to write.")] = Path(".env")) -> None:
    """Write a .env with fresh secrets for `docker compose`; one that is there stays."""
    from cli.env import main as run

    raise typer.Exit(run([str(file)]))


@app.command()
def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Only check, on an empty server, that migrations make the tables.")
    ] = False,
) -> None:
    """Bring the schema of RATCHET_DATABASE_URL to its head."""
    from cli.schema import check_migrations, run_migrations

    check_migrations() if check else run_migrations()


def main() -> None:
    """Run the command; a fault that is known is one line and exit code 1."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        load_settings()
        app()
    except RatchetError as exc:
        _fail(exc.title, exc.detail)
    except ModuleNotFoundError as exc:  # the container of the API, say, has nothing that trains
        _fail("Not here", f"{exc.name} isn't installed; {WHERE}")


def _fail(title: str, detail: str) -> NoReturn:
    console = Console(stderr=True)
    console.print(f"[red]{escape(title)}:[/] {escape(detail)}", soft_wrap=True, highlight=False)
    raise SystemExit(1) from None
