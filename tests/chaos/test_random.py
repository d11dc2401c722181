"""A few faults drawn by the seed of the run; `python -m tests.chaos` plays many seeds."""

import pytest

from tests.chaos.conftest import SEED, Player

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def test_a_few_faults_that_the_seed_draws(player: Player) -> None:
    player.draw(SEED, 3)
