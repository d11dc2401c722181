"""Labels put, corrected and claimed by two connections at once."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from shared import labels
from shared.database import Sessions
from shared.labels import Put
from tests.integration.production import bare_predictions, execute, labels_of, put, running_job


@pytest.fixture
def job_id(sessions: Sessions) -> int:
    """A running job."""
    return running_job(sessions)


class Other:
    """A transaction on another connection, in a thread that has to wait for a lock."""

    def __init__(self, sessions: Sessions, work: Callable[[Session], object]) -> None:
        self.answer: object = None
        self._error: OperationalError | None = None
        self._sessions, self._work = sessions, work
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self._sessions.begin() as session:
                self.answer = self._work(session)
        except OperationalError as exc:
            self._error = exc

    def start_and_wait_for_its_lock(self) -> None:
        self._thread.start()
        blocked = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        deadline = time.monotonic() + 10
        while not execute(self._sessions, blocked):
            assert self._thread.is_alive(), "it did not have to wait"
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def join(self) -> object:
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self.answer


@contextmanager
def meanwhile(sessions: Sessions, other: Other) -> Iterator[Session]:
    """A transaction that is still open when the other begins, and commits while it waits."""
    with sessions.begin() as session:
        yield session
        session.flush()
        other.start_and_wait_for_its_lock()


def correct(prediction: UUID) -> Callable[[Session], object]:
    return lambda session: labels.put_labels(session, [(prediction, "no")])


def test_a_correction_that_meets_an_open_claim_counts_as_a_new_label(sessions: Sessions, job_id: int) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put(sessions, [prediction], ["yes"])
    correction = Other(sessions, correct(prediction))
    with meanwhile(sessions, correction) as session:
        assert labels.claim_waiting(session, job_id) == 1
    assert correction.join() == [Put(outcome="corrected", new_labels=1)]
    old, new = labels_of(sessions, prediction)
    assert (old.value, old.job_id, old.superseded_at is None) == ("yes", job_id, False)
    assert (new.value, new.job_id) == ("no", None)


def test_a_claim_that_meets_an_open_correction_leaves_both_labels_alone(
    sessions: Sessions, job_id: int
) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put(sessions, [prediction], ["yes"])
    claiming = Other(sessions, lambda session: labels.claim_waiting(session, job_id))
    with meanwhile(sessions, claiming) as session:
        assert correct(prediction)(session) == [Put(outcome="corrected", new_labels=0)]
    # The new label was not there when the claim looked: it waits, as its `new_labels = 0` promised.
    assert claiming.join() == 0
    assert [label.job_id for label in labels_of(sessions, prediction)] == [None, None]
    with sessions() as session:
        assert labels.waiting(session) == 1


def test_two_corrections_at_once_leave_one_current_label(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put(sessions, [prediction], ["yes"])
    second = Other(sessions, correct(prediction))
    with meanwhile(sessions, second) as session:
        labels.put_labels(session, [(prediction, "maybe")])
    assert second.join() == [Put(outcome="corrected", new_labels=0)]
    history = labels_of(sessions, prediction)
    assert [(label.value, label.superseded_at is None) for label in history] == [
        ("yes", False),
        ("maybe", False),
        ("no", True),
    ]


def test_two_first_labels_at_once_make_one_and_its_correction(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    second = Other(sessions, correct(prediction))
    with meanwhile(sessions, second) as session:
        labels.put_labels(session, [(prediction, "yes")])
    assert second.join() == [Put(outcome="corrected", new_labels=0)]
    assert [label.value for label in labels_of(sessions, prediction)] == ["yes", "no"]


@pytest.mark.parametrize("touch", [labels.claim_waiting, labels.release])
def test_a_job_and_corrections_wait_for_the_same_labels_in_one_order(
    sessions: Sessions, job_id: int, touch: Callable[[Session, int], object]
) -> None:
    low, high = sorted(bare_predictions(sessions, 2))
    put(sessions, [high], ["yes"])  # lies before the other in the table, and after it by prediction id
    put(sessions, [low], ["yes"])
    if touch is labels.release:
        with sessions.begin() as session:
            labels.claim_waiting(session, job_id)
    touching = Other(sessions, lambda session: touch(session, job_id))
    with sessions.begin() as session:
        correct(low)(session)
        touching.start_and_wait_for_its_lock()
        correct(high)(session)  # in another order: deadlock
    touching.join()
    assert [labels_of(sessions, key)[-1].value for key in (low, high)] == ["no", "no"]
