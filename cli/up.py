"""The body of `ratchet up`."""

import json
import re
import secrets
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from cli.services import FLOWER_PORT, FLOWER_USER
from cli.stack import Stack
from cli.state import ADMIN_KEY, STATE
from shared.errors import RatchetError
from shared.settings import load_settings

READY_SECONDS = 10.0
Prepare = Callable[[str, str], None]
"""Gives the stack its first model if it has none: (database URL, Redis URL)."""


def up(
    *,
    port: int = 8000,
    workers: int = 1,
    data: str | None = None,
    target: str | None = None,
    flower: bool = False,
    prepare: Prepare | None = None,
    console: Console | None = None,
) -> int:
    """Run the whole stack until Ctrl-C or SIGTERM.

    Returns:
        The command's exit code: 0 after a signal, 1 if the stack could not start or stay up.
    """
    console = console or Console()
    prepare = prepare or _bootstrap(data, target)
    try:
        with Stack(
            settings=load_settings(),
            port=port,
            workers=workers,
            flower=flower,
            report=partial(_say, console, "yellow"),
        ) as stack:
            try:
                _serve(stack, console, flower=flower, prepare=prepare)
            finally:
                _say(console, "dim", "stopping")
    except KeyboardInterrupt:
        _say(console, "green", "stopped; the next `ratchet up` goes on from here")
        return 0
    except RatchetError as exc:
        _say(console, "red", f"{exc.title}: {exc.detail}")
        return 1
    return 0


def _serve(stack: Stack, console: Console, *, flower: bool, prepare: Prepare | None) -> None:
    with console.status("starting servers and services"):
        stack.start()
    if prepare is not None:
        stack.during(lambda: prepare(stack.database_url, stack.redis_url))
        stack.during(partial(_wait_until_ready, stack))
    _introduce(stack, console, flower=flower)
    stack.run()


def _wait_until_ready(stack: Stack) -> None:
    """Give the API the moment that it needs to find the first version."""
    deadline = time.monotonic() + READY_SECONDS
    while not stack.is_ready() and time.monotonic() < deadline:
        time.sleep(0.1)


def _introduce(stack: Stack, console: Console, *, flower: bool) -> None:
    lines = {
        "API": stack.api_url,
        "its docs": f"{stack.api_url}/docs",
        "Postgres": _masked(stack.database_url),
        "Redis": _masked(stack.redis_url),
        "passwords": str(stack.home / STATE),
        "admin key": str(stack.home / ADMIN_KEY),
        "logs": str(stack.logs),
    }
    if flower:
        lines["Flower"] = f"http://127.0.0.1:{FLOWER_PORT}, user {FLOWER_USER}, password: the admin key"
    for name, value in lines.items():
        console.print(f"[bold]{name:<10}[/] {escape(value)}", soft_wrap=True, highlight=False)
    for line in _examples(stack):
        console.print(f"\n{escape(line)}", soft_wrap=True, highlight=False)
    console.print("\nCtrl-C stops everything.", style="dim")


def _examples(stack: Stack) -> list[str]:
    try:
        return examples(stack.api_url, stack.home / ADMIN_KEY)
    except httpx.HTTPError as exc:
        return [f"# no examples: the API did not answer ({type(exc).__name__})"]


def examples(api_url: str, key_file: Path) -> list[str]:
    """Commands to paste: a prediction, and a label for it. A hint instead while there is no model.

    The bodies are those of the API's own description, which follows the live signature.

    Args:
        api_url: a running API.
        key_file: holds an admin key, which the commands read if the API wants a key.
    """
    with httpx.Client(base_url=api_url, timeout=10, trust_env=False) as client:
        if client.get("/ready").status_code != httpx.codes.OK:
            return ["# no model yet: ratchet bootstrap FILE --target COLUMN"]
        key = ""
        answer = client.get("/openapi.json")
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            key = f' -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})"'
            secret = key_file.read_text(encoding="ascii").strip()
            answer = client.get("/openapi.json", headers={"Authorization": f"Bearer {secret}"})
    paths = answer.json().get("paths", {})
    prediction, labels = _example(paths, "/predict"), _example(paths, "/labels")
    if prediction is None or labels is None:
        return []
    # An id of our own, new with each start, names the prediction: both lines work as they stand.
    example_id = f"example-{secrets.token_hex(3)}"
    prediction = {"raw_features": prediction["raw_features"][:1], "ids": [example_id]}
    labels = {"labels": [{"id": example_id, "true_label": labels["labels"][0]["true_label"]}]}
    return [_curl(f"{api_url}/predict", prediction, key), _curl(f"{api_url}/labels", labels, key)]


def _example(paths: dict[str, Any], path: str) -> dict[str, Any] | None:
    try:
        found = paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]
    except KeyError:
        return None
    return dict(found)


def _curl(url: str, body: dict[str, Any], key: str) -> str:
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl -s {url}{key} -H 'Content-Type: application/json' -d {data}"


def _masked(url: str) -> str:
    return re.sub(r"(://[^:@/]*:)[^@/]*@", r"\1***@", url)


def _bootstrap(data: str | None, target: str | None) -> Prepare | None:
    if data is None:
        return None
    from cli.first import bootstrap_data

    return partial(bootstrap_data, data=data, target=target)


def _say(console: Console, style: str, text: str) -> None:
    console.print(escape(text), style=style, soft_wrap=True, highlight=False)
