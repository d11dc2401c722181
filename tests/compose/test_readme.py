"""The README's lines for containers, as a reader would paste them; the stack itself is started by them."""

import pytest

from tests.compose.stack import ComposeStack
from tests.readme import LABELS, PREDICT, RETRAIN

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds


def test_the_curl_lines_and_a_retrain(stack: ComposeStack) -> None:
    assert '"prediction_ids":["' in stack.run(stack.here(PREDICT))
    assert '"accepted":1' in stack.run(stack.here(LABELS))
    assert "succeeded: weighted F1" in stack.run(RETRAIN)
    assert stack.api("/retrain/jobs?limit=1")[0]["trigger"] == "admin"
