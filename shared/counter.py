"""The tally of new labels and the latch, in Redis. Both are hints: Postgres knows."""

from dataclasses import dataclass

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from shared.errors import SettingsError
from shared.settings import Settings

TALLY = "ratchet:tally"
LATCH = "ratchet:latch"
CHANNEL = "ratchet:deployed"
LATCH_SECONDS = 10

_COUNT = """
local tally = redis.call('INCRBY', KEYS[1], ARGV[1])
if tally >= tonumber(ARGV[2]) and redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[3]) then
    return {tally, 1}
end
return {tally, 0}
"""


@dataclass(frozen=True, kw_only=True)
class Count:
    """The tally after counting, and whether this caller won the latch at the threshold."""

    tally: int
    latched: bool


def redis_url(settings: Settings) -> str:
    """The URL of Redis.

    Raises:
        SettingsError: none is configured.
    """
    if settings.redis_url is None:
        raise SettingsError("RATCHET_REDIS_URL: not set; `ratchet up` runs an embedded server")
    return settings.redis_url.get_secret_value()


def connect(url: str) -> Redis:
    """A client for the workers and the command, which gives up after a second."""
    return Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, decode_responses=True)


def connect_async(url: str) -> AsyncRedis:
    """A client for the API, which gives up after a second."""
    return AsyncRedis.from_url(url, socket_timeout=1, socket_connect_timeout=1, decode_responses=True)


def connect_listener(url: str) -> AsyncRedis:
    """A client that may wait for ever for an announcement; a dead peer shows by the health check."""
    return AsyncRedis.from_url(
        url, socket_timeout=None, socket_connect_timeout=1, socket_keepalive=True, health_check_interval=5
    )


async def count(client: AsyncRedis, labels: int, *, threshold: int) -> Count:
    """Add new labels to the tally and, at the threshold, try the latch: one round trip."""
    tally, latched = await client.eval(_COUNT, 2, TALLY, LATCH, labels, threshold, LATCH_SECONDS)
    return Count(tally=int(tally), latched=bool(latched))


def set_tally(client: Redis, waiting: int) -> None:
    """Set the tally to what Postgres says."""
    client.set(TALLY, waiting)


def read_tally(client: Redis) -> int | None:
    """The tally, or None when Redis lost it."""
    value = client.get(TALLY)
    return None if value is None else int(str(value))


def announce(client: Redis, deployment_id: int) -> None:
    """Wake every API process: there is a new deployment."""
    client.publish(CHANNEL, str(deployment_id))
