"""Evaluation: metrics on the holdout, feature importance, and the gate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from catboost import CatBoostClassifier
from sklearn.metrics import roc_auc_score

from worker.preprocessing import Preprocessor

LEAST_PROBABILITY = 1e-15
"""What log loss takes a probability of 0 for, so that it stays finite."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the challenger goes live, and the sentence that says why."""

    publish: bool
    reason: str
    challenger_f1: float | None
    champion_f1: float | None


def evaluate(
    labels: npt.NDArray[np.object_], probabilities: npt.NDArray[np.floating[Any]], classes: Sequence[str]
) -> dict[str, Any]:
    """Metrics of predictions against true labels, ready for JSON; an undefined figure is None.

    A label outside `classes` is one that the model can't give: the model is wrong there, and gave it
    probability 0. Averages of F1 run over the classes that occur as label or prediction. `roc_auc` is
    one-vs-rest, weighted by the rows of each class. `brier` is the multiclass score: the mean over rows
    of the squared differences summed over classes, from 0 to 2.

    Args:
        labels: object (n,) of text.
        probabilities: (n, k), columns in the order of `classes`.
    """
    known = list(classes)
    every = known + sorted({str(label) for label in labels} - set(known))
    position = {text: number for number, text in enumerate(every)}
    truth = np.array([position[label] for label in labels], dtype=np.int64)
    given = np.zeros((len(labels), len(every)), dtype=np.float64)
    given[:, : len(known)] = probabilities
    predicted = given.argmax(axis=1) if len(labels) else truth
    confusion = np.zeros((len(every), len(every)), dtype=np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    per_class = _per_class(confusion, truth, given, every)
    return {
        "rows": len(labels),
        "accuracy": _ratio(int(np.trace(confusion)), len(labels)),
        **_f1_averages(per_class, len(labels)),
        "roc_auc": _weighted(per_class, "roc_auc"),
        **_probability_scores(truth, given),
        "per_class": per_class,
        "confusion_matrix": {"labels": every, "matrix": confusion.tolist()},
    }


def importance(model: CatBoostClassifier, preprocessor: Preprocessor) -> dict[str, float]:
    """CatBoost's importance per raw feature, in percent of all, largest first."""
    totals = {feature.source: 0.0 for feature in preprocessor.scaled_features}
    columns = model.get_feature_importance(thread_count=model.get_param("thread_count") or -1)
    for feature, value in zip(preprocessor.scaled_features, columns, strict=True):
        totals[feature.source] += float(value) if math.isfinite(value) else 0.0
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def gate(challenger: dict[str, Any], champion: dict[str, Any] | None, *, tolerance: float) -> Verdict:
    """Publish unless the challenger's weighted F1 is more than `tolerance` below the champion's.

    Both are results of `evaluate` on the same rows; `champion` is None when nothing is live yet.
    """
    f1 = challenger["f1_weighted"]
    if champion is None:
        reason = f"first model: weighted F1 {figure(f1)} on {challenger['rows']} holdout rows"
        return Verdict(publish=True, reason=reason, challenger_f1=f1, champion_f1=None)
    against = champion["f1_weighted"]
    if f1 is None or against is None:
        reason = "there are no holdout rows to compare the challenger and the champion on"
        return Verdict(publish=False, reason=reason, challenger_f1=f1, champion_f1=against)
    # With a hair to spare: in binary 0.33 - 0.03 is a little more than 0.30.
    publish = f1 >= against - tolerance - 1e-9
    reason = (
        f"weighted F1 {figure(f1)} against the champion's {figure(against)} on {challenger['rows']} "
        f"holdout rows: {'not more' if publish else 'more'} than {tolerance:g} below it"
    )
    return Verdict(publish=publish, reason=reason, challenger_f1=f1, champion_f1=against)


def figure(value: float | None) -> str:
    """A metric as text."""
    return "undefined" if value is None else f"{value:.4f}"


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _per_class(
    confusion: Ints, truth: Ints, given: Floats, every: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    report: dict[str, dict[str, float | None]] = {}
    for number, text in enumerate(every):
        right = int(confusion[number, number])
        predicted, support = int(confusion[:, number].sum()), int(confusion[number].sum())
        report[text] = {
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, support),
            "f1": _ratio(2 * right, predicted + support),
            "roc_auc": _one_vs_rest(truth == number, given[:, number]),
            "support": support,
        }
    return report


def _one_vs_rest(is_class: npt.NDArray[np.bool_], probability: Floats) -> float | None:
    if is_class.all() or not is_class.any():
        return None
    return float(roc_auc_score(is_class, probability))


def _weighted(per_class: dict[str, dict[str, float | None]], figure: str) -> float | None:
    """The mean over classes, weighted by their rows, of those whose figure is defined."""
    pairs = [(c[figure], c["support"]) for c in per_class.values()]
    defined = [(value, support) for value, support in pairs if value is not None and support]
    return _ratio(sum(v * s for v, s in defined), sum(s for _, s in defined))


def _f1_averages(per_class: dict[str, dict[str, float | None]], rows: int) -> dict[str, float | None]:
    defined = [c["f1"] for c in per_class.values() if c["f1"] is not None]
    return {
        "f1_weighted": _weighted(per_class, "f1") if rows else None,
        "f1_macro": _ratio(sum(defined), len(defined)),
    }


def _probability_scores(truth: Ints, given: Floats) -> dict[str, float | None]:
    if not len(truth):
        return {"log_loss": None, "brier": None}
    of_truth = given[np.arange(len(truth)), truth]
    # (p - 1)^2 of the true class instead of p^2, without a second (n, k) array
    brier = (given**2).sum(axis=1) - of_truth**2 + (of_truth - 1) ** 2
    return {
        "log_loss": float(-np.log(np.clip(of_truth, LEAST_PROBABILITY, 1.0)).mean()),
        "brier": float(brier.mean()),
    }
