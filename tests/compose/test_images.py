"""The images: thin, locked, without what builds them, and without a secret."""

import json

import pytest

from tests.compose.engine import ROOT, docker
from tests.compose.stack import ComposeStack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds

API, WORKER = "ratchet-api:test", "ratchet-worker:test"
BASE = "python:3.13-slim"
MEGABYTE = 1_000_000
API_LIMIT = 350 * MEGABYTE
OFFICIAL_BASE = 130 * MEGABYTE
"""More than the official base has; a stand-in for it may have more."""

SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "RATCHET_ADMIN_KEYS", "FLOWER_PASSWORD", "METRICS_KEY")


def in_image(image: str, *command: str, check: bool = True) -> str:
    """What a command prints in an image."""
    return docker("run", "--rm", "--entrypoint", command[0], image, *command[1:], check=check)


def installed(image: str) -> set[str]:
    """The distributions that an image's Python finds."""
    code = "from importlib.metadata import distributions as d; print(*(x.name.lower() for x in d()))"
    return set(in_image(image, "python", "-c", code).replace("_", "-").split())


def inspected(image: str) -> dict[str, object]:
    """An image's configuration."""
    config: dict[str, object] = json.loads(docker("inspect", image))[0]["Config"]
    return config


def test_the_api_holds_only_its_own_extra(images: ComposeStack) -> None:
    found = installed(API)
    assert {"fastapi", "onnxruntime", "prometheus-client", "ratchet"} <= found
    heavy = {"catboost", "pandas", "scikit-learn", "imbalanced-learn", "pyarrow", "onnx", "flower", "pytest"}
    assert not found & heavy
    assert {"catboost", "flower"} <= installed(WORKER)


def test_the_api_is_small(images: ComposeStack) -> None:
    size, base = (int(docker("inspect", "--format", "{{.Size}}", image)) for image in (API, BASE))
    own = size - base
    assert 50 * MEGABYTE < own < API_LIMIT - OFFICIAL_BASE


@pytest.mark.parametrize("image", [API, WORKER])
def test_an_image_runs_as_nobody_in_particular_and_builds_nothing(images: ComposeStack, image: str) -> None:
    assert in_image(image, "id", "-u").strip() == "10001"
    tools = in_image(image, "sh", "-c", "command -v gcc cc make ld hatchling uv ruff; true")
    assert tools.split() == []
    assert not installed(image) & {"pip", "hatchling", "setuptools", "pytest"}


@pytest.mark.parametrize("image", [API, WORKER])
def test_an_image_says_what_it_is_and_how_it_is(images: ComposeStack, image: str) -> None:
    config = inspected(image)
    labels, health = config["Labels"], config["Healthcheck"]
    assert isinstance(labels, dict)
    assert isinstance(health, dict)
    assert {"org.opencontainers.image.title", "org.opencontainers.image.version"} <= set(labels)
    assert health["Test"][:4] == ["CMD", "python", "-m", "cli.health"]


@pytest.mark.parametrize("image", [API, WORKER])
def test_an_image_reports_to_nobody(images: ComposeStack, image: str) -> None:
    code = "import shared, onnxruntime, pathlib; print(list(pathlib.Path('/tmp').rglob('*')))"
    assert in_image(image, "python", "-c", code).strip() == "[]"


def test_a_command_that_needs_the_worker_says_so(images: ComposeStack) -> None:
    said = in_image(API, "ratchet", "bootstrap", "/etc/hostname", "--target", "x", "--yes", check=False)
    assert "Traceback" not in said
    url = ("--env", "RATCHET_DATABASE_URL=postgresql://nobody@127.0.0.1:1/none")
    redis = ("--env", "RATCHET_REDIS_URL=redis://127.0.0.1:1/0")
    command = ("ratchet", "bootstrap", "/etc/hostname", "--target", "x", "--yes")
    said = docker("run", "--rm", *url, *redis, API, *command, check=False)
    assert "Traceback" not in said
    assert "pandas isn't installed" in said


@pytest.mark.parametrize("image", [API, WORKER])
def test_no_secret_is_in_an_image(images: ComposeStack, image: str) -> None:
    told = docker("inspect", image) + docker("history", "--no-trunc", image)
    assert "uvicorn" in told or "celery" in told
    for name in SECRETS:
        assert images.secret(name) not in told
    assert in_image(image, "sh", "-c", "find / -name '.env*' -not -path '/proc/*' 2>/dev/null; true") == ""


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_secret_stops_compose_with_what_to_set(images: ComposeStack, name: str) -> None:
    whole = (images.folder / ".env").read_text(encoding="utf-8")
    without = images.folder / "without.env"
    lines = [line for line in whole.splitlines() if not line.startswith(f"{name}=")]
    without.write_text("\n".join(lines), encoding="utf-8")
    project = "--project-name ratchet-test-none"
    said = images.compose(f"{project} --env-file {without.name} up --detach --no-build", check=False)
    assert f"set {name} in .env" in said
    assert images.compose(f"{project} ps --all --quiet").split() == []


def test_the_dockerfiles_fetch_no_syntax() -> None:
    for file in ("Dockerfile.api", "Dockerfile.worker"):
        assert "syntax" not in (ROOT / file).read_text(encoding="utf-8")
