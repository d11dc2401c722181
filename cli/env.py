"""`ratchet env`: a `.env` for the compose stack, with fresh secrets. Needs nothing that must be installed."""

import os
import secrets
import sys
from pathlib import Path

SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "RATCHET_ADMIN_KEYS", "FLOWER_PASSWORD", "METRICS_KEY")
BYTES = 24

TEMPLATE = """\
# What docker-compose.yml needs to know. `make env` (or `ratchet env`) writes this file as .env with fresh
# secrets; by hand: cp .env.example .env, and fill in the five that are empty.
# In secrets use letters, digits, - and _ only: some become part of a URL.

# Postgres' password. It is set when the database is made: changed here alone, nothing starts any more.
# docs/operations.md says how to change it later.
POSTGRES_PASSWORD={POSTGRES_PASSWORD}
# Redis' password.
REDIS_PASSWORD={REDIS_PASSWORD}
# Keys that open /admin, comma separated, each secret or name:secret. They open everything else too.
RATCHET_ADMIN_KEYS={RATCHET_ADMIN_KEYS}
# Flower's password; its user is admin, or FLOWER_USER.
FLOWER_PASSWORD={FLOWER_PASSWORD}
# The key that opens /metrics, for Prometheus.
METRICS_KEY={METRICS_KEY}

# Keys that clients send with every request, as above. Unset, the API asks for none: keep it to this host.
# RATCHET_API_KEYS=shop:a-long-secret

# Where the API and Flower can be reached: this host alone, or 0.0.0.0 for all who reach it (behind a proxy
# with TLS, see docs/operations.md; Flower's own /metrics asks for no password). Several API containers need a
# range: API_PORTS=8000-8002.
# BIND=127.0.0.1
# API_PORTS=8000
# FLOWER_PORT=5555
# PROMETHEUS_PORT=9090
# The proxies whose X-Forwarded-For is believed, comma separated, or * where nobody else reaches the port.
# FORWARDED_ALLOW_IPS=127.0.0.1

# API processes in a container, and what the training worker may take. Training uses as many threads as it
# has cores; a host with fewer cores than WORKER_CPUS can't start it.
# WEB_CONCURRENCY=1
# WORKER_CPUS=2
# WORKER_MEMORY=4g

# Any setting of `ratchet settings`, such as:
# RATCHET_THRESHOLD=1000
# RATCHET_RATE_LIMIT=100/second
# RATCHET_ACCESS_LOG=0.01
"""


def render(values: dict[str, str]) -> str:
    """The file's text with these secrets; the empty ones are to be filled in."""
    return TEMPLATE.format(**{name: values.get(name, "") for name in SECRETS})


def write_env(path: Path) -> None:
    """Write a new file of mode 0600.

    Raises:
        FileExistsError: there is one; its secrets may be in use.
    """
    fresh = {name: secrets.token_urlsafe(BYTES) for name in SECRETS}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(render(fresh))


def main(arguments: list[str]) -> int:
    """Write the file that the one argument names, `.env` without one."""
    path = Path(arguments[0] if arguments else ".env")
    try:
        write_env(path)
    except OSError as exc:
        kept = isinstance(exc, FileExistsError)
        reason = "it is there already and stays as it is" if kept else exc.strerror
        sys.stderr.write(f"{path}: {reason}\n")
        return 1
    sys.stdout.write(f"{path} has fresh secrets; docker compose reads it\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
