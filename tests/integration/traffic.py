"""What clients and an operator do, in any order, and the promises after each step."""

from typing import ClassVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared import labels
from shared.errors import Conflict
from tests.integration.machine import CLASSES, PAUSE_MINUTES, Model
from tests.integration.promises import PROMISES, Seen
from tests.integration.world import GivenRow, World

STRANGER = "00000000-0000-7000-9000-000000000000"

CALLER_ID = st.none() | st.sampled_from("abcdef")
ROW = st.tuples(CALLER_ID, st.integers(0, 1), st.none() | st.sampled_from(CLASSES))
BATCH = st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=2)
VALUE = st.sampled_from(CLASSES)
PREDICTION = st.runner().flatmap(lambda loop: st.sampled_from(sorted(loop.model.predictions)))
PUBLISHED = st.runner().flatmap(lambda loop: st.sampled_from(sorted({v for _, v in loop.model.deployments})))
MINUTES = st.sampled_from([1, PAUSE_MINUTES - 1, PAUSE_MINUTES, 3 * PAUSE_MINUTES, 24 * 60])


def has_predictions(loop: "Traffic") -> bool:
    """Whether there is something to label."""
    return bool(loop.model.predictions)


class Traffic(RuleBasedStateMachine):
    """Clients and an operator on Postgres, and a model that says beforehand what each call answers."""

    world: ClassVar[World]

    def __init__(self) -> None:
        """Begin anew."""
        super().__init__()
        self.world.begin()
        self.model = Model()
        self.before: Seen | None = None

    def note(self, what: str) -> None:
        """Count what happened, to see that all of it does."""
        self.world.happened[what] += 1

    @invariant()
    def every_promise_holds(self) -> None:
        """Look, and compare with the promises and the model."""
        seen = self.world.look()
        for promise in PROMISES:
            promise(seen, self.model, self.before)
        self.before = seen
        self.model.step += 1
        self.note("steps")

    @rule(batch=BATCH, answer_lost=st.booleans())
    def send(self, batch: list[list[GivenRow]], answer_lost: bool) -> None:
        """A batch of the recorder; written again, the same to the letter, if its answer was lost."""
        writes = self.world.writes(batch, self.model.live)
        for _ in range(1 + answer_lost):
            expected = self.model.store(writes)
            assert self.world.write(writes) == expected
            self.note("request refused" if None in expected else "requests stored")

    @rule(batch=BATCH)
    def send_and_die(self, batch: list[list[GivenRow]]) -> None:
        """An API process that is killed before the commit."""
        self.world.abort_write(self.world.writes(batch, self.model.live))

    @precondition(has_predictions)
    @rule(one=PREDICTION, other=PREDICTION | st.just(STRANGER), values=st.tuples(VALUE, VALUE))
    def put_labels(self, one: str, other: str, values: tuple[str, str]) -> None:
        """Labels by prediction id, in any order; one prediction may be unknown."""
        expected = self.model.put_all([(one, values[0]), (other, values[1])])
        given = [(UUID(one), values[0]), (UUID(other), values[1])]
        assert self.world.do(lambda session: labels.put_labels(session, given)) == expected
        for put in expected:
            self.note(f"label {put.outcome} ({put.new_labels})")

    @rule(minutes=MINUTES)
    def minutes_pass(self, minutes: int) -> None:
        """Leases run out, so that whoever holds one is dead or frozen; pauses end."""
        self.world.minutes_pass(minutes)
        self.model.minute += minutes

    @rule(version=PUBLISHED)
    def roll_back(self, version: int) -> None:
        """An operator makes a version live that was live before."""
        made = self.world.deploy(version, self.model.live[0])
        self.model.deployments.append((made, version))

    @rule(version=PUBLISHED, behind=st.integers(1, 3))
    def deploy_too_late(self, version: int, behind: int) -> None:
        """Another deployment came first; `behind` the root there is none."""
        known = [None, *(deployment for deployment, _ in self.model.deployments)]
        with pytest.raises(Conflict):
            self.world.deploy(version, known[max(0, len(known) - 1 - behind)])
        self.note("deployment refused")

    def newest(self) -> int:
        """The deployment that Postgres calls the newest."""
        return int(self.world.look()["deployments"][-1]["id"])
