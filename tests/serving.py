"""The real API on a real port, in a thread of the test's process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from api.main import create_app
from shared.settings import Settings
from tests.conftest import ADMIN_KEY

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@contextmanager
def serve(settings: Settings) -> Iterator[httpx.Client]:
    """Run the API until the block ends; yields a client of it."""
    config = uvicorn.Config(
        create_app(settings), port=0, loop="uvloop", http="api.protocol:Protocol", log_config=None, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def example(client: httpx.Client) -> dict[str, Any]:
    """The body that the API's own description gives for `/predict`."""
    paths = client.get("/openapi.json").json()["paths"]
    body: dict[str, Any] = paths["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    return body
