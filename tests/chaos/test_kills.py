"""Workers that die at each step of the workflow, under traffic, followed by every promise."""

import pytest

from tests.chaos import faults
from tests.chaos.conftest import Player

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]
PAIRS = [
    ("step-1", "step-2"),
    ("step-3", "step-4"),
    ("step-5", "step-6"),
    ("step-7", "step-8"),
    ("step-8-progress", "step-9"),
    ("step-10", "step-11"),
    ("publish", "step-12"),
]


@pytest.mark.parametrize("points", PAIRS, ids="+".join)
def test_training_is_killed_at_a_step_and_again_at_the_next(player: Player, points: tuple[str, ...]) -> None:
    player.play(faults.kill_training, points=points)


def test_a_job_whose_worker_dies_three_times_fails_and_its_labels_wait_again(player: Player) -> None:
    player.play(faults.kill_three_times)


def test_a_whole_worker_dies(player: Player) -> None:
    player.play(faults.kill_worker)


def test_a_worker_that_is_asked_to_stop_gives_its_job_back(player: Player) -> None:
    player.play(faults.stop_worker)
