"""Every setting of Ratchet, read once from the environment."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import SettingsError

PREFIX = "RATCHET_"


class Settings(BaseSettings):
    """Settings from `RATCHET_*` variables; each field's description is its help text.

    Raises:
        SettingsError: from `load_settings`, naming the variable whose value is wrong.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, allow_inf_nan=False, frozen=True, extra="ignore"
    )

    # Where things are
    database_url: SecretStr | None = Field(
        None, description="Postgres 16 or newer, as a URL; unset: an embedded server"
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey, as a URL; unset: an embedded server"
    )
    home: Path = Field(Path(".ratchet"), description="folder of embedded servers, keys and logs")
    artifacts_url: str | None = Field(
        None, description="where models and dataset parts are kept; unset: the artifacts folder of home"
    )
    api_url: str | None = Field(
        None, description="the API that the command talks to; unset: the stack that runs in home"
    )

    # Serving
    admin_keys: SecretStr | None = Field(
        None, description="keys for /admin, comma separated, each secret or name:secret"
    )
    api_keys: SecretStr | None = Field(
        None, description="keys for everything but /health and /ready; unset: no key is needed"
    )
    metrics_keys: SecretStr | None = Field(
        None, description="keys for /metrics, which an admin key opens too; with neither it is closed"
    )
    max_rows: int = Field(10_000, ge=1, description="most rows in one request")
    max_body: int = Field(
        8 * 2**20, ge=1024, description="largest request body, bytes; an eighth without Content-Length"
    )
    record_deadline: float = Field(
        1.8, gt=0, le=60, description="longest a request waits for Postgres, seconds"
    )
    body_seconds: float = Field(
        10.0, gt=0, description="a body that takes longer to arrive is refused, seconds"
    )
    request_deadline: float = Field(
        15.0, gt=0, description="longest that anything but /predict waits for Postgres, seconds"
    )
    max_in_flight: int = Field(
        64, ge=1, description="most requests at once in one process, /predict and the rest counted apart"
    )
    max_queued_rows: int = Field(
        20_000, ge=1, description="most rows of one process that wait for Postgres; one request may have more"
    )
    rate_limit: str | None = Field(
        None,
        description="most requests of one key, or of one address where no key is needed, in any such span:"
        " 100/second, 6000/minute, 50000/hour; unset: no limit. Behind a proxy, let uvicorn trust it"
        " (FORWARDED_ALLOW_IPS), or all its clients have one address",
    )
    poll_seconds: float = Field(
        2.0, gt=0, description="how often the API looks for a new deployment, seconds"
    )

    # When to retrain
    threshold: int = Field(1000, ge=1, description="new labels that start a retrain")
    window: int = Field(200_000, ge=100, description="newest labelled rows that a model learns from")
    lease_seconds: float = Field(
        10.0, ge=1, description="a job whose worker is silent this long is taken over, seconds"
    )
    renew_seconds: float = Field(2.0, gt=0, description="how often a worker renews its lease, seconds")
    sweep_seconds: float = Field(5.0, gt=0, description="how often lost work is looked for, seconds")
    reconcile_seconds: float = Field(
        10.0, gt=0, description="how often the tally is set from Postgres, seconds"
    )
    pause_minutes: float = Field(
        10.0, gt=0, description="pause after a skipped or failed job, doubled each time, minutes"
    )

    # Training
    outliers: Literal["remove", "clip", "off"] = Field(
        "remove", description="what happens to training rows beyond the IQR fences"
    )
    outlier_factor: float = Field(1.5, gt=0, description="IQR fences: this many IQRs beyond the quartiles")
    balance: Literal["smote", "weights", "none"] = Field("smote", description="how classes are balanced")
    min_rows: int = Field(100, ge=10, description="fewer labelled rows than this train no model")
    min_class_rows: int = Field(20, ge=2, description="a class with fewer rows is left out until it has more")
    max_categories: int = Field(
        50, ge=1, description="most categories of one feature; the rest are one 'other'"
    )
    iterations: int = Field(300, ge=1, description="trees that CatBoost fits")
    seed: int = Field(0, ge=0, description="random seed of balancing and training")
    threads: int = Field(
        0, ge=0, description="threads that training uses; 0: as many as its container has cores"
    )
    gate_tolerance: float = Field(
        0.01, ge=0, le=1, description="how much lower a challenger's weighted F1 may be and still go live"
    )
    keep_versions: int = Field(5, ge=1, description="newest versions whose artifacts are kept")

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, JSON elsewhere"
    )
    access_log: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of requests that get a line in the API's log, 0.01: one in a hundred; above 0,"
        " every answer of 500 or more gets one too",
    )

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return _readable(value)

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return _readable(value)

    @field_validator("admin_keys", "api_keys", "metrics_keys")
    @classmethod
    def _keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if any(not entry.strip().rpartition(":")[2] for entry in value.get_secret_value().split(",")):
            raise ValueError("an entry without a secret; each must be secret or name:secret")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"[1-9][0-9]{0,8}/(second|minute|hour)", value):
            raise ValueError("must be a number per second, minute or hour, such as 100/second")
        return value

    @field_validator("artifacts_url")
    @classmethod
    def _file_url(cls, value: str | None) -> str | None:
        if value and not value.startswith("file:///"):
            raise ValueError("must start with file:///")
        return value

    @model_validator(mode="after")
    def _lease_outlives_renewal(self) -> Self:
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("RATCHET_LEASE_SECONDS: must be at least twice RATCHET_RENEW_SECONDS")
        return self

    @property
    def artifacts(self) -> str:
        """URL of the artifact store."""
        return self.artifacts_url or (self.home.resolve() / "artifacts").as_uri()


def _readable(value: SecretStr | None) -> SecretStr | None:
    """Refuse a URL in which a client would take a piece of the password for a host or a port, and log it."""
    if value is None:
        return None
    url = value.get_secret_value()
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        readable = False
    else:
        behind = parts.path + parts.query
        readable = parts.netloc.count("@") < 2 and "@" not in behind and not parts.fragment
    if not readable or re.search("%(?![0-9A-Fa-f]{2})", url):
        raise ValueError(
            "can't be read as a URL; in the password, write / ? # @ : and % as %2F %3F %23 %40 %3A %25"
        )
    return value


def variable(field: str) -> str:
    """The environment variable of a field: `threshold` → `RATCHET_THRESHOLD`."""
    return PREFIX + field.upper()


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Read the environment once.

    Raises:
        SettingsError: one line that names each variable whose value is wrong.
    """
    try:
        return Settings()
    except ValidationError as exc:
        faults = [
            (f"{variable(str(e['loc'][0]))}: " if e["loc"] else "")
            + str(e["msg"]).removeprefix("Value error, ")
            for e in exc.errors(include_input=False)
        ]
        raise SettingsError("; ".join(faults)) from None


def settings_or_exit() -> Settings:
    """`load_settings` for a process's start: a wrong value ends it with one line on standard error."""
    try:
        return load_settings()
    except SettingsError as exc:
        raise SystemExit(f"ratchet: {exc.title.lower()}: {exc.detail}") from None
