"""A URL whose password isn't percent-encoded is refused before a client can name a piece of it."""

import pytest

from shared.errors import SettingsError
from shared.settings import load_settings, variable

URLS = {"database_url": "postgresql://me:{}@127.0.0.1:{}/db", "redis_url": "redis://me:{}@127.0.0.1:{}/0"}
PIECES = ("S3cr", "cr3T")
UNREADABLE = [
    *(f"S3cr{mark}cr3T" for mark in "/?#@%"),
    "1/S3cr-cr3T",
    "1?S3cr-cr3T",
    "1#S3cr-cr3T",
    "[S3cr-cr3T",
]


def refusal(monkeypatch: pytest.MonkeyPatch, field: str, url: str) -> str:
    """What a wrong URL is answered with."""
    monkeypatch.setenv(variable(field), url)
    load_settings.cache_clear()
    try:
        with pytest.raises(SettingsError) as caught:
            load_settings()
    finally:
        load_settings.cache_clear()
    return str(caught.value)


@pytest.mark.parametrize("field", URLS)
@pytest.mark.parametrize("password", UNREADABLE)
def test_a_password_that_is_not_encoded_is_refused_and_not_named(
    monkeypatch: pytest.MonkeyPatch, field: str, password: str
) -> None:
    said = refusal(monkeypatch, field, URLS[field].format(password, 1234))
    assert said.startswith(variable(field))
    assert not [piece for piece in PIECES if piece in said]


@pytest.mark.parametrize("field", URLS)
@pytest.mark.parametrize("port", ["x", "99999", "-1"])
def test_a_port_that_is_none_is_one_line_too(monkeypatch: pytest.MonkeyPatch, field: str, port: str) -> None:
    said = refusal(monkeypatch, field, URLS[field].format("S3cr-cr3T", port))
    assert said.startswith(variable(field))
    assert not [piece for piece in PIECES if piece in said]


@pytest.mark.parametrize(
    ("field", "url"),
    [
        ("database_url", "postgresql://me:S3cr%2Fcr3T%40@db.internal/ratchet"),
        ("database_url", "postgresql://me@/ratchet?host=/var/run/postgresql"),
        ("database_url", "postgresql:///ratchet"),
        ("database_url", "postgresql://me:a!b$c&d*e(f)g=h+i,j;k'l~m-n_o.p:q@[::1]:5432/db?sslmode=require"),
        ("redis_url", "redis://:S3cr%23cr3T@redis.internal:6379/0"),
        ("redis_url", "unix://me:S3cr@/run/redis.sock?db=1"),
        ("redis_url", "rediss://redis.internal"),
    ],
)
def test_what_clients_can_read_is_accepted(monkeypatch: pytest.MonkeyPatch, field: str, url: str) -> None:
    monkeypatch.setenv(variable(field), url)
    load_settings.cache_clear()
    try:
        assert getattr(load_settings(), field).get_secret_value() == url
    finally:
        load_settings.cache_clear()
