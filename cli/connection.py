"""Where the command finds the servers: by the settings, else by the stack that runs in home."""

import httpx
from pydantic import SecretStr

from api.auth import Keys
from cli.state import admin_key, read_state
from shared.errors import RatchetError
from shared.settings import Settings, load_settings

TIMEOUT = 30.0


class NotRunning(RatchetError):
    """No stack runs here and no URL is set."""

    title = "Nothing to talk to"


class Refused(RatchetError):
    """The API answered with an error, or not at all."""

    title = "The API did not do it"


def connected(settings: Settings | None = None) -> Settings:
    """Settings whose URLs are set: given ones stay, missing ones are those of the running stack.

    Raises:
        NotRunning: one is missing and no stack runs.
    """
    settings = settings or load_settings()
    if settings.database_url and settings.redis_url and settings.api_url:
        return settings
    state = read_state(settings.home)
    found = {
        "database_url": settings.database_url or (state and state.database_url),
        "redis_url": settings.redis_url or (state and state.redis_url),
        "api_url": settings.api_url or (state and state.api_url),
    }
    if not found["database_url"] or not found["redis_url"]:
        raise NotRunning(
            f"no stack runs in {settings.home}: start one with `ratchet up`, or set RATCHET_DATABASE_URL"
            " and RATCHET_REDIS_URL"
        )
    found = {name: value for name, value in found.items() if value}
    return Settings.model_validate({**settings.model_dump(), **found})


class Client:
    """The API over HTTP, with the keys that this user has."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Find the API.

        Raises:
            NotRunning: neither RATCHET_API_URL is set nor does a stack run.
        """
        settings = settings or load_settings()
        state = read_state(settings.home)
        url = settings.api_url or (state and state.api_url)
        if not url:
            raise NotRunning(
                f"no stack runs in {settings.home}: start one with `ratchet up`, or set RATCHET_API_URL"
            )
        self.url = url
        self._admin = _first_key(settings.admin_keys)
        self._admin = self._admin or (admin_key(settings.home) if state else "")
        self.api_key = _first_key(settings.api_keys) or self._admin

    def get(self, path: str) -> httpx.Response:
        """GET a path.

        Raises:
            Refused: an error, in one line.
        """
        return self._send("GET", path, self.api_key)

    def post_as_admin(self, path: str, body: object) -> httpx.Response:
        """POST JSON with the admin key.

        Raises:
            Refused: an error, in one line.
        """
        return self._send("POST", path, self._admin, body)

    def _send(self, method: str, path: str, key: str, body: object = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx.Client(base_url=self.url, timeout=TIMEOUT, trust_env=False) as http:
                response = http.request(method, path, headers=headers, json=body)
        except httpx.HTTPError as exc:
            raise Refused(f"{self.url} does not answer ({type(exc).__name__})") from exc
        if response.is_error:
            raise Refused(_detail(response))
        return response


def _first_key(keys: SecretStr | None) -> str:
    entries = Keys.parse(keys, "").entries
    return entries[0][1].decode() if entries else ""


def _detail(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"
