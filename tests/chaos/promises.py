"""The promises, each checked against the ledger, Postgres, Redis and the store once all is calm."""

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from api.serving import load_model
from shared import registry
from shared.artifacts import ArtifactStore
from shared.counter import connect, read_tally
from shared.database import make_engine, make_sessions
from shared.errors import ArtifactError
from shared.jobs import MAX_FAILURES
from tests.chaos.ledger import Ledger, Row
from tests.chaos.stack import APIS, Stack

CALM_SECONDS = 60.0
RESTART_SECONDS = 30.0
TOLERANCE = 1e-5
_DUE = "SELECT retrain_due(%s, make_interval(secs => %s)) AS due"
_COUNTS = """
SELECT count(*) AS total, count(*) FILTER (WHERE superseded_at IS NOT NULL) AS superseded,
       count(*) FILTER (WHERE superseded_at IS NULL AND job_id IS NULL) AS waiting,
       count(*) FILTER (WHERE superseded_at IS NULL AND j.state IN ('succeeded', 'rejected')) AS trained
FROM labels l LEFT JOIN retrain_jobs j ON j.id = l.job_id
"""


def calm_down(stack: Stack) -> None:
    """Wait until no job is active or due and the tally is right: promise 6's time, or what jobs take."""
    redis = connect(stack.valkey.url)
    deadline = time.monotonic() + CALM_SECONDS
    while left := [what for what in _unrest(stack, redis) if what]:
        assert time.monotonic() < deadline, f"after {CALM_SECONDS:.0f} s: {left}"
        time.sleep(0.2)
    redis.close()


def _unrest(stack: Stack, redis: Any) -> Iterator[str]:
    active = stack.query("SELECT * FROM retrain_jobs WHERE state IN ('queued', 'running')")
    yield from (f"job {job['id']} is {job['state']} at {job['step']}: {job['error']}" for job in active)
    (due,) = stack.query(_DUE, stack.settings.threshold, stack.settings.pause_minutes * 60)
    yield "a job is due" if due["due"] else ""
    (counts,) = stack.query(_COUNTS)
    tally = read_tally(redis)
    yield f"the tally is {tally} where {counts['waiting']} wait" if tally != counts["waiting"] else ""
    live = stack.live()["version"]
    for name, found in zip(APIS, stack.ready(), strict=True):
        yield f"{name}: {found}" if found.get("model_version") != live else ""


def check(stack: Stack, ledger: Ledger) -> None:
    """Every promise; all that is broken is named."""
    broken = list(ledger.broken)
    for promise in PROMISES:
        broken += [f"{promise.__name__}: {what}" for what in promise(stack, ledger)]
    assert not broken, "\n".join(broken[:30])


def stored(stack: Stack, ledger: Ledger) -> Iterator[str]:
    """1: what was acknowledged is there, once; what was refused is not."""
    predictions = {str(r["id"]): r for r in stack.query("SELECT id, predicted, version FROM predictions")}
    ids = {r["id"]: str(r["prediction_id"]) for r in stack.query("SELECT id, prediction_id FROM request_ids")}
    labels: dict[str, list[str]] = defaultdict(list)
    for label in stack.query("SELECT prediction_id, value FROM labels ORDER BY id"):
        labels[str(label["prediction_id"])].append(label["value"])
    named = 0
    for row in ledger.acknowledged:
        assert row.answer is not None
        key, found = row.answer.prediction_id, predictions.get(row.answer.prediction_id)
        if found is None or (found["predicted"], found["version"]) != (
            row.answer.predicted,
            row.answer.version,
        ):
            yield f"{row.id}: answered {row.answer}, stored {found}"
        if row.id is not None:
            named += 1
            if ids.get(row.id) != key:
                yield f"{row.id}: acknowledged as {key}, stored as {ids.get(row.id)}"
        if labels[key] != row.labels:
            yield f"{row.id or key}: labels {row.labels} were acknowledged, {labels[key]} are stored"
    if len(ids) != named:
        yield f"{named} ids were acknowledged, {len(ids)} are stored"
    unnamed = len(ledger.acknowledged) - named
    if not unnamed <= len(predictions) - len(ids) <= unnamed + ledger.unnamed_in_doubt:
        yield f"{unnamed} rows without id, {ledger.unnamed_in_doubt} in doubt: {len(predictions) - len(ids)}"
    yield from (f"{key} was refused and is stored" for key in ledger.refused & ids.keys())


def labels_once(stack: Stack, _: Ledger) -> Iterator[str]:
    """2: a label is in at most one part that counts, and in the part of the job that it names."""
    owner: dict[int, int] = {}
    for part in stack.query("SELECT job_id, key, rows FROM dataset_parts ORDER BY id"):
        ids = pq.read_table(stack.artifacts / part["key"], columns=["label_id"])["label_id"].to_pylist()
        for label in (label for label in ids if label is not None and label > 0):
            if label in owner:
                yield f"label {label} is in the parts of jobs {owner[label]} and {part['job_id']}"
            owner[label] = part["job_id"]
    found = stack.query(
        "SELECT l.id, l.job_id, l.superseded_at IS NULL AS current FROM labels l JOIN retrain_jobs j"
        " ON j.id = l.job_id WHERE j.state IN ('succeeded', 'rejected')"
    )
    jobs = {label["id"]: label["job_id"] for label in found}
    for label, job in owner.items():
        if jobs.get(label) != job:
            yield f"label {label} is in the part of job {job} and belongs to {jobs.get(label)}"
    for label in found:
        if label["current"] and label["id"] not in owner:
            yield f"label {label['id']} counts as trained by job {label['job_id']} and is in no part"


