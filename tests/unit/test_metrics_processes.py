"""Figures that several processes share: sums are right; the dead leave their counters and no gauges."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api import multiprocess
from api.multiprocess import PREFIX, VARIABLE, remove_left_behind, shared_folder, take
from shared.errors import SettingsError

ROOT = Path(__file__).parents[2]
PROCESS = """
import sys
from api.metrics import Metrics
from api.multiprocess import join
place = join()
metrics = Metrics(place)
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class Sibling:
    """A process that counts, as a worker of uvicorn does."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, VARIABLE: str(folder)},
        )
        self.place = self.do("place.number")

    def do(self, expression: str) -> Any:
        """The value of an expression there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return ast.literal_eval(self._process.stdout.readline())

    def says(self, name: str) -> float:
        """A sample without labels in what this one answers for all."""
        families = text_string_to_metric_families(self.do("metrics.text()").decode())
        (found,) = [s.value for family in families for s in family.samples if s.name == name]
        return found

    def kill(self) -> None:
        """End it without a chance to tidy."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def siblings(folder: Path, count: int) -> Iterator[list[Sibling]]:
    """So many of them."""
    found: list[Sibling] = []
    try:
        found += [Sibling(folder) for _ in range(count)]
        yield found
    finally:
        for sibling in found:
            sibling.kill()


def test_whoever_is_asked_answers_for_all(tmp_path: Path) -> None:
    with siblings(tmp_path, 3) as found:
        assert [sibling.place for sibling in found] == [0, 1, 2]
        for number, sibling in enumerate(found):
            sibling.do(f"metrics.rows_answered({10**number})")
            sibling.do(f"metrics.rows_queued({number + 1})")
            sibling.do(f"metrics.swapped({7 - number}, ['no'])")
            sibling.do("metrics.labels_stored(['no', 'no'])")
            sibling.do("metrics.batch_written(3)")
            sibling.do("metrics.flush()")
        found[1].do("metrics.swap_failed()")
        for sibling in found:
            assert sibling.says("ratchet_rows_total") == 111
            assert sibling.says("ratchet_recorder_queued_rows") == 6
            assert sibling.says("ratchet_model_version") == 5
            assert sibling.says("ratchet_model_fault") == 1
            assert sibling.says("ratchet_recorder_batch_rows_count") == 3
            assert sibling.says("ratchet_recorder_batch_rows_sum") == 9
            assert 'ratchet_labels_total{class="no"} 6.0' in sibling.do("metrics.text()").decode()


def test_one_that_dies_leaves_its_counters_and_no_gauges_and_the_next_takes_its_place(tmp_path: Path) -> None:
    with siblings(tmp_path, 2) as (one, other):
        for sibling in (one, other):
            sibling.do("metrics.rows_answered(5)")
            sibling.do("metrics.rows_queued(40)")
            sibling.do("metrics.flush()")
        one.do("metrics.swapped(1, [])")
        one.do("metrics.swap_failed()")
        other.do("metrics.swapped(2, [])")
        one.kill()
        assert other.says("ratchet_rows_total") == 10
        assert other.says("ratchet_recorder_queued_rows") == 40
        assert (other.says("ratchet_model_version"), other.says("ratchet_model_fault")) == (2, 0)
        with siblings(tmp_path, 1) as (after,):
            assert after.place == one.place
            assert after.says("ratchet_rows_total") == 10
            assert after.says("ratchet_recorder_queued_rows") == 40
            after.do("metrics.rows_answered(1)")
            after.do("metrics.flush()")
            assert other.says("ratchet_rows_total") == 11


def test_a_place_whose_gauges_were_not_forgotten_begins_with_none(tmp_path: Path) -> None:
    with siblings(tmp_path, 1) as (one,):
        one.do("metrics.rows_queued(40)")
        one.do("metrics.swapped(3, [])")
        one.do("metrics.flush()")
    with siblings(tmp_path, 1) as (after,):
        assert after.says("ratchet_recorder_queued_rows") == after.says("ratchet_model_version") == 0


def test_a_file_that_is_only_just_made_is_no_fault(tmp_path: Path) -> None:
    with siblings(tmp_path, 1) as (one,):
        one.do("metrics.rows_answered(2)")
        one.do("metrics.flush()")
        for name in ("counter_9.db", "gauge_livesum_9.db", "histogram_9.db"):
            (tmp_path / name).touch()
        assert one.says("ratchet_rows_total") == 2


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; nobody names another place."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


class Parent:
    """A parent process, which is this one."""

    pid = os.getpid()


def test_a_process_without_siblings_shares_nothing(temporary: Path) -> None:
    assert shared_folder() is None
    assert list(temporary.iterdir()) == []


def test_children_of_one_parent_share_a_directory_of_their_own(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", Parent)
    folder = shared_folder()
    assert folder == shared_folder() == temporary / folder.name  # type: ignore[union-attr]
    assert folder.name.startswith(f"{PREFIX}{os.getpid()}-")  # type: ignore[union-attr]
    assert folder.stat().st_mode & 0o777 == 0o700  # type: ignore[union-attr]
    monkeypatch.setenv(VARIABLE, str(temporary / "named" / "by us"))
    assert shared_folder() == temporary / "named" / "by us"


@pytest.mark.parametrize("prepared", ["open", "link"])
def test_a_directory_that_others_can_write_to_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, prepared: str
) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", Parent)
    folder = shared_folder()
    assert folder is not None
    if prepared == "open":
        folder.chmod(0o777)
    else:
        folder.rmdir()
        (temporary / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(temporary / "elsewhere")
    with pytest.raises(SettingsError, match=f"^{VARIABLE}: "):
        shared_folder()


def test_without_a_directory_the_start_says_so(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary / "a file").touch()
    monkeypatch.setenv(VARIABLE, str(temporary / "a file" / "below"))
    with pytest.raises(SettingsError, match=f"^{VARIABLE}: several processes need a directory"):
        multiprocess.join.__wrapped__()


def test_only_what_the_gone_left_behind_is_removed(temporary: Path) -> None:
    started = multiprocess._started(os.getpid())
    assert started not in {"0", multiprocess._started("no pid")}
    names = [f"{os.getpid()}-{started}", f"{os.getpid()}-1", "999999999-5", "999999998-5"]
    alive, earlier, gone, elsewhere = folders = [temporary / f"{PREFIX}{name}" for name in names]
    other = temporary / "ratchet-demo"
    for folder in (*folders, other):
        folder.mkdir()
        (folder / "counter_0.db").touch()
    place = take(elsewhere)  # its parent can't be seen, and it lives
    (temporary / f"{PREFIX}1-1").symlink_to(other)
    remove_left_behind(temporary)
    assert [folder.exists() for folder in (alive, earlier, gone, elsewhere)] == [True, False, False, True]
    assert (other / "counter_0.db").exists()
    os.close(place.lock)
    remove_left_behind(temporary)
    assert not elsewhere.exists()


def test_siblings_that_start_together_clear_away_together(tmp_path: Path) -> None:
    for number in range(300):
        folder = tmp_path / f"{PREFIX}{2**22 + number}-1"
        folder.mkdir(mode=0o700)
        (folder / "0.lock").touch()
        (folder / "1.lock").touch()
    code = (
        "import sys; from pathlib import Path; from api.multiprocess import remove_left_behind;"
        " print(flush=True); sys.stdin.readline(); remove_left_behind(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait() for process in started] == [0, 0, 0, 0]
    for process in started:
        process.communicate()
    assert list(tmp_path.iterdir()) == []
