"""Keys: `Authorization: Bearer …`, compared in constant time."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from shared.errors import Forbidden, Unauthorized
from shared.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Named secrets; a key without a name is called by its position."""

    entries: Sequence[tuple[str, bytes]]

    @classmethod
    def parse(cls, value: SecretStr | None, kind: str) -> "Keys":
        """Read `secret` or `name:secret`, comma separated."""
        found: list[tuple[str, bytes]] = []
        for entry in (value.get_secret_value() if value else "").split(","):
            name, colon, secret = entry.strip().partition(":")
            if not colon:
                name, secret = f"{kind}-{len(found) + 1}", name
            if secret:
                found.append((name, secret.encode()))
        return cls(entries=tuple(found))

    def who(self, header: str | None) -> str:
        """The name of the key that an Authorization header carries.

        Raises:
            Unauthorized: there is no bearer key.
            Forbidden: the key is none of ours.
        """
        scheme, _, key = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("send a key: Authorization: Bearer …")
        sent = key.strip().encode("latin-1", "replace")
        name = None
        for candidate, secret in self.entries:  # all of them, so that the time tells nothing
            if hmac.compare_digest(secret, sent):
                name = candidate
        if name is None:
            raise Forbidden("this key opens nothing here")
        return name


class Auth:
    """Who may call what."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys."""
        self._admin = Keys.parse(settings.admin_keys, "admin")
        self._api = Keys.parse(settings.api_keys, "api")
        scrapers = Keys.parse(settings.metrics_keys, "metrics")
        self._metrics = Keys(entries=(*self._admin.entries, *scrapers.entries))

    def check_api(self, header: str | None) -> None:
        """Let a caller pass if no key is configured or the key is an API's or an admin's.

        Raises:
            Unauthorized, Forbidden: as `Keys.who`.
        """
        if self._api.entries:
            Keys(entries=(*self._admin.entries, *self._api.entries)).who(header)

    def check_admin(self, header: str | None) -> str:
        """The name of the admin who calls.

        Raises:
            Forbidden: no admin key is configured, or this is none.
            Unauthorized: no key was sent.
        """
        if not self._admin.entries:
            raise Forbidden("no admin key is configured: set RATCHET_ADMIN_KEYS")
        return self._admin.who(header)

    def check_metrics(self, header: str | None) -> None:
        """Let a caller pass whose key is for the metrics, or an admin's.

        Raises:
            Forbidden: neither is configured, or this is none.
            Unauthorized: no key was sent.
        """
        if not self._metrics.entries:
            raise Forbidden("no key for the metrics is configured: set RATCHET_METRICS_KEYS")
        self._metrics.who(header)
