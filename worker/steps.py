"""The steps of the workflow, each with its line in the job's log and its figures in the report."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from sqlalchemy.orm import Session

from shared import jobs, labels
from shared.errors import ArtifactError
from worker import champion as champions
from worker import dataset, evaluation, export, preprocessing, training
from worker.balancing import balance
from worker.cleaning import clean
from worker.parts import StoredPart
from worker.preprocessing import Preprocessor
from worker.publishing import Candidate, Outcome
from worker.rows import Rows
from worker.run import Run

log = structlog.get_logger()

_SETTINGS = {
    "balance", "gate_tolerance", "iterations", "max_categories", "min_class_rows", "min_rows",
    "outlier_factor", "outliers", "seed", "window",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The train side as the trees see it: `matrix` float32 (n, m), `labels` text (n,)."""

    preprocessor: Preprocessor
    matrix: npt.NDArray[np.float32]
    labels: npt.NDArray[np.object_]


def claim_labels(run: Run) -> None:
    """Step 2: every waiting label is this job's; a bootstrap job brings its own part instead."""
    run.at(2)
    if run.claim.trigger == "bootstrap":
        return

    def claim(session: Session) -> int:
        jobs.hold(session, run.claim)
        return labels.claim_waiting(session, run.claim.job_id)

    run.rows["claimed"] = run.transaction(claim)


def write_part(run: Run) -> StoredPart | None:
    """Step 3: the job's labels as a part, aside; its row comes with the publishing transaction."""
    run.at(3, f"{run.rows.get('claimed', 0)} labels claimed")
    if run.claim.trigger == "bootstrap":
        return None
    key = f"parts/{run.claim.job_id}-{run.claim.fence}.parquet"
    part = run.transaction(
        lambda session: dataset.write_new_part(
            session, run.context.store, job_id=run.claim.job_id, key=key, signature=run.signature
        )
    )
    run.rows["new"] = part.rows if part else 0
    return part


def load(run: Run, new: StoredPart | None) -> dataset.Dataset:
    """Step 4: all parts together, without what was corrected since."""
    run.at(4)
    data = run.transaction(
        lambda session: dataset.load(
            session,
            run.context.store,
            job_id=run.claim.job_id,
            new=new,
            signature=run.signature,
            window=run.context.settings.window,
        )
    )
    run.rows["total"] = len(data.rows)
    return data


def split(run: Run, data: dataset.Dataset) -> dataset.Split:
    """Step 5: train and holdout side."""
    run.at(5, f"{len(data.rows)} rows")
    sides = dataset.split(data, run.context.settings)
    run.rows |= {"train": len(sides.train), "holdout": len(sides.holdout), "left_out": sides.left_out}
    return sides


def clean_train_side(run: Run, sides: dataset.Split) -> Rows:
    """Step 6: outliers and impossible negatives; the holdout stays as production sent it."""
    run.at(6, f"{len(sides.train)} to train on, {len(sides.holdout)} held out")
    settings = run.context.settings
    cleaned, run.report["cleaning"] = clean(
        sides.train,
        run.signature,
        outliers=settings.outliers,
        factor=settings.outlier_factor,
        min_class_rows=settings.min_class_rows,
    )
    run.rows["cleaned"] = len(cleaned)
    return cleaned


def preprocess(run: Run, cleaned: Rows) -> Prepared:
    """Step 7: fit, export to ONNX, and take the training matrix from that graph."""
    run.at(7, f"{len(cleaned)} rows left")
    most = run.context.settings.max_categories
    preprocessor = preprocessing.fit(cleaned, run.signature, max_categories=most)
    return Prepared(preprocessor=preprocessor, matrix=preprocessor.transform(cleaned), labels=cleaned.labels)


def balance_and_train(run: Run, prepared: Prepared, classes: tuple[str, ...]) -> Any:
    """Step 8: balance the train side and fit CatBoost; a lost claim stops it at the next tree."""
    run.at(8, f"{prepared.matrix.shape[1]} scaled features")
    settings = run.context.settings
    balanced = balance(
        prepared.matrix,
        training.encode(prepared.labels, classes),
        prepared.preprocessor,
        mode=settings.balance,
        seed=settings.seed,
        classes=classes,
    )
    run.report["balancing"], run.rows["balanced"] = balanced.report, len(balanced.y)
    tenth = max(1, settings.iterations // 10)

    def watch(done: int, total: int) -> None:
        run.check()
        if done % tenth == 0:
            run.progress(8, f"tree {done} of {total}", done / total)

    with run.context.stop.held():
        return training.train(
            balanced.matrix,
            balanced.y,
            classes,
            weights=balanced.weights,
            iterations=settings.iterations,
            seed=settings.seed,
            threads=settings.threads,
            progress=watch,
        )


def export_and_prove(
    run: Run, model: Any, preprocessor: Preprocessor, sides: dataset.Split
) -> export.Exported:
    """Step 9: both graphs, refused unless they agree with the trained model on the holdout."""
    run.at(9)
    exported = export.export(model, preprocessor, sides.classes)
    matrix = preprocessor.transform(sides.holdout)
    run.report["parity"] = export.check_parity(exported, model, sides.holdout, matrix)
    run.report["importance"] = evaluation.importance(model, preprocessor)
    return exported


def candidate(
    run: Run,
    exported: export.Exported,
    preprocessor: Preprocessor,
    classes: tuple[str, ...],
    part: StoredPart | None,
    data: dataset.Dataset,
) -> Candidate:
    """The proven challenger with its report."""
    settings = run.context.settings.model_dump(include=_SETTINGS)
    return Candidate(
        exported=exported,
        preprocessor=preprocessor,
        classes=classes,
        part=part,
        manifest=data.manifest,
        report={**run.report, "rows": dict(run.rows), "settings": settings},
    )


def evaluate(run: Run, candidate: Candidate, sides: dataset.Split) -> Outcome:
    """Step 10: challenger and champion on the same holdout rows, and the gate's verdict."""
    run.at(10, f"largest difference {run.report['parity']['max_difference']:.1e}")
    champion = run.transaction(champions.find)
    known = {*candidate.classes, *(champion.classes if champion else ())}
    rows = sides.holdout.take(dataset.of_classes(sides.holdout.labels, known))
    challenger = evaluation.evaluate(rows.labels, candidate.probabilities(rows), candidate.classes)
    standing = unreadable = None
    if champion is not None:
        try:
            scores = champions.probabilities(champion, run.context.store, rows)
            standing = evaluation.evaluate(rows.labels, scores, champion.classes)
        except ArtifactError as exc:
            if run.claim.trigger != "admin":
                raise
            unreadable = exc.detail  # only a person may replace what can't be compared
    verdict = evaluation.gate(challenger, standing, tolerance=run.context.settings.gate_tolerance)
    if unreadable:
        f1 = evaluation.figure(verdict.challenger_f1)
        reason = f"weighted F1 {f1}; the champion can't be read ({unreadable}); an admin asked to replace it"
        verdict = replace(verdict, reason=reason)
    return Outcome(
        champion=champion, challenger_metrics=challenger, champion_metrics=standing, verdict=verdict
    )
