"""Labels in Postgres: put, corrected, claimed and counted."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from shared import jobs, labels
from shared.database import Sessions
from shared.labels import LabelCounts
from tests.integration.production import bare_predictions, counts, execute, labels_of, put, running_job


@pytest.fixture
def job_id(sessions: Sessions) -> int:
    """A running job."""
    return running_job(sessions)


def put_one(sessions: Sessions, prediction: UUID, value: str, *, may_revert: bool = True) -> tuple[str, int]:
    """What `put_label` says: outcome, and new labels to count."""
    found = execute(
        sessions,
        "SELECT outcome, new_labels FROM put_label(:id, :value, :may)",
        id=prediction,
        value=value,
        may=may_revert,
    )[0]
    return found.outcome, found.new_labels


def claim(sessions: Sessions, job_id: int) -> int:
    with sessions.begin() as session:
        return labels.claim_waiting(session, job_id)


def settle(sessions: Sessions, job_id: int, state: str) -> None:
    execute(sessions, "UPDATE retrain_jobs SET state = :state WHERE id = :id", state=state, id=job_id)


def waiting(sessions: Sessions) -> int:
    with sessions() as session:
        return labels.waiting(session)


def test_the_first_label_of_a_prediction_is_accepted_and_waits(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    assert put_one(sessions, prediction, "yes") == ("accepted", 1)
    (label,) = labels_of(sessions, prediction)
    assert (label.value, label.superseded_at, label.job_id) == ("yes", None, None)


def test_the_same_label_again_changes_nothing(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put_one(sessions, prediction, "yes")
    assert put_one(sessions, prediction, "yes") == ("repeated", 0)
    assert put_one(sessions, prediction, "yes", may_revert=False) == ("repeated", 0)
    assert len(labels_of(sessions, prediction)) == 1


def test_a_label_of_an_unknown_prediction_is_not_stored(sessions: Sessions) -> None:
    stranger = uuid4()
    assert put_one(sessions, stranger, "yes") == ("unknown", 0)
    assert labels_of(sessions, stranger) == []


def test_a_corrected_label_that_waited_leaves_the_count_as_it_is(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put_one(sessions, prediction, "yes")
    assert put_one(sessions, prediction, "no") == ("corrected", 0)
    old, new = labels_of(sessions, prediction)
    assert (old.value, old.superseded_at is None) == ("yes", False)
    assert (new.value, new.superseded_at) == ("no", None)
    assert waiting(sessions) == 1


@pytest.mark.parametrize("state", ["running", "succeeded", "rejected"])
def test_a_corrected_label_that_a_job_has_counts_anew(sessions: Sessions, job_id: int, state: str) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put_one(sessions, prediction, "yes")
    assert claim(sessions, job_id) == 1
    settle(sessions, job_id, state)
    assert waiting(sessions) == 0
    assert put_one(sessions, prediction, "no") == ("corrected", 1)
    old, new = labels_of(sessions, prediction)
    assert (old.job_id, old.superseded_at is None) == (job_id, False)
    assert (new.job_id, new.superseded_at) == (None, None)
    assert waiting(sessions) == 1


def test_a_late_retry_does_not_revert_a_correction_and_labels_can(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put_one(sessions, prediction, "yes")
    put_one(sessions, prediction, "no")
    assert put_one(sessions, prediction, "yes", may_revert=False) == ("repeated", 0)
    assert labels_of(sessions, prediction)[-1].value == "no"
    assert put_one(sessions, prediction, "maybe", may_revert=False) == ("corrected", 0)
    assert put_one(sessions, prediction, "yes", may_revert=True) == ("corrected", 0)
    history = labels_of(sessions, prediction)
    assert [label.value for label in history] == ["yes", "no", "maybe", "yes"]
    assert [label.superseded_at is None for label in history] == [False, False, False, True]


def test_a_prediction_has_one_current_label_by_the_table_itself(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    put_one(sessions, prediction, "yes")
    with pytest.raises(IntegrityError, match="uq_labels_current"):
        execute(sessions, "INSERT INTO labels (prediction_id, value) VALUES (:id, 'no')", id=prediction)


def test_many_labels_are_answered_in_the_order_given(sessions: Sessions) -> None:
    first, second = bare_predictions(sessions, 2)
    given = [(second, "b"), (first, "a"), (uuid4(), "x"), (second, "b"), (second, "c")]
    answers = put(sessions, [key for key, _ in given], [value for _, value in given])
    assert [(answer.outcome, answer.new_labels) for answer in answers] == [
        ("accepted", 1),
        ("accepted", 1),
        ("unknown", 0),
        ("repeated", 0),
        ("corrected", 0),
    ]
    assert labels_of(sessions, second)[-1].value == "c"


def test_a_claim_takes_what_waits_and_again_is_harmless(sessions: Sessions, job_id: int) -> None:
    ids = bare_predictions(sessions, 3)
    put(sessions, ids, ["a", "b", "c"])
    put_one(sessions, ids[0], "corrected before the claim")
    assert claim(sessions, job_id) == 3
    assert claim(sessions, job_id) == 3
    put_one(sessions, ids[1], "corrected after it")
    assert claim(sessions, job_id) == 2  # the correction waits for the next job, the job's own label is void
    assert [label.job_id for label in labels_of(sessions, ids[0])] == [None, job_id]
    assert [label.job_id for label in labels_of(sessions, ids[1])] == [job_id, None]


def test_released_labels_wait_again_except_those_lost_to_a_correction(
    sessions: Sessions, job_id: int
) -> None:
    ids = bare_predictions(sessions, 3)
    put(sessions, ids, ["a", "b", "c"])
    claim(sessions, job_id)
    put_one(sessions, ids[0], "b")
    with sessions.begin() as session:
        labels.release(session, job_id)
    assert waiting(sessions) == 3
    assert [label.job_id for label in labels_of(sessions, ids[0])] == [job_id, None]


def test_the_counts_of_all_states_add_up(sessions: Sessions, job_id: int) -> None:
    ids = bare_predictions(sessions, 9)
    put(sessions, ids[:4], ["a"] * 4)
    claim(sessions, job_id)
    settle(sessions, job_id, "rejected")
    second = execute(
        sessions,
        "INSERT INTO retrain_jobs (trigger, signature_id, state) VALUES ('admin', 1, 'queued') RETURNING id",
    )[0].id
    put(sessions, ids[4:7], ["a"] * 3)
    claim(sessions, second)
    put(sessions, ids[7:], ["a"] * 2)
    for corrected in (ids[0], ids[4], ids[7]):
        put_one(sessions, corrected, "b")
    found = counts(sessions)
    assert found == LabelCounts(total=12, trained=3, claimed=2, waiting=4, superseded=3)
    assert found.total == found.trained + found.claimed + found.waiting + found.superseded
    assert waiting(sessions) == 4


def test_a_label_is_one_to_two_hundred_characters_by_the_table_itself(sessions: Sessions) -> None:
    prediction = bare_predictions(sessions, 1)[0]
    for wrong in ("", "x" * 201):
        with pytest.raises(IntegrityError, match="ck_labels_value"):
            put_one(sessions, prediction, wrong)
    assert put_one(sessions, prediction, "é" * 200) == ("accepted", 1)


def test_callers_ids_find_their_predictions(sessions: Sessions) -> None:
    first, second = bare_predictions(sessions, 2)
    execute(sessions, "INSERT INTO request_ids VALUES ('a', :one), ('b', :two)", one=first, two=second)
    with sessions() as session:
        assert labels.find_predictions(session, ["b", "a", "c"]) == {"a": first, "b": second}
        assert session.execute(text("SELECT 1")).scalar_one() == 1
        assert jobs.active_job(session) is None
