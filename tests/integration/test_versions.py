"""Versions and deployments: the gate judges what is live at that moment, and old artifacts go."""

import threading

import pytest

from shared import registry
from shared.artifacts import ArtifactStore
from shared.errors import ArtifactError, Conflict, NotFound
from shared.tables import Job, Version
from tests.integration.production import (
    all_versions,
    ask_job,
    before_step,
    chain,
    changed,
    execute,
    job_of,
    send,
    start_job,
    unseen,
)
from worker.retrain import run_job
from worker.run import Context


@pytest.fixture
def quick(context: Context) -> Context:
    """A worker whose jobs take well under a second, and whose challengers are published."""
    return changed(context, window=300, iterations=2, gate_tolerance=1.0, balance="none", keep_versions=2)


def retrain(context: Context) -> int:
    """Run a forced job; answers its id."""
    job_id = ask_job(context, force=True)
    run_job(job_id, context)
    return job_id


def deploy(context: Context, version: int) -> None:
    """What an admin's rollback does."""
    with context.sessions.begin() as session:
        previous = registry.newest_deployment(session)
        registry.deploy(session, version=version, previous=previous, actor="an admin", reason="by hand")


def test_a_champion_that_changed_after_the_gate_is_compared_again(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrain(quick)
    send(quick.sessions, unseen(50))
    job_id = start_job(quick)
    before_step(monkeypatch, 11, lambda: deploy(quick, 1))
    assert "version 3 published" in run_job(job_id, quick)

    assert [line["step"] for line in job_of(quick.sessions, job_id).log][-4:] == [10, 11, 10, 11]
    deployments = chain(quick.sessions)
    assert [deployment.champion for deployment in deployments] == [1, 2, 1, 3]
    assert [deployment.previous_id for deployment in deployments[1:]] == [d.id for d in deployments[:-1]]
    assert all_versions(quick.sessions)[2].report["champion_version"] == 1


def test_the_second_look_of_the_gate_can_still_reject(
    quick: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = changed(quick, gate_tolerance=0.0)
    retrain(quick)  # version 2: two trees on 300 rows
    better = [v.metrics["f1_weighted"] for v in all_versions(quick.sessions)]
    assert better[0] > better[1]
    job_id = ask_job(quick, force=True)  # the same again: equal to version 2, and worse than version 1
    before_step(monkeypatch, 11, lambda: deploy(quick, 1))
    run_job(job_id, strict)
    assert job_of(quick.sessions, job_id).state == "rejected"
    assert [deployment.champion for deployment in chain(quick.sessions)] == [1, 2, 1]


def test_of_two_deployments_on_the_same_one_the_second_is_refused(quick: Context) -> None:
    with quick.sessions.begin() as session:
        before = registry.newest_deployment(session)
    deploy(quick, 1)
    with quick.sessions.begin() as session:
        with pytest.raises(Conflict, match="came first"):
            registry.deploy(session, version=1, previous=before, actor="late", reason="")
        with pytest.raises(Conflict, match="came first"):
            registry.deploy(session, version=1, previous=None, actor="a second root", reason="")
    assert [deployment.actor for deployment in chain(quick.sessions)] == ["job 1", "an admin"]


def test_old_artifacts_go_and_their_rows_stay_marked(quick: Context) -> None:
    for _ in range(3):
        retrain(quick)
    versions = all_versions(quick.sessions)
    assert [version.artifacts_removed_at is None for version in versions] == [False, False, True, True]
    for version in versions[:2]:
        assert not quick.store.path(version.artifact_key).exists()
        with pytest.raises(ArtifactError, match="No such file"):
            quick.store.read(version.artifact_key, "model.onnx")
    for version in versions[2:]:
        assert quick.store.read(version.artifact_key, "model.onnx")
    assert len(execute(quick.sessions, "SELECT 1 FROM dataset_parts")) == 1
    assert len(list(quick.store.path("parts").iterdir())) == 1
    with quick.sessions() as session, pytest.raises(NotFound):
        registry.get_version(session, 5)


def test_the_live_version_and_the_one_live_before_it_are_never_pruned(quick: Context) -> None:
    retrain(quick)
    deploy(quick, 1)  # live: 1, before it: 2
    one_kept = changed(quick, keep_versions=1, gate_tolerance=0.0)
    for _ in range(2):
        assert job_of(quick.sessions, retrain(one_kept)).state == "rejected"
    versions = all_versions(quick.sessions)
    assert [version.artifacts_removed_at is None for version in versions] == [True, True, False, True]
    deploy(quick, 1)  # the same once more: what was live before is still version 2
    with quick.sessions() as session:
        assert registry.prune(session, quick.store, keep=1) == []
    assert quick.store.read(versions[1].artifact_key, "model.onnx")


def test_pruning_again_finds_nothing_to_do(quick: Context) -> None:
    for _ in range(2):
        retrain(quick)
    with quick.sessions() as session:
        assert registry.prune(session, quick.store, keep=1) == []
        assert registry.prune(session, quick.store, keep=1) == []
    assert [v.artifacts_removed_at is None for v in all_versions(quick.sessions)] == [False, True, True]


class WatchedStore(ArtifactStore):
    """Notes each removal with the version that was live when it came."""

    def __init__(self, url: str, context: Context) -> None:
        super().__init__(url)
        self.removals: list[tuple[int, int]] = []
        self._context = context

    def remove_set(self, key: str) -> None:
        """Only note it."""
        with self._context.sessions() as session:
            live = registry.live(session)
        assert live is not None
        number = key.rpartition("/")[2].partition("-")[0]
        self.removals.append((int(number), live.version.version))


def publish_row(context: Context, version: int) -> None:
    """A version and its deployment in one transaction, as a job publishes them; no artifacts."""
    with context.sessions.begin() as session:
        job = Job(state="succeeded", trigger="admin", signature_id=1)
        session.add(job)
        session.flush()
        first = session.get_one(Version, 1)
        same = {
            name: getattr(first, name) for name in ("classes", "categories", "scaled_features", "metrics")
        }
        key = f"versions/{version}"
        made = Version(version=version, job_id=job.id, signature_id=1, artifact_key=key, report={}, **same)
        session.add(made)
        session.flush()
        previous = registry.newest_deployment(session)
        registry.deploy(session, version=version, previous=previous, actor="a job", reason="better")


def test_a_version_that_goes_live_meanwhile_is_not_pruned(quick: Context) -> None:
    store = WatchedStore(quick.settings.artifacts, quick)
    done = threading.Event()

    def prune() -> None:
        while not done.is_set():
            with quick.sessions() as session:
                registry.prune(session, store, keep=1)

    pruners = [threading.Thread(target=prune) for _ in range(2)]
    for pruner in pruners:
        pruner.start()
    try:
        for version in range(2, 250):
            publish_row(quick, version)
    finally:
        done.set()
        for pruner in pruners:
            pruner.join()
    removed = [version for version, _ in store.removals]
    assert len(removed) == len(set(removed)) > 200
    assert [pair for pair in store.removals if pair[0] > pair[1] - 2] == []  # nor the one live before it
    with quick.sessions() as session:
        kept = {v.version for v in registry.versions(session) if v.artifacts_removed_at is None}
    assert {248, 249} <= kept
