"""Keys, problems, the API's description of itself, and whether it is ready."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from cli.ports import free_port
from shared.settings import Settings
from tests.conftest import Servers, Trained
from tests.live import Live, trained_settings
from tests.serving import ADMIN, serve

OPEN = {"/health", "/ready"}
METHODS = ("get", "post")


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def is_problem(response: httpx.Response, status: int) -> bool:
    """Whether a response is an RFC 9457 problem with this status."""
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert {"type", "title", "status", "detail"} <= set(problem)
    assert problem["detail"]
    return bool(response.status_code == problem["status"] == status)


@pytest.fixture(scope="module")
def description(running: Live) -> dict[str, Any]:
    """The OpenAPI document."""
    document: dict[str, Any] = running.client.get("/openapi.json").json()
    return document


@pytest.fixture(scope="module")
def keyed(
    servers: Servers, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """An API whose keys have names: `alice` has one of each kind, `ops` two."""
    keys = {
        "admin_keys": SecretStr("ops:root-1,alice:root-2, plain-root,ops:with:colon"),
        "api_keys": SecretStr("alice:secret-1,secret-2"),
    }
    home = tmp_path_factory.mktemp("keyed")
    with trained_settings(servers, trained, home, **keys) as settings, serve(settings) as client:
        yield client


def test_api_keys_guard_everything_but_health_and_ready(keyed: httpx.Client) -> None:
    paths = keyed.get("/openapi.json", headers=bearer("secret-2")).json()["paths"]
    operations = [(method, path) for path, item in paths.items() for method in item]
    operations += [("get", "/openapi.json"), ("get", "/docs")]
    assert len(operations) > 10
    for method, template in operations:
        path = template.replace("{version}", "1").replace("{job_id}", "1")
        if path in OPEN:
            assert keyed.request(method, path).status_code in (200, 503)
            continue
        assert is_problem(keyed.request(method, path), 401), path
        assert keyed.request(method, path).headers["www-authenticate"] == "Bearer"
        assert is_problem(keyed.request(method, path, headers=bearer("wrong")), 403), path


@pytest.mark.parametrize("key", ["secret-1", "secret-2", "root-1", "root-2", "plain-root", "with:colon"])
def test_every_key_opens_the_api(keyed: httpx.Client, key: str) -> None:
    assert keyed.get("/models", headers=bearer(key)).status_code == 200
    assert is_problem(keyed.post("/predict", json={}, headers=bearer(key)), 422)


@pytest.mark.parametrize("key", ["root-1", "root-2", "plain-root", "with:colon"])
def test_admin_keys_open_admin(keyed: httpx.Client, key: str) -> None:
    assert is_problem(keyed.post("/admin/retrain", json={}, headers=bearer(key)), 409)


@pytest.mark.parametrize("key", ["secret-1", "secret-2", "alice", "alice:root-2", "root", "colon", "é"])
def test_no_other_key_opens_admin(keyed: httpx.Client, key: str) -> None:
    header = {"Authorization": f"Bearer {key}".encode()}
    assert is_problem(keyed.post("/admin/retrain", json={}, headers=header), 403)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic cm9vdC0x", "root-1"])
def test_what_is_no_bearer_key_is_401(keyed: httpx.Client, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    assert is_problem(keyed.post("/admin/retrain", json={}, headers=headers), 401)
    assert is_problem(keyed.post("/predict", json={}, headers=headers), 401)


def test_without_an_admin_key_admin_is_closed_to_all(settings: Settings) -> None:
    with serve(settings.model_copy(update={"admin_keys": None})) as client:
        for headers in ({}, ADMIN, bearer("None")):
            assert is_problem(client.post("/admin/retrain", json={}, headers=headers), 403)
        assert client.get("/models").status_code == 200


def test_a_wrong_key_is_told_before_the_body_is_looked_at(keyed: httpx.Client) -> None:
    for path in ("/predict", "/labels", "/admin/retrain"):
        assert is_problem(keyed.post(path, content=b"{nonsense", headers=bearer("wrong")), 403)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/models/7", 404),
        ("GET", "/retrain/jobs/999", 404),
        ("GET", "/predict", 405),
        ("PUT", "/labels", 405),
        ("DELETE", "/models/1", 405),
        ("GET", "/models/one", 422),
        ("GET", "/models/0", 422),
        ("GET", "/retrain/jobs/99999999999999999999", 422),
        ("GET", "/retrain/jobs?limit=0", 422),
        ("POST", "/labels", 400),
        ("POST", "/predict", 400),
    ],
)
def test_every_error_is_a_problem(api: Live, method: str, path: str, status: int) -> None:
    response = api.client.request(method, path)
    assert is_problem(response, status)
    assert (status == 405) is ("allow" in response.headers)


def test_without_a_model_every_request_is_503_with_retry_after(settings: Settings) -> None:
    body = {"raw_features": [{"a": 1}], "true_labels": ["b"], "ids": ["c"]}
    with serve(settings) as client:
        for response in (
            client.post("/predict", json=body),
            client.get("/model"),
            client.post("/admin/retrain", headers=ADMIN),
        ):
            assert is_problem(response, 503)
            assert response.json()["title"] == "No model yet"
            assert int(response.headers["retry-after"]) > 0
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["ready"], ready.json()["postgres"]) == (503, False, "ok")
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/").json()["model_version"] is None
        assert client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]


def test_the_root_names_the_service_and_links_to_what_exists(api: Live) -> None:
    root = api.client.get("/").json()
    assert (root["name"], root["model_version"]) == ("Ratchet", 1)
    assert root["version"]
    for link in root["links"].values():
        assert api.client.get(link).status_code != 404, link


def references(value: object) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_description_is_whole(description: dict[str, Any]) -> None:
    assert description["openapi"].startswith("3.")
    assert {"title", "version"} <= set(description["info"])
    for reference in set(references(description)):
        found: Any = description
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    operations = [(p, m, op) for p, item in description["paths"].items() for m, op in item.items()]
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names))
    for path, method, operation in operations:
        assert method in METHODS
        assert operation["responses"], path
        assert {"401", "403", "503"} <= set(operation["responses"])
        for status, response in operation["responses"].items():
            assert response["description"], (path, status)
        templated = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        given = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert templated == given, path
    documented = {"/", "/predict", "/labels", "/health", "/ready", "/model", "/models", "/models/{version}"}
    documented |= {"/retrain/status", "/retrain/jobs", "/retrain/jobs/{job_id}", "/admin/retrain"}
    documented |= {"/metrics"}
    assert documented == set(description["paths"])


def test_every_body_has_an_example_that_works(api: Live, description: dict[str, Any]) -> None:
    bodies = {
        path: operation["requestBody"]["content"]["application/json"]
        for path, item in description["paths"].items()
        for operation in item.values()
        if "requestBody" in operation
    }
    order = ("/predict", "/labels", "/admin/retrain")  # a job needs the label that the first one brings
    assert (
        set(bodies) == set(order) == {path for path, item in description["paths"].items() if "post" in item}
    )
    for path in order:
        response = api.client.post(path, json=bodies[path]["example"], headers=ADMIN)
        assert response.status_code in (200, 202), (path, response.text)
    api.execute("DELETE FROM retrain_jobs WHERE state = 'queued'")


def test_the_example_of_predict_fits_the_live_signature(api: Live, description: dict[str, Any]) -> None:
    content = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    model = api.client.get("/model").json()
    assert set(content["example"]["raw_features"][0]) == {feature["name"] for feature in model["signature"]}
    assert set(content["example"]["true_labels"]) <= set(model["classes"])


def test_the_answers_have_the_fields_that_are_described(api: Live, description: dict[str, Any]) -> None:
    given = api.predict(ids=["a"], true_labels=["Basic Plan"])
    answers = {
        "/predict": given,
        "/labels": api.label({"id": "a", "true_label": "Family Plan"}),
        "/model": api.client.get("/model"),
        "/retrain/status": api.client.get("/retrain/status"),
    }
    for path, answer in answers.items():
        (operation,) = description["paths"][path].values()
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        name = schema["$ref"].rpartition("/")[2]
        assert set(answer.json()) == set(description["components"]["schemas"][name]["properties"]), path


def test_ready_says_what_it_serves(api: Live) -> None:
    ready = api.client.get("/ready")
    assert ready.status_code == 200
    assert ready.json() == {
        "ready": True,
        "model_version": 1,
        "model_fault": None,
        "postgres": "ok",
        "redis": "ok",
    }


def test_without_redis_the_api_is_ready_and_says_so(live_settings: Settings) -> None:
    nobody = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    with serve(live_settings.model_copy(update={"redis_url": nobody})) as client:
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert "does not answer" in ready.json()["redis"]
        assert client.get("/retrain/status").json()["tally"] is None
