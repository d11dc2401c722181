"""What the stack knows outlives its containers: `down` and `up`, a backup, a newer image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compose.engine import docker
from tests.compose.stack import IMAGES, ComposeStack, wait_for
from tests.readme import SCALE

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds

HEAD = "SELECT version_num FROM alembic_version"


def sql(stack: ComposeStack, statement: str) -> str:
    """What a statement answers."""
    command = f'exec -T postgres psql --username=ratchet --no-align --tuples-only --command "{statement}"'
    return stack.compose(command).strip()


def fingerprint(stack: ComposeStack, body: dict[str, Any]) -> dict[str, Any]:
    """What must be the same afterwards: the live version, the labels, and an answer to the digit."""
    answer = stack.api("/predict", body)
    return {
        "version": stack.versions(),
        "labels": stack.api("/retrain/status")["labels"],
        "answer": {name: answer[name] for name in ("predictions", "probabilities", "prediction_ids")},
    }


@pytest.fixture(scope="module")
def body(stack: ComposeStack) -> dict[str, Any]:
    """A request with a caller's id: sent again, it gets the answer of the first time."""
    example: dict[str, Any] = stack.api("/openapi.json")["paths"]["/predict"]["post"]["requestBody"]
    rows = example["content"]["application/json"]["example"]["raw_features"][:1]
    return {"raw_features": rows, "ids": ["remembered"]}


@pytest.fixture
def another(stack: ComposeStack, request: pytest.FixtureRequest) -> Iterator[ComposeStack]:
    """A second project, empty, with the same secrets."""
    made = ComposeStack(f"ratchet-test-{request.function.__name__[5:11]}", stack.folder)
    made.down()
    yield made
    made.down()


def test_down_and_up_again_is_as_before(stack: ComposeStack, body: dict[str, Any]) -> None:
    before = fingerprint(stack, body)
    stack.compose("down --remove-orphans")
    assert stack.compose("ps --all --quiet").split() == []
    stack.run(stack.here(SCALE), seconds=300)
    wait_for("the version is live again", lambda: stack.versions() == before["version"])
    assert fingerprint(stack, body) == before


def test_a_backup_becomes_the_same_stack_elsewhere(
    stack: ComposeStack, another: ComposeStack, body: dict[str, Any], tmp_path: Path
) -> None:
    before = fingerprint(stack, body)
    backup = tmp_path / "backup"
    stack.run(f"deploy/backup.sh {backup}")
    assert {file.name for file in backup.iterdir()} >= {"ratchet.dump", "artifacts.tar"}
    said = another.run(f"deploy/restore.sh {backup}", seconds=300)
    assert f"version {max(before['version'])}" in said
    assert fingerprint(another, body) == before
    again = another.run(f"deploy/restore.sh {backup}", check=False)
    assert "empty" in again
    assert fingerprint(another, body) == before
    assert another.api("/retrain/jobs") == stack.api("/retrain/jobs")


def test_a_damaged_backup_is_refused(stack: ComposeStack, another: ComposeStack, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    stack.run(f"deploy/backup.sh {backup}")
    with (backup / "artifacts.tar").open("r+b") as file:
        file.seek(4096)
        file.write(b"\0damaged\0")
    said = another.run(f"deploy/restore.sh {backup}", check=False)
    assert "artifacts.tar" in said
    assert "checksum" in said or "sha256" in said
    assert another.compose("ps --quiet").split() == []
    assert "exists" in stack.run(f"deploy/backup.sh {backup}", check=False)


def test_the_image_of_the_migration_before_is_upgraded(
    stack: ComposeStack, another: ComposeStack, body: dict[str, Any]
) -> None:
    """Its schema with this stack's rows and files in it; then the images of now on top."""
    before = fingerprint(stack, body)
    head = sql(stack, HEAD)
    build_previous(head)
    another.env["RATCHET_VERSION"] = "previous"
    another.compose("up --detach --wait --no-build postgres redis")
    another.compose("run --rm --no-TTY migrate")
    assert sql(another, HEAD) == f"{int(head) - 1:04}"
    dump = "exec -T postgres pg_dump --username=ratchet --data-only --exclude-table=alembic_version"
    load = "exec -T postgres psql --username=ratchet --quiet --set=ON_ERROR_STOP=1"
    other = f"docker compose --project-name {another.project}"
    stack.run(f"docker compose {dump} | {other} {load}")
    files = "run --rm --no-TTY --no-deps worker tar --directory /var/lib/ratchet"
    stack.run(f"docker compose {files} --create . | {other} {files} --extract")
    another.env.update(IMAGES)
    another.compose("up --detach --wait --no-build", seconds=300)
    assert sql(another, HEAD) == head
    wait_for("the version is live", lambda: another.versions() == before["version"])
    assert fingerprint(another, body) == before
    key = {"Authorization": f"Bearer {another.secret('RATCHET_ADMIN_KEYS')}"}
    asked = httpx.post(
        f"{another.replicas()[0]}/admin/retrain", json={"force": True}, headers=key, trust_env=False
    )
    assert asked.status_code == httpx.codes.ACCEPTED
    wait_for("a job ends after the upgrade", lambda: another.job(trigger="admin", state="succeeded"))


def build_previous(head: str) -> None:
    """Images that don't know the newest migration, as those of the release before it."""
    migrations = "/opt/ratchet/lib/python3.*/site-packages/shared/migrations/versions"
    for name in ("ratchet-api", "ratchet-worker"):
        lines = (f"FROM {name}:test", "USER root", f"RUN rm {migrations}/{head}_*.py", "USER 10001:10001")
        docker("build", "--quiet", "--tag", f"{name}:previous", "-", text="\n".join(lines))
