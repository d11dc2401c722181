"""Settings from the environment: defaults that work together, and faults that name their variable."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.errors import SettingsError
from shared.settings import PREFIX, Settings, load_settings, settings_or_exit, variable


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's, and nothing kept from another test."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("shared.settings.load_settings", load_settings.__wrapped__)


def load() -> Settings:
    return load_settings.__wrapped__()


def test_the_defaults_are_those_that_the_documents_name() -> None:
    settings = load()
    assert (settings.threshold, settings.window, settings.lease_seconds) == (1000, 200_000, 10.0)
    assert (settings.renew_seconds, settings.pause_minutes, settings.keep_versions) == (2.0, 10.0, 5)
    assert (settings.max_rows, settings.max_body) == (10_000, 8 * 2**20)
    assert settings.record_deadline <= 2.0
    assert (settings.outliers, settings.outlier_factor, settings.balance) == ("remove", 1.5, "smote")
    assert (settings.min_rows, settings.min_class_rows, settings.max_categories) == (100, 20, 50)
    assert settings.gate_tolerance == 0.01
    assert settings.database_url is settings.redis_url is settings.admin_keys is None


def test_every_setting_says_what_it_means() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable("gate_tolerance") == "RATCHET_GATE_TOLERANCE"
    monkeypatch.setenv("RATCHET_GATE_TOLERANCE", "0.25")
    monkeypatch.setenv("RATCHET_HOME", "/somewhere")
    monkeypatch.setenv("RATCHET_BALANCE", "weights")
    monkeypatch.setenv("RATCHET_NO_SUCH_SETTING", "1")
    settings = load()
    assert (settings.gate_tolerance, settings.home, settings.balance) == (0.25, Path("/somewhere"), "weights")


WRONG = {
    "DATABASE_URL": "mysql://host/db",
    "REDIS_URL": "host:6379",
    "ADMIN_KEYS": "ann:",
    "API_KEYS": "secret,,other",
    "METRICS_KEYS": "prometheus:",
    "ARTIFACTS_URL": "s3://bucket/models",
    "MAX_ROWS": "0",
    "MAX_BODY": "1000",
    "RECORD_DEADLINE": "0",
    "BODY_SECONDS": "0",
    "REQUEST_DEADLINE": "inf",
    "MAX_IN_FLIGHT": "0",
    "MAX_QUEUED_ROWS": "0",
    "RATE_LIMIT": "0/second",
    "POLL_SECONDS": "-1",
    "THRESHOLD": "a thousand",
    "WINDOW": "99",
    "LEASE_SECONDS": "0.5",
    "RENEW_SECONDS": "0",
    "SWEEP_SECONDS": "nan",
    "RECONCILE_SECONDS": "0",
    "PAUSE_MINUTES": "-10",
    "OUTLIERS": "keep",
    "OUTLIER_FACTOR": "0",
    "BALANCE": "SMOTE",
    "MIN_ROWS": "9",
    "MIN_CLASS_ROWS": "1",
    "MAX_CATEGORIES": "0",
    "ITERATIONS": "12.5",
    "SEED": "-1",
    "THREADS": "-1",
    "GATE_TOLERANCE": "1.01",
    "KEEP_VERSIONS": "0",
    "LOG_LEVEL": "loud",
    "LOG_FORMAT": "xml",
    "ACCESS_LOG": "1.5",
}


@pytest.mark.parametrize(("name", "value"), WRONG.items(), ids=WRONG)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError, match=rf"^{PREFIX}{name}: .+$") as caught:
        load()
    assert "\n" not in caught.value.detail


def test_every_setting_that_can_be_wrong_is_tried_above() -> None:
    texts = {"home", "api_url"}  # any text is a value of theirs
    assert {name.lower() for name in WRONG} == set(Settings.model_fields) - texts


def test_two_wrong_values_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_THRESHOLD", "x")
    monkeypatch.setenv("RATCHET_SEED", "y")
    with pytest.raises(SettingsError, match=r"RATCHET_THRESHOLD: .*; RATCHET_SEED: "):
        load()


def test_a_lease_that_its_renewal_can_not_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_LEASE_SECONDS", "3")
    with pytest.raises(
        SettingsError, match=r"^RATCHET_LEASE_SECONDS: must be at least twice RATCHET_RENEW_SECONDS$"
    ):
        load()
    monkeypatch.setenv("RATCHET_RENEW_SECONDS", "1.5")
    assert load().lease_seconds == 3.0


def test_a_process_that_starts_with_a_wrong_value_ends_with_that_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RATCHET_THRESHOLD", "many")
    with pytest.raises(SystemExit, match=r"^ratchet: wrong setting: RATCHET_THRESHOLD: "):
        settings_or_exit()


def test_secrets_are_not_shown_by_settings_or_by_their_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "DATABASE_URL": "postgresql://me:hush-database@host/db",
        "REDIS_URL": "redis://:hush-redis@host/0",
        "ADMIN_KEYS": "ann:hush-admin",
        "API_KEYS": "hush-api",
        "METRICS_KEYS": "hush-metrics",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(PREFIX + name, value)
    settings = load()
    for shown in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
        assert "hush" not in shown
    assert settings.admin_keys == SecretStr("ann:hush-admin")

    monkeypatch.setenv("RATCHET_DATABASE_URL", "mysql://me:hush-database@host/db")
    monkeypatch.setenv("RATCHET_THRESHOLD", "hush-number")
    with pytest.raises(SettingsError) as caught:
        load()
    assert "hush" not in caught.value.detail


def test_artifacts_are_in_home_unless_a_url_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", "some home")
    assert load().artifacts == (Path.cwd() / "some home" / "artifacts").as_uri()
    monkeypatch.setenv("RATCHET_ARTIFACTS_URL", "file:///models")
    assert load().artifacts == "file:///models"


def test_settings_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().threshold = 1  # type: ignore[misc]
