"""Servers, the API and the store fail, under traffic, followed by every promise."""

from typing import Any

import pytest

from tests.chaos import faults, store
from tests.chaos.conftest import Player
from tests.chaos.faults import Fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def test_without_a_fault_a_job_goes_through(player: Player) -> None:
    player.play(faults.nothing)


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        (faults.kill_api, {}),
        (faults.stop_postgres, {}),
        (faults.stop_postgres_while_publishing, {}),
        (faults.freeze_postgres, {}),
        (faults.empty_valkey, {}),
        (faults.forget, {}),
        (faults.cut_off_worker, {"point": "step-8-progress"}),
        (faults.cut_off_worker, {"point": "publish"}),
        (faults.freeze_worker, {"point": "step-8-progress"}),
        (faults.freeze_worker, {"point": "publish"}),
        (faults.send_twice, {}),
    ],
)
def test_processes_and_servers(player: Player, fault: Fault, how: dict[str, Any]) -> None:
    player.play(fault, **how)


def test_redis_is_out_of_reach_for_a_minute(player: Player) -> None:
    player.play(faults.redis_away, seconds=60.0)


@pytest.mark.parametrize("fault", [store.fill_store, store.protect_store])
def test_the_store_can_not_be_written(player: Player, fault: Fault) -> None:
    if fault in store.NEED_A_MOUNT and not player.stack.is_mounted:
        pytest.skip("no file system can be mounted here")
    player.play(fault)


@pytest.mark.parametrize("way", store.WAYS)
def test_a_file_of_the_next_version_is_spoiled(player: Player, way: str) -> None:
    player.play(store.spoil_next, way=way)


def test_a_file_of_the_live_version_is_spoiled(player: Player) -> None:
    player.play(store.spoil_live)
