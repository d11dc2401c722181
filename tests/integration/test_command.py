"""The `ratchet` command on running servers: what it prints, and its exit codes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from cli.doctor import examine
from cli.main import app
from shared.artifacts import ArtifactStore
from shared.database import Sessions
from shared.errors import Conflict, DataError
from shared.settings import Settings, load_settings
from tests.conftest import ADMIN_KEY
from tests.serving import example, serve


@pytest.fixture
def client(live_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A running API with version 1 live, which the command finds by its variables."""
    assert live_settings.database_url is not None
    assert live_settings.redis_url is not None
    with serve(live_settings) as served:
        monkeypatch.setenv("RATCHET_API_URL", str(served.base_url))
        monkeypatch.setenv("RATCHET_DATABASE_URL", live_settings.database_url.get_secret_value())
        monkeypatch.setenv("RATCHET_REDIS_URL", live_settings.redis_url.get_secret_value())
        monkeypatch.setenv("RATCHET_HOME", str(live_settings.home))
        monkeypatch.setenv("RATCHET_ADMIN_KEYS", f"tester:{ADMIN_KEY}")
        load_settings.cache_clear()
        yield served
    load_settings.cache_clear()


def ratchet(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def answer(*arguments: str) -> Any:
    result = ratchet(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_bootstrap_reads_standard_input(client: httpx.Client) -> None:
    """The model that is there stops it, after it has read and shown the columns."""
    text = "age,city,churned\n" + "".join(f"{n},{'ab'[n % 3 == 0]},{'xy'[n % 2]}\n" for n in range(300))
    arguments = ["bootstrap", "-", "--target", "churned"]
    done = CliRunner().invoke(app, [*arguments, "--yes"], input=text)
    assert isinstance(done.exception, Conflict)
    assert "'churned' with classes: x (150), y (150)" in done.output
    ragged = CliRunner().invoke(app, [*arguments, "--yes"], input="age,churned\n1,2,3\n4,5,6\n")
    assert isinstance(ragged.exception, DataError)
    assert ragged.exception.detail.startswith("standard input: ")
    asked = CliRunner().invoke(app, arguments, input=text)
    assert isinstance(asked.exception, DataError)
    assert "--yes" in asked.exception.detail


def test_status_says_how_far_it_is_to_the_next_retrain(client: httpx.Client) -> None:
    assert client.post("/predict", json=example(client)).json()["counted"] == 1
    found = answer("status")
    assert found["current_count"] == 1
    assert found["remaining"] == found["threshold"] - 1
    assert found["model_version"] == 1
    assert found["metrics"]["f1_weighted"] > 0.5
    assert "Model version" in ratchet("status").stdout


def test_versions_and_jobs_are_listed(client: httpx.Client) -> None:
    assert [version["live"] for version in answer("versions")] == [True]
    assert [job["state"] for job in answer("jobs")] == ["succeeded"]
    assert answer("jobs", "1")["trigger"] == "bootstrap"
    assert "step 11" in ratchet("jobs", "1").stdout
    assert "live" in ratchet("versions").stdout


def test_retrain_asks_through_the_admin_endpoint_with_the_key_it_finds(client: httpx.Client) -> None:
    job = answer("retrain", "--force", "--reason", "new price list")
    assert (job["state"], job["reason"]) == ("queued", "new price list")
    assert answer("retrain", "--force")["id"] == job["id"]


def test_a_refusal_of_the_api_is_one_line(client: httpx.Client) -> None:
    result = ratchet("retrain")
    assert result.exit_code == 1
    assert "no label waits" in str(result.exception)


def test_settings_masks_secrets(client: httpx.Client) -> None:
    rows = {row["name"]: row for row in answer("settings")}
    assert ADMIN_KEY not in ratchet("settings").stdout
    assert rows["RATCHET_ADMIN_KEYS"]["value"] == "********"
    assert all(row["meaning"] for row in rows.values())


def test_doctor_finds_what_is_wrong_and_says_what_to_do(
    client: httpx.Client, live_settings: Settings, live_sessions: Sessions
) -> None:
    healthy = {finding.part: finding for finding in examine(live_settings)}
    assert [part for part, finding in healthy.items() if not finding.ok] == ["workers"]  # none runs here
    assert "celery -A worker.app worker" in healthy["workers"].remedy
    store = ArtifactStore(live_settings.artifacts)
    graph = next(store.root.glob("versions/*/model.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    hurt = {finding.part: finding for finding in examine(live_settings)}
    assert not hurt["artifacts"].ok
    assert "model.onnx" in hurt["artifacts"].detail
    assert not hurt["live model"].ok
    assert ratchet("doctor").exit_code == 1
    graph.unlink()
    assert "No such file" in {f.part: f for f in examine(live_settings)}["artifacts"].detail
