"""`ratchet bootstrap`, and the first model of `ratchet up --data`: asking, progress, the result."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.bootstrap import Columns, bootstrap, has_model, infer_columns, with_urls
from cli.connection import connected
from cli.reports import print_json, table
from shared.errors import DataError
from shared.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from worker.inference import Inferred

FIRST_ROWS = 3000
"""Rows of a named data set that make the first model; `ratchet simulate` plays the others."""


STANDARD_INPUT = Path("-")
"""A container sees no file of the host, but what is piped into it."""


def bootstrap_file(file: Path, columns: Columns, *, ask: bool, as_json: bool) -> None:
    """Make version 1 of a file, or of what standard input holds, on the running servers.

    Raises:
        DataError: the file can't be used; the text says why.
        Conflict: there is a model already.
        BootstrapFailed: the first job did not end with a version.
    """
    from cli.source import Source

    if ask and file == STANDARD_INPUT:
        raise DataError("standard input holds the data, so nobody can be asked: give --yes")
    settings = connected()
    console = Console(stderr=as_json)
    frame = _load(file)
    inferred = infer_columns(frame, columns, settings)
    _show(inferred, console)
    if ask:
        typer.confirm("Is this right? Features and kinds are fixed from here on", abort=True, err=as_json)
    version = _with_progress(frame, inferred, columns.id_column, settings, console)
    if file != STANDARD_INPUT:  # it can't be read again, so that `ratchet simulate` has nothing to play
        Source(name=str(file.resolve()), target=columns.target, rows_used=len(frame)).save(settings.home)
    if as_json:
        print_json({"version": version, "rows": inferred.rows, "left_out": inferred.left_out})
    else:
        console.print(f"[green]version {version} is live[/]")


def _load(file: Path) -> "pd.DataFrame":
    from cli.data import load_file

    if file != STANDARD_INPUT:
        return load_file(file)
    with tempfile.NamedTemporaryFile(prefix="ratchet-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        try:
            return load_file(Path(copy.name))
        except DataError as exc:
            raise DataError(exc.detail.replace(copy.name, "standard input")) from None


def bootstrap_data(database_url: str, redis_url: str, *, data: str, target: str | None) -> None:
    """Give a stack its first model, unless it has one."""
    from cli.data import NAMED, dataset
    from cli.source import Source

    settings = with_urls(database_url, redis_url)
    console = Console()
    if has_model(settings):
        console.print(f"there is a model already: --data {escape(data)} is not used")
        return
    frame, column = dataset(data, target)
    named = data in NAMED
    used = frame.head(FIRST_ROWS) if named else frame
    inferred = infer_columns(used, Columns(target=column), settings)
    _show(inferred, console)
    version = _with_progress(used, inferred, None, settings, console)
    Source(name=data if named else str(Path(data).resolve()), target=column, rows_used=len(used)).save(
        settings.home
    )
    console.print(f"[green]version {version} is live[/]\n")


def _with_progress(
    frame: "pd.DataFrame", inferred: "Inferred", id_column: str | None, settings: Settings, console: Console
) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("queued", total=1.0)

        def report(step: str, done: float) -> None:
            progress.update(shown, description=step, completed=done)

        return bootstrap(frame, inferred, settings=settings, id_column=id_column, report=report)


def _show(inferred: "Inferred", console: Console) -> None:
    made = table("feature", "kind", "may be missing", "never negative")
    for feature in inferred.features:
        negative = "yes" if feature.non_negative else ""
        made.add_row(escape(feature.name), feature.kind, "" if feature.required else "yes", negative)
    console.print(made)
    classes = ", ".join(f"{name} ({rows})" for name, rows in inferred.classes.items())
    console.print(f"\ntarget {inferred.target!r} with classes: {classes}", highlight=False, markup=False)
    for column, reason in inferred.left_out.items():
        console.print(f"left out: {column!r}, {reason}", highlight=False, markup=False)
    for warning in inferred.warnings:
        console.print(f"note: {warning}", highlight=False, markup=False)
