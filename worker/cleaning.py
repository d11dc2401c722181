"""Cleaning of training rows: impossible negatives become missing, outliers are removed or clipped.

Only the train side is cleaned: the holdout is what production sends, outliers included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shared.signature import Feature, Signature
from worker.rows import Rows

MOST_REMOVED = 0.2
"""Largest share of the rows that outlier removal may take."""
LEAST_DISTINCT = 10
"""A feature with fewer distinct values is a code or a count: its far values are groups, not errors."""

Outliers = Literal["remove", "clip", "off"]


@dataclass(frozen=True, kw_only=True)
class _Fence:
    column: int
    low: float
    high: float
    iqr: float


def negatives_to_missing(rows: Rows, signature: Signature) -> tuple[Rows, dict[str, int]]:
    """Values below zero in `non_negative` features become NaN.

    Returns:
        The rows, and the number of such values per feature that has any.
    """
    forbidden = np.array([f.non_negative for f in signature.numeric], dtype=bool)
    negative = (rows.numeric < 0) & forbidden
    counts = negative.sum(axis=0)
    found = {f.name: int(n) for f, n in zip(signature.numeric, counts, strict=True) if n}
    if not found:
        return rows, found
    return replace(rows, numeric=np.where(negative, np.float32(np.nan), rows.numeric)), found


def clean(
    rows: Rows, signature: Signature, *, outliers: Outliers, factor: float, min_class_rows: int
) -> tuple[Rows, dict[str, Any]]:
    """Training rows without impossible negatives and, as asked, without outliers.

    An outlier lies more than `factor` interquartile ranges beyond a quartile of its feature. Features
    with a range of 0 or fewer than 10 distinct values have none. `remove` takes at most 20 % of the
    rows, the most extreme first (by their farthest value, in IQRs beyond the fence), and leaves each
    class at least `min_class_rows` rows, or all that it has; `clip` moves values to the fence.

    Returns:
        The rows, and a report for JSON.
    """
    # First, or values that can't be right would bend the quartiles.
    cleaned, negatives = negatives_to_missing(rows, signature)
    report: dict[str, Any] = {
        "rows_in": len(rows),
        "negatives": negatives,
        "mode": outliers,
        "factor": factor,
        "outliers": {},
        "outlier_rows": 0,
        "removed": 0,
        "capped": False,
        "kept_for_their_class": 0,
    }
    fences = [] if outliers == "off" else _fences(cleaned.numeric, factor)
    if fences:
        beyond = _beyond(cleaned.numeric, fences)
        report["outliers"] = _per_feature(beyond, fences, signature.numeric)
        report["outlier_rows"] = int((beyond > 0).any(axis=1).sum())
        if outliers == "clip":
            cleaned = replace(cleaned, numeric=_clipped(cleaned.numeric, fences))
        else:
            keep, removal = _chosen(beyond.max(axis=1), cleaned.labels, min_class_rows)
            cleaned = cleaned.take(keep)
            report.update(removal)
    report["rows_out"] = len(cleaned)
    return cleaned, report


def _fences(numeric: npt.NDArray[np.float32], factor: float) -> list[_Fence]:
    fences = []
    for column in range(numeric.shape[1]):
        values = numeric[:, column].astype(np.float64)
        values = values[~np.isnan(values)]
        if len(values) < LEAST_DISTINCT:
            continue
        q1, q3 = (float(q) for q in np.quantile(values, (0.25, 0.75)))
        iqr = q3 - q1
        if iqr > 0 and len(np.unique(values)) >= LEAST_DISTINCT:
            low, high = q1 - factor * iqr, q3 + factor * iqr
            fences.append(_Fence(column=column, low=low, high=high, iqr=iqr))
    return fences


def _beyond(numeric: npt.NDArray[np.float32], fences: Sequence[_Fence]) -> npt.NDArray[np.float64]:
    """How far each value lies beyond its fence, in IQRs: (n, fences), 0 within and for missing."""
    columns = numeric[:, [f.column for f in fences]].astype(np.float64)
    low, high, iqr = (np.array([getattr(f, name) for f in fences]) for name in ("low", "high", "iqr"))
    distance = np.maximum(low - columns, columns - high) / iqr
    return np.where(distance > 0, distance, 0.0)


def _per_feature(
    beyond: npt.NDArray[np.float64], fences: Sequence[_Fence], features: Sequence[Feature]
) -> dict[str, int]:
    counts = (beyond > 0).sum(axis=0)
    return {features[f.column].name: int(n) for f, n in zip(fences, counts, strict=True) if n}


def _clipped(numeric: npt.NDArray[np.float32], fences: Sequence[_Fence]) -> npt.NDArray[np.float32]:
    clipped = numeric.copy()
    for fence in fences:
        np.clip(clipped[:, fence.column], fence.low, fence.high, out=clipped[:, fence.column])
    return clipped


def _chosen(
    extremeness: npt.NDArray[np.float64], labels: npt.NDArray[np.object_], min_class_rows: int
) -> tuple[npt.NDArray[np.bool_], dict[str, Any]]:
    """Which rows stay, and what the report says of it."""
    order = np.argsort(-extremeness, kind="stable")
    order = order[extremeness[order] > 0]
    spared = np.zeros(len(labels), dtype=bool)
    for label in sorted(set(labels[order].tolist())):
        of_class = order[labels[order] == label]
        total = int((labels == label).sum())
        may_go = total - min(min_class_rows, total)
        spared[of_class[may_go:]] = True
    candidates = order[~spared[order]]
    removed = candidates[: math.floor(MOST_REMOVED * len(labels))]
    keep = np.ones(len(labels), dtype=bool)
    keep[removed] = False
    return keep, {
        "removed": len(removed),
        "capped": len(removed) < len(candidates),
        "kept_for_their_class": int(spared.sum()),
    }
