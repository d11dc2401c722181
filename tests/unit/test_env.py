"""`ratchet env`, and that the compose file, `.env.example` and the settings agree."""

import re
import stat
from pathlib import Path

import pytest

from cli.env import SECRETS, main, render, write_env
from shared.settings import Settings, variable

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
NOT_IN_CONTAINERS = {"home"}
"""Fixed by the images."""


def values(text: str) -> dict[str, str]:
    """The variables that a `.env` sets."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_a_new_file_has_fresh_secrets_that_only_its_owner_reads(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_env(first)
    write_env(second)
    found, other = (values(file.read_text(encoding="utf-8")) for file in (first, second))
    assert set(found) == set(other) == set(SECRETS)
    assert len({*found.values(), *other.values()}) == 2 * len(SECRETS)
    assert all(re.fullmatch(r"[\w-]{32}", secret) for secret in found.values())  # each may stand in a URL
    assert stat.S_IMODE(first.stat().st_mode) == 0o600


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / ".env"
    file.write_text("POSTGRES_PASSWORD=in-use\n", encoding="utf-8")
    assert main([str(file)]) == 1
    assert file.read_text(encoding="utf-8") == "POSTGRES_PASSWORD=in-use\n"
    assert "stays as it is" in capsys.readouterr().err
    assert main([str(tmp_path / "none" / ".env")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_the_example_is_that_file_with_the_secrets_left_empty() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert example == render({})
    assert values(example) == dict.fromkeys(SECRETS, "")


def test_what_the_example_names_is_what_compose_reads() -> None:
    named = set(re.findall(r"^(?:# )?([A-Z_]+)=", render({}), flags=re.MULTILINE))
    read = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE)) | set(
        re.findall(r"^ +(RATCHET_[A-Z_]+):$", COMPOSE, flags=re.M)
    )
    assert named <= read
    for secret in SECRETS:
        assert COMPOSE.count(f"${{{secret}:?") == COMPOSE.count(f"${{{secret}")


def test_the_images_say_which_version_they_are() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', project, flags=re.MULTILINE)
    for name in ("Dockerfile.api", "Dockerfile.worker"):
        assert f"ARG VERSION={version}\n" in (ROOT / name).read_text(encoding="utf-8")


def test_every_setting_reaches_the_containers() -> None:
    passed = set(re.findall(r"^ +(RATCHET_[A-Z_]+):", COMPOSE, flags=re.MULTILINE))
    wanted = {variable(name) for name in Settings.model_fields if name not in NOT_IN_CONTAINERS}
    assert wanted - passed == {"RATCHET_ARTIFACTS_URL"}  # the images name the volume
    assert passed <= {variable(name) for name in Settings.model_fields}
