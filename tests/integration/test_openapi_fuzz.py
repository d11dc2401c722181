"""schemathesis sends what the OpenAPI document allows, and what it does not: every answer is a described one.

The same examples each time (`--generation-deterministic`): a failure's output says how to send it again.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from pydantic import SecretStr

from shared.settings import Settings
from tests.conftest import ADMIN_KEY, Servers, Trained
from tests.integration.conftest import NEVER
from tests.live import trained_settings
from tests.serving import serve

API_KEY = "fuzz-key"
EXAMPLES = 15
SECONDS = 240
ALL = "examples,coverage,fuzzing,stateful"
LISTED = "examples,coverage"
"""The phases that go through what the document lists; the others only draw more of the same refusals."""
ACCEPTED = "[warnings]\nfail-on = true\n"
"""An operation that hardly ever answers 2xx is a warning, and was tested of nothing but its refusals."""
NO_MODEL = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "503"]\n'


def fuzz(
    client: httpx.Client, folder: Path, *, key: str | None, phases: str = LISTED, config: str = ""
) -> str:
    """Run schemathesis with every check it has over the API of a client; answers what it printed."""
    file = folder / "schemathesis.toml"
    file.write_text(config, encoding="utf-8")
    document = folder / "openapi.json"
    document.write_bytes(client.get("/openapi.json").raise_for_status().content)
    # fmt: off
    argv = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(file), "run", str(document),
            "--url", str(client.base_url), "--checks", "all", "--mode", "all",
            "--phases", phases, "--max-examples", str(EXAMPLES),
            "--generation-deterministic", "--continue-on-failure", "--no-color"]
    # fmt: on
    argv += ["--header", f"Authorization: Bearer {key}"] if key else []
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "SCHEMATHESIS_HOOKS": "tests.integration.fuzz_hooks"}
    run = subprocess.run(
        argv, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def settings_of(
    servers: Servers, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """A database with version 1 live; no label makes a job due."""
    with trained_settings(servers, trained, tmp_path_factory.mktemp("fuzz"), threshold=NEVER) as settings:
        yield settings


@pytest.fixture(scope="module")
def open_api(settings_of: Settings) -> Iterator[httpx.Client]:
    """An API that needs no key but for /admin."""
    with serve(settings_of) as client:
        yield client


@pytest.fixture(scope="module")
def keyed_api(settings_of: Settings) -> Iterator[httpx.Client]:
    """An API that wants a key."""
    with serve(settings_of.model_copy(update={"api_keys": SecretStr(API_KEY)})) as client:
        client.headers["Authorization"] = f"Bearer {API_KEY}"
        yield client


def test_the_document_is_openapi(open_api: httpx.Client) -> None:
    schemathesis.openapi.from_dict(open_api.get("/openapi.json").json()).validate()


def test_with_the_admin_key_every_answer_is_a_described_one(open_api: httpx.Client, tmp_path: Path) -> None:
    printed = fuzz(open_api, tmp_path, key=ADMIN_KEY, phases=ALL, config=ACCEPTED)
    assert "13 selected / 13 total" in printed


def test_without_a_key_every_answer_is_a_described_one(open_api: httpx.Client, tmp_path: Path) -> None:
    fuzz(open_api, tmp_path, key=None)


@pytest.mark.parametrize("key", [API_KEY, "wrong", None])
def test_where_keys_are_set_every_answer_is_a_described_one(
    keyed_api: httpx.Client, tmp_path: Path, key: str | None
) -> None:
    fuzz(keyed_api, tmp_path, key=key)


def test_without_a_model_the_only_server_error_is_503(settings: Settings, tmp_path: Path) -> None:
    with serve(settings) as client:
        fuzz(client, tmp_path, key=ADMIN_KEY, config=NO_MODEL)
