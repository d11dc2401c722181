"""The README's lines for containers, as a reader would paste them; the stack itself is started by them."""

import pytest

from tests.compose.engine import docker
from tests.compose.stack import ComposeStack
from tests.readme import LABELS, PREDICT, RETRAIN, SCALE

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds


def test_up_again_leaves_what_runs_as_it_is(stack: ComposeStack) -> None:
    before = set(stack.compose("ps --quiet").split())
    stack.run(stack.here(SCALE))
    assert set(stack.compose("ps --quiet").split()) == before
    images = {docker("inspect", "--format", "{{.Image}}", name).strip() for name in before}
    assert len(images) == len({"postgres", "redis", "ratchet-api", "ratchet-worker"})


def test_the_curl_lines_and_a_retrain(stack: ComposeStack) -> None:
    assert '"prediction_ids":["' in stack.run(stack.here(PREDICT))
    assert '"accepted":1' in stack.run(stack.here(LABELS))
    assert "succeeded: weighted F1" in stack.run(RETRAIN)
    assert stack.api("/retrain/jobs?limit=1")[0]["trigger"] == "admin"
