"""One API for all tests of a file; each test finds empty tables."""

from collections.abc import Iterator

import pytest

from shared.settings import Settings
from tests.conftest import Servers, Trained
from tests.live import Live, live, trained_settings

NEVER = 10**9
"""A threshold that no test reaches: the shared API asks for no job by itself."""


@pytest.fixture(scope="module")
def running(servers: Servers, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """An API with version 1 live, its limits low enough to be crossed quickly."""
    limits = {"threshold": NEVER, "max_rows": 6000, "max_body": 2 * 2**20}
    home = tmp_path_factory.mktemp("running")
    with trained_settings(servers, trained, home, **limits) as settings, live(settings) as found:
        yield found


@pytest.fixture
def api(running: Live) -> Live:
    """The file's API, nothing stored yet. For a test that trains or deploys, see `own_api`."""
    running.execute("TRUNCATE predictions, labels, request_ids")
    return running


@pytest.fixture
def own_api(live_settings: Settings) -> Iterator[Live]:
    """An API of the test's own, on the database that `context` works on."""
    with live(live_settings) as found:
        yield found