def labels_add_up(stack: Stack, _: Ledger) -> Iterator[str]:
    """2: with no job active, labels = trained + waiting + superseded."""
    (n,) = stack.query(_COUNTS)
    if n["total"] != n["trained"] + n["waiting"] + n["superseded"]:
        yield str(n)


def one_live(stack: Stack, _: Ledger) -> Iterator[str]:
    """3: the deployments are one chain, and the live version's artifacts are whole."""
    chain = stack.query("SELECT id, previous_id, champion FROM deployments ORDER BY id")
    if [row["previous_id"] for row in chain] != [None, *(row["id"] for row in chain[:-1])]:
        yield f"not a chain: {chain}"
    yield from live_artifacts(stack)


def live_artifacts(stack: Stack) -> Iterator[str]:
    """3: whether the newest deployment's files match their checksums."""
    live = stack.live()
    store = ArtifactStore(stack.settings.artifacts)
    try:
        for name in store.manifest(live["artifact_key"]):
            store.read(live["artifact_key"], name)
    except ArtifactError as exc:
        yield f"version {live['version']} is live, and {exc.detail}"


def jobs_ended(stack: Stack, _: Ledger) -> Iterator[str]:
    """4: a job ended with less than three failures, or as failed with a reason and without labels."""
    statement = (
        "SELECT j.*, (SELECT count(*) FROM labels WHERE job_id = j.id AND superseded_at IS NULL) AS held"
        " FROM retrain_jobs j ORDER BY id"
    )
    for job in stack.query(statement):
        if job["state"] == "failed":
            if job["failures"] != MAX_FAILURES or not job["error"] or job["held"]:
                yield f"job {job['id']} failed: {job['failures']}, {job['error']}, {job['held']} labels"
        elif job["failures"] >= MAX_FAILURES:
            yield f"job {job['id']} is {job['state']} after {job['failures']} failures"


def fences(stack: Stack, _: Ledger) -> Iterator[str]:
    """5: a version was published by the last claim of its job, and by no other."""
    statement = (
        "SELECT v.version, v.artifact_key, j.id, j.fence, j.state FROM model_versions v"
        " JOIN retrain_jobs j ON j.id = v.job_id"
    )
    for row in stack.query(statement):
        if row["artifact_key"] != f"versions/{row['id']}-{row['fence']}":
            yield f"version {row['version']} is {row['artifact_key']}; its job ended as {row['fence']}"
        if row["state"] not in ("succeeded", "rejected"):
            yield f"version {row['version']} is there, and its job is {row['state']}"


def only_due(stack: Stack, _: Ledger) -> Iterator[str]:
    """6: whatever started by the threshold had that many labels to learn from."""
    statement = (
        "SELECT j.id, count(l.id) AS labels FROM retrain_jobs j LEFT JOIN labels l ON l.job_id = j.id"
        " WHERE j.trigger = 'threshold' AND j.state IN ('succeeded', 'rejected') GROUP BY j.id"
    )
    for job in stack.query(statement):
        if job["labels"] < stack.settings.threshold:
            yield f"job {job['id']} started with {job['labels']} labels"


def answers(stack: Stack, ledger: Ledger) -> Iterator[str]:
    """7: every answer is what the version that it names says of that row."""
    by_version: dict[int, list[Row]] = defaultdict(list)
    for row in ledger.take_unchecked():
        assert row.answer is not None
        by_version[row.answer.version].append(row)
    engine = make_engine(stack.postgres.url, name="chaos check", size=1)
    store = ArtifactStore(stack.settings.artifacts)
    try:
        with make_sessions(engine)() as session:
            live = registry.live(session)
            assert live is not None
            for number, rows in by_version.items():
                version = registry.get_version(session, number)
                made = registry.Live(deployment=live.deployment, version=version, signature=live.signature)
                model = load_model(made, store)
                canonical = [model.signature.canonical(row.features, n, []) for n, row in enumerate(rows)]
                for row, expected in zip(rows, model.score_rows(canonical), strict=True):
                    assert row.answer is not None
                    if np.abs(expected - [*row.answer.probabilities.values()]).max() > TOLERANCE:
                        yield f"{row.id}: answered {row.answer}, version {number} says {expected}"
    finally:
        engine.dispose()


def alive(stack: Stack, ledger: Ledger) -> Iterator[str]:
    """7: nothing died that wasn't killed, and no line broke but those of a killed API."""
    killed = [name for name, _ in stack.kills]
    for name in set(stack.deaths):
        if stack.deaths.count(name) > killed.count(name):
            yield f"{name} died {stack.deaths.count(name)} times and was killed {killed.count(name)} times"
    moments = [at for name, at in stack.kills if name in APIS]
    for drop in ledger.dropped:
        if not any(at - 1 <= drop <= at + RESTART_SECONDS for at in moments):
            yield "a line broke, and no API had been killed"


PROMISES = (stored, labels_once, labels_add_up, one_live, jobs_ended, fences, only_due, answers, alive)
