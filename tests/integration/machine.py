"""A model of the loop's rules in plain Python: what each call answers, and what Postgres then holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from api.writes import First, Recorded, Row, Write
from shared.jobs import MAX_FAILURES, Claim
from shared.labels import LabelCounts, Put
from shared.tables import ACTIVE, SETTLED_WITH_LABELS

THRESHOLD = 3
PAUSE_MINUTES = 10
DAY = 24 * 60
CLASSES = ["x", "y", "z"]


@dataclass(kw_only=True)
class LabelModel:
    """One label of a prediction; `born` is the step at which it came."""

    value: str
    born: int
    current: bool = True
    job: int | None = None


@dataclass(kw_only=True)
class PredictionModel:
    """One stored row and its labels, oldest first."""

    row: Row
    deployment: int
    version: int
    labels: list[LabelModel] = field(default_factory=list)


@dataclass(kw_only=True)
class JobModel:
    """One job; its lease and its end are told in minutes, its end by the step, too."""

    id: int
    trigger: str
    state: str = "queued"
    fence: int = 0
    failures: int = 0
    leased_at: int | None = None
    ended: int | None = None
    ended_at: int = 0
    version: int | None = None


class Model:
    """The rules. Version 1 is live; `minute` is the clock, `step` counts what happened."""

    def __init__(self) -> None:
        self.step = 0
        self.minute = 0
        self.predictions: dict[str, PredictionModel] = {}
        self.ids: dict[str, str] = {}
        self.jobs = [JobModel(id=1, trigger="bootstrap", state="succeeded", fence=1, ended=0, version=1)]
        self.versions = {1: 1}
        self.parts: dict[int, tuple[int, ...]] = {1: (0,)}
        self.deployments = [(1, 1)]

    @property
    def live(self) -> tuple[int, int]:
        """The newest deployment and its version."""
        return self.deployments[-1]

    @property
    def active(self) -> JobModel | None:
        """The job that is queued or running."""
        return next((job for job in self.jobs if job.state in ACTIVE), None)

    def job(self, job_id: int) -> JobModel:
        """A job by its id."""
        return next(job for job in self.jobs if job.id == job_id)

    def holds(self, claim: Claim) -> bool:
        """Whether a claim may still write."""
        job = self.job(claim.job_id)
        return job.state == "running" and job.fence == claim.fence

    def labels(self) -> list[LabelModel]:
        """Every label."""
        return [label for prediction in self.predictions.values() for label in prediction.labels]

    def waiting(self) -> list[LabelModel]:
        """The labels that no job has."""
        return [label for label in self.labels() if label.current and label.job is None]

    def counts(self) -> LabelCounts:
        """All labels by state; superseded wins."""
        labels = self.labels()
        of = [self.job(label.job).state for label in labels if label.current and label.job is not None]
        return LabelCounts(
            total=len(labels),
            superseded=sum(not label.current for label in labels),
            waiting=len(self.waiting()),
            claimed=sum(state in ACTIVE for state in of),
            trained=sum(state in SETTLED_WITH_LABELS for state in of),
        )

    def store(self, writes: Sequence[Write]) -> list[Recorded | None]:
        """Store a batch; None for a request that contradicts what is stored."""
        with_ids = any(write.caller_ids for write in writes)
        return [self._store(write) if with_ids else self._store_plain(write) for write in writes]

    def _store_plain(self, write: Write) -> Recorded:
        for row in write.rows:
            self._insert(write, row)
        return Recorded(counted=write.labels, new_labels=write.labels)

    def _store(self, write: Write) -> Recorded | None:
        known = {row.caller_id: self.ids.get(row.caller_id or "") for row in write.rows}
        old = [row for row in write.rows if known[row.caller_id] not in (None, row.id)]
        first = {row.caller_id: self.predictions[known[row.caller_id] or ""] for row in old}
        if any(first[row.caller_id].row.features != row.features for row in old):
            return None
        new = [row for row in write.rows if row not in old]
        for row in new:
            self._insert(write, row)
        puts = [
            self.put(first[row.caller_id].row.id, row.label, may_revert=False) for row in old if row.label
        ]
        labels = sum(row.label is not None for row in new)
        return Recorded(
            repeats={str(caller): _first(prediction) for caller, prediction in first.items()},
            counted=labels + sum(put.outcome == "accepted" for put in puts),
            new_labels=labels + sum(put.new_labels for put in puts),
        )

    def _insert(self, write: Write, row: Row) -> None:
        if row.id in self.predictions:  # written before, its answer lost
            return
        made = PredictionModel(row=row, deployment=write.deployment_id, version=write.version)
        self.predictions[row.id] = made
        if row.caller_id is not None:
            self.ids[row.caller_id] = row.id
        if row.label is not None:
            made.labels.append(LabelModel(value=row.label, born=self.step))

    def put(self, prediction: str, value: str, *, may_revert: bool) -> Put:
        """Put one label."""
        if prediction not in self.predictions:
            return Put(outcome="unknown", new_labels=0)
        labels = self.predictions[prediction].labels
        new = LabelModel(value=value, born=self.step)
        if not labels:
            labels.append(new)
            return Put(outcome="accepted", new_labels=1)
        old = labels[-1]
        if old.value == value or (not may_revert and value in [label.value for label in labels]):
            return Put(outcome="repeated", new_labels=0)
        old.current = False
        labels.append(new)
        return Put(outcome="corrected", new_labels=int(old.job is not None))

    def put_all(self, given: Sequence[tuple[str, str]]) -> list[Put]:
        """Put labels in the order of their predictions; answers in the order given."""
        order = sorted(range(len(given)), key=lambda n: (given[n][0], n))
        answers = {n: self.put(*given[n], may_revert=True) for n in order}
        return [answers[n] for n in range(len(given))]

    def due(self) -> bool:
        """Whether a job may start by itself."""
        if len(self.waiting()) < THRESHOLD or self.active:
            return False
        last = self.jobs[-1]
        if last.state not in ("skipped", "failed"):
            return True
        streak = 0
        while self.jobs[-1 - streak].state in ("skipped", "failed"):
            streak += 1
        over = self.minute >= last.ended_at + min(PAUSE_MINUTES * 2 ** (streak - 1), DAY)
        since = [label for label in self.waiting() if label.born > (last.ended or 0)]
        return over or len(since) >= THRESHOLD

    def claim(self, job: JobModel) -> int | None:
        """Claim a job; answers the fence, or None if there is nothing to do."""
        expired = job.leased_at is not None and self.minute > job.leased_at
        if job.state not in ACTIVE or (job.state == "running" and not expired):
            return None
        if job.state == "running" and not self.fails(job):
            return None
        job.state, job.leased_at = "running", self.minute
        job.fence += 1
        return job.fence

    def claim_labels(self, job: JobModel) -> int:
        """Give a job what waits, unless it had labels before; answers how many are its now."""
        if not any(label.job == job.id for label in self.labels()):
            for label in self.waiting():
                label.job = job.id
        return sum(label.current and label.job == job.id for label in self.labels())

    def fails(self, job: JobModel) -> bool:
        """Count a failure; answers whether the job goes on."""
        job.failures += 1
        if job.failures >= MAX_FAILURES:
            self.end(job, "failed")
            return False
        job.state, job.leased_at = "queued", None
        return True

    def end(self, job: JobModel, state: str) -> None:
        """Settle a job."""
        job.state, job.leased_at, job.ended, job.ended_at = state, None, self.step, self.minute
        if state in ("skipped", "failed"):
            for label in self.labels():
                if label.current and label.job == job.id:
                    label.job = None

    def publish(self, job: JobModel, part: tuple[int, ...], *, passes: bool) -> int:
        """Settle a job with a version; answers its number."""
        job.version = len(self.versions) + 1
        self.versions[job.version] = job.id
        if part:
            self.parts[job.id] = part
        self.end(job, "succeeded" if passes else "rejected")
        return job.version


def _first(prediction: PredictionModel) -> First:
    row = prediction.row
    return First(
        prediction_id=row.id,
        version=prediction.version,
        predicted=row.predicted,
        probabilities=row.probabilities,
        classes=CLASSES,
    )
