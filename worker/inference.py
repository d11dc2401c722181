"""From a file's columns to a signature: which are features, of which kind, and what they may hold."""

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

from shared.errors import DataError
from shared.signature import MAX_TEXT, Feature
from worker.columns import categories, cells, labelled, labels, number, numbers, present

FEW_ROWS = 20
"""A class with fewer rows is said: too few to learn from (the default of RATCHET_MIN_CLASS_ROWS)."""

MOST_DISTINCT = 0.5
"""A text column where more of the rows than this are different, beyond the most categories, is an id."""

_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})( .*)?")
_ID_NAME = re.compile(r"(?i)(^|.*[_\W])(id|ids|uuid|guid|key|rowid|row_?names?|index)$|.*[a-z]I[Dd]$")
_DATE_NAME = re.compile(r"(?i).*(date|time|timestamp|epoch|_at)$")
_TIMES = (dt.date, dt.time, dt.timedelta)
_PLAIN = (str, bool, int, float, Decimal, np.generic, *_TIMES)
_CODE = re.compile(r"\s*0\d+\s*")


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """What a file's columns mean. `classes` holds rows per class, the largest first; `left_out` holds
    the reason for each column that is no feature; `rows` are those with a target, `unlabelled` those
    without."""

    target: str
    features: tuple[Feature, ...]
    classes: dict[str, int]
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    rows: int
    unlabelled: int


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What a column is: a kind of feature, or why it is none."""

    kind: Literal["numeric", "categorical"] | None = None
    reason: str = ""
    warning: str = ""


def infer(
    frame: pd.DataFrame,
    *,
    target: str,
    id_column: str | None = None,
    categorical: Sequence[str] = (),
    numeric: Sequence[str] = (),
    drop: Sequence[str] = (),
    max_categories: int = 50,
) -> Inferred:
    """The signature of a frame, and what was left out of it and why.

    A feature is required if no row lacks it, and non-negative if no row is below zero. Constant,
    date-like and id-like columns are left out unless named in `categorical` or `numeric`.

    Raises:
        DataError: a column that is named isn't there or is named twice, the target has fewer than two
            classes, no feature is left, or a cell can't be read.
    """
    frame = frame.rename(columns=str)
    known = labelled(frame, target)
    _check_names(frame, target, id_column, categorical=categorical, numeric=numeric, drop=drop)
    classes = _classes(known, target)
    given = _given(id_column, categorical=categorical, numeric=numeric, drop=drop)
    findings = {
        name: given.get(name) or _examine(frame[name], max_categories)
        for name in map(str, frame)
        if name != target
    }
    small = (f"class {name!r} has {n} rows, few to learn from" for name, n in classes.items() if n < FEW_ROWS)
    said = (f"{name}: {finding.warning}" for name, finding in findings.items() if finding.warning)
    left_out = {name: finding.reason for name, finding in findings.items() if not finding.kind}
    features = tuple(
        _feature(frame[name], finding.kind) for name, finding in findings.items() if finding.kind
    )
    if not features:
        _no_feature(target, left_out)
    return Inferred(
        target=target,
        features=features,
        classes=classes,
        left_out=left_out,
        warnings=(*small, *said),
        rows=len(known),
        unlabelled=len(frame) - len(known),
    )


def _given(
    id_column: str | None, *, categorical: Sequence[str], numeric: Sequence[str], drop: Sequence[str]
) -> dict[str, _Finding]:
    """What the user says of columns."""
    given = {name: _Finding(reason="dropped on request") for name in drop}
    given |= {name: _Finding(kind="categorical") for name in categorical}
    given |= {name: _Finding(kind="numeric") for name in numeric}
    return given | ({id_column: _Finding(reason="it identifies the row")} if id_column else {})


def _no_feature(target: str, left_out: dict[str, str]) -> NoReturn:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "there is no other"
    raise DataError(
        f"no column beside {target!r} can be a feature ({reasons}); name some with --categorical or --numeric"
    )


def _check_names(frame: pd.DataFrame, target: str, id_column: str | None, **options: Sequence[str]) -> None:
    named = [("--id", id_column)] if id_column else []
    named += [(f"--{option}", name) for option, names in options.items() for name in dict.fromkeys(names)]
    seen: dict[str, str] = {}
    for option, name in named:
        if name not in frame.columns:
            raise DataError(f"{option} {name}: no such column; the columns are {', '.join(map(str, frame))}")
        if name == target:
            raise DataError(f"{option} {name}: that is the target; leave it out of {option}")
        if name in seen:
            raise DataError(f"column {name!r} is named by {seen[name]} and by {option}; decide for one")
        seen[name] = option


def _classes(known: pd.DataFrame, target: str) -> dict[str, int]:
    classes = dict(Counter(labels(known, target)).most_common())
    if len(classes) < 2:
        found = f"only the class {next(iter(classes))!r}" if classes else "no value"
        raise DataError(f"the target {target!r} has {found}; a model needs rows of at least two classes")
    if len(classes) > max(20, len(known) // 5):
        raise DataError(
            f"the target {target!r} has {len(classes)} different values in {len(known)} rows: "
            "Ratchet tells classes apart, it doesn't estimate a number; choose another --target"
        )
    return classes


def _examine(column: "pd.Series[Any]", max_categories: int) -> _Finding:
    filled = present(column)
    if not filled.any():
        return _Finding(reason="it has no value in any row")
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype):
        return _Finding(reason="it is a date or time")
    if pd.api.types.is_bool_dtype(column.dtype):
        return _texts(column, max_categories)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return _figures(column)
    values = [cell for cell, there in zip(cells(column), filled, strict=True) if there]
    odd = next((type(value) for value in values if not isinstance(value, _PLAIN)), None)
    if odd:
        return _Finding(reason=f"it holds values of type {odd.__name__}, neither number nor text")
    if all(_is_date(value) for value in values):
        return _Finding(reason="it is a date or time")
    if isinstance(column.dtype, pd.CategoricalDtype) or not _all_numbers(values):
        return _texts(column, max_categories)
    return _figures(column)


def _is_date(value: object) -> bool:
    return isinstance(value, _TIMES) or (isinstance(value, str) and bool(_DATE.fullmatch(value.strip())))


def _all_numbers(values: Iterable[object]) -> bool:
    """Whether there are numbers and nothing else but blanks; truth values are none."""
    some = False
    for value in values:
        if isinstance(value, bool | np.bool_) or (isinstance(value, str) and _CODE.fullmatch(value)):
            return False  # 007 is a code: as a number it would lose its zeros
        try:
            some = not np.isnan(number(value)) or some
        except ValueError:
            return False
    return some


def _figures(column: "pd.Series[Any]") -> _Finding:
    values = numbers(column)
    values = values[~np.isnan(values)]
    if not values.size:
        return _Finding(reason="it has no value in any row")
    name, distinct = str(column.name), np.unique(values).size
    if distinct == 1:
        return _Finding(reason=f"it is {values[0]:g} in every row that has it")
    if _numbered(name, values, distinct):
        return _Finding(reason="it looks like an id: another whole number in every row")
    if _DATE_NAME.fullmatch(name) and values.min() > 1e8 and _whole(values):
        return _Finding(reason="it looks like a time, in seconds since an epoch")
    kept = np.unique(values.astype(np.float32)).size
    if kept < 0.9 * distinct:
        warning = f"float32 keeps {kept} of its {distinct} different values; is it an id or a time?"
        return _Finding(kind="numeric", warning=warning)
    return _Finding(kind="numeric")


def _numbered(name: str, values: npt.NDArray[np.float64], distinct: int) -> bool:
    """Whole numbers, all different, that follow one another or whose name says that they are ids."""
    if distinct < values.size or values.size < FEW_ROWS or not _whole(values):
        return False
    return bool(_ID_NAME.fullmatch(name)) or values.max() - values.min() + 1 == values.size


def _whole(values: npt.NDArray[np.float64]) -> bool:
    return bool((values == np.floor(values)).all())


def _texts(column: "pd.Series[Any]", max_categories: int) -> _Finding:
    if any(isinstance(cell, str) and len(cell) > MAX_TEXT for cell in cells(column)):
        return _Finding(reason=f"it holds texts of more than {MAX_TEXT} characters")
    found = [text for text in categories(column) if text is not None]
    distinct = len(set(found))
    if distinct == 1 and len(found) == len(column):
        return _Finding(reason=f"it is {found[0]!r} in every row")
    named = _ID_NAME.fullmatch(str(column.name)) and distinct == len(found) >= FEW_ROWS
    if named or distinct > max(max_categories, MOST_DISTINCT * len(found)):
        return _Finding(
            reason=f"it looks like an id or free text: {distinct} different texts in {len(found)} rows"
        )
    if distinct > max_categories:
        rest = f"{distinct} categories: the {max_categories} most frequent are kept, the rest are one"
        return _Finding(kind="categorical", warning=rest)
    return _Finding(kind="categorical")


def _feature(column: "pd.Series[Any]", kind: Literal["numeric", "categorical"]) -> Feature:
    if kind == "categorical":
        categories(column)  # a cell that can't be a category is found now, not in training
        return Feature(name=str(column.name), kind=kind, required=bool(present(column).all()))
    values = numbers(column)
    missing = np.isnan(values)
    return Feature(
        name=str(column.name),
        kind=kind,
        required=not missing.any(),
        non_negative=bool((values[~missing] >= 0).all()),
    )
