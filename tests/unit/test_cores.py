"""How many cores there are: what the process is pinned to, and what its container's quota leaves of them."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from threadpoolctl import threadpool_info

from shared.cores import cores
from worker import threads
from worker.graphs import load_session, make_model
from worker.threads import count, limited
from worker.training import train


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def version2(folder: Path, text: str) -> Path:
    (folder / "cpu.max").write_text(text, encoding="ascii")
    return folder


def version1(folder: Path, quota: int, period: int = 100_000) -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n", encoding="ascii")
    (folder / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n", encoding="ascii")
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("150000 100000\n", 2),
        ("200000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("150000 50000\n", 3),
        ("6400000 100000\n", 8),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path: Path, text: str, expected: int) -> None:
    assert cores(version2(tmp_path, text)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(-1, 8), (150_000, 2), (20_000, 1), (300_000, 3)])
def test_a_quota_of_version_1_is_rounded_up(tmp_path: Path, quota: int, expected: int) -> None:
    assert cores(version1(tmp_path, quota)) == expected


def test_without_a_quota_there_are_those_that_the_process_is_pinned_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cores(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cores(tmp_path) == 1
    assert cores(version2(tmp_path, "400000 100000")) == 1


def test_a_system_that_pins_nothing_has_all_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores(tmp_path) == 5


def test_no_number_of_threads_means_the_containers_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """For CatBoost and onnxruntime, which would take the host's."""
    monkeypatch.setattr(threads, "cores", lambda: 3)
    assert (count(0), count(7)) == (3, 7)
    matrix = np.arange(40, dtype=np.float32).reshape(20, 2)
    y = np.arange(20, dtype=np.int64) % 2
    for asked, given in ((0, 3), (2, 2)):
        model = train(matrix, y, ("no", "yes"), iterations=2, seed=0, threads=asked)
        assert model.get_param("thread_count") == given
        session = load_session(_identity(), threads=asked)
        assert session.get_session_options().intra_op_num_threads == given


def test_every_pool_is_held_and_let_go() -> None:
    def pools() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    np.ones((4, 4)) @ np.ones((4, 4))
    with limited(5):
        before = pools(), pa.cpu_count()
        with limited(3):
            assert set(pools()) == {3}
            assert pa.cpu_count() == 3
        assert (pools(), pa.cpu_count()) == before
    assert pools()


def _identity() -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [value], [out])
    serialised: bytes = make_model(graph).SerializeToString()
    return serialised
