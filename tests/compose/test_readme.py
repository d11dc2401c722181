"""The README's lines for containers, as a reader would paste them; the stack itself is started by them."""

import pytest

from tests.compose.engine import docker
from tests.compose.stack import ComposeStack
from tests.readme import LABELS, PREDICT, RETRAIN, SCALE

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds


def containers(stack: ComposeStack) -> dict[str, str]:
    """The id of each container that runs, by its name."""
    lines = stack.compose("ps --no-trunc --format '{{.Name}} {{.ID}}'").splitlines()
    return dict(line.split() for line in lines)


def test_up_again_leaves_what_runs_as_it_is(stack: ComposeStack) -> None:
    before = containers(stack)
    stack.run(stack.here(SCALE))
    assert containers(stack) == before
    images = {docker("inspect", "--format", "{{.Image}}", found).strip() for found in before.values()}
    assert len(images) == len({"postgres", "redis", "ratchet-api", "ratchet-worker"})


def test_the_curl_lines_and_a_retrain(stack: ComposeStack) -> None:
    assert '"prediction_ids":["' in stack.run(stack.here(PREDICT))
    assert '"accepted":1' in stack.run(stack.here(LABELS))
    assert "succeeded: weighted F1" in stack.run(RETRAIN)
    assert stack.api("/retrain/jobs?limit=1")[0]["trigger"] == "admin"
