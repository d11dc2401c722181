"""A prediction request, read and checked: every fault is found, not only the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from api.deps import summary
from api.serving import LoadedModel
from shared.errors import MAX_FAULTS, Conflict, Fault, Invalid, TooLarge
from shared.signature import FLOAT32_MAX, MAX_TEXT, Signature, label_fault

FIELDS = frozenset({"raw_features", "inputs", "true_labels", "ids", "model_version"})


@dataclass(frozen=True, kw_only=True)
class Query:
    """A request without a fault. `rows` are canonical; `inputs` is float32 (n, m) or None."""

    size: int
    rows: Sequence[Mapping[str, Any]] | None
    inputs: npt.NDArray[np.float32] | None
    labels: Sequence[str | None] | None
    ids: Sequence[str | None] | None

    @property
    def labelled(self) -> bool:
        """Whether any row brings a label."""
        return _any(self.labels)


def read_query(body: object, model: LoadedModel, *, max_rows: int) -> Query:
    """Check a request against the live model.

    Raises:
        Invalid: with every fault, by row and feature.
        TooLarge: more than `max_rows` rows.
        Conflict: it is meant for a version that isn't live.
    """
    if not isinstance(body, dict):
        raise Invalid('the body must be an object such as {"raw_features": [{…}]}')
    size = _size(body, max_rows)
    faults = [
        Fault(detail="unknown field", feature=str(name)[:MAX_TEXT]) for name in body if name not in FIELDS
    ]
    wanted = body.get("model_version")
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int)):
        faults.append(Fault(detail="must be a whole number", feature="model_version", kind="type"))
    rows = _rows(body.get("raw_features"), model.signature, size, faults)
    inputs = _inputs(body.get("inputs"), model, size, faults)
    labels = _labels(body.get("true_labels"), size, faults)
    ids = _ids(body.get("ids"), size, faults)
    if rows is None and (_any(labels) or _any(ids)):
        faults.append(Fault(detail="true_labels and ids need raw_features: scaled inputs are not recorded"))
    if faults:
        raise Invalid(summary(faults), faults=faults)
    if wanted is not None and wanted != model.version:
        raise Conflict(f"version {wanted} is not live: version {model.version} is")
    return Query(size=size, rows=rows, inputs=inputs, labels=labels, ids=ids)


def _any(entries: Sequence[str | None] | None) -> bool:
    return entries is not None and any(entry is not None for entry in entries)


def _size(body: Mapping[str, Any], max_rows: int) -> int:
    leading = "raw_features" if body.get("raw_features") is not None else "inputs"
    rows = body.get(leading)
    if rows is None:
        raise Invalid("raw_features is missing: a list of objects, one per row")
    if not isinstance(rows, list) or not rows:
        raise Invalid(f"{leading} must be a list with at least one row")
    if len(rows) > max_rows:
        raise TooLarge(f"{len(rows)} rows where RATCHET_MAX_ROWS allows {max_rows}")
    return len(rows)


def _fits(value: object, name: str, size: int, faults: list[Fault]) -> bool:
    """Whether an optional list is there and as long as the rows."""
    if value is None:
        return False
    if not isinstance(value, list):
        faults.append(Fault(detail="must be a list, one entry per row", feature=name, kind="type"))
        return False
    if len(value) != size:
        faults.append(Fault(detail=f"{len(value)} entries for {size} rows", feature=name))
    return True


def _rows(
    value: Any, signature: Signature, size: int, faults: list[Fault]
) -> list[dict[str, float | str | None]] | None:
    if not _fits(value, "raw_features", size, faults):
        return None
    rows = []
    for number, row in enumerate(value):
        rows.append(signature.canonical(row, number, faults))
        if len(faults) > MAX_FAULTS:
            break
    return rows


def _inputs(value: Any, model: LoadedModel, size: int, faults: list[Fault]) -> npt.NDArray[np.float32] | None:
    if not _fits(value, "inputs", size, faults):
        return None
    width = len(model.scaled_features)
    before = len(faults)
    for number, row in enumerate(value):
        if not isinstance(row, list) or len(row) != width:
            got = f"{len(row)} numbers" if isinstance(row, list) else "no list"
            detail = f"{got} where {width} scaled features are needed"
            faults.append(Fault(detail=detail, row=number, kind="type"))
            continue
        faults.extend(
            Fault(
                detail="a number that float32 can hold is needed",
                row=number,
                feature=model.scaled_features[column]["name"],
                kind="range" if type(number_) in (int, float) else "type",
            )
            for column, number_ in enumerate(row)
            if not _is_float32(number_)
        )
    return np.array(value, dtype=np.float32) if len(faults) == before else None


def _is_float32(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def _labels(value: Any, size: int, faults: list[Fault]) -> list[str | None] | None:
    if not _fits(value, "true_labels", size, faults):
        return None
    for number, label in enumerate(value):
        if label is not None and (fault := label_fault(label)):
            faults.append(Fault(detail=fault, row=number, feature="true_labels", kind="label"))
    return list(value)


def _ids(value: Any, size: int, faults: list[Fault]) -> list[str | None] | None:
    if not _fits(value, "ids", size, faults):
        return None
    seen: dict[str, int] = {}
    for number, id_ in enumerate(value):
        if id_ is None:
            continue
        if not isinstance(id_, str) or not 1 <= len(id_) <= MAX_TEXT or "\x00" in id_:
            detail = f"an id must be a text of 1 to {MAX_TEXT} characters without NUL"
            faults.append(Fault(detail=detail, row=number, feature="ids", kind="id"))
        elif id_ in seen:
            detail = f"the id of row {seen[id_]} again"
            faults.append(Fault(detail=detail, row=number, feature="ids", kind="id"))
        else:
            seen[id_] = number
    return list(value)
