"""Several hosts: the compose file with `deploy/hosts.yml` on top, as docs/operations.md says."""

import json

import pytest

from tests.compose.stack import ComposeStack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds
ELSEWHERE = {
    "COMPOSE_FILE": "docker-compose.yml:deploy/hosts.yml",
    "DATABASE_URL": "postgresql://ratchet:secret@db.internal/ratchet",
    "REDIS_URL": "rediss://:secret@redis.internal:6379/0",
    "NFS_ADDRESS": "10.0.0.5",
    "NFS_PATH": "/srv/ratchet",
}


def test_no_server_is_left_and_all_find_those_elsewhere(images: ComposeStack) -> None:
    there = ComposeStack("ratchet-test-hosts", images.folder, **ELSEWHERE)
    config = json.loads(there.compose("config --format json"))
    assert set(config["services"]) == {"migrate", "api", "worker", "upkeep", "beat", "flower"}
    for service in config["services"].values():
        assert service["environment"]["RATCHET_DATABASE_URL"] == ELSEWHERE["DATABASE_URL"]
        assert service["environment"]["RATCHET_REDIS_URL"] == ELSEWHERE["REDIS_URL"]
        assert not {"postgres", "redis"} & set(service.get("depends_on") or {})
    assert config["volumes"]["ratchet"]["driver_opts"]["device"] == ":/srv/ratchet"


@pytest.mark.parametrize("name", sorted(set(ELSEWHERE) - {"COMPOSE_FILE"}))
def test_what_is_missing_is_named(images: ComposeStack, name: str) -> None:
    there = ComposeStack("ratchet-test-hosts", images.folder, **{**ELSEWHERE, name: ""})
    assert f"set {name} in .env" in there.compose("config --quiet", check=False)
