"""Requests, labels, claims, ends, crashes, rollbacks in any order: after each step every promise holds.

`RATCHET_TEST_EXAMPLES` runs more than the few examples of `make test`. A failure prints the steps that
lead to it and a `@reproduce_failure` line, which on the class `Loop` replays it.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from sqlalchemy.orm import Session

from shared import jobs
from shared.database import Sessions
from shared.errors import ClaimLost, Conflict
from shared.jobs import Claim
from shared.settings import Settings
from tests.conftest import make_context
from tests.integration.machine import PAUSE_MINUTES, THRESHOLD, JobModel
from tests.integration.traffic import Traffic
from tests.integration.world import Worker, World

EXAMPLES = int(os.environ.get("RATCHET_TEST_EXAMPLES", "40"))
STEPS = 40
NAMES = "ABC"
NAME = st.sampled_from(NAMES)
CRASHES = st.sampled_from([0, 0, 0, 1, 2, 3])
ENDINGS = [None, "publish", "reject", "skip", "fail"]
WORKER = st.runner().flatmap(lambda loop: st.sampled_from(sorted(loop.workers)))
READY = st.runner().flatmap(lambda loop: st.sampled_from(loop.ready()))


def has_workers(loop: "Loop") -> bool:
    return bool(loop.workers)


def has_ready(loop: "Loop") -> bool:
    return bool(loop.ready())


def has_jobs(loop: "Loop") -> bool:
    return len(loop.model.jobs) > 1


class Loop(Traffic):
    """The same, and jobs: three workers that claim, end, crash, freeze and thaw."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: dict[str, Worker] = {}

    def ready(self) -> list[str]:
        """The workers that have come to their gate."""
        return sorted(name for name, worker in self.workers.items() if worker.part is not None)

    @rule(name=NAME, labelled=st.integers(0, 4), crashes=CRASHES, ending=st.sampled_from(ENDINGS))
    def run(self, name: str, labelled: int, crashes: int, ending: str | None) -> None:
        """The usual way of a job, so that much happens to and after jobs that have come far."""
        for step in self.usual_way(name, labelled, crashes, ending):
            step()
            self.every_promise_holds()

    def usual_way(
        self, name: str, labelled: int, crashes: int, ending: str | None
    ) -> Iterator[Callable[[], None]]:
        if labelled:
            yield lambda: self.send(batch=[[(None, 0, "x")] * labelled], answer_lost=False)
        yield self.request_due
        yield lambda: self.admin_asks(force=True)
        others = [other for other in NAMES if other != name]  # they freeze, and may thaw after the takeover
        for n in range(crashes):
            yield lambda n=n: self.claim(name=others[n % 2], older=False)
            if others[n % 2] in self.workers:
                yield lambda n=n: self.claim_labels(name=others[n % 2])
            yield lambda: self.minutes_pass(minutes=1)
        yield lambda: self.claim(name=name, older=False)
        if name in self.workers:
            yield lambda: self.claim_labels(name=name)
        if name in self.ready() and ending in ("publish", "reject"):
            yield lambda: self.publish(name=name, passes=ending == "publish", overtaken=False)
        elif name in self.workers and ending in ("skip", "fail"):
            yield lambda: self.end(name=name, ending=ending, dies=False)

    @rule()
    def request_due(self) -> None:
        due = self.model.due()
        made = self.world.do(lambda session: jobs.request_due(session, self.world.context.settings))
        assert (made is not None) == due
        if made is not None:
            self.model.jobs.append(JobModel(id=made, trigger="threshold"))
            self.note("job due")

    @rule(force=st.booleans())
    def admin_asks(self, force: bool) -> None:
        def ask(session: Session) -> tuple[int, bool]:
            job, new = jobs.request_by_admin(session, force=force, reason=None)
            return job.id, new

        if (active := self.model.active) is not None:
            assert self.world.do(ask) == (active.id, False)
        elif not force and not self.model.waiting():
            with pytest.raises(Conflict):
                self.world.do(ask)
        else:
            made, new = self.world.do(ask)
            assert new
            self.model.jobs.append(JobModel(id=made, trigger="admin"))
            self.note("job asked for")

    @precondition(has_jobs)
    @rule(name=NAME, older=st.booleans())
    def claim(self, name: str, older: bool) -> None:
        """A worker hears of a job: the newest one, or by a late message the one before it."""
        job = self.model.jobs[-1 - older]
        failures, fence = job.failures, self.model.claim(job)
        claim = self.world.do(lambda session: jobs.claim(session, job.id, self.world.context.settings))
        assert (claim.fence if claim else None) == fence
        if claim is not None:
            self.workers[name] = Worker(claim=claim)
        self.note(f"claim {'taken' if claim else 'refused'}, {job.failures - failures} more failures")

    @precondition(has_workers)
    @rule(name=WORKER)
    def claim_labels(self, name: str) -> None:
        """Steps 2 and 3."""
        worker = self.workers[name]
        if self.allowed(worker, lambda: self.world.claim_labels(worker)):
            claimed = self.model.claim_labels(self.model.job(worker.claim.job_id))
            assert worker.part is not None
            assert len(worker.part) == claimed
            worker.champion = self.model.live
            self.note("labels claimed")

    @precondition(has_workers)
    @rule(name=WORKER, reports=st.booleans())
    def renew(self, name: str, reports: bool) -> None:
        claim = self.workers[name].claim
        if reports:
            values: dict[str, Any] = {"step": 8, "progress": 0.6, "note": "half way"}
            self.allowed_to(claim, lambda session: jobs.report(session, claim, **values))
        elif self.allowed_to(claim, lambda session: jobs.renew(session, claim, self.world.context.settings)):
            self.model.job(claim.job_id).leased_at = self.model.minute

    @precondition(has_workers)
    @rule(name=WORKER, ending=st.sampled_from(["skip", "fail", "give back"]), dies=st.booleans())
    def end(self, name: str, ending: str, dies: bool) -> None:
        """A worker ends its attempt without a version, or dies before the commit."""
        claim = self.workers[name].claim
        if dies:
            self.world.abort(lambda session: self.ending(session, claim, ending))
            return
        if self.allowed_to(claim, lambda session: self.ending(session, claim, ending)):
            job = self.model.job(claim.job_id)
            if ending == "skip":
                self.model.end(job, "skipped")
            elif ending == "fail":
                self.model.fails(job)
            else:
                job.state, job.leased_at = "queued", None
            self.note(f"attempt ended: {ending}, {job.state}")

    def ending(self, session: Session, claim: Claim, ending: str) -> None:
        if ending == "skip":
            jobs.settle(session, claim, "skipped", rows={}, result={})
        elif ending == "fail":
            job = self.model.job(claim.job_id)
            assert jobs.fail(session, claim, "an error") == (job.failures + 1 < jobs.MAX_FAILURES)
        else:
            jobs.give_back(session, claim)

    @precondition(has_ready)
    @rule(name=READY, passes=st.booleans(), overtaken=st.booleans())
    def publish(self, name: str, passes: bool, overtaken: bool) -> None:
        """Step 11 of a worker that may have been frozen since its gate, or that lost the answer."""
        worker = self.workers[name]
        if overtaken:
            self.roll_back(version=1)
        job = self.model.job(worker.claim.job_id)
        if not self.model.holds(worker.claim):
            if job.fence == worker.claim.fence and job.version is not None:
                assert self.world.publish(worker, passes=passes).startswith(f"version {job.version} ")
                self.note("published already")
            else:
                self.refused(lambda: self.world.publish(worker, passes=passes))
        elif worker.champion != self.model.live:
            with pytest.raises(Conflict):
                self.world.publish(worker, passes=passes)
            worker.champion = self.model.live  # it evaluates again
            self.note("champion changed")
        else:
            said = self.world.publish(worker, passes=passes)
            version = self.model.publish(job, worker.part or (), passes=passes)
            assert said.startswith(f"version {version} {'published' if passes else 'rejected'}")
            if passes:
                self.model.deployments.append((self.newest(), version))
            self.note(f"version {'published' if passes else 'rejected'}")

    @precondition(has_ready)
    @rule(name=READY)
    def publish_and_die(self, name: str) -> None:
        self.world.abort_publish(self.workers[name])

    def allowed_to(self, claim: Claim, work: Callable[[Session], object]) -> bool:
        """`allowed`, for what is one transaction."""
        return self.allowed(Worker(claim=claim), lambda: self.world.do(work))

    def allowed(self, worker: Worker, call: Callable[[], object]) -> bool:
        """Call it; a worker that has lost its claim is refused, and only that one is."""
        if self.model.holds(worker.claim):
            call()
            return True
        self.refused(call)
        return False

    def refused(self, call: Callable[[], object]) -> None:
        with pytest.raises(ClaimLost):
            call()
        self.note("claim lost")


@pytest.fixture
def world(settings: Settings, sessions: Sessions) -> Iterator[World]:
    """The loop on a database of its own, with a lease that no slow machine outlasts by itself."""
    changed = settings.model_copy(
        update={"threshold": THRESHOLD, "pause_minutes": PAUSE_MINUTES, "lease_seconds": 50.0}
    )
    with asyncio.Runner() as runner:
        made = World(make_context(changed, sessions), runner)
        yield made
        made.close()


# When it fails, hypothesis looks for the shortest way to the failure, for up to five minutes.
@pytest.mark.timeout(600 + 2 * EXAMPLES)
def test_every_promise_holds_whatever_happens_in_whichever_order(world: World) -> None:
    Loop.world = world
    profile = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Loop, settings=profile)
    finally:
        print(dict(sorted(world.happened.items())))  # noqa: T201 - shown by `pytest -s`
